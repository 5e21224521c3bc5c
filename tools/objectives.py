"""The nine objectives on equal terms: one pre-trained generator, the same budget, data and seeds for each.

    python tools/objectives.py --data PICTURES --test HR_FOLDER --run runs/objectives
    python tools/objectives.py --run runs/objectives --report-only

Lucic et al. 2018 ("Are GANs created equal?") found that at equal budgets no objective beats the others by more
than the seeds vary. This asks the same for super-resolution at a small size: a generator of 4 blocks and 24
features is pre-trained once, then every objective plays --steps steps from there with each seed, one step of the
discriminator for each of the generator, after the discriminator has learned alone. Nothing is tuned apart but the
weight: a pilot game finds the one at which the objective pulls, on average, half as strongly at SR as the content
loss, the nearest thing to equal terms that different losses have. Measured on the first batches it would be that
of a discriminator that knows nothing yet, off by up to a thousand. All runs are judged by the same pictures.

`RUN/objectives.md` gets the table, mean ± deviation over the seeds, and how the differences between objectives
compare with those between seeds; `RUN/objectives.svg` the plots; `RUN/objectives.html` all runs of the first seed
side by side. Of the second half of the game: accuracy, the share of pairs that the discriminator ranks rightly;
pull, the game's gradient at SR over the content's; gradient norm, that of the generator; stable, the share of
logged steps whose gradient norm is below ten times the median.

Whatever is finished is kept: after a kill the same command goes on. --report-only reports what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srgan.errors import BackboneError
from srgan.evaluation import metrics
from srgan.evaluation.benchmark import pairs
from srgan.evaluation.frechet import FrechetDistance, VggFeatures
from srgan.evaluation.measures import MEASURES
from srgan.files import write_atomically
from srgan.pages import plots
from srgan.pages.compare import compare_command
from srgan.pages.runs import read_run
from srgan.pictures.consistency import consistency
from srgan.training import checkpoint, trainer
from srgan.training.adversarial import OBJECTIVES
from srgan.training.config import Recipe, validated
from srgan.training.data.cache import PictureCache, build_cache, split
from srgan.training.data.sources import parse_source
from srgan.training.losses import generator_terms
from srgan.training.processes import make_fabric
from srgan.training.run import make_players, random_streams
from srgan.upscale import Upscaler
from srgan.weights import find_weights

_PATCH_PX = 64  # for the Fréchet distance, which wants more samples than features: Set14 has 830 such
_PULL = 0.5  # of the game's gradient at SR, relative to the content's: enough to be seen, too little to run away
_ALONE_STEPS = 200  # until every discriminator tells SR from HR better than by chance
_PILOT_STEPS = 60
_START = "pre-trained"


@dataclass(frozen=True)
class Outcome:
    """One run of one objective, or the generator that all began with. `stable`: share of steps without a spike."""

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


def recipe_of(objective: str, seed: int, steps: int, weight: float, start: str, **changes: Any) -> Recipe:
    """Return the recipe of one run; without `steps` it is the pre-training that they all start from."""
    values: dict[str, Any] = {
        "seed": seed,
        "start": start,
        "precision": "fp32",
        "objective": objective,
        "generator": {"blocks": 4, "features": 24},
        "discriminator": {
            "kind": "autoencoder" if objective == "began" else "patch",
            "features": 16,
            "normalisation": "none",  # the only one that suits all
        },
        "losses": {
            "content": {"kind": "l1", "weight": 1.0},
            "perceptual": {"weight": 0.0},
            "adversarial": {"weight": weight},
        },
        "pretrain": {
            "steps": 0 if steps else 2000,
            "batch_size": 8,
            "patch_hr_px": 64,
            "content": "l1",
            "learning_rate": 5e-4,
            "ema_decay": 0.99,
        },
        "adversarial": {
            "steps": _ALONE_STEPS + steps if steps else 0,
            "discriminator_alone_steps": _ALONE_STEPS,
            # The same budget of the generator for all; the critics of Wasserstein games get their papers' five.
            "discriminator_steps": 5 if objective.startswith("wgan") else 1,
            "discriminator_learning_rate": 5e-4,
            "batch_size": 8,
            "patch_hr_px": 48,
            "learning_rate": 1e-4,
            "final_learning_rate": 1e-6,
            "ema_decay": 0.99,
        },
        "data": {"held_out": 8},
        "log_steps": 10,
        "validation_minutes": 60.0,
    }
    for section, change in changes.items():
        values[section] = values[section] | change if isinstance(change, dict) else change
    return validated(values, "objectives")


def equal_weight(recipe: Recipe, cache: PictureCache) -> float:
    """Return the weight at which the game pulls at SR with `_PULL` times the content's gradient.

    Found by a pilot game whose weight is set anew at every step: the median over its second half.
    """
    fabric, stage = make_fabric(recipe), recipe.adversarial
    torch.manual_seed(recipe.seed)
    random, label_random = random_streams(recipe.seed, fabric)
    players = make_players(recipe, fabric, label_random)
    for optimizer, rate in (
        (players.generator_optimizer, stage.learning_rate),
        (players.discriminator_optimizer, stage.discriminator_learning_rate),
    ):
        optimizer.param_groups[0]["lr"] = rate
    training, _ = split(cache, recipe.data)
    batch = trainer.batch_source(recipe, stage, training, fabric.device, random)
    functions, weights = generator_terms(recipe.losses, players.ema, fabric.device)
    found: list[float] = []
    for step in range(stage.discriminator_alone_steps + _PILOT_STEPS):
        lr, hr = batch()
        sr = players.generator(lr)
        trainer.discriminator_step(players, hr, sr, stage.clip_norm)
        if step < stage.discriminator_alone_steps:
            continue
        with trainer.frozen(players.discriminator):
            terms = {name: function(sr, hr, lr) for name, function in functions.items()}
            terms["adversarial"] = players.objective.generator_loss(players.discriminator, hr, sr)
            norms = trainer.gradient_norms(terms, weights | {"adversarial": 1.0}, sr)
        found.append(_PULL * float(norms["gradient/content"] / norms["gradient/adversarial"].clamp(min=1e-12)))
        now = weights | {"adversarial": statistics.median(found[-10:])}  # one batch alone would make it jump
        trainer.generator_step(players, functions, now, trainer.Batch(lr, hr, sr), stage.clip_norm)
    return statistics.median(found[len(found) // 2 :])


def judged(generator: Path, test: Path) -> dict[str, float]:
    """Return the figures of what an exported generator makes of the pictures in `test`; some may be NaN.

    Means over the pictures, and the Fréchet distance of their patches on VGG16.
    """
    upscaler = Upscaler(find_weights(generator))
    distances = None
    with contextlib.suppress(BackboneError):
        distances = FrechetDistance(VggFeatures())
    scores: list[tuple[float, float, float]] = []
    for pair in pairs(test):
        sr = upscaler.upscale(pair.lr)
        psnr = metrics.psnr(sr.pixels, pair.hr.pixels, border=upscaler.scale, y_only=True)
        distance = math.nan
        with contextlib.suppress(BackboneError):
            distance = metrics.lpips(sr.pixels, pair.hr.pixels)
        if distances is not None:
            for picture, is_real in ((sr.pixels, False), (pair.hr.pixels, True)):
                for patch in patches_of(picture):
                    distances.add(patch, real=is_real)
        scores.append((psnr, distance, consistency(pair.lr, sr).lr_psnr_db))
    means = np.mean(scores, axis=0).tolist()
    return dict(zip(_JUDGED, [*means, math.nan if distances is None else distances.value()], strict=True))


def patches_of(picture: np.ndarray) -> list[np.ndarray]:
    """Return a picture, (H,W,3) or (H,W), in patches (64,64,3), without what is left at its edges."""
    rgb = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    height, width = rgb.shape[0] // _PATCH_PX * _PATCH_PX, rgb.shape[1] // _PATCH_PX * _PATCH_PX
    cells = rgb[:height, :width].reshape(height // _PATCH_PX, _PATCH_PX, width // _PATCH_PX, _PATCH_PX, 3)
    return list(cells.swapaxes(1, 2).reshape(-1, _PATCH_PX, _PATCH_PX, 3))


def series_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what a run logged of its game, as (step of the generator, value); "pull" among it."""
    log, _ = read_run(run)
    series = log.series("adversarial")
    content = dict(series["gradient/content"])
    series["pull"] = [(step, value / content[step]) for step, value in series["gradient/adversarial"]]
    alone = _ALONE_STEPS
    return {key: [(step - alone, value) for step, value in points] for key, points in series.items()}


def outcome_of(run: Path, objective: str, seed: int, weight: float, test: Path) -> Outcome:
    """Judge a finished run and read its log."""
    series = series_of(run)

    def second_half(key: str) -> float:
        points = series[key]
        return statistics.fmean(v for step, v in points if step > points[-1][0] / 2 and math.isfinite(v))

    norms = [value for step, value in series["gradient_norm"] if step > 0]
    usual = statistics.median(norm for norm in norms if math.isfinite(norm))
    return Outcome(
        objective=objective,
        seed=seed,
        **judged(run / "srgan-x4.onnx", test),
        weight=weight,
        pull=second_half("pull"),
        accuracy=second_half("discriminator_accuracy"),
        gradient_norm=second_half("gradient_norm"),
        stable=sum(norm < 10 * usual for norm in norms) / len(norms),
        alarms=sum(alarm.times for alarm in read_run(run)[0].alarms),
    )


def play(
    folder: Path, cache: PictureCache, start: Path, *, objective: str, seed: int, steps: int, test: Path
) -> Outcome:
    """Return the outcome of one run, which is trained, gone on with, or only read if it is finished."""
    run = folder / f"{objective}-{seed}"
    if known := _known(run):
        return known
    weight_file = folder / f"{objective}.weight.json"  # one for all seeds: they are to differ in nothing else
    if weight_file.is_file():
        weight = float(json.loads(weight_file.read_text()))
    else:
        weight = equal_weight(recipe_of(objective, 0, steps, 1.0, str(start)), cache)
        write_atomically(weight_file, json.dumps(weight).encode())
    recipe = recipe_of(objective, seed, steps, weight, str(start))
    trainer.train(recipe, cache, run, resume=bool(checkpoint.checkpoints(run)))
    return _kept(run, outcome_of(run, objective, seed, weight, test))


def _known(run: Path) -> Outcome | None:
    done = run / "outcome.json"
    return Outcome(**json.loads(done.read_text())) if done.is_file() else None


def _kept(run: Path, outcome: Outcome) -> Outcome:
    write_atomically(run / "outcome.json", json.dumps(asdict(outcome)).encode())
    return outcome


_JUDGED = ("psnr_y", "lpips", "lr_psnr", "frechet")  # the figures of quality that are compared
_COLUMNS = {
    "weight": ("weight", "{:.2g}"),
    "pull": ("pull", "{:.2f}"),
    **{
        key: (f"{MEASURES[key].name} {MEASURES[key].unit}".strip(), f"{{:.{MEASURES[key].decimals}f}}")
        for key in _JUDGED[:3]
    },
    "frechet": ("FID on VGG16", "{:.2f}"),
    "accuracy": ("D accuracy", "{:.2f}"),
    "gradient_norm": ("gradient norm", "{:.3f}"),
    "stable": ("stable", "{:.0%}"),
    "alarms": ("alarms", "{:.1f}"),
}


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes in Markdown, a row for each objective: mean ± deviation over its seeds."""
    lines = ["| objective | seeds | " + " | ".join(heading for heading, _ in _COLUMNS.values()) + " |"]
    lines.append("|---" * (len(_COLUMNS) + 2) + "|")
    for objective in dict.fromkeys(outcome.objective for outcome in outcomes):
        rows = [asdict(outcome) for outcome in outcomes if outcome.objective == objective]
        cells = []
        for key, (_, form) in _COLUMNS.items():
            values = [row[key] for row in rows if math.isfinite(row[key])]
            cell = form.format(statistics.fmean(values)) if values else "–"
            if len(values) > 1 and key not in ("weight", "alarms", "stable"):
                cell += " ± " + form.format(statistics.stdev(values))
            cells.append(cell)
        lines.append(f"| `{objective}` | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Return, a line for each figure, how objectives differ beside how seeds do (one-way analysis of variance)."""
    from scipy.stats import f_oneway

    lines = []
    for key in _JUDGED:
        heading, form = _COLUMNS[key]
        groups = {
            objective: [getattr(outcome, key) for outcome in outcomes if outcome.objective == objective]
            for objective in OBJECTIVES
        }
        groups = {objective: values for objective, values in groups.items() if len(values) > 1}
        if len(groups) < 2:
            continue
        means = {objective: statistics.fmean(values) for objective, values in groups.items()}
        low, high = sorted(means, key=means.__getitem__)[:: len(means) - 1]
        spread = math.sqrt(statistics.fmean(statistics.variance(values) for values in groups.values()))
        test = f_oneway(*groups.values())
        lines.append(
            f"- {heading}: means from {form.format(means[low])} (`{low}`) to {form.format(means[high])} "
            f"(`{high}`), deviation over seeds {form.format(spread)}; F = {test.statistic:.1f}, "
            f"p = {test.pvalue:.2g}"
        )
    return "\n".join(lines)


def drawn(folder: Path, outcomes: Sequence[Outcome]) -> str:
    """Return the plots as SVG: three figures over the game, and four at its end with a dot for each seed."""
    games = [outcome for outcome in outcomes if outcome.objective != _START]
    objectives = list(dict.fromkeys(outcome.objective for outcome in games))
    series = {
        objective: [
            series_of(folder / f"{objective}-{outcome.seed}")
            for outcome in games
            if outcome.objective == objective
        ]
        for objective in objectives
    }
    curves = [
        plots.Lines(title, {name: _middle([run[key] for run in runs]) for name, runs in series.items()}, log)
        for key, title, log in (
            ("discriminator_accuracy", "accuracy of the discriminator", False),
            ("gradient_norm", "gradient norm of the generator", True),
            ("pull", "pull of the game, content = 1", True),
        )
    ]
    start = next((outcome for outcome in outcomes if outcome.objective == _START), None)
    ends = [
        plots.Dots(
            _COLUMNS[key][0],
            {
                objective: [getattr(outcome, key) for outcome in games if outcome.objective == objective]
                for objective in objectives
            },
            getattr(start, key, math.nan),
        )
        for key in (*_JUDGED, "stable")
    ]
    return plots.sheet("The games over time, and what they end in", curves, ends, x_name="step")


def _middle(curves: Sequence[Sequence[tuple[int, float]]], width: int = 7) -> list[tuple[float, float]]:
    """Return the median of the curves at the steps that all have, a moving one over `width` points."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    values = [[dict(curve)[step] for curve in curves] for step in steps]
    half = width // 2
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    medians = [statistics.median(value for row in window for value in row) for window in windows]
    return list(zip(steps, medians, strict=True))


def report(folder: Path, objectives: Sequence[str]) -> str:
    """Write table, plots and page of what is finished in `folder`, and return the text."""
    known = [_known(run) for run in sorted(folder.iterdir()) if run.is_dir()]
    order = [_START, *objectives]
    outcomes = sorted(
        (outcome for outcome in known if outcome is not None and outcome.objective in order),
        key=lambda outcome: (order.index(outcome.objective), outcome.seed),
    )
    text = "\n\n".join(filter(None, (table(outcomes), verdict(outcomes)))) + "\n"
    write_atomically(folder / "objectives.md", text.encode())
    if any(outcome.objective != _START for outcome in outcomes):
        write_atomically(folder / "objectives.svg", drawn(folder, outcomes).encode())
    firsts = [folder / f"{outcome.objective}-0" for outcome in outcomes if outcome.seed == 0]
    firsts = [run for run in firsts if run.is_dir() and (run / "outcome.json").is_file()]
    if len(firsts) > 1:
        compare_command(firsts, folder / "objectives.html")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not trained yet and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="training pictures, as for `srgan train`")
    parser.add_argument("--test", type=Path, help="folder of HR pictures, not among them, that judge all runs")
    parser.add_argument("--run", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, default=500, help="of the game (default: %(default)s)")
    parser.add_argument("--pretrain-steps", type=int, default=2000, help="before it (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    if not options.report_only:
        if options.data is None or options.test is None:
            parser.error("--data and --test are needed, or --report-only")
        train(options)
    print(report(options.run, options.objective), end="")


def train(options: argparse.Namespace) -> None:
    """Train and judge what is not finished."""
    cache = build_cache([parse_source(options.data)], options.run / "cache")
    before = options.run / "pretrained"
    start = before / "srresnet-x4.safetensors"
    if not start.is_file():
        recipe = recipe_of("nonsaturating", 0, 0, 1.0, "", pretrain={"steps": options.pretrain_steps})
        trainer.train(recipe, cache, before, resume=bool(checkpoint.checkpoints(before)))
    if not _known(before):
        _kept(before, Outcome(_START, 0, alarms=0, **judged(start.with_suffix(".onnx"), options.test)))
    for seed in range(options.seeds):  # seed by seed, so that a run cut short still compares all
        for objective in options.objective:
            outcome = play(
                options.run, cache, start, objective=objective, seed=seed, steps=options.steps, test=options.test
            )
            print(outcome, flush=True)


if __name__ == "__main__":
    main()
