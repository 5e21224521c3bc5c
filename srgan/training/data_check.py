"""What `srgan data check` and `srgan data preview` do: look at the pictures before hours are spent on them."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from srgan import pictures
from srgan.errors import BackboneError, PictureError, UsageError
from srgan.files import write_atomically
from srgan.training import degradation, trainer
from srgan.training.config import Recipe, StageRecipe, load_recipe
from srgan.training.data import Patches, PictureCache, pack, split, survey
from srgan.training.models import SCALE
from srgan.training.sources import File, Source, list_files, listed, shown

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

DEFAULT_RECIPE = "srgan_x4"
LOW_JPEG_QUALITY = 75  # below it the 8×8 blocks show, and a generator learns to draw them
# Correlation of two thumbnails. Over 675 unrelated photographs the highest of 227,000 is 0.91; the same
# photograph at JPEG quality 40 or at a third of the size stays above 0.99, brightened by a fifth above 0.97.
NEAR_DUPLICATE = 0.96
_FLAT = 2.0  # grey levels of deviation under which a thumbnail shows nothing to compare
_SAMPLE = 24  # pictures decoded for the timing
_MEASURED_STEPS = 2
_MEASURED_BATCH = 4  # patches in a measured step on CPUs, where a step grows with them; a GPU gets all
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class StageTiming:
    """Seconds of one step of a stage: drawing and degrading its batches, and the networks' work on them.

    `hours`: of the whole stage at this speed.
    """

    stage: str
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
    decoding_minutes: float
    patches_per_s: float
    stages: tuple[StageTiming, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DataReport:
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


def check(sources: Sequence[Source], recipe: Recipe, *, timed: bool = True) -> DataReport:
    """Decode every picture of `sources` and report; with `timed`, measure a few steps of `recipe` as well.

    Raises UsageError for a folder that does not exist or has no picture in it.
    """
    cache, files = survey(list_files(sources))
    timing = None
    if timed and len(cache):
        usable = (torch.minimum(cache.heights, cache.widths) >= _largest_patch_px(recipe)).nonzero()[:, 0]
        timing = _timing([files[index] for index in usable.tolist()], cache, recipe) if len(usable) else None
    return report_of(cache, recipe, thorough=True, timing=timing)


def report_of(
    cache: PictureCache, recipe: Recipe, *, thorough: bool = False, timing: Timing | None = None
) -> DataReport:
    """Return what a cache made by `build_cache` or `survey` already knows, in a moment.

    `thorough`: compare all training pictures with one another, which grows with the square of their number.
    """
    patch_px = _largest_patch_px(recipe)
    sides = torch.minimum(cache.heights, cache.widths)
    training, validation = split_numbers(len(cache), recipe.data.held_out, recipe.seed)
    usable = [number for number in training if sides[number] >= patch_px]
    thumbnails = torch.zeros(len(cache), 1) if cache.thumbnails is None else cache.thumbnails
    leaks = near_duplicates(thumbnails[validation], thumbnails[training])
    inside = near_duplicates(thumbnails[training]) if thorough else None
    qualities = [] if cache.jpeg_qualities is None else cache.jpeg_qualities.tolist()

    def named(found: list[tuple[int, int, float]], first: list[int]) -> tuple[tuple[str, str, float], ...]:
        return tuple((cache.names[first[a]], cache.names[training[b]], round(r, 4)) for a, b, r in found)

    return DataReport(
        pictures=len(cache),
        held_out=len(validation),
        paired=0 if cache.lr_offsets is None else int((cache.lr_offsets >= 0).sum()),
        megapixels=float((cache.heights[usable] * cache.widths[usable]).sum()) / 1e6,
        patch_hr_px=patch_px,
        left_out=cache.skipped,
        too_small=tuple(name for name, side in zip(cache.names, sides.tolist(), strict=True) if side < patch_px),
        unusual=dict(Counter(note for note in cache.notes or [] if note).most_common()),
        jpeg_qualities=tuple(sorted(Counter(quality for quality in qualities if quality).items())),
        leaks=named(leaks, validation),
        duplicates=None if inside is None else named(inside, training),
        timing=timing,
    )


def near_duplicates(thumbnails: Tensor, others: Tensor | None = None) -> list[tuple[int, int, float]]:
    """Return (which, its nearest among `others`, their correlation) for all above `NEAR_DUPLICATE`.

    `thumbnails`, `others`: (N, ...) grey pictures of one small size. Without `others` each is compared with those
    before it. Brightness and contrast do not count, and a flat picture is like no other.
    """
    ours = _standardised(thumbnails)
    theirs = ours if others is None else _standardised(others)
    found = []
    for begin in range(0, len(ours), _ROWS_AT_ONCE):
        block = ours[begin : begin + _ROWS_AT_ONCE]
        if others is None:
            correlations = (block @ theirs[: begin + len(block)].T).tril(begin - 1)
        else:
            correlations = block @ theirs.T
        if not correlations.shape[1]:
            break
        nearest, which = correlations.max(1)
        rows = (nearest > NEAR_DUPLICATE).nonzero()[:, 0].tolist()
        found += [(begin + row, int(which[row]), float(nearest[row])) for row in rows]
    return found


def summary(report: DataReport) -> str:
    """Return the report in one paragraph, for the log of a training run."""
    parts = [
        f"{report.pictures} pictures, {report.megapixels:.0f} megapixels to draw patches from, "
        f"{report.held_out} pictures held out"
    ]
    if report.paired:
        parts.append(f"{report.paired} with their own LR")
    if report.left_out:
        parts.append(f"{len(report.left_out)} files left out")
    if report.too_small:
        parts.append(f"{len(report.too_small)} smaller than a patch of {report.patch_hr_px} px")
    if report.low_quality:
        parts.append(f"{report.low_quality} JPEG files below quality {LOW_JPEG_QUALITY}")
    if report.leaks:
        parts.append(f"{len(report.leaks)} held-out pictures have a near-duplicate in training")
    if report.duplicates:
        parts.append(f"{len(report.duplicates)} near-duplicates inside training")
    return "; ".join(parts)


def check_command(
    folders: Sequence[Path], lr: Path | None, json_path: Path | None, recipe: str | None = None
) -> int:
    """Check `folders`, print what was found, and return 0, or 1 if there are problems.

    `lr`: the folder of shipped LR pictures, for a single folder of HR. `json_path`: where the whole report goes
    as well. `recipe`: for which the sizes and times are, a bundled name or a TOML file. Raises UsageError for a
    folder that does not exist or has no picture in it, PictureError if the report cannot be written.
    """
    if lr is not None and len(folders) != 1:
        raise UsageError(f"--lr belongs to one folder of HR pictures, not to {len(folders)}: check them apart")
    name = recipe or DEFAULT_RECIPE
    settings = load_recipe(name)
    report = check([Source(folder, lr) for folder in folders], settings)
    _print(report, name, settings.data.max_bad_share)
    if json_path is not None:
        text = json.dumps({**asdict(report), "problems": report.problems}, indent=2) + "\n"
        _write(json_path, text.encode())
    return 1 if report.problems else 0


def preview_command(
    folders: Sequence[Path], out: Path, recipe: str | None = None, seed: int = 0, count: int = 16
) -> None:
    """Write a sheet of `count` HR patches of `folders`, each beside the LR that `recipe` makes of it, enlarged.

    Patches are drawn as training draws them, from a sample of the pictures. Raises UsageError for a folder or a
    suffix that cannot be used, PictureError if the sheet cannot be written.
    """
    format = pictures.format_of_suffix(out.suffix)
    if format is None:
        raise UsageError(f"{out}: give the sheet a name that ends in .png or .jpg")
    if not 1 <= count <= _LARGEST_SHEET:
        raise UsageError(f"--count {count}: give 1 to {_LARGEST_SHEET}")
    settings = load_recipe(recipe or DEFAULT_RECIPE)
    random = torch.Generator().manual_seed(seed)
    degrade = degradation.make(settings.degradation, random)
    stage = settings.pretrain if settings.pretrain.steps else settings.adversarial
    files = list_files([Source(folder) for folder in folders])
    sample = [files[index] for index in torch.randperm(len(files), generator=random)[: 2 * count].tolist()]
    with tempfile.TemporaryDirectory() as folder:
        patches = Patches(
            pack(sample, Path(folder)),
            stage.patch_hr_px + 2 * degrade.margin_hr_px,
            torch.device("cpu"),
            random,
            settings.data.energy_weighting,
        )
        # One at a time, so that each gets resizes of its own.
        pairs = [patches.pairs(1, degrade) for _ in range(count)]
        del patches  # and with it the memory map, before its file goes
    sheet = _sheet(torch.cat([lr for lr, _ in pairs]), torch.cat([hr for _, hr in pairs]))
    _write(out, pictures.encode(pictures.Picture(sheet), format))


def _sheet(lr: Tensor, hr: Tensor) -> pictures.np.ndarray:
    return None


def _largest_patch_px(recipe: Recipe) -> int:
    margin = degradation.make(recipe.degradation, torch.Generator()).margin_hr_px
    return max(stage.patch_hr_px for stage in _stages(recipe).values()) + 2 * margin


def _stages(recipe: Recipe) -> dict[str, StageRecipe]:
    """The stages that the recipe runs, by name."""
    stages: dict[str, StageRecipe] = {name: getattr(recipe, name) for name in trainer.STAGES}
    return {name: stage for name, stage in stages.items() if stage.steps}


def _standardised(thumbnails: Tensor) -> Tensor:
    flat = thumbnails.flatten(1).float()
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=_FLAT * math.sqrt(flat.shape[1]))


def _timing(files: Sequence[File], cache: PictureCache, recipe: Recipe) -> Timing:
    """Measure decoding, drawing and computing on an even sample of `files`, all of them large enough."""
    sample = [files[index] for index in np.unique(np.linspace(0, len(files) - 1, _SAMPLE).round().astype(int))]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        packed = pack(sample, Path(folder))
        rate = float((packed.heights * packed.widths).sum()) / 1e6 / (time.perf_counter() - began)
        fabric = trainer.make_fabric(recipe)
        random = torch.Generator().manual_seed(recipe.seed)
        stages, notes = [], []
        for name, stage in _stages(recipe).items():
            batch = trainer.batch_source(recipe, stage, packed, fabric, random)
            loading_s = _seconds(batch)
            try:
                computing_s = _step_s(name, recipe, batch)
            except BackboneError as error:
                notes.append(f"a step of {name} was not measured: {error}")
                continue
            hours = stage.steps * (loading_s + computing_s) / 3600
            stages.append(StageTiming(name, loading_s, computing_s, hours))
    return Timing(rate, total / rate / 60, patches_per_s, tuple(stages), tuple(notes))
