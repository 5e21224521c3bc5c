"""One HTML page that shows a training run: its curves, samples over time, recipe and final figures.

Everything is in the page (styles, charts, pictures as data URIs), so it can be mailed, and opened offline. Needs
neither torch nor a plotting library.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from srgan.errors import UsageError
from srgan.pages import layout as pages
from srgan.pages.charts import COLOURS, Series, figure, line_chart, thousands

LOG_NAME, RECIPE_NAME, SAMPLES_NAME, REPORT_NAME = "metrics.jsonl", "recipe.json", "samples", "report.html"

_MOST_STRIPS = 24  # spread over the run: a strip is about a third of a megabyte
_STRIP_LIMIT_BYTES = 8 << 20  # of one strip; a larger file is not one
_STRIP = re.compile(r"(?P<stage>[a-z_-]+)-(?P<step>\d+)\.png")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Row:
    """One line of the log: scalars by name, NaN where the run logged a value that is not finite."""

    step: int
    elapsed_s: float
    scalars: dict[str, float]


@dataclass(frozen=True)
class Alarm:
    """Something that the run found wrong, in its own words; `times` in a row, the last one at `until`."""

    stage: str
    step: int
    text: str
    times: int = 1
    until: int = 0


@dataclass(frozen=True)
class RunLog:
    """What metrics.jsonl tells: rows by stage, in the order of the run."""

    stages: dict[str, list[Row]] = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)
    unreadable: int = 0

    def series(self, stage: str) -> dict[str, list[tuple[int, float]]]:
        """Return every scalar of `stage` as (step, value), steps ascending, by name."""
        found: dict[str, dict[int, float]] = {}
        for row in self.stages[stage]:
            for key, value in row.scalars.items():
                found.setdefault(key, {})[row.step] = value
        return {key: list(points.items()) for key, points in found.items()}


def report_command(run: Path, out: Path | None) -> Path:
    """Write the report of the run in the folder `run` to `out`, or to RUN/report.html, and return its path.

    Works on a run that is still going on. Raises UsageError if `run` holds no run, SrganError if `out` cannot be
    written.
    """
    target, page = out or run / REPORT_NAME, report(run)
    pages.write_page(target, page)
    return target


def report(run: Path) -> str:
    """Return the page for the folder `run`, which holds metrics.jsonl and perhaps recipe.json and samples/.

    Raises UsageError if `run` is no such folder or its log has no complete row yet.
    """
    log, written = read_run(run)
    recipe = read_recipe(run / RECIPE_NAME)
    name = run.resolve().name
    body = [
        _heading(name, log, written),
        _alarms(log),
        _key_figures(log),
        _samples(run, list(log.stages)),
        _tables(log, recipe),
        *(_stage_charts(stage, log) for stage in log.stages),
        _recipe(recipe),
        "<footer>Lines are centred moving averages over a twentieth of the stage; faint dots are the values as "
        "logged. Point at a chart to read it.</footer>",
    ]
    title = f"{name}: training report"
    return pages.page(title, "\n".join(filter(None, body)), package="srgan.pages", name="report")


def read_run(run: Path) -> tuple[RunLog, datetime]:
    """Return what the log of the folder `run` tells, and when it was written last; raises as `report` does."""
    path = run / LOG_NAME
    try:
        data, written = path.read_bytes(), datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run} holds no run ({LOG_NAME} is missing): give the folder of `srgan train`") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    log = read_log(data)
    if not log.stages and not log.alarms:
        raise UsageError(f"{path} has no complete row yet: wait for the run's first log interval")
    return log, written


def read_log(data: bytes) -> RunLog:
    """Read metrics.jsonl; a line that is torn or not a row is counted and left out.

    A run that was resumed or rolled back tells some steps twice: what it told last counts. The torn end of a run
    that is being written or was killed is not counted.
    """
    log = RunLog()
    unreadable = 0
    lines = data.decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, parse_int=float)
            stage, step = values["stage"], int(values["step"])
            if not isinstance(stage, str) or step < 0:
                raise ValueError("not a row")
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            unreadable += number < len(lines)  # the last line has no end yet
            continue
        if isinstance(values.get("alarm"), str):
            _note_alarm(log.alarms, Alarm(stage, step, values["alarm"], until=step))
        elapsed = values.get("elapsed_s")
        scalars = {
            key: math.nan if value is None else float(value)
            for key, value in values.items()
            if key not in ("stage", "step", "elapsed_s") and isinstance(value, float | bool | None)
        }
        if scalars:
            rows = log.stages.setdefault(stage, [])
            if rows and step < rows[-1].step:
                rows[:] = [row for row in rows if row.step < step]
            rows.append(Row(step, elapsed if isinstance(elapsed, float) else math.nan, scalars))
    return RunLog({stage: rows for stage, rows in log.stages.items() if rows}, log.alarms, unreadable)


def _note_alarm(alarms: list[Alarm], new: Alarm) -> None:
    last = alarms[-1] if alarms else None
    if last and (last.stage, last.text) == (new.stage, new.text):
        alarms[-1] = Alarm(last.stage, last.step, last.text, last.times + 1, new.step)
    else:
        alarms.append(new)


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe as stored, or nothing: the curves are worth showing without it."""
    try:
        recipe = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


# --- what the scalars mean ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A validation figure: its name, what to know of it, a rank by which the smallest is the best, decimals."""

    name: str
    hint: str
    rank: Callable[[float], float]
    decimals: int = 4

    def said(self, value: float) -> str:
        """Return `value` with as many decimals as are usual."""
        return f"{value:.{self.decimals}f}" if math.isfinite(value) else figure(value)


MEASURES = {
    "validation/psnr_y": Measure("PSNR-Y", "dB, higher is better", lambda value: -value, 2),
    "validation/ssim_y": Measure("SSIM-Y", "1 is identical", lambda value: -value),
    "validation/lpips": Measure("LPIPS", "lower is better", lambda value: value),
    "validation/dists": Measure("DISTS", "lower is better", lambda value: value),
    "validation/lr_psnr": Measure("LR-PSNR", "dB, SR reduced against LR", lambda value: -value, 2),
    "validation/colour_shift": Measure("Colour shift", "grey levels of 255", abs, 2),
    "validation/sameness": Measure("Sameness", "0: no pattern of its own", abs, 3),
    "validation/detail": Measure("Detail", "1 is as fine as HR", lambda value: abs(math.log(max(value, 1e-9)))),
}


@dataclass(frozen=True)
class Chart:
    """Scalars that share a chart, chosen by `belongs`."""

    title: str
    belongs: Callable[[str], bool]
    hint: str = ""
    log: bool = False
    smooth: bool = True
    guides: tuple[float, ...] = ()
    span: tuple[float, float] | None = None


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

CHARTS = (
    Chart(
        "Losses of the generator",
        {"content", "perceptual", "artifact", "lpips", "structure_texture"}.__contains__,
        "before their weights",
        log=True,
    ),
    Chart("The game", {"adversarial", "discriminator"}.__contains__, "both losses"),
    Chart(
        "Discriminator accuracy",
        "discriminator_accuracy".__eq__,
        "0.5 is guessing",
        guides=(0.5,),
        span=(0.0, 1.0),
    ),
    Chart("Gradients at SR", lambda key: key.startswith("gradient/"), "of each weighted term", log=True),
    Chart("Gradient norm", lambda key: key.endswith("gradient_norm"), "before clipping", log=True),
    Chart("Patches per second", lambda key: "patches_per_s" in key),
    Chart("Learning rate", lambda key: key.endswith("learning_rate"), log=True, smooth=False),
)


def _stage_charts(stage: str, log: RunLog) -> str:
    """All scalars of `stage`: validation first, then the groups above, then whatever else was logged."""
    series = log.series(stage)
    left = dict(series)
    charts = []
    for key in [*MEASURES, *(key for key in series if key.startswith("validation/"))]:
        if key in left:
            measure = MEASURES.get(key) or Measure(plain(key.partition("/")[2]), "", lambda value: value)
            one = Series(f"{stage}/{key}", measure.name, left.pop(key))
            charts.append(line_chart(measure.name, [one], hint=measure.hint, smooth=False))
    for chart in CHARTS:
        keys = [key for key in left if chart.belongs(key)]
        if keys:
            charts.append(_grouped(stage, chart, {key: left.pop(key) for key in keys}))
    prefixes = list(dict.fromkeys(key.partition("/")[0] for key in left))
    for prefix in prefixes:
        keys = [key for key in left if key.partition("/")[0] == prefix]
        charts.append(_grouped(stage, Chart(plain(prefix), lambda _: True), {key: left[key] for key in keys}))
    return f'<h2>{escape(plain(stage))}</h2><div class="charts">{"".join(charts)}</div>'


def _grouped(stage: str, chart: Chart, points: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    names = [key.partition("/")[2] or key for key in points]
    free = [colour for colour in range(COLOURS) if colour not in {_COLOURS.get(name) for name in names}]
    series = []
    for name, (key, values) in zip(names, points.items(), strict=True):
        colour = _COLOURS[name] if name in _COLOURS and len(names) > 1 else free[0] if free else 0
        if colour in free:
            free.remove(colour)
        series.append(Series(f"{stage}/{key}", plain(name), values, colour))
    return line_chart(
        chart.title,
        series,
        hint=chart.hint,
        log=chart.log,
        smooth=chart.smooth,
        guides=chart.guides,
        span=chart.span,
    )


# --- parts of the page ----------------------------------------------------------------------------------------


def _heading(name: str, log: RunLog, written: datetime) -> str:
    stages = " → ".join(f"{plain(stage)} {rows[-1].step:,} steps" for stage, rows in log.stages.items())
    minutes = duration(max((row.elapsed_s for rows in log.stages.values() for row in rows), default=math.nan))
    parts = [stages, minutes, f"last entry {written:%Y-%m-%d %H:%M} UTC"]
    return f'<h1>{escape(name)}</h1><p class="soft">{escape(" · ".join(filter(None, parts)))}</p>'


def _alarms(log: RunLog) -> str:
    said = [
        f"<b>{escape(plain(alarm.stage))}, step {alarm.step:,}</b>: {escape(alarm.text)}"
        + (f" ({alarm.times} times, last at step {alarm.until:,})" if alarm.times > 1 else "")
        for alarm in log.alarms
    ]
    for stage in log.stages:
        for key, points in log.series(stage).items():
            bad = [step for step, value in points if not math.isfinite(value)]
            if bad:
                said.append(
                    f"<b>{escape(plain(stage))}, step {bad[0]:,}</b>: {escape(key)} was not finite in {len(bad)} "
                    f"of {len(points)} rows"
                )
    if log.unreadable:
        said.append(f"{log.unreadable} lines of {LOG_NAME} could not be read and are left out")
    items = "".join(f"<li>{text}</li>" for text in said)
    return f'<ul class="alarms" aria-label="Warnings">{items}</ul>' if said else ""


def _key_figures(log: RunLog) -> str:
    """The last validation of the last stage that had one, large."""
    for stage in reversed(log.stages):
        series = log.series(stage)
        items = [
            f'<li class="card"><small>{escape(measure.name)}</small><b>{measure.said(series[key][-1][1])}</b>'
            f"<small>{escape(measure.hint)}</small></li>"
            for key, measure in MEASURES.items()
            if key in series
        ]
        if items:
            return f'<ul class="figures" aria-label="Last validation of {escape(stage)}">{"".join(items)}</ul>'
    return ""


def _tables(log: RunLog, recipe: dict[str, Any]) -> str:
    if not log.stages:
        return ""
    return "<h2>Figures</h2>" + _stage_table(log, recipe) + _validation_table(log)


def _stage_table(log: RunLog, recipe: dict[str, Any]) -> str:
    lines, began_s = [], 0.0
    for stage, rows in log.stages.items():
        ended_s = max((row.elapsed_s for row in rows if math.isfinite(row.elapsed_s)), default=began_s)
        cells = [
            f"{rows[-1].step:,}",
            duration(ended_s - began_s) or "–",
            _patches_per_s(log.series(stage), rows[-1].step, ended_s - began_s, recipe.get(stage)),
        ]
        lines.append(pages.table_row(plain(stage), cells))
        began_s = ended_s
    head = "<tr><th>Stage</th><th>Steps</th><th>Time</th><th>Patches/s</th></tr>"
    return pages.wide_table(head, lines)


def _patches_per_s(
    series: Mapping[str, Sequence[tuple[int, float]]], steps: int, seconds: float, stage_recipe: Any
) -> str:
    """The median of what was logged under such a name, else batch size × steps over time."""
    for key, points in series.items():
        logged = sorted(value for _, value in points if math.isfinite(value))
        if "patches_per_s" in key and logged:
            return figure(logged[len(logged) // 2])
    batch_size = stage_recipe.get("batch_size") if isinstance(stage_recipe, dict) else None
    if not isinstance(batch_size, int) or not seconds > 0:
        return "–"
    return figure(batch_size * steps / seconds)


def _validation_table(log: RunLog) -> str:
    series = {stage: log.series(stage) for stage in log.stages}
    known = [*MEASURES, *(key for points in series.values() for key in points if key.startswith("validation/"))]
    keys = [key for key in dict.fromkeys(known) if any(key in points for points in series.values())]
    stages = [stage for stage, points in series.items() if any(key in points for key in keys)]
    if not keys:
        return ""
    lines = []
    for key in keys:
        measure = MEASURES.get(key)
        cells = []
        for stage in stages:
            points = [point for point in series[stage].get(key, []) if math.isfinite(point[1])]
            if measure and points:
                step, best = min(points, key=lambda point: measure.rank(point[1]))
                cells.append(measure.said(points[-1][1]))
                cells.append(f'{measure.said(best)} <small class="soft">at {thousands(step)}</small>')
            else:
                cells += [figure(points[-1][1]) if points else "–", "–"]
        lines.append(pages.table_row(measure.name if measure else plain(key.partition("/")[2]), cells))
    head = "<tr><th>Validation</th>" + "".join(f'<th colspan="2">{escape(plain(s))}</th>' for s in stages)
    head += "</tr><tr><th></th>" + "<th>last</th><th>best</th>" * len(stages) + "</tr>"
    return pages.wide_table(head, lines)


def strips(run: Path, stages: Sequence[str]) -> list[tuple[str, int, Path]]:
    """Return (stage, step, file) of the sample strips of `run`, in the order of the run."""
    folder, found = run / SAMPLES_NAME, []
    for path in folder.glob("*.png") if folder.is_dir() else ():
        match = _STRIP.fullmatch(path.name)
        if match:
            found.append((match["stage"], int(match["step"]), path))
    order = {stage: number for number, stage in enumerate(stages)}
    return sorted(found, key=lambda strip: (order.get(strip[0], len(order)), *strip))


def _samples(run: Path, stages: list[str]) -> str:
    """Strips in the order of the run, each a data URI; of many, some that are evenly spread."""
    found = strips(run, stages)
    chosen = spread(found, _MOST_STRIPS)
    items = []
    for stage, step, path in chosen:
        when = f"{plain(stage)}, step {step:,}"
        picture = strip_uri(path)
        if picture:
            uri, width, height = picture
            items.append(
                f'<li data-when="{escape(when)}"><figure><figcaption class="soft">{escape(when)}</figcaption>'
                f'<img src="{uri}" width="{width}" height="{height}" alt="Samples: {escape(when)}"></figure></li>'
            )
    if not items:
        return ""
    note = f'<p class="soft">{len(chosen)} of {len(found)} strips.</p>' if len(chosen) < len(found) else ""
    last = len(items) - 1
    return (
        '<h2>Held-out samples over time</h2><div class="card samples">'
        f'<div class="slider" hidden><input type="range" min="0" max="{last}" value="{last}" step="1" '
        'aria-label="Time of the samples"><output></output></div>'
        '<div class="columns" aria-hidden="true"><span>LR</span><span>SR</span><span>HR</span></div>'
        f"<ol>{''.join(items)}</ol></div>{note}"
    )


def spread(items: list[Any], most: int) -> list[Any]:
    """At most `most` of `items`, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def strip_uri(path: Path) -> tuple[str, int, int] | None:
    """The PNG as a URI with its width and height, or nothing if it is none (or is just being written)."""
    try:
        if path.stat().st_size > _STRIP_LIMIT_BYTES:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    if not data.startswith(_PNG) or len(data) < 24:
        return None
    width, height = struct.unpack(">II", data[16:24])
    return pages.data_uri(data, "png"), width, height


def _recipe(recipe: dict[str, Any]) -> str:
    if not recipe:
        return '<h2>Recipe</h2><p class="soft">This run has no readable recipe.json.</p>'
    general = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    sections = {"general": general, **{key: value for key, value in recipe.items() if isinstance(value, dict)}}
    parts = []
    for name, values in sections.items():
        pairs = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in flat(values))
        parts.append(f'<section class="card"><h4>{escape(name)}</h4><dl>{pairs}</dl></section>')
    return f'<h2>Recipe</h2><div class="recipe">{"".join(parts)}</div>'


def flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value in JSON)."""
    pairs = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            pairs += flat(value, f"{before}{key}.")
        else:
            shown = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
            pairs.append((f"{before}{key}", shown))
    return pairs


def plain(name: str) -> str:
    """A key as a person would write it: "lr_psnr" is "Lr psnr"."""
    words = name.replace("_", " ").strip() or name
    return words[:1].upper() + words[1:]


def duration(seconds: float) -> str:
    """Return a time in words, or "" if it is not known."""
    if not math.isfinite(seconds):
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 120 else f"{minutes} min"
