"""A study of objectives, as `tools/objectives.py` leaves one: its table, its plots, and all of it on one page.

Of the second half of each game: accuracy, the share of pairs that the discriminator ranks rightly; pull, the
game's gradient at SR over the content's; gradient norm, that of the generator; stable, the share of logged steps
whose gradient norm is below ten times the median.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scipy.stats import f_oneway
from scipy.stats import t as student

from srgan.errors import UsageError
from srgan.evaluation.measures import MEASURES
from srgan.files import write_atomically
from srgan.pages import plots
from srgan.pages.compare import side_by_side
from srgan.pages.layout import Cell, data_uri, render, write_page
from srgan.pages.runs import Points, read_recipe, read_run

START = "pre-trained"  # what all games begin with, as a row of the table
JUDGED = ("psnr_y", "lpips", "lr_psnr", "frechet")  # the figures of quality that are compared
_OUTCOME = "outcome.json"  # in the folder of a run that is finished and judged
_COLUMNS = {
    "weight": ("weight", "{:.2g}"),
    "pull": ("pull", "{:.2f}"),
    **{
        key: (f"{MEASURES[key].name} {MEASURES[key].unit}".strip(), f"{{:.{MEASURES[key].decimals}f}}")
        for key in JUDGED[:3]
    },
    JUDGED[3]: ("FID on VGG16", f"{{:.{MEASURES['fid'].decimals}f}}"),
    "accuracy": ("D accuracy", "{:.2f}"),
    "gradient_norm": ("gradient norm", "{:.3f}"),
    "stable": ("stable", "{:.0%}"),
    "alarms": ("alarms", "{:.1f}"),
}
_WITHOUT_INTERVAL = ("weight", "stable", "alarms")  # one for all seeds; counts
_LEGEND = (
    "Means over the seeds, ± half of their 95 % interval (Student's t). FID on VGG16: the Fréchet distance of "
    "patches of 64 px of the judged pictures, by features of VGG16 and not of Inception: to compare within this "
    "table alone."
)
_VERDICT = "How objectives differ, beside how seeds do (one-way analysis of variance):"


@dataclass(frozen=True)
class Outcome:
    """One run of one objective, or the generator that all began with; NaN: not measured.

    `stable`: share of steps without a spike. `frechet`: on VGG16.
    """

    objective: str
    seed: int
    psnr_y: float
    lpips: float
    lr_psnr: float
    frechet: float = math.nan
    weight: float = math.nan
    pull: float = math.nan
    accuracy: float = math.nan
    gradient_norm: float = math.nan
    stable: float = math.nan
    alarms: int = 0


def read_outcome(run: Path) -> Outcome | None:
    """Return what the run in folder `run` came to, None before its end. UsageError for a damaged file."""
    path = run / _OUTCOME
    try:
        return Outcome(**json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error}): remove it, and the run is judged anew") from error


def write_outcome(run: Path, outcome: Outcome) -> None:
    """Keep what the run in folder `run` came to."""
    write_atomically(run / _OUTCOME, json.dumps(asdict(outcome)).encode())


def outcomes_of(study: Path, objectives: Sequence[str]) -> list[Outcome]:
    """Return what is finished in the folder `study`: the start, then `objectives` in their order, by seed.

    Raises UsageError if nothing is.
    """
    order = [START, *objectives]
    known = [read_outcome(run) for run in sorted(study.iterdir())] if study.is_dir() else []
    outcomes = [outcome for outcome in known if outcome is not None and outcome.objective in order]
    if not outcomes:
        raise UsageError(
            f"{study} holds no study with a finished run (no {_OUTCOME} in its folders): give the --run of "
            "tools/objectives.py, or wait for its first run"
        )
    return sorted(outcomes, key=lambda outcome: (order.index(outcome.objective), outcome.seed))


def series_of(run: Path) -> dict[str, Points]:
    """Return what a run logged of its game, as (step of the generator, value); "pull" among it."""
    series = read_run(run)[0].series("adversarial")
    content = dict(series.get("gradient/content", ()))
    series["pull"] = [
        (step, value / content[step])
        for step, value in series.get("gradient/adversarial", ())
        if content.get(step, 0.0) > 0
    ]
    alone = int(read_recipe(run).get("adversarial", {}).get("discriminator_alone_steps", 0))
    return {key: [(step - alone, value) for step, value in points] for key, points in series.items()}


def report(study: Path, page: Path, objectives: Sequence[str]) -> str:
    """Write STUDY/objectives.md, STUDY/objectives.svg and `page` of what is finished, and return the first's text.

    `objectives`: those to report, in the order of the table. The page shows, beside table and plots, the runs of
    the first seed side by side. Raises UsageError if nothing is finished, SrganError if a file cannot be written.
    """
    outcomes = outcomes_of(study, objectives)
    findings = verdict(outcomes)
    parts = [_LEGEND, table(outcomes)]
    if findings:
        parts += [_VERDICT, "\n".join(f"- {finding}" for finding in findings)]
    text = "\n\n".join(parts) + "\n"
    drawing = drawn(study, outcomes)
    write_page(study / "objectives.md", text)
    if drawing:
        write_page(study / "objectives.svg", drawing)
    games = [outcome for outcome in outcomes if outcome.objective != START]
    firsts = [_folder(study, outcome) for outcome in games if outcome.seed == games[0].seed]
    html = render(
        "study.html.j2",
        **side_by_side(firsts),
        legend=_LEGEND,
        columns=["seeds", *(heading for heading, _ in _COLUMNS.values())],
        rows=[(objective, [Cell(text) for text in cells]) for objective, cells in _rows(outcomes)],
        verdict=_VERDICT if findings else "",
        findings=[finding.replace("`", "") for finding in findings],
        drawing=data_uri(drawing.encode(), "svg+xml") if drawing else "",
    )
    write_page(page, html)
    return text


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes in Markdown, a row for each objective: means ± half of their 95 % intervals."""
    lines = ["| objective | seeds | " + " | ".join(heading for heading, _ in _COLUMNS.values()) + " |"]
    lines.append("|---" * (len(_COLUMNS) + 2) + "|")
    lines += [f"| `{objective}` | " + " | ".join(cells) + " |" for objective, cells in _rows(outcomes)]
    return "\n".join(lines)


def half_interval(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean of some `values` (Student's t); NaN of fewer than two."""
    if len(values) < 2:
        return math.nan
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def verdict(outcomes: Sequence[Outcome]) -> list[str]:
    """Return, a line for each figure, how objectives differ beside how seeds do, by an analysis of variance."""
    lines = []
    for key in JUDGED:
        heading, form = _COLUMNS[key]
        games = [outcome for outcome in outcomes if outcome.objective != START]
        groups = {objective: _finite(rows, key) for objective, rows in _by_objective(games).items()}
        groups = {objective: values for objective, values in groups.items() if len(values) > 1}
        spread = math.sqrt(statistics.fmean(map(statistics.variance, groups.values()))) if groups else 0.0
        if len(groups) < 2 or not spread:
            continue
        means = {objective: statistics.fmean(values) for objective, values in groups.items()}
        low, high = sorted(means, key=means.__getitem__)[:: len(means) - 1]
        test = f_oneway(*groups.values())
        lines.append(
            f"{heading}: means from {form.format(means[low])} (`{low}`) to {form.format(means[high])} "
            f"(`{high}`), deviation over seeds {form.format(spread)}; F = {test.statistic:.1f}, "
            f"p = {test.pvalue:.2g}"
        )
    return lines


def drawn(study: Path, outcomes: Sequence[Outcome]) -> str:
    """Return the plots as SVG, or "" without a game: figures over the game, and at its end a dot for each seed."""
    games = _by_objective([outcome for outcome in outcomes if outcome.objective != START])
    if not games:
        return ""
    series = {
        objective: [series_of(_folder(study, outcome)) for outcome in rows] for objective, rows in games.items()
    }
    curves = [
        plots.Lines(
            title, {name: _middle([run.get(key, []) for run in runs]) for name, runs in series.items()}, log
        )
        for key, title, log in (
            ("discriminator_accuracy", "accuracy of the discriminator", False),
            ("gradient_norm", "gradient norm of the generator", True),
            ("pull", "pull of the game, content = 1", True),
        )
    ]
    start = next((outcome for outcome in outcomes if outcome.objective == START), None)
    ends = [
        plots.Dots(
            _COLUMNS[key][0],
            {objective: [getattr(outcome, key) for outcome in rows] for objective, rows in games.items()},
            getattr(start, key, math.nan),
        )
        for key in (*JUDGED, "stable")
    ]
    return plots.sheet("The games over time, and what they end in", curves, ends, x_name="step")


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, list[str]]]:
    """Each objective with the cells of its row, its number of seeds first."""
    table = []
    for objective, rows in _by_objective(outcomes).items():
        cells = [str(len(rows))]
        for key, (_, form) in _COLUMNS.items():
            values = _finite(rows, key)
            cell = form.format(statistics.fmean(values)) if values else "–"
            if len(values) > 1 and key not in _WITHOUT_INTERVAL:
                cell += " ± " + form.format(half_interval(values))
            cells.append(cell)
        table.append((objective, cells))
    return table


def _by_objective(outcomes: Sequence[Outcome]) -> Mapping[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.objective, []).append(outcome)
    return groups


def _finite(outcomes: Sequence[Outcome], key: str) -> list[float]:
    values = [float(getattr(outcome, key)) for outcome in outcomes]
    return [value for value in values if math.isfinite(value)]


def _folder(study: Path, outcome: Outcome) -> Path:
    return study / f"{outcome.objective}-{outcome.seed}"


def _middle(curves: Sequence[Points], width: int = 7) -> Points:
    """Return the median of the curves at the steps that all have, a moving one over `width` points."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    values = [[dict(curve)[step] for curve in curves] for step in steps]
    half = width // 2
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    medians = [statistics.median(value for row in window for value in row) for window in windows]
    return list(zip(steps, medians, strict=True))
