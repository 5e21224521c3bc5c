"""One HTML page that shows a training run: its curves, samples over time, recipe and final figures.

Everything is in the page (styles, charts, pictures as data URIs), so it can be mailed, and opened offline. Needs
neither torch nor a plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from srgan.evaluation.measures import LOGGED, MEASURES, Measure, logged_measure
from srgan.pages.charts import COLOURS, PLAIN, Look, Series, figure, line_chart, thousands
from srgan.pages.layout import Cell, render, write_page
from srgan.pages.runs import (
    LOG_NAME,
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

REPORT_NAME = "report.html"
_MOST_STRIPS = 24  # spread over the run: a strip is about a third of a megabyte
_Item = TypeVar("_Item")


def report_command(run: Path, out: Path | None) -> Path:
    """Write the report of the run in the folder `run` to `out`, or to RUN/report.html, and return its path.

    Works on a run that is still going on. Raises UsageError if `run` holds no run, SrganError if `out` cannot be
    written.
    """
    target, page = out or run / REPORT_NAME, report(run)
    write_page(target, page)
    return target


def report(run: Path) -> str:
    """Return the page for the folder `run`, which holds metrics.jsonl and perhaps recipe.json and samples/.

    Raises UsageError if `run` is no such folder or its log has no complete row yet.
    """
    log, written = read_run(run)
    recipe = read_recipe(run)
    name = run.resolve().name
    files = strip_files(run, list(log.stages))
    chosen = evenly_spread(files, _MOST_STRIPS)
    last_validation_stage, last_validation = _last_validation(log)
    validation_stages, validation_rows = _validation(log)
    return render(
        "report.html.j2",
        look="report",
        title=f"{name}: training report",
        name=name,
        summary=_summary(log, written),
        warnings=_warnings(log),
        last_validation_stage=last_validation_stage,
        last_validation=last_validation,
        moments=_moments(chosen),
        strips_chosen=len(chosen),
        strips_known=len(files),
        stage_rows=_stage_rows(log, recipe),
        validation_stages=validation_stages,
        validation_rows=validation_rows,
        charts=[(plain(stage), _charts(stage, log)) for stage in log.stages],
        recipe=_sections(recipe),
    )


# --- what the scalars mean ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Scalars that share a chart, chosen by `belongs`."""

    title: str
    belongs: Callable[[str], bool]
    look: Look = PLAIN


# A term keeps its colour from chart to chart.
_COLOURS = {
    "content": 0,
    "perceptual": 1,
    "artifact": 2,
    "adversarial": 3,
    "discriminator": 4,
    "lpips": 5,
    "structure_texture": 6,
}

GROUPS = (
    Group(
        "Losses of the generator",
        {"content", "perceptual", "artifact", "lpips", "structure_texture"}.__contains__,
        Look("before their weights", log=True),
    ),
    Group("The game", {"adversarial", "discriminator"}.__contains__, Look("both losses")),
    Group(
        "Discriminator accuracy",
        "discriminator_accuracy".__eq__,
        Look("0.5 is guessing", guides=(0.5,), span=(0.0, 1.0)),
    ),
    Group("Gradients at SR", lambda key: key.startswith("gradient/"), Look("of each weighted term", log=True)),
    Group("Gradient norm", lambda key: key.endswith("gradient_norm"), Look("before clipping", log=True)),
    Group("Patches per second", lambda key: "patches_per_s" in key),
    Group("Learning rate", lambda key: key.endswith("learning_rate"), Look(log=True, smooth=False)),
)


def in_order(keys: Sequence[str]) -> list[str]:
    """Return scalars with the measures first, in their order, then others of a validation, then the rest."""
    measures = [f"{LOGGED}{key}" for key in MEASURES]
    validations = [key for key in keys if key.startswith(LOGGED)]
    return [key for key in dict.fromkeys([*measures, *validations, *keys]) if key in keys]


def _charts(stage: str, log: RunLog) -> list[Markup]:
    """All scalars of `stage`: validation first, then the groups above, then whatever else was logged."""
    series = log.series(stage)
    charts = []
    for key in [key for key in in_order(list(series)) if key.startswith(LOGGED)]:
        measure = logged_measure(key)
        title, hint = (measure.name, measure.hint) if measure else (plain(key.removeprefix(LOGGED)), "")
        curve = Series(f"{stage}/{key}", title, series.pop(key))
        charts.append(line_chart(title, [curve], Look(hint, smooth=False)))
    for group in GROUPS:
        keys = [key for key in series if group.belongs(key)]
        if keys:
            charts.append(_grouped(stage, group, {key: series.pop(key) for key in keys}))
    for prefix in dict.fromkeys(key.partition("/")[0] for key in series):
        rest = {key: points for key, points in series.items() if key.partition("/")[0] == prefix}
        charts.append(_grouped(stage, Group(plain(prefix), lambda _: True), rest))
    return charts


def _grouped(stage: str, group: Group, points: Mapping[str, Points]) -> Markup:
    names = [key.partition("/")[2] or key for key in points]
    free = [colour for colour in range(COLOURS) if colour not in {_COLOURS.get(name) for name in names}]
    series = []
    for name, (key, values) in zip(names, points.items(), strict=True):
        colour = _COLOURS[name] if name in _COLOURS and len(names) > 1 else free[0] if free else 0
        if colour in free:
            free.remove(colour)
        series.append(Series(f"{stage}/{key}", plain(name), values, colour))
    return line_chart(group.title, series, group.look)


# --- parts of the page ----------------------------------------------------------------------------------------


def _summary(log: RunLog, written: datetime) -> str:
    stages = " → ".join(f"{plain(stage)} {rows[-1].step:,} steps" for stage, rows in log.stages.items())
    elapsed = duration(max((row.elapsed_s for rows in log.stages.values() for row in rows), default=math.nan))
    return " · ".join(filter(None, [stages, elapsed, f"last entry {written:%Y-%m-%d %H:%M} UTC"]))


def _warnings(log: RunLog) -> list[tuple[str, str]]:
    """What the run or this page noticed, as (where, what)."""
    warnings = [
        (
            f"{plain(alarm.stage)}, step {alarm.step:,}",
            alarm.text + (f" ({alarm.times} times, last at step {alarm.until:,})" if alarm.times > 1 else ""),
        )
        for alarm in log.alarms
    ]
    for stage in log.stages:
        for key, points in log.series(stage).items():
            bad = [step for step, value in points if not math.isfinite(value)]
            if bad:
                where = f"{plain(stage)}, step {bad[0]:,}"
                warnings.append((where, f"{key} was not finite in {len(bad)} of {len(points)} rows"))
    if log.unreadable:
        warnings.append(("", f"{log.unreadable} lines of {LOG_NAME} could not be read and are left out"))
    return warnings


def _last_validation(log: RunLog) -> tuple[str, list[tuple[Measure, str]]]:
    """The last stage that had a validation, and the figures of its last one."""
    for stage in reversed(log.stages):
        series = log.series(stage)
        figures = [
            (measure, measure.text(series[f"{LOGGED}{key}"][-1][1]))
            for key, measure in MEASURES.items()
            if f"{LOGGED}{key}" in series
        ]
        if figures:
            return stage, figures
    return "", []


def _stage_rows(log: RunLog, recipe: dict[str, Any]) -> list[tuple[str, list[Cell]]]:
    rows = []
    for stage, seconds in log.seconds():
        steps = log.stages[stage][-1].step
        patches_per_s = _patches_per_s(log.series(stage), steps, seconds, recipe.get(stage))
        rows.append((plain(stage), [Cell(f"{steps:,}"), Cell(duration(seconds)), Cell(patches_per_s)]))
    return rows


def _patches_per_s(series: Mapping[str, Points], steps: int, seconds: float, stage_recipe: Any) -> str:
    """The median of what was logged under such a name, else batch size × steps over time."""
    for key, points in series.items():
        logged = sorted(value for _, value in points if math.isfinite(value))
        if "patches_per_s" in key and logged:
            return figure(logged[len(logged) // 2])
    batch_size = stage_recipe.get("batch_size") if isinstance(stage_recipe, dict) else None
    if not isinstance(batch_size, int) or not seconds > 0:
        return "–"
    return figure(batch_size * steps / seconds)


def _validation(log: RunLog) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """The stages with a validation, and for each figure its last and its best value in each of them."""
    series = {stage: log.series(stage) for stage in log.stages}
    keys = [
        key for key in in_order([key for points in series.values() for key in points]) if key.startswith(LOGGED)
    ]
    stages = [stage for stage, points in series.items() if any(key in points for key in keys)]
    rows = []
    for key in keys:
        measure = logged_measure(key)
        cells = []
        for stage in stages:
            points = [point for point in series[stage].get(key, []) if math.isfinite(point[1])]
            if measure and points:
                step, best = best_point(points, measure)
                cells += [Cell(measure.text(points[-1][1])), Cell(measure.text(best), f"at {thousands(step)}")]
            else:
                cells += [Cell(figure(points[-1][1])) if points else Cell(), Cell()]
        rows.append((measure.name if measure else plain(key.removeprefix(LOGGED)), cells))
    return [plain(stage) for stage in stages], rows


def best_point(points: Points, measure: Measure) -> tuple[int, float]:
    """Return the step at which `measure` was best, and its value there."""
    return min(points, key=lambda point: measure.cost(point[1]))


def _moments(chosen: Sequence[tuple[str, int, Path]]) -> list[tuple[str, list[Strip]]]:
    """Strips in the order of the run, each a moment of its own."""
    moments = []
    for stage, step, path in chosen:
        strip = read_strip(path, f"{plain(stage)}, step {step:,}")
        if strip:
            moments.append((strip.caption, [strip]))
    return moments


def evenly_spread(items: list[_Item], most: int) -> list[_Item]:
    """Return at most `most` of `items`, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _sections(recipe: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    if not recipe:
        return []
    general = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    sections = {"general": general, **{key: value for key, value in recipe.items() if isinstance(value, dict)}}
    return [(name, flat_settings(values)) for name, values in sections.items()]
