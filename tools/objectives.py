"""The nine objectives on equal terms: one pre-trained generator, the same budget, data and seeds for each.

    python tools/objectives.py --data PICTURES --test HR_FOLDER --run runs/objectives
    srgan compare --study runs/objectives       what is finished by now

Lucic et al. 2018 ("Are GANs created equal?") found that at equal budgets no objective beats the others by more
than the seeds vary. This asks the same for super-resolution at a small size: a generator of 4 blocks and 24
features is pre-trained once, then every objective plays --steps steps from there with each seed, one step of the
discriminator for each of the generator (five for the critics of Wasserstein games, as their papers have it), after
the discriminator has learned alone. Nothing is tuned apart but the weight: a pilot game finds the one at which the
objective pulls, on average, half as strongly at SR as the content loss, the nearest thing to equal terms that
different losses have. Measured on the first batches it would be that of a discriminator that knows nothing yet,
off by up to a thousand. All runs are judged by the same pictures.

`RUN/objectives.md` gets the table, means with their 95 % intervals over the seeds, and how the differences between
objectives compare with those between seeds; `RUN/objectives.svg` the plots; `RUN/objectives.html` all of it with
the runs of the first seed side by side. `srgan compare --study RUN` makes the same of what is there by then.

Whatever is finished is kept: after a kill the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srgan.errors import BackboneError
from srgan.evaluation import metrics
from srgan.evaluation.benchmark import pairs
from srgan.evaluation.frechet import FrechetDistance, VggFeatures
from srgan.files import write_atomically
from srgan.pages.runs import read_run
from srgan.pages.study import JUDGED, START, Outcome, read_outcome, report, series_of, write_outcome
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
    return dict(zip(JUDGED, [*means, math.nan if distances is None else distances.value()], strict=True))


def patches_of(picture: np.ndarray) -> list[np.ndarray]:
    """Return a picture, (H,W,3) or (H,W), in patches (64,64,3), without what is left at its edges."""
    rgb = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    height, width = rgb.shape[0] // _PATCH_PX * _PATCH_PX, rgb.shape[1] // _PATCH_PX * _PATCH_PX
    cells = rgb[:height, :width].reshape(height // _PATCH_PX, _PATCH_PX, width // _PATCH_PX, _PATCH_PX, 3)
    return list(cells.swapaxes(1, 2).reshape(-1, _PATCH_PX, _PATCH_PX, 3))


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
    if known := read_outcome(run):
        return known
    weight_file = folder / f"{objective}.weight.json"  # one for all seeds: they are to differ in nothing else
    if weight_file.is_file():
        weight = float(json.loads(weight_file.read_text()))
    else:
        weight = equal_weight(recipe_of(objective, 0, steps, 1.0, str(start)), cache)
        write_atomically(weight_file, json.dumps(weight).encode())
    recipe = recipe_of(objective, seed, steps, weight, str(start))
    trainer.train(recipe, cache, run, resume=bool(checkpoint.checkpoints(run)))
    outcome = outcome_of(run, objective, seed, weight, test)
    write_outcome(run, outcome)
    return outcome


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not trained yet and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="training pictures, as for `srgan train`")
    parser.add_argument(
        "--test", type=Path, required=True, help="folder of HR pictures, not among them, that judge all runs"
    )
    parser.add_argument("--run", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, default=500, help="of the game (default: %(default)s)")
    parser.add_argument("--pretrain-steps", type=int, default=2000, help="before it (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    train(options)
    print(report(options.run, options.run / "objectives.html", options.objective), end="")


def train(options: argparse.Namespace) -> None:
    """Train and judge what is not finished."""
    cache = build_cache([parse_source(options.data)], options.run / "cache")
    before = options.run / "pretrained"
    start = before / "srresnet-x4.safetensors"
    if not start.is_file():
        recipe = recipe_of("nonsaturating", 0, 0, 1.0, "", pretrain={"steps": options.pretrain_steps})
        trainer.train(recipe, cache, before, resume=bool(checkpoint.checkpoints(before)))
    if not read_outcome(before):
        write_outcome(before, Outcome(START, 0, alarms=0, **judged(start.with_suffix(".onnx"), options.test)))
    for seed in range(options.seeds):  # seed by seed, so that a run cut short still compares all
        for objective in options.objective:
            outcome = play(
                options.run, cache, start, objective=objective, seed=seed, steps=options.steps, test=options.test
            )
            print(outcome, flush=True)


if __name__ == "__main__":
    main()
