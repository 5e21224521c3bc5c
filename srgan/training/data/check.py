"""What there is to train on: every fault that would spoil a run, found before hours are spent on it."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor

from srgan.errors import BackboneError
from srgan.training import trainer
from srgan.training.config import AdversarialStageRecipe, Recipe
from srgan.training.data import degradation
from srgan.training.data.cache import PictureCache, pack, split, survey
from srgan.training.data.sources import File, Source, list_files
from srgan.training.processes import make_fabric
from srgan.training.run import Position, make_players, random_streams

LOW_JPEG_QUALITY = 75  # below it the 8×8 blocks show, and a generator learns to draw them
# Correlation of two thumbnails. Over 675 unrelated photographs the highest of 227,000 is 0.91; the same
# photograph at JPEG quality 40 or at a third of the size stays above 0.99, brightened by a fifth above 0.97.
NEAR_DUPLICATE = 0.96
_FLAT = 2.0  # grey levels of deviation under which a thumbnail shows nothing to compare
_SAMPLE = 24  # pictures decoded for the timing
_MEASURED_CALLS = 3
_MEASURED_BATCH = 4  # patches in a measured step on CPUs, where the time grows with them; a GPU gets all


@dataclass(frozen=True)
class StageTiming:
    """Seconds of one step of a stage: drawing and degrading its batches, and the networks' work on them.

    `patches_per_s`: drawn and degraded. `hours`: of all `steps` at this speed.
    """

    stage: str
    steps: int
    patches_per_s: float
    loading_s: float
    computing_s: float
    hours: float

    @property
    def verdict(self) -> str:
        """Which of the two decides the speed; they follow one another, so the lesser one counts too."""
        share = self.loading_s / (self.loading_s + self.computing_s)
        bound = "loader-bound" if share > 0.5 else "compute-bound"
        return f"{bound}: loading takes {100 * share:.1f} % of a step"


@dataclass(frozen=True)
class Timing:
    """Measured on this machine. `notes`: what could not be measured, and why."""

    decoded_megapixels_per_s: float
    decoding_hours: float
    stages: tuple[StageTiming, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """What there is to train on.

    `pictures`: readable, of which `held_out` serve for validation; `paired`: with a shipped LR. `megapixels`:
    that patches are drawn from. `patch_hr_px`: the largest patch of the recipe with its margin; `too_small` are
    smaller. `left_out`: (name, reason). `unusual`: how many pictures have which peculiarity. `jpeg_qualities`:
    (quality, files). `leaks`: (validation picture, its near-duplicate in training, correlation).
    `duplicates`: likewise inside training, each picture with the nearest one before it; None if not looked for.
    """

    pictures: int
    held_out: int
    paired: int
    megapixels: float
    patch_hr_px: int
    left_out: tuple[tuple[str, str], ...]
    too_small: tuple[str, ...]
    unusual: dict[str, int]
    jpeg_qualities: tuple[tuple[int, int], ...]
    leaks: tuple[tuple[str, str, float], ...]
    duplicates: tuple[tuple[str, str, float], ...] | None
    timing: Timing | None = None

    @property
    def problems(self) -> int:
        """Files that are not used, and validation pictures that were trained on."""
        return len(self.left_out) + len(self.too_small) + len(self.leaks)

    @property
    def low_quality(self) -> int:
        """JPEG files below `LOW_JPEG_QUALITY`."""
        return sum(files for quality, files in self.jpeg_qualities if quality < LOW_JPEG_QUALITY)


def check(sources: Sequence[Source], recipe: Recipe, *, timed: bool = True) -> Findings:
    """Decode every picture of `sources` and look for faults; with `timed`, also measure some steps of `recipe`.

    Raises UsageError for a folder that does not exist or has no picture in it.
    """
    cache, files = survey(list_files(sources, recipe.generator.scale))
    timing = None
    if timed and len(cache):
        usable = (torch.minimum(cache.heights, cache.widths) >= _largest_patch_px(recipe)).nonzero()[:, 0]
        if len(usable):
            timing = measured([files[index] for index in usable.tolist()], cache, recipe)
    return findings(cache, recipe, thorough=True, timing=timing)


def findings(
    cache: PictureCache, recipe: Recipe, *, thorough: bool = False, timing: Timing | None = None
) -> Findings:
    """Return what a cache made by `build_cache` or `survey` already knows, in a moment.

    `thorough`: compare all training pictures with one another, which grows with the square of their number.
    """
    patch_px = _largest_patch_px(recipe)
    sides = torch.minimum(cache.heights, cache.widths)
    training, validation = split(cache, recipe.data)
    usable = (torch.minimum(training.heights, training.widths) >= patch_px).nonzero()[:, 0]
    leaks = _turned_duplicates(validation.thumbnails, training.thumbnails)
    inside = near_duplicates(training.thumbnails) if thorough else None

    def named(pairs: list[tuple[int, int, float]], first: list[str]) -> tuple[tuple[str, str, float], ...]:
        return tuple((first[a], training.names[b], round(r, 4)) for a, b, r in pairs)

    return Findings(
        pictures=len(cache),
        held_out=len(validation),
        paired=int((cache.lr_offsets >= 0).sum()),
        megapixels=float((training.heights[usable] * training.widths[usable]).sum()) / 1e6,
        patch_hr_px=patch_px,
        left_out=cache.skipped,
        too_small=tuple(name for name, side in zip(cache.names, sides.tolist(), strict=True) if side < patch_px),
        unusual=dict(Counter(note for note in cache.notes if note).most_common()),
        jpeg_qualities=tuple(
            sorted(Counter(quality for quality in cache.jpeg_qualities.tolist() if quality).items())
        ),
        leaks=named(leaks, validation.names),
        duplicates=None if inside is None else named(inside, training.names),
        timing=timing,
    )


def near_duplicates(
    thumbnails: Tensor, others: Tensor | None = None, *, rows_at_once: int = 2048
) -> list[tuple[int, int, float]]:
    """Return (which, its nearest among `others`, their correlation) for all above `NEAR_DUPLICATE`.

    `thumbnails`, `others`: (N, ...) grey pictures of one small size. Without `others` each is compared with those
    before it. Brightness and contrast do not count, and a flat picture is like no other. `rows_at_once`: how many
    are compared in one product of matrices; it bounds the memory, not the result.
    """
    ours = _standardised(thumbnails)
    theirs = ours if others is None else _standardised(others)
    alike = []
    for begin in range(0, len(ours), rows_at_once):
        block = ours[begin : begin + rows_at_once]
        if others is None:
            correlations = (block @ theirs[: begin + len(block)].T).tril(begin - 1)
        else:
            correlations = block @ theirs.T
        if not correlations.shape[1]:
            break
        nearest, which = correlations.max(1)
        rows = (nearest > NEAR_DUPLICATE).nonzero()[:, 0].tolist()
        alike += [(begin + row, int(which[row]), float(nearest[row])) for row in rows]
    return alike


def _turned_duplicates(thumbnails: Tensor, others: Tensor) -> list[tuple[int, int, float]]:
    """`near_duplicates` in any of the eight ways that a patch is turned in: a mirrored picture teaches as much."""
    nearest: dict[int, tuple[int, int, float]] = {}
    for turns in range(4):
        for way in (thumbnails.rot90(turns, (1, 2)), thumbnails.rot90(turns, (1, 2)).flip(2)):
            for found in near_duplicates(way, others):
                nearest[found[0]] = max(found, nearest.get(found[0], found), key=lambda pair: pair[2])
    return [nearest[which] for which in sorted(nearest)]


def summary(findings: Findings) -> str:
    """Return the findings in one paragraph, for the log of a training run."""
    parts = [
        f"{findings.pictures} pictures, {findings.megapixels:.1f} megapixels to draw patches from, "
        f"{findings.held_out} pictures held out"
    ]
    if findings.paired:
        parts.append(f"{findings.paired} with their own LR")
    if findings.left_out:
        parts.append(f"{len(findings.left_out)} files left out")
    if findings.too_small:
        parts.append(f"{len(findings.too_small)} smaller than a patch of {findings.patch_hr_px} px")
    if findings.low_quality:
        parts.append(f"{findings.low_quality} JPEG files below quality {LOW_JPEG_QUALITY}")
    parts += [f"{files} pictures: {note}" for note, files in findings.unusual.items()]
    if findings.leaks:
        parts.append(f"{len(findings.leaks)} held-out pictures have a near-duplicate in training")
    if findings.duplicates:
        parts.append(f"{len(findings.duplicates)} near-duplicates inside training")
    return "; ".join(parts)


def measured(files: Sequence[File], cache: PictureCache, recipe: Recipe) -> Timing:
    """Measure decoding, drawing and computing on an even sample of `files`, all of them large enough."""
    sample = [files[index] for index in np.unique(np.linspace(0, len(files) - 1, _SAMPLE).round().astype(int))]
    stages, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        packed = pack(sample, Path(folder))
        rate = _megapixels(packed) / (time.perf_counter() - began)
        fabric = make_fabric(recipe)
        for name in recipe.stages():
            try:
                stages.append(_stage_timing(name, recipe, packed, fabric))
            except BackboneError as error:
                notes.append(f"a step of {name} was not measured: {error}")
        del packed  # and with it the memory map, before its file goes
    return Timing(rate, _megapixels(cache) / rate / 3600, tuple(stages), tuple(notes))


def _stage_timing(name: str, recipe: Recipe, packed: PictureCache, fabric: Fabric) -> StageTiming:
    stage = recipe.stages()[name]
    random, label_random = random_streams(recipe.seed, fabric)
    draw = trainer.batch_source(recipe, stage, packed, fabric.device, random)
    draw_s = _seconds(draw, fabric.device)
    players = make_players(recipe, fabric, label_random)
    step = trainer.stage_step(name, recipe, players)
    at_once = stage.batch_size if fabric.device.type == "cuda" else min(stage.batch_size, _MEASURED_BATCH)
    lr, hr = (tensor[:at_once] for tensor in draw())
    draws, position = 1, Position(name)
    if isinstance(stage, AdversarialStageRecipe):
        draws = trainer.discriminator_steps(recipe)
        position.step = stage.discriminator_alone_steps  # from where on all players move
    pace = trainer.Pace(stage.learning_rate)
    computing_s = _seconds(lambda: step(lambda: (lr, hr), position, pace), fabric.device)
    computing_s *= stage.batch_size / at_once
    return StageTiming(
        stage=name,
        steps=stage.steps,
        patches_per_s=stage.batch_size / draw_s,
        loading_s=draws * draw_s,
        computing_s=computing_s,
        hours=stage.steps * (draws * draw_s + computing_s) / 3600,
    )


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """How long one call takes: the shortest of some, for whatever else the machine does only adds to it.

    The first one is left out: it allocates and compiles.
    """
    function()
    taken = []
    for _ in range(_MEASURED_CALLS):
        _wait_for(device)
        began = time.perf_counter()
        function()
        _wait_for(device)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _megapixels(cache: PictureCache) -> float:
    return float((cache.heights * cache.widths).sum()) / 1e6


def _standardised(thumbnails: Tensor) -> Tensor:
    flat = thumbnails.flatten(1).float()
    flat = flat - flat.mean(1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / length.clamp(min=_FLAT * math.sqrt(flat.shape[1]))


def _largest_patch_px(recipe: Recipe) -> int:
    margin = degradation.make(recipe.degradation, torch.Generator(), recipe.generator.scale).margin_hr_px
    return max(stage.patch_hr_px for stage in recipe.stages().values()) + 2 * margin
