"""A study of objectives as one report: means, intervals over the seeds, plots, and the runs behind them."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from srgan.commands.cli import app
from srgan.errors import UsageError
from srgan.pages.plots import Dots, Lines, sheet
from srgan.pages.study import (
    Outcome,
    half_interval,
    read_outcome,
    report,
    series_of,
    table,
    verdict,
    write_outcome,
)
from srgan.training.config import OBJECTIVE_DEFAULTS, Recipe

ALONE = 4  # steps of the discriminator before the game


def finished(study: Path, outcome: Outcome, name: str = "") -> None:
    """A run as `tools/objectives.py` leaves it, with a log of ten steps of the game."""
    run = study / (name or f"{outcome.objective}-{outcome.seed}")
    run.mkdir(parents=True)
    rows = [
        {
            "stage": "adversarial",
            "step": step,
            "elapsed_s": float(step),
            "discriminator_accuracy": 0.7,
            "gradient_norm": 0.1,
            "gradient/content": 0.5,
            "gradient/adversarial": 0.25,
        }
        for step in range(1, ALONE + 11)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe().model_dump(mode="json")
    recipe["adversarial"]["discriminator_alone_steps"] = ALONE
    (run / "recipe.json").write_text(json.dumps(recipe))
    write_outcome(run, outcome)


def outcome(objective: str, seed: int, lpips: float, **more: float) -> Outcome:
    values = {"psnr_y": 26.0 + seed, "lr_psnr": 40.0, "frechet": 20.0, "weight": 0.02, "pull": 0.5, **more}
    values |= {"accuracy": 0.7, "gradient_norm": 0.05, "stable": 0.99}
    return Outcome(objective, seed, lpips=lpips, alarms=0, **values)


OUTCOMES = [
    Outcome("pre-trained", 0, 26.73, 0.4132, 44.2, 31.0),
    *(outcome("lsgan", seed, lpips) for seed, lpips in enumerate((0.1, 0.2, 0.3))),
    *(outcome("wgan-gp", seed, lpips, frechet=math.nan) for seed, lpips in enumerate((0.4, 0.5, 0.6))),
]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    for each in OUTCOMES:
        finished(folder, each, "pretrained" if each.objective == "pre-trained" else "")
    (folder / "dragan-0").mkdir()  # not finished yet
    (folder / "lsgan.weight.json").write_text("0.02")
    return folder


def test_half_an_interval_is_students() -> None:
    # Of 1, 2, 3: t at 0.975 with two degrees of freedom is 4.3027; the deviation 1.
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert math.isnan(half_interval([1.0]))


def test_a_row_has_means_and_intervals_over_its_seeds() -> None:
    lines = table(OUTCOMES).splitlines()
    headings = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    rows = {row[0]: dict(zip(headings, row, strict=True)) for row in map(cells, lines[2:])}
    assert list(rows) == ["`pre-trained`", "`lsgan`", "`wgan-gp`"]
    assert rows["`pre-trained`"]["LPIPS"] == "0.4132"
    assert rows["`lsgan`"]["LPIPS"] == "0.2000 ± 0.2484"
    assert rows["`lsgan`"]["PSNR-Y dB"] == "27.00 ± 2.48"
    assert rows["`lsgan`"]["FID on VGG16"] == "20.00 ± 0.00"
    assert rows["`wgan-gp`"]["FID on VGG16"] == "–"
    assert rows["`lsgan`"] | {"seeds": "3", "weight": "0.02", "stable": "99%", "alarms": "0.0"} == rows["`lsgan`"]
    assert {"LR-PSNR dB", "pull", "D accuracy", "gradient norm"} < set(headings)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_objectives_are_weighed_against_seeds() -> None:
    # Two groups of deviation 0.1 that lie 0.3 apart: F = 3 x 0.3² / 2 / 0.1² = 13.5.
    (line,) = (line for line in verdict(OUTCOMES) if line.startswith("LPIPS"))
    assert line.startswith(
        "LPIPS: means from 0.2000 (`lsgan`) to 0.5000 (`wgan-gp`), deviation over seeds 0.1000;"
    )
    assert "F = 13.5, p = 0.021" in line
    assert not [line for line in verdict(OUTCOMES) if line.startswith(("FID", "LR-PSNR"))]  # one group, no spread
    assert verdict(OUTCOMES[:2]) == []


def test_an_outcome_is_read_as_it_was_written(study: Path) -> None:
    assert read_outcome(study / "lsgan-1") == OUTCOMES[2]
    assert read_outcome(study / "dragan-0") is None
    # What an earlier study left has fewer figures.
    old = {key: value for key, value in asdict(OUTCOMES[2]).items() if key not in ("frechet", "alarms")}
    (study / "lsgan-1" / "outcome.json").write_text(json.dumps(old))
    assert math.isnan(read_outcome(study / "lsgan-1").frechet)  # type: ignore[union-attr]
    (study / "lsgan-1" / "outcome.json").write_text("{")
    with pytest.raises(UsageError, match=r"lsgan-1/outcome\.json cannot be read"):
        read_outcome(study / "lsgan-1")


def test_steps_are_those_of_the_generator(study: Path) -> None:
    series = series_of(study / "lsgan-0")
    assert series["pull"][0] == (1 - ALONE, 0.5)
    assert series["pull"][-1] == (10, 0.5)


def test_the_command_writes_and_prints_what_is_finished(study: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["compare", "--study", str(study), "-o", str(page)])
    assert done.exit_code == 0, done.output
    text = (study / "objectives.md").read_text()
    assert done.stdout == f"{text}\n{page}\n"
    assert table(OUTCOMES) in text
    html = page.read_text()
    assert "0.2000 ± 0.2484" in html
    assert "F = 13.5" in html
    assert "data:image/svg+xml;base64," in html
    assert "lsgan-0" in html  # the first seed's runs, side by side
    assert "lsgan-1" not in html
    ET.fromstring((study / "objectives.svg").read_text())
    assert not list(study.glob("*.html"))


def test_what_is_no_study_is_refused(study: Path, tmp_path: Path) -> None:
    for folders, message in (([tmp_path], "holds no study"), ([study, study], "takes one folder")):
        done = CliRunner().invoke(
            app, ["compare", "--study", *map(str, folders), "-o", str(tmp_path / "page.html")]
        )
        assert done.exit_code != 0
        assert message in f"{done.output}{done.exception}"
    assert not (tmp_path / "page.html").exists()


def test_a_study_of_one_run_is_reported_and_one_of_the_start_alone(tmp_path: Path) -> None:
    finished(tmp_path, OUTCOMES[0], "pretrained")
    page = tmp_path / "page.html"
    assert "0.4132" in report(tmp_path, page, ["lsgan"])
    assert not (tmp_path / "objectives.svg").exists()
    finished(tmp_path, OUTCOMES[1])
    assert "0.1000" in report(tmp_path, page, ["lsgan"])
    assert "lsgan-0" in page.read_text()


def test_nine_objectives_are_told_apart() -> None:
    rows = {name: [1.0] for name in OBJECTIVE_DEFAULTS}
    drawing = ET.fromstring(
        sheet("t", [Lines("l", {name: [(0, 1.0)] for name in rows})], [Dots("d", rows)], x_name="x")
    )
    texts = [e for e in drawing.iter("{http://www.w3.org/2000/svg}text") if e.text in rows]
    legend = [(float(e.get("x", "")), float(e.get("y", ""))) for e in texts[:9]]
    assert len(set(legend)) == len(rows) == 9
    assert max(x for x, _ in legend) < 1000  # of 1100, with room for the longest name
    style = "".join(e.text or "" for e in drawing.iter("{http://www.w3.org/2000/svg}style"))
    for number in range(9):
        assert f".s{number} " in style
        assert style.count(f"--s{number}:") == 2  # on light and on dark ground
