"""The report: every scalar is drawn where it belongs, nothing comes from outside, and a torn log is no hurdle."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srgan.errors import SrganError, UsageError
from srgan.pages.charts import Look, Series, figure, line_chart, linear_ticks, log_ticks, smoothed, thousands
from srgan.pages.report import report, report_command
from srgan.pages.runs import read_log

VOID = {"meta", "input", "img", "br", "link", "hr"}
PRETRAIN = {"learning_rate": 1e-4, "content": 0.02, "gradient_norm": 0.3}
GAME = PRETRAIN | {
    "perceptual": 1.5,
    "artifact": 0.0,
    "adversarial": -0.7,
    "discriminator": 1.2,
    "discriminator_accuracy": 0.8,
    "gradient/content": 1e-4,
    "gradient/adversarial": 2e-4,
    "something_new": 3.0,
    "balance/k": 0.1,
    "patches_per_s": 7.0,
}
SCORES = {
    "validation/psnr_y": 28.0,
    "validation/ssim_y": 0.8,
    "validation/lpips": 0.3,
    "validation/lr_psnr": 45.0,
    "validation/colour_shift": -0.2,
    "validation/unheard_of": 5.0,
}


class Page(HTMLParser):
    """The page as its elements: fails on a tag that is not closed in order, collects what the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.curves: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, attrs)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {key: value or "" for key, value in attrs}
        assert len(known) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, known))
        if "data-key" in known:
            self.curves[known["data-key"]] = []
        elif tag == "path":
            self.curves[list(self.curves)[-1]].append(known["d"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def row(stage: str, step: int, elapsed_s: float | None = None, **scalars: object) -> dict[str, object]:
    return {"stage": stage, "step": step, "elapsed_s": step / 10 if elapsed_s is None else elapsed_s, **scalars}


def make_run(folder: Path, rows: list[dict[str, object]], *, end: str = "") -> Path:
    run = folder / "a run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in rows) + end)
    return run


def add_strip(run: Path, name: str, shade: int = 0, size: tuple[int, int] = (12, 8)) -> None:
    (run / "samples").mkdir(exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).save(run / "samples" / name)


def long_game(steps: int = 60) -> list[dict[str, object]]:
    rows = [row("pretrain", step, **PRETRAIN) for step in range(10, 10 * steps, 10)]
    rows.append(row("pretrain", 10 * steps, **SCORES))
    rows += [row("adversarial", step, elapsed_s=100 + step, **GAME) for step in range(10, 10 * steps, 10)]
    return [*rows, row("adversarial", 10 * steps, 100 + 10 * steps, **SCORES)]


def points_of(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def test_every_logged_scalar_has_a_curve(tmp_path: Path) -> None:
    page = Page(report(make_run(tmp_path, long_game())))
    expected = {f"pretrain/{key}" for key in PRETRAIN | SCORES} | {f"adversarial/{key}" for key in GAME | SCORES}
    assert page.curves.keys() == expected
    for key, paths in page.curves.items():
        drawn = [point for path in paths for point in points_of(path)]
        assert drawn, key
        assert all(0 <= x <= 400 and 0 <= y <= 220 for x, y in drawn), key


def test_the_page_is_well_formed_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    run = make_run(tmp_path, long_game())
    (run / "recipe.json").write_text(json.dumps({"seed": 3, "pretrain": {"batch_size": 8, "betas": [0.9, 0.99]}}))
    for step in (100, 200):
        add_strip(run, f"pretrain-{step:06d}.png")
    html = report(run)
    page = Page(html)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?:|url\(|@import|//[a-z]", html)
    assert "prefers-color-scheme: dark" in html
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert not re.search(r"\$[a-z{]", html)


def test_text_from_the_run_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    run = make_run(
        tmp_path,
        [row(evil, 1, **{evil: 1.0}), row(evil, 1, **{f"validation/{evil}": 1.0}), row("p", 2, alarm=evil)],
    )
    (run / "recipe.json").write_text(json.dumps({evil: evil, "section": {evil: {evil: evil}}}))
    html = report(run)
    page = Page(html)
    assert html.count("<script") == 1
    assert "alert(1)</script" not in html
    assert f"{evil}/{evil}" in page.curves
    assert page.text.count("alert(1)") >= 5  # shown, not swallowed


def test_a_curve_is_drawn_to_scale(tmp_path: Path) -> None:
    rows = [row("pretrain", step, learning_rate=rate) for step, rate in ((0, 1e-2), (50, 1e-3), (100, 1e-4))]
    (dots, line) = Page(report(make_run(tmp_path, rows))).curves["pretrain/learning_rate"]
    assert points_of(line) == points_of(dots)
    (x0, y0), (x1, y1), (x2, y2) = points_of(line)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 < y1 < y2  # down is smaller
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11)  # a decade is a decade


def test_one_single_entry_is_a_dot(tmp_path: Path) -> None:
    page = Page(report(make_run(tmp_path, [row("pretrain", 50, content=0.5)])))
    dots, _line = page.curves["pretrain/content"]
    assert re.fullmatch(r"M[\d.]+ [\d.]+h0", dots)


@pytest.mark.parametrize(
    "end",
    ["", "{", '{"stage": "pretrain", "st', "\x00\x00", '{"stage": "pretrain", "step": 60, "content": 9'],
)
def test_a_torn_last_line_is_left_out_without_a_word(tmp_path: Path, end: str) -> None:
    page = Page(report(make_run(tmp_path, [row("pretrain", 50, content=0.5)], end=end)))
    assert "50 steps" in page.text
    assert "could not be read" not in page.text


def test_a_last_line_that_lacks_only_its_end_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path, [row("pretrain", 50, content=0.5)], end=json.dumps(row("pretrain", 60, content=0.4)))
    assert "60 steps" in Page(report(run)).text


def test_unreadable_lines_inside_are_counted(tmp_path: Path) -> None:
    good = json.dumps(row("pretrain", 50, content=0.5))
    lines = ["[1, 2]", '{"stage": "pretrain"}', '{"stage": 3, "step": 1}', '{"st' + good, "3", good, "\xff"]
    log = read_log("\n".join([*lines, ""]).encode("latin-1"))
    assert log.unreadable == 6
    assert [entry.step for entry in log.stages["pretrain"]] == [50]
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("\n".join([*lines, ""]), encoding="latin-1")
    assert "6 lines of metrics.jsonl could not be read" in Page(report(run)).text


def test_what_a_resumed_run_tells_again_counts() -> None:
    told = [row("pretrain", step, content=1.0) for step in (10, 20, 30, 40)]
    told += [row("pretrain", 40, **{"validation/lpips": 0.9})]
    told += [row("pretrain", step, content=2.0) for step in (30, 40)]  # killed at 40, resumed from 25
    told += [row("adversarial", 10, content=3.0)]
    log = read_log("".join(json.dumps(values) + "\n" for values in told).encode())
    series = log.series("pretrain")
    assert series["content"] == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    assert "validation/lpips" not in series  # of a future that did not happen
    assert list(log.stages) == ["pretrain", "adversarial"]


def test_a_value_that_is_not_finite_is_a_gap_and_a_warning(tmp_path: Path) -> None:
    rows = [row("pretrain", step, content=value) for step, value in ((1, 1.0), (2, None), (3, 2.0), (4, 1.5))]
    rows.append(row("pretrain", 5, content=math.nan))  # json.dumps writes NaN
    page = Page(report(make_run(tmp_path, rows)))
    assert "Pretrain, step 2 : content was not finite in 2 of 5 rows" in page.text
    _dots, line = page.curves["pretrain/content"]
    assert line.count("M") == 2
    assert len(points_of(line)) == 3


def test_a_series_that_was_never_finite_is_still_named(tmp_path: Path) -> None:
    page = Page(report(make_run(tmp_path, [row("pretrain", 1, content=None), row("pretrain", 2, content=None)])))
    assert page.curves == {"pretrain/content": ["", ""]}
    assert "never finite" in page.text


def test_alarms_are_shown_and_the_same_one_is_counted(tmp_path: Path) -> None:
    rows = [row("adversarial", 10, content=1.0)]
    rows += [row("adversarial", step, alarm="the discriminator always wins") for step in (10, 20, 30)]
    rows += [row("adversarial", 40, alarm="colours drift")]
    text = Page(report(make_run(tmp_path, rows))).text
    assert "Adversarial, step 10 : the discriminator always wins (3 times, last at step 30)" in text
    assert "Adversarial, step 40 : colours drift" in text
    assert text.count("always wins") == 1


def test_without_trouble_there_is_no_warning(tmp_path: Path) -> None:
    assert not any(
        element.get("class") == "alarms" for element in Page(report(make_run(tmp_path, long_game()))).all("ul")
    )


def test_the_final_table_gives_last_and_best(tmp_path: Path) -> None:
    scores = [(10, 28.0, 0.30, -0.9), (20, 29.0, 0.20, 0.1), (30, 28.5, 0.25, -0.4)]
    rows = [
        row(
            "pretrain",
            step,
            **{"validation/psnr_y": psnr, "validation/lpips": lpips, "validation/colour_shift": shift},
        )
        for step, psnr, lpips, shift in scores
    ]
    text = Page(report(make_run(tmp_path, rows))).text
    assert "PSNR-Y 28.50 29.00 at 20" in text
    assert "LPIPS 0.2500 0.2000 at 20" in text
    assert "Colour shift -0.40 0.10 at 20" in text  # nearest to 0, not the smallest


def test_steps_minutes_and_speed_of_each_stage(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        [
            row("pretrain", 600, 300.0, content=1.0),
            row("adversarial", 60, 600.0, content=1.0, patches_per_s=5.0),
            row("adversarial", 120, 900.0, content=1.0, patches_per_s=7.0),
            row("adversarial", 180, 1200.0, content=1.0, patches_per_s=6.0),
        ],
    )
    (run / "recipe.json").write_text(json.dumps({"pretrain": {"batch_size": 8}}))
    text = Page(report(run)).text
    assert "Pretrain 600 5 min 16" in text  # 600 steps of 8 patches in 300 s
    assert "Adversarial 180 15 min 6" in text  # as logged


def test_the_recipe_is_shown_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path, [row("pretrain", 1, content=1.0)])
    recipe = {"seed": 0, "losses": {"perceptual": {"layers": {"conv5_4": 1.0}, "file": ""}}, "empty": {"x": {}}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    text = Page(report(run)).text
    assert "seed 0" in text
    assert "perceptual.layers.conv5_4 1.0" in text
    assert 'perceptual.file ""' in text
    assert "x {}" in text


@pytest.mark.parametrize("content", [None, "{", "[]", "\x00"])
def test_a_missing_or_broken_recipe_is_said(tmp_path: Path, content: str | None) -> None:
    run = make_run(tmp_path, [row("pretrain", 1, content=1.0)])
    if content is not None:
        (run / "recipe.json").write_text(content)
    assert "no readable recipe.json" in Page(report(run)).text


def test_samples_stand_in_the_order_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, [row("pretrain", 9, content=1.0), row("adversarial", 9, content=1.0)])
    for name in ("adversarial-000005.png", "pretrain-1000.png", "pretrain-000200.png", "stray.png"):
        add_strip(run, name, size=(30, 20))
    (run / "samples" / "pretrain-000001.png").write_bytes(b"half a picture")
    (run / "samples" / "pretrain-000002.txt").write_text("notes")
    page = Page(report(run))
    pictures = page.all("img")
    assert [picture["alt"] for picture in pictures] == [
        "Samples: Pretrain, step 200",
        "Samples: Pretrain, step 1,000",
        "Samples: Adversarial, step 5",
    ]
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in pictures)
    assert {(picture["width"], picture["height"]) for picture in pictures} == {("30", "20")}
    (slider,) = page.all("input")
    assert (slider["min"], slider["max"]) == ("0", "2")
    # Without the script the slider is hidden and the strips are a list.
    assert next(element for element in page.all("div") if element.get("class") == "slider")["hidden"] == ""


def test_of_many_samples_some_are_shown_the_ends_among_them(tmp_path: Path) -> None:
    run = make_run(tmp_path, [row("pretrain", 9, content=1.0)])
    for step in range(1, 61):
        add_strip(run, f"pretrain-{step:06d}.png")
    page = Page(report(run))
    shown = [picture["alt"] for picture in page.all("img")]
    assert len(shown) == len(set(shown)) < 60
    assert shown[0].endswith("step 1")
    assert shown[-1].endswith("step 60")
    assert f"{len(shown)} of 60 strips" in page.text


def test_a_run_without_samples_has_no_sample_section(tmp_path: Path) -> None:
    page = Page(report(make_run(tmp_path, [row("pretrain", 1, content=1.0)])))
    assert not page.all("img")
    assert "samples over time" not in page.text


def test_a_long_run_makes_a_page_of_reasonable_size(tmp_path: Path) -> None:
    rows = [row("pretrain", step, **PRETRAIN) for step in range(100, 500_000, 100)]
    html = report(make_run(tmp_path, rows))
    assert len(html) < 200_000
    assert "499,900 steps" in Page(html).text


def test_report_command_writes_where_it_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, [row("pretrain", 1, content=1.0)])
    assert report_command(run, None) == run / "report.html"
    out = tmp_path / "new folder" / "page.html"
    assert report_command(run, out) == out
    assert out.read_text(encoding="utf-8") == (run / "report.html").read_text(encoding="utf-8")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no run \(metrics.jsonl is missing\)"):
        report_command(tmp_path, None)
    with pytest.raises(UsageError, match="holds no run"):
        report_command(tmp_path / "nowhere", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="holds no run"):
        report_command(tmp_path / "file", None)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(UsageError, match="no complete row yet"):
        report_command(make_run(tmp_path, [], end='{"stage"'), None)


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path, [row("pretrain", 1, content=1.0)])
    with pytest.raises(SrganError, match=r"cannot be written: .*choose another place"):
        report_command(run, run / "metrics.jsonl" / "page.html")
    with pytest.raises(SrganError, match=r"cannot be written: .*choose another place"):
        report_command(run, run)
    assert list(run.iterdir()) == [run / "metrics.jsonl"]


def test_alarms_alone_make_a_report(tmp_path: Path) -> None:
    page = Page(report(make_run(tmp_path, [row("pretrain", 1, alarm="the disk is nearly full")])))
    assert "the disk is nearly full" in page.text


# --- charts ---------------------------------------------------------------------------------------------------


def test_linear_ticks_are_round_and_within() -> None:
    assert linear_ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert linear_ticks(27.83, 28.61, 4) == [28.0, 28.2, 28.4, 28.6]
    assert linear_ticks(-0.3, 0.3, 3) == [-0.2, 0.0, 0.2]
    assert linear_ticks(5, 5, 4) == [5]


def test_log_ticks_are_decades_or_finer() -> None:
    assert log_ticks(2e-4, 3) == pytest.approx([1e-3, 1e-2, 1e-1, 1])
    assert log_ticks(0.009, 0.03) == pytest.approx([0.01, 0.02])
    assert len(log_ticks(1e-30, 1)) < 10


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234567, "0.01235"), (31.82, "31.82"), (1e-6, "1e-6"), (-2.5e-4, "-2.5e-4"), (120_000, "120k")],
)
def test_figures_are_short(value: float, text: str) -> None:
    assert figure(value) == text


def test_counts_are_short() -> None:
    assert [thousands(n) for n in (0, 950, 3050, 120_000, 1_000_000)] == ["0", "950", "3.05k", "120k", "1M"]


def test_smoothing_keeps_a_constant_and_does_not_lag() -> None:
    assert [value for _, value in smoothed([(step, 2.0) for step in range(100)])] == pytest.approx([2.0] * 100)
    ramp = smoothed([(step, float(step)) for step in range(100)])
    assert [value for _, value in ramp[2:-2]] == pytest.approx(list(range(2, 98)))


def test_a_spike_survives_the_thinning() -> None:
    points = [(step, 100.0 if step == 777 else math.sin(step)) for step in range(5000)]
    chart = line_chart("Spike", [Series("spike", "spike", points)])
    faint = re.search(r'class="faint" d="([^"]*)"', chart)
    assert faint
    drawn = points_of(faint[1])
    assert len(drawn) <= 320
    spike_x = 46 + (392 - 46) * 777 / 4999
    assert any(abs(x - spike_x) < 0.2 and y == 10.0 for x, y in drawn)  # at the upper edge


def test_one_outlier_does_not_flatten_the_rest() -> None:
    points = [(step, 1e6 if step == 500 else 1.0 + step / 1000) for step in range(1000)]
    line = re.search(
        r'class="line" d="([^"]*)"', line_chart("Outlier", [Series("k", "k", points)], Look(smooth=False))
    )
    assert line
    heights = [y for x, y in points_of(line[1]) if x < 200]
    assert max(heights) - min(heights) > 60


def test_zeros_do_not_cost_a_chart_its_logarithm() -> None:
    points = [(1, 0.0), (2, 0.001), (3, 0.1)]
    chart = line_chart("Log", [Series("k", "k", points)], Look(log=True))
    line = re.search(r'class="line" d="([^"]*)"', chart)
    assert line
    assert points_of(line[1])[0][1] == 194.0  # on the floor
    assert ">0.01<" in chart


def test_a_negative_value_makes_the_chart_linear() -> None:
    chart = line_chart("Linear", [Series("k", "k", [(1, -1.0), (2, 1.0)])], Look(log=True))
    assert ">-1<" in chart
    assert ">0<" in chart


def test_the_title_over_a_place_says_every_value_there() -> None:
    chart = line_chart("Two", [Series("a", "A", [(1, 5.0), (3, 7.0)]), Series("b", "B", [(1, 0.5), (3, 0.25)])])
    assert re.findall(r"<title>([^<]*)</title>", chart) == ["step 1\nA 5\nB 0.5", "step 3\nA 7\nB 0.25"]
