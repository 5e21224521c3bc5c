"""How much faster training is than a plain loop, as a ratio measured in one run.

    python benchmarks/speed_training.py                     # on the examples, four times enlarged
    python benchmarks/speed_training.py --data PICTURES
    python benchmarks/speed_training.py --data PICTURES --stage adversarial --steps 20 --rounds 7

*Ours* is the trainer's own step: a packed cache of decoded pictures, LR made for the whole batch on the device,
channels_last, one forward of the generator for both players, a frozen discriminator in the generator's turn (and
the averaged generator, which the plain loop does without), and bfloat16 where the processor computes it; there
*ours, float32* is measured, too.

*Plain* is the loop that the well-known SRGAN repositories share: a DataLoader that opens the picture's file, crops
and reduces it with Pillow for every single patch; NCHW; float32; and in the game D's loss sent back through the
generator (`retain_graph=True`), D forward once more, HR sent through VGG without `no_grad`, and the generator's
loss leaving gradients in the discriminator. It is measured with the workers of --workers (0 and 2 by default).

Networks, losses, batch and patch size are the recipe's for all loops, but for LDL, which ours alone computes. They
run on the same machine, in turns: every round gives each loop --steps timed steps after two that are not timed.
The figures are medians over the rounds, and so is the ratio, of each round's own. Printed as a table in Markdown:

    | stage | loop | patches/s | ours / plain, median (lowest to highest) |

followed by the share of our step that goes into drawing and degrading a batch. Measure on a machine that does
nothing else; the load before the start is printed with the machine.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from machine import processor
from measuring import in_turns, photographs, write_figures
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from srgan.errors import SrganError
from srgan.machine import available_cores
from srgan.networks.layers import TailForm
from srgan.texts import first_line
from srgan.training import trainer
from srgan.training.config import STAGES, Recipe, load_recipe
from srgan.training.data.cache import PictureCache, build_cache
from srgan.training.losses import CONTENT_LOSSES, LpipsLoss, PerceptualLoss
from srgan.training.processes import make_fabric, precision_of
from srgan.training.run import Position, begin_stage, make_players, random_streams

DRAWING = "drawing and degrading a batch"
SAMPLES = [(904, 600), (896, 688), (1024, 684)] * 2  # what --data is without --data: JPEG files of 0.6 megapixels

_UNTIMED_STEPS = 2  # of every turn: they refill a loader's queue and warm the processor's caches

Step = Callable[[], None]


def ours(recipe: Recipe, name: str, cache: PictureCache, fabric: Fabric) -> tuple[Step, Step]:
    """Return the trainer's step for the stage `name`, and the drawing of its batch alone."""
    stage = recipe.stages()[name]
    torch.manual_seed(recipe.seed)
    patch_random, label_random = random_streams(recipe.seed, fabric)
    players = make_players(recipe, fabric, label_random)
    begin_stage(players, stage)
    batch = trainer.batch_source(recipe, stage, cache, fabric.device, patch_random)
    move = trainer.stage_step(name, recipe, players)
    # Both players move from here on, and the adversarial weight is whole.
    since = recipe.adversarial.discriminator_alone_steps + recipe.adversarial.ramp_steps
    position = Position(name, step=since if name == "adversarial" else 0)

    def step() -> None:
        move(batch, position, trainer.Pace(stage.learning_rate))
        position.step += 1

    return step, lambda: (batch(), None)[1]


class PictureFiles(Dataset[tuple[Tensor, Tensor]]):
    """A patch of a picture file: (lr, hr) in [0,1], decoded, cropped and reduced by Pillow for every item."""

    def __init__(self, folder: Path, patch_px: int) -> None:
        self.patch_px = patch_px
        self.paths = [path for path in sorted(folder.rglob("*")) if self._is_large_enough(path)]

    def _is_large_enough(self, path: Path) -> bool:
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
            return False
        with Image.open(path) as picture:
            return min(picture.size) >= self.patch_px

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = Image.open(self.paths[index]).convert("RGB")
        left, top = (int(torch.randint(size - self.patch_px + 1, ())) for size in picture.size)
        hr = picture.crop((left, top, left + self.patch_px, top + self.patch_px))
        lr = hr.resize((self.patch_px // 4, self.patch_px // 4), Image.Resampling.BICUBIC)
        return _tensor(lr), _tensor(hr)


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)


def plain(recipe: Recipe, name: str, folder: Path, workers: int, device: torch.device) -> Step:
    """Return the plain loop's step for the stage `name`, with its own networks and loader."""
    stage = recipe.stages()[name]
    torch.manual_seed(recipe.seed)
    _, label_random = random_streams(recipe.seed, Fabric(accelerator="cpu", devices=1))
    cpu_players = make_players(recipe, Fabric(accelerator="cpu", devices=1), label_random)
    contiguous = torch.contiguous_format
    generator = cpu_players.generator.to(device).to(memory_format=contiguous)
    if device.type == "cuda":  # as published; moved, it takes tens of gigabytes there in float32
        generator.tail.form = TailForm(moved=False)
    discriminator = cpu_players.discriminator.to(device).to(memory_format=contiguous)
    objective = cpu_players.objective
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=stage.learning_rate)
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=stage.learning_rate)
    batches = _batches(PictureFiles(folder, stage.patch_hr_px), stage.batch_size, workers, device)

    if name == "pretrain":
        content = CONTENT_LOSSES[recipe.pretrain.content]

        def pretrain() -> None:
            lr, hr = next(batches)
            generator_optimizer.zero_grad()
            content(generator(lr), hr).backward()
            generator_optimizer.step()

        return pretrain

    losses = recipe.losses
    content = CONTENT_LOSSES[losses.content.kind]
    perceptual = PlainPerceptualLoss(losses.perceptual).to(device) if losses.perceptual.weight else None
    lpips = LpipsLoss().to(device) if losses.lpips else None

    def adversarial() -> None:
        for _ in range(trainer.discriminator_steps(recipe)):
            lr, hr = next(batches)
            sr = generator(lr)
            discriminator_optimizer.zero_grad()
            objective.discriminator_loss(discriminator, hr, sr).backward(retain_graph=True)
            discriminator_optimizer.step()
            objective.after_discriminator_step(discriminator)
        generator_optimizer.zero_grad()
        loss = losses.content.weight * content(sr, hr)
        loss = loss + losses.adversarial.weight * objective.generator_loss(discriminator, hr, sr)
        if perceptual:
            loss = loss + losses.perceptual.weight * perceptual(sr, hr)
        if lpips:
            loss = loss + losses.lpips * lpips(sr, hr)
        loss.backward()
        generator_optimizer.step()

    return adversarial


class PlainPerceptualLoss(PerceptualLoss):
    """The same layers and distances, with HR's features computed like SR's."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the loss."""
        generated, real = self.activations(sr), self.activations(hr)
        scale = self.feature_scale
        return sum(
            (
                weight * self.distance(scale * generated[tap], scale * real[tap])
                for tap, weight in self.taps.items()
            ),
            start=F.mse_loss(sr, sr),
        )


def _batches(
    dataset: PictureFiles, batch_size: int, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    endless = RandomSampler(dataset, replacement=True, num_samples=1 << 40)
    loader = DataLoader(
        dataset, batch_size, sampler=endless, num_workers=workers, pin_memory=device.type == "cuda"
    )
    for lr, hr in loader:
        yield lr.to(device, non_blocking=True), hr.to(device, non_blocking=True)


def seconds(step: Step, steps: int, device: torch.device) -> float:
    """Return how long one of `steps` steps takes, after some that are not timed."""
    for _ in range(_UNTIMED_STEPS):
        step()
    _wait(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return (time.perf_counter() - began) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(
    recipe: Recipe, name: str, folder: Path, cache: PictureCache, settings: argparse.Namespace
) -> dict[str, Any]:
    """Measure the stage `name`: patches of a step, and seconds of a step in every turn of every loop."""
    fabric = make_fabric(recipe)
    stage = recipe.stages()[name]
    draws = trainer.discriminator_steps(recipe) if name == "adversarial" else 1
    step, draw = ours(recipe, name, cache, fabric)
    steps: dict[str, Step] = {"ours": step}
    if precision_of(recipe) != "fp32":
        exact = recipe.model_copy(update={"precision": "fp32"})
        steps["ours, float32"], _ = ours(exact, name, cache, make_fabric(exact))
    for workers in settings.workers:
        steps[f"plain, {workers} workers"] = plain(recipe, name, folder, workers, fabric.device)
    contenders = {loop: partial(seconds, run, settings.steps, fabric.device) for loop, run in steps.items()}
    contenders[DRAWING] = partial(seconds, draw, settings.steps, fabric.device)
    loops = in_turns(contenders, settings.rounds)
    drawing = [draws * seconds_of_one for seconds_of_one in loops.pop(DRAWING)]
    return {"patches": stage.batch_size * draws, "loops": loops, "drawing": drawing}


def report(name: str, found: dict[str, Any]) -> None:
    """Print the rows of a stage."""
    if "missing" in found:
        print(f"| {name} | not measured: {found['missing']} | | |")
        return
    own = found["loops"]["ours"]
    for loop, times in found["loops"].items():
        ratios = [other / mine for other, mine in zip(times, own, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        said = "" if loop == "ours" else ratio
        print(f"| {name} | {loop} | {found['patches'] / statistics.median(times):.2f} | {said} |")
    share = statistics.median(found["drawing"]) / statistics.median(own)
    print(f"| {name} | {DRAWING} | {share:.1%} of our step | |", flush=True)


def machine() -> str:
    """Return the machine in one line."""
    parts = [
        processor(),
        f"{available_cores()} cores",
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    if hasattr(os, "getloadavg"):
        parts.append(f"load {os.getloadavg()[0]:.1f}")
    return ", ".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Our training step against a plain loop.")
    parser.add_argument("--data", type=Path, help="folder of training pictures (default: the examples, enlarged)")
    parser.add_argument("--stage", choices=[*STAGES, "both"], default="both")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each loop (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], help="of the plain loader (default: 0 2)"
    )
    parser.add_argument("--recipe", default="srgan_x4_best", help="name or .toml (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--json", type=Path, help="file for the figures")
    settings = parser.parse_args(arguments)

    found: dict[str, Any] = {"recipe": settings.recipe, "stages": {}}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            recipe = load_recipe(settings.recipe, settings.set)
            folder = settings.data or photographs(Path(scratch) / "samples", SAMPLES, "jpg")
            cache = build_cache([folder], Path(scratch) / "cache")
        except SrganError as error:
            raise SystemExit(str(error)) from error
        found["precision"] = precision_of(recipe)
        print(f"`{shlex.join(['python', *sys.argv])}`  \n{machine()}\n")
        print("| stage | loop | patches/s | ours / plain, median (lowest to highest) |\n|---|---|---|---|")
        for name in [name for name in recipe.stages() if settings.stage in (name, "both")]:
            try:
                found["stages"][name] = compare(recipe, name, folder, cache, settings)
            except SrganError as error:  # the weights of VGG cannot be had: the other stage needs none
                found["stages"][name] = {"missing": first_line(error)}
            report(name, found["stages"][name])
    write_figures(settings.json, found)


if __name__ == "__main__":
    main()
