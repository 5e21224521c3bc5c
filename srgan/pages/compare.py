"""Several training runs side by side on one HTML page: figures, differences of the recipes, curves and samples."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from srgan.errors import UsageError
from srgan.evaluation.measures import LOGGED, MEASURES, Measure, logged_measure
from srgan.pages.charts import COLOURS, PLAIN, Look, Series, line_chart, thousands
from srgan.pages.layout import Cell, render, write_page
from srgan.pages.report import GROUPS, best_point, in_order
from srgan.pages.runs import (
    Points,
    RunLog,
    Strip,
    flat_settings,
    plain,
    read_recipe,
    read_run,
    read_strip,
    strip_files,
)
from srgan.texts import duration

_MOMENTS = 6  # of each run that are shown as strips, from its beginning to its end


@dataclass(frozen=True)
class _Run:
    name: str
    folder: Path
    log: RunLog
    recipe: dict[str, str]  # flat: "pretrain.steps" and its value in JSON


def compare_command(runs: Sequence[Path], out: Path) -> Path:
    """Write the page that compares the run folders `runs` to `out`, and return its path.

    Runs may still be going on. Raises UsageError if one holds no run or there are fewer than two, SrganError if
    `out` cannot be written.
    """
    write_page(out, compare(runs))
    return out


def compare(folders: Sequence[Path]) -> str:
    """Return the page for the run folders; raises UsageError as `compare_command` does."""
    if len(folders) < 2:
        raise UsageError("a comparison needs two runs or more: give their folders")
    return render("compare.html.j2", **side_by_side(folders))


def side_by_side(folders: Sequence[Path]) -> dict[str, Any]:
    """Return what compare.html.j2 shows of the run folders; raises UsageError if one holds no run."""
    runs = [
        _Run(name, folder, read_run(folder)[0], _flat_recipe(folder))
        for name, folder in zip(_names(folders), folders, strict=True)
    ]
    stages = list(dict.fromkeys(stage for run in runs for stage in run.log.stages))
    return {
        "look": "report",
        "title": "Runs side by side",
        "names": [run.name for run in runs],
        "figures": [(plain(stage), _figures(stage, runs)) for stage in stages],
        "warnings": differences_of_data(folders),
        "differences": _differences(runs),
        "moments": _moments(runs, stages),
        "charts": [(plain(stage), _charts(stage, runs)) for stage in stages],
    }


def differences_of_data(folders: Sequence[Path]) -> list[str]:
    """Return why the figures of runs do not compare: they saw, or are judged by, other pictures, or other LR."""
    recipes = [read_recipe(folder) for folder in folders]
    records = [
        recipe.get("run", {})
        | {"scale": recipe.get("generator", {}).get("scale", 4)}
        | {key: recipe[key] for key in ("degradation",) if key in recipe}
        for recipe in recipes
    ]
    texts = {
        "data_sha256": "the runs were trained on different pictures",
        "held_out_sha256": "the runs are judged by different pictures, so their figures do not compare",
        "scale": "the runs are of different scales, so their figures do not compare",
        "degradation": "the runs are judged by differently degraded LR, so their figures do not compare",
    }
    seen = {key: [json.dumps(record[key]) for record in records if key in record] for key in texts}
    return [text for key, text in texts.items() if len(set(seen[key])) > 1]


def _names(folders: Sequence[Path]) -> list[str]:
    """As many last parts of each path as tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise UsageError("the same run was given twice: give each folder once")
    depths = range(1, max(map(len, paths), default=1) + 1)
    depth = next(n for n in depths if len({path[-n:] for path in paths}) == len(paths))
    return ["/".join(path[-depth:]) for path in paths]


def _flat_recipe(folder: Path) -> dict[str, str]:
    """The settings of no section first, then those of the sections."""
    recipe = {key: value for key, value in read_recipe(folder).items() if key != "run"}
    return dict(flat_settings(dict(sorted(recipe.items(), key=lambda item: isinstance(item[1], dict)))))


def _figures(stage: str, runs: Sequence[_Run]) -> list[tuple[str, list[Cell]]]:
    """Steps, time, alarms and the last and best validation of each run."""
    seconds = [dict(run.log.seconds()) for run in runs]
    alarms = [sum(alarm.times for alarm in run.log.alarms if alarm.stage == stage) for run in runs]
    rows = [
        (
            "Steps",
            [Cell(f"{run.log.stages[stage][-1].step:,}") if stage in run.log.stages else Cell() for run in runs],
        ),
        ("Time", [Cell(duration(taken[stage])) if stage in taken else Cell() for taken in seconds]),
        ("Alarms", [Cell(str(count)) for count in alarms]),
    ]
    series = [run.log.series(stage) for run in runs]
    for key, measure in MEASURES.items():
        finite = [
            [point for point in points.get(f"{LOGGED}{key}", []) if math.isfinite(point[1])] for points in series
        ]
        if any(finite):
            last = [points[-1] if points else None for points in finite]
            best = [best_point(points, measure) if points else None for points in finite]
            rows.append((f"{measure.name}, last", _compared(last, measure)))
            cells = _compared(best, measure)
            rows.append(
                (
                    f"{measure.name}, best",
                    [
                        replace(cell, note=f"at {thousands(point[0])}") if point else cell
                        for cell, point in zip(cells, best, strict=True)
                    ],
                )
            )
    return rows


def _compared(points: Sequence[tuple[int, float] | None], measure: Measure) -> list[Cell]:
    """A cell for each run, the best one marked where there are several."""
    costs = [measure.cost(point[1]) for point in points if point]
    return [
        Cell(measure.text(point[1]), best=len(costs) > 1 and measure.cost(point[1]) == min(costs))
        if point
        else Cell()
        for point in points
    ]


def _differences(runs: Sequence[_Run]) -> list[tuple[str, list[Cell]]]:
    """Only the values of the recipes that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    return [
        (key, [Cell(run.recipe.get(key, "–")) for run in runs])
        for key in keys
        if len({run.recipe.get(key) for run in runs}) > 1
    ]


def _moments(runs: Sequence[_Run], stages: Sequence[str]) -> list[tuple[str, list[Strip]]]:
    """Moments in the time of the runs, each from its first strip to its last, with one strip of each run."""
    files = [(run, strip_files(run.folder, stages)) for run in runs]
    count = min(_MOMENTS, max((len(strips) for _, strips in files), default=0))
    moments = []
    for number in range(count):
        shown = []
        for run, strips in files:
            if not strips:
                continue
            stage, step, path = strips[round(number * (len(strips) - 1) / max(count - 1, 1))]
            strip = read_strip(path, f"{run.name}: {plain(stage)}, step {step:,}")
            if strip:
                shown.append(strip)
        if shown:
            moments.append((f"{number + 1} of {count}", shown))
    return moments


def _charts(stage: str, runs: Sequence[_Run]) -> list[Markup]:
    """A chart for each scalar, a curve for each run."""
    series: list[dict[str, Points]] = [run.log.series(stage) for run in runs]
    charts = []
    for key in in_order([key for scalars in series for key in scalars]):
        curves = [
            Series(f"{run.name}/{stage}/{key}", run.name, scalars[key], number % COLOURS)
            for number, (run, scalars) in enumerate(zip(runs, series, strict=True))
            if key in scalars
        ]
        measure = logged_measure(key)
        if measure:
            title, look = measure.name, Look(measure.hint, smooth=False)
        else:
            title = plain(key.replace("/", ": "))
            look = replace(next((group.look for group in GROUPS if group.belongs(key)), PLAIN), hint="")
        charts.append(line_chart(title, curves, look))
    return charts
