"""The eight objectives on equal terms: one pre-trained generator, the same budget, data and seeds for each.

    python benchmarks/objectives.py --data PICTURES --run runs/objectives
    python benchmarks/objectives.py --data PICTURES --run runs/objectives --steps 1000 --seeds 5

Lucic et al. 2018 ("Are GANs created equal?") found that with enough tuning and restarts no objective beats the
others by more than the seeds vary. This asks the same for super-resolution at a small size: a generator of 4
blocks and 24 features is pre-trained once, then every objective plays --steps steps from there with each seed.
Weights are not tuned apart: each game's weight is set so that its gradient at SR begins at half the strength of
the content's (measured on the first batches), the nearest thing to equal terms that different losses have.

Prints a table in Markdown, mean ± deviation over the seeds, of the held-out pictures at the end; for each
objective: PSNR-Y, LPIPS where AlexNet can be had, LR-PSNR, the discriminator's accuracy and the generator's
gradient norm over the second half of the game, stability (the share of logged steps whose gradient norm is below
ten times its median) and alarms. RUN/objectives.html shows all runs of the first seed side by side.

Some minutes for each run on two cores. Whatever is finished is kept: after a kill the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from srgan.files import write_atomically
from srgan.training import checkpoint, trainer
from srgan.training.adversarial import OBJECTIVES
from srgan.training.compare import compare_command
from srgan.training.config import Recipe, validated
from srgan.training.data import PictureCache, build_cache, split
from srgan.training.processes import make_fabric
from srgan.training.report import read_run
from srgan.training.sources import parse_source
from srgan.training.state import make_players, random_streams

_CONTENT_WEIGHT = 1.0
_PULL = 0.5  # of the game's gradient at SR, relative to the content's: enough to be seen, too little to run away


@dataclass(frozen=True)
class Outcome:
    """One run of one objective. `stable`: share of logged steps without a spike of the gradient norm."""

    objective: str
    seed: int
    weight: float
    psnr_y: float
    lpips: float | None
    lr_psnr: float
    accuracy: float
    gradient_norm: float
    stable: float
    alarms: int


def recipe_of(objective: str, seed: int, steps: int, weight: float, start: str, **changes: Any) -> Recipe:
    """Return the recipe of one run; without `steps` it is the pre-training that they all start from."""
    values: dict[str, Any] = {
        "seed": seed,
        "start": start,
        "precision": "32-true",
        "objective": objective,
        "generator": {"blocks": 4, "features": 24},
        "discriminator": {
            "kind": "autoencoder" if objective == "began" else "vgg",
            "features": 16,
            "normalisation": "none",  # the only one that suits all
        },
        "losses": {
            "content": {"kind": "l1", "weight": _CONTENT_WEIGHT},
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
            "steps": steps,
            "batch_size": 8,
            "patch_hr_px": 64,
            "learning_rate": 1e-4,
            "final_learning_rate": 1e-6,
            "ema_decay": 0.99,
        },
        "data": {"held_out": 8},
        "log_steps": 10,
        "validation_minutes": 2.0,
    }
    for section, change in changes.items():
        values[section] = values[section] | change if isinstance(change, dict) else change
    return validated(values, "objectives")


def equal_weight(recipe: Recipe, cache: PictureCache, batches: int = 8) -> float:
    """Return the weight at which the game pulls at SR with `_PULL` times the content's gradient.

    The median over the first `batches` batches, the discriminator learning from each before it is asked.
    """
    fabric = make_fabric(recipe)
    torch.manual_seed(recipe.seed)
    random, label_random = random_streams(recipe.seed, fabric)
    players = make_players(recipe, fabric, label_random)
    training, _ = split(cache, recipe.data.held_out, recipe.seed)
    batch = trainer.batch_source(recipe, recipe.adversarial, training, fabric, random)
    functions, weights = trainer.generator_terms(recipe.losses, players.ema, fabric.device)
    ratios = []
    for _ in range(batches):
        lr, hr = batch()
        sr = players.generator(lr)
        trainer.discriminator_step(fabric, players, hr, sr, recipe.adversarial.clip_norm)
        with trainer.frozen(players.discriminator):
            terms = {name: function(sr, hr, lr) for name, function in functions.items()}
            terms["adversarial"] = players.objective.generator_loss(players.discriminator, hr, sr)
            norms = trainer.gradient_norms(terms, weights | {"adversarial": 1.0}, sr)
        ratios.append(float(norms["gradient/content"] / norms["gradient/adversarial"].clamp(min=1e-12)))
    return _PULL * statistics.median(ratios)


def outcome_of(run: Path, objective: str, seed: int, weight: float) -> Outcome:
    """Read a finished run's log."""
    log, _ = read_run(run)
    series = log.series("adversarial")

    def last(key: str) -> float:
        return series[f"validation/{key}"][-1][1]

    def second_half(key: str) -> list[float]:
        points = series[key]
        return [value for step, value in points if step > points[-1][0] / 2 and math.isfinite(value)]

    norms = [value for _, value in series["gradient_norm"] if math.isfinite(value)]
    calm = [norm for norm in norms if norm < 10 * statistics.median(norms)]
    return Outcome(
        objective=objective,
        seed=seed,
        weight=weight,
        psnr_y=last("psnr_y"),
        lpips=last("lpips") if "validation/lpips" in series else None,
        lr_psnr=last("lr_psnr"),
        accuracy=statistics.fmean(second_half("discriminator_accuracy")),
        gradient_norm=statistics.fmean(second_half("gradient_norm")),
        stable=len(calm) / len(series["gradient_norm"]),
        alarms=sum(alarm.times for alarm in log.alarms),
    )


def play(folder: Path, cache: PictureCache, start: Path, objective: str, seed: int, steps: int) -> Outcome:
    """Return the outcome of one run, which is trained, gone on with, or only read if it is finished."""
    run = folder / f"{objective}-{seed}"
    done = run / "outcome.json"
    if done.is_file():
        return Outcome(**json.loads(done.read_text()))
    weight_file = run / "weight.json"
    if weight_file.is_file():  # the network that it was measured with is gone; a resume needs the same number
        weight = float(json.loads(weight_file.read_text()))
    else:
        weight = equal_weight(recipe_of(objective, seed, steps, 1.0, str(start)), cache)
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(weight_file, json.dumps(weight).encode())
    recipe = recipe_of(objective, seed, steps, weight, str(start))
    trainer.train(recipe, cache, run, resume=bool(checkpoint.checkpoints(run)))
    outcome = outcome_of(run, objective, seed, weight)
    write_atomically(done, json.dumps(asdict(outcome)).encode())
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes in Markdown, a row for each objective: mean ± deviation over its seeds."""
    columns = {
        "weight": ("weight", "{:.2g}"),
        "psnr_y": ("PSNR-Y dB", "{:.2f}"),
        "lpips": ("LPIPS", "{:.4f}"),
        "lr_psnr": ("LR-PSNR dB", "{:.1f}"),
        "accuracy": ("D accuracy", "{:.2f}"),
        "gradient_norm": ("gradient norm", "{:.3f}"),
        "stable": ("stable", "{:.0%}"),
        "alarms": ("alarms", "{:.1f}"),
    }
    lines = ["| objective | seeds | " + " | ".join(heading for heading, _ in columns.values()) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for objective in dict.fromkeys(outcome.objective for outcome in outcomes):
        own = [asdict(outcome) for outcome in outcomes if outcome.objective == objective]
        cells = []
        for key, (_, form) in columns.items():
            values = [row[key] for row in own if row[key] is not None]
            cell = form.format(statistics.fmean(values)) if values else "–"
            if len(values) > 1 and key not in ("weight", "alarms", "stable"):
                cell += " ± " + form.format(statistics.stdev(values))
            cells.append(cell)
        lines.append(f"| `{objective}` | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not trained yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="training pictures, as for `srgan train`")
    parser.add_argument("--run", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, default=400, help="of the game (default: %(default)s)")
    parser.add_argument("--pretrain-steps", type=int, default=2000, help="before it (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)

    cache = build_cache([parse_source(options.data)], options.run / "cache")
    before = options.run / "pretrained"
    start = before / "srresnet-x4.safetensors"
    if not start.is_file():
        recipe = recipe_of("nonsaturating", 0, 0, 1.0, "", pretrain={"steps": options.pretrain_steps})
        trainer.train(recipe, cache, before, resume=bool(checkpoint.checkpoints(before)))

    outcomes = []
    for seed in range(options.seeds):  # seed by seed, so that a run cut short still compares all
        for objective in options.objective:
            outcomes.append(play(options.run, cache, start, objective, seed, options.steps))
            print(outcomes[-1], flush=True)
    print("\n" + table(outcomes))
    if len(options.objective) > 1:
        runs = [options.run / f"{objective}-0" for objective in options.objective]
        print(compare_command(runs, options.run / "objectives.html"))


if __name__ == "__main__":
    main()
