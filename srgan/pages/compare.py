"""Several training runs side by side on one HTML page: figures, differences of the recipes, curves and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from srgan.errors import UsageError
from srgan.pages import layout as pages
from srgan.pages.charts import COLOURS, Series, line_chart, thousands
from srgan.pages.report import (
    CHARTS,
    MEASURES,
    RECIPE_NAME,
    RunLog,
    duration,
    flat,
    plain,
    read_recipe,
    read_run,
    strip_uri,
    strips,
)

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
    text = compare(runs)
    pages.write_page(out, text)
    return out


def compare(folders: Sequence[Path]) -> str:
    """Return the page for the run folders; raises UsageError as `compare_command` does."""
    if len(folders) < 2:
        raise UsageError("a comparison needs two runs or more: give their folders")
    runs = [
        _Run(name, folder, read_run(folder)[0], _flat_recipe(folder))
        for name, folder in zip(_names(folders), folders, strict=True)
    ]
    stages = list(dict.fromkeys(stage for run in runs for stage in run.log.stages))
    body = [
        f"<h1>{escape(' · '.join(run.name for run in runs))}</h1>",
        f'<p class="soft">{len(runs)} training runs side by side</p>',
        *(_figures(stage, runs) for stage in stages),
        _differences(runs),
        _moments(runs, stages),
        *(_curves(stage, runs) for stage in stages),
        "<footer>Bold is the best of a row. Lines are centred moving averages over a twentieth of the stage; "
        "point at a chart to read it.</footer>",
    ]
    return pages.page("Runs side by side", "\n".join(filter(None, body)), package="srgan.pages", name="report")


def _names(folders: Sequence[Path]) -> list[str]:
    """As many last parts of each path as tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise UsageError("the same run was given twice: give each folder once")
    depth = next(n for n in range(1, max(map(len, paths)) + 1) if len({path[-n:] for path in paths}) == len(paths))
    return ["/".join(path[-depth:]) for path in paths]


def _flat_recipe(folder: Path) -> dict[str, str]:
    recipe = read_recipe(folder / RECIPE_NAME)
    general = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    sections: dict[str, Any] = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    return dict(flat(general | sections))


def _figures(stage: str, runs: Sequence[_Run]) -> str:
    """Last and best validation of each run, its steps, time and alarms."""
    lines = [
        pages.table_row("Steps", [_steps(run, stage) for run in runs]),
        pages.table_row("Time", [_time(run, stage) for run in runs]),
        pages.table_row("Alarms", [str(sum(a.times for a in run.log.alarms if a.stage == stage)) for run in runs]),
    ]
    series = [run.log.series(stage) if stage in run.log.stages else {} for run in runs]
    for key, measure in MEASURES.items():
        found = [[point for point in own.get(key, []) if math.isfinite(point[1])] for own in series]
        if not any(found):
            continue
        for when in ("last", "best"):
            chosen = [
                (points[-1] if when == "last" else min(points, key=lambda point: measure.rank(point[1])))
                if points
                else None
                for points in found
            ]
            ranks = [measure.rank(point[1]) for point in chosen if point]
            cells = []
            for point in chosen:
                if point is None:
                    cells.append("–")
                    continue
                said = measure.said(point[1])
                said = f"<b>{said}</b>" if len(ranks) > 1 and measure.rank(point[1]) == min(ranks) else said
                at = f' <small class="soft">at {thousands(point[0])}</small>' if when == "best" else ""
                cells.append(said + at)
            lines.append(pages.table_row(f"{measure.name}, {when}", cells))
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    return f"<h2>{escape(plain(stage))}: figures</h2>" + pages.wide_table(f"<tr><th></th>{head}</tr>", lines)


def _steps(run: _Run, stage: str) -> str:
    return f"{run.log.stages[stage][-1].step:,}" if stage in run.log.stages else "–"


def _time(run: _Run, stage: str) -> str:
    ended = 0.0
    for own, rows in run.log.stages.items():
        began, ended = ended, max((row.elapsed_s for row in rows if math.isfinite(row.elapsed_s)), default=ended)
        if own == stage:
            return duration(ended - began) or "–"
    return "–"


def _differences(runs: Sequence[_Run]) -> str:
    """Only the values of the recipes that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    lines = [
        pages.table_row(key, [escape(run.recipe.get(key, "–")) for run in runs])
        for key in keys
        if len({run.recipe.get(key) for run in runs}) > 1
    ]
    if not lines:
        return '<h2>Recipes</h2><p class="soft">All runs have the same recipe.</p>'
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    return "<h2>What the recipes differ in</h2>" + pages.wide_table(f"<tr><th></th>{head}</tr>", lines)


def _moments(runs: Sequence[_Run], stages: Sequence[str]) -> str:
    """A slider over the time of the runs, each from its first strip to its last; one strip of each run."""
    found = [(run, strips(run.folder, stages)) for run in runs]
    count = min(_MOMENTS, max(len(own) for _, own in found))
    if not count:
        return ""
    moments = []
    for number in range(count):
        figures = []
        for run, own in found:
            if not own:
                continue
            stage, step, path = own[round(number * (len(own) - 1) / max(count - 1, 1))]
            picture = strip_uri(path)
            if picture:
                uri, width, height = picture
                when = escape(f"{run.name}: {plain(stage)}, step {step:,}")
                figures.append(
                    f'<figure><p class="soft">{when}</p><img src="{uri}" width="{width}" height="{height}" '
                    f'alt="Samples of {when}"></figure>'
                )
        if figures:
            when = f"{number + 1} of {count}"
            moments.append(f'<li data-when="{when}">{"".join(figures)}</li>')
    return (
        '<h2>Held-out samples over time</h2><div class="card samples">'
        f'<div class="slider" hidden><input type="range" min="0" max="{len(moments) - 1}" '
        f'value="{len(moments) - 1}" step="1" aria-label="Time of the samples"><output></output></div>'
        f'<div class="columns" aria-hidden="true"><span>LR</span><span>SR</span><span>HR</span></div>'
        f"<ol>{''.join(moments)}</ol></div>"
    )


def _curves(stage: str, runs: Sequence[_Run]) -> str:
    """A chart for each scalar, a curve for each run."""
    series = [run.log.series(stage) if stage in run.log.stages else {} for run in runs]
    keys = dict.fromkeys([*MEASURES, *(key for own in series for key in own)])
    charts = []
    for key in keys:
        curves = [
            Series(f"{run.name}/{stage}/{key}", run.name, own[key], number % COLOURS)
            for number, (run, own) in enumerate(zip(runs, series, strict=True))
            if key in own
        ]
        if not curves:
            continue
        measure = MEASURES.get(key)
        chart = next((chart for chart in CHARTS if chart.belongs(key)), None)
        charts.append(
            line_chart(
                measure.name if measure else plain(key.replace("/", ": ")),
                curves,
                hint=measure.hint if measure else "",
                log=chart.log if chart else False,
                smooth=chart.smooth if chart else measure is None,
                guides=chart.guides if chart else (),
                span=chart.span if chart else None,
            )
        )
    return f'<h2>{escape(plain(stage))}</h2><div class="charts">{"".join(charts)}</div>'
