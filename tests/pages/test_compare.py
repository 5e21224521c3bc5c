"""Several runs on one page: every curve of every run, what differs, and the best of each row."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from srgan.errors import SrganError, UsageError
from srgan.pages.compare import compare, compare_command
from srgan.pictures import Picture, encode
from srgan.training.config import Recipe


def make_run(folder: Path, lpips: list[float], *, objective: str = "lsgan", strips: int = 3) -> Path:
    folder.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for number, value in enumerate(lpips, 1):
        step, elapsed = 10 * number, 60.0 * number
        rows.append({"stage": "pretrain", "step": step, "elapsed_s": elapsed, "content": 0.1 / number})
        rows.append({"stage": "pretrain", "step": step, "elapsed_s": elapsed, "validation/lpips": value})
    rows.append({"stage": "pretrain", "step": 10, "elapsed_s": 60.0, "alarm": "something"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.json").write_text(Recipe(objective=objective).model_dump_json())
    (folder / "samples").mkdir()
    for number in range(strips):
        strip = encode(Picture(np.full((8, 24, 3), 20 * number, np.uint8)), "png")
        (folder / "samples" / f"pretrain-{10 * number:09d}.png").write_bytes(strip)
    return folder


class Rows(HTMLParser):
    """The cells of every table row, by the row's first cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._inside = True
            self.rows[-1].append("")
        elif tag == "b" and self._inside:
            self.rows[-1][-1] += "*"

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def cells(page: str, name: str) -> list[str]:
    (row,) = (row for row in Rows(page).rows if row and row[0] == name)
    return row[1:]


def test_figures_of_all_runs_stand_beside_each_other(tmp_path: Path) -> None:
    page = compare([make_run(tmp_path / "a", [0.5, 0.3, 0.4]), make_run(tmp_path / "b", [0.6, 0.35])])
    assert cells(page, "LPIPS, last") == ["0.4000", "*0.3500"]
    assert cells(page, "LPIPS, best") == ["*0.3000 at 20", "0.3500 at 20"]
    assert cells(page, "Steps") == ["30", "20"]
    assert cells(page, "Time") == ["3 min", "2 min"]
    assert cells(page, "Alarms") == ["1", "1"]


def test_only_what_differs_of_the_recipes_is_shown(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "a", [0.5]), make_run(tmp_path / "b", [0.5], objective="wgan")
    page = compare([one, other])
    assert cells(page, "objective") == ["lsgan", "wgan"]
    assert "pretrain.steps" not in page
    assert "All runs have the same recipe" in compare([one, make_run(tmp_path / "c", [0.5])])


def test_every_run_has_a_curve_in_every_chart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, [0.5, 0.4]) for name in ("a", "b", "c")]
    page = compare(runs)
    for key in ("content", "validation/lpips"):
        for run in runs:
            assert f'data-key="{run.name}/pretrain/{key}"' in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    page = compare([make_run(tmp_path / "x" / "run", [0.5]), make_run(tmp_path / "y" / "run", [0.5])])
    assert "<h1>x/run · y/run</h1>" in page


def test_samples_go_through_the_time_of_each_run(tmp_path: Path) -> None:
    page = compare([make_run(tmp_path / "a", [0.5], strips=9), make_run(tmp_path / "b", [0.5], strips=2)])
    moments = re.findall(r"<li data-when.*?</li>", page, re.DOTALL)
    assert len(moments) == 6
    assert all(moment.count("<img") == 2 for moment in moments)
    assert "a: Pretrain, step 80" in moments[-1]
    assert "b: Pretrain, step 10" in moments[-1]
    assert "a: Pretrain, step 0" in moments[0]
    bare = compare([make_run(tmp_path / name, [0.5], strips=0) for name in ("c", "d")])
    assert "Held-out samples" not in bare


def test_names_are_text(tmp_path: Path) -> None:
    page = compare([make_run(tmp_path / "<i>a", [0.5]), make_run(tmp_path / "b", [0.5])])
    assert "<i>" not in page


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [0.5])
    with pytest.raises(UsageError, match="two runs or more"):
        compare([run])
    with pytest.raises(UsageError, match="given twice"):
        compare([run, run.parent / "." / "a"])
    with pytest.raises(UsageError, match="holds no run"):
        compare([run, tmp_path])
    other = make_run(tmp_path / "b", [0.5])
    with pytest.raises(SrganError, match="cannot be written"):
        compare_command([run, other], run / "metrics.jsonl" / "page.html")
    assert compare_command([run, other], tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
