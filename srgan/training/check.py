"""What `srgan data check` and `srgan data preview` do: look at the pictures before hours are spent on them."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor

from srgan import pictures
from srgan.errors import BackboneError, PictureError, UsageError
from srgan.files import write_atomically
from srgan.networks.generator import SCALE
from srgan.training import degradation, trainer
from srgan.training.config import AdversarialStageRecipe, Recipe, StageRecipe, load_recipe
from srgan.training.data import PictureCache, pack, split_numbers, survey, weighted
from srgan.training.patches import Patches
from srgan.training.processes import make_fabric
from srgan.training.sources import File, Source, list_files, parse_source, shown
from srgan.training.state import STAGES, Position, make_players, random_streams

DEFAULT_RECIPE = "srgan_x4"
LOW_JPEG_QUALITY = 75  # below it the 8×8 blocks show, and a generator learns to draw them
# Correlation of two thumbnails. Over 675 unrelated photographs the highest of 227,000 is 0.91; the same
# photograph at JPEG quality 40 or at a third of the size stays above 0.99, brightened by a fifth above 0.97.
NEAR_DUPLICATE = 0.96
_FLAT = 2.0  # grey levels of deviation under which a thumbnail shows nothing to compare
_SAMPLE = 24  # pictures decoded for the timing
_MEASURED_CALLS = 3
_MEASURED_BATCH = 4  # patches in a measured step on CPUs, where the time grows with them; a GPU gets all
_ROWS_AT_ONCE = 2048
_LARGEST_SHEET = 400
_GAP_PX = 4
_LINES_SHOWN = 20
_JPEG_BINS = ((1, 49), (50, 74), (75, 84), (85, 89), (90, 94), (95, 100))


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
        if len(usable):
            timing = _timing([files[index] for index in usable.tolist()], cache, recipe)
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
        f"{report.pictures} pictures, {report.megapixels:.1f} megapixels to draw patches from, "
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
    folders: Sequence[str | Path], lr: Path | None, json_path: Path | None, recipe: str | None = None
) -> int:
    """Check `folders`, print what was found, and return 0, or 1 if there are problems.

    `folders`: as `srgan train --data` takes them, see `sources.parse_source`. `lr`: the folder of shipped LR
    pictures, for a single folder of HR. `json_path`: where the whole report goes
    as well. `recipe`: for which the sizes and times are, a bundled name or a TOML file. Raises UsageError for a
    folder that does not exist or has no picture in it, PictureError if the report cannot be written.
    """
    sources = [parse_source(str(folder)) for folder in folders]
    if lr is not None:
        if len(sources) != 1 or sources[0].lr_folder is not None:
            raise UsageError("--lr belongs to one folder of HR pictures; give several as HR_DIR:LR_DIR")
        sources = [replace(sources[0], lr_folder=lr)]
    name = recipe or DEFAULT_RECIPE
    settings = load_recipe(name)
    report = check(sources, settings)
    _print(report, name)
    if json_path is not None:
        text = json.dumps({**asdict(report), "problems": report.problems}, indent=2) + "\n"
        _write(json_path, text.encode())
    return 1 if report.problems else 0


def preview_command(
    folders: Sequence[str | Path], out: Path, recipe: str | None = None, seed: int = 0, count: int = 16
) -> None:
    """Write a sheet of `count` HR patches of `folders`, each beside its LR, enlarged.

    LR is what `recipe` makes of the patch, or what was shipped with it. `folders`: as `srgan train --data` takes
    them. Patches are drawn as training draws them, from a sample of the pictures. Raises UsageError for a folder
    or a suffix that cannot be used, PictureError if the sheet cannot be written.
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
    sources = [parse_source(str(folder)) for folder in folders]
    files = list_files(sources)
    sample = [files[index] for index in torch.randperm(len(files), generator=random)[: 2 * count].tolist()]
    with tempfile.TemporaryDirectory() as folder:
        patches = Patches(
            weighted(pack(sample, Path(folder)), sources),
            stage.patch_hr_px + 2 * degrade.margin_hr_px,
            torch.device("cpu"),
            random,
            settings.data.energy_weighting,
        )
        # One at a time, so that each gets resizes of its own.
        pairs = [patches.pairs(1, degrade) for _ in range(count)]
        del patches  # and with it the memory map, before its file goes
    lr, hr = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    _write(out, pictures.encode(_sheet(hr, lr), format))


def _largest_patch_px(recipe: Recipe) -> int:
    margin = degradation.make(recipe.degradation, torch.Generator()).margin_hr_px
    return max(stage.patch_hr_px for stage in _stages(recipe).values()) + 2 * margin


def _stages(recipe: Recipe) -> dict[str, StageRecipe]:
    """The stages that the recipe runs, by name."""
    stages: dict[str, StageRecipe] = {name: getattr(recipe, name) for name in STAGES}
    return {name: stage for name, stage in stages.items() if stage.steps}


def _standardised(thumbnails: Tensor) -> Tensor:
    flat = thumbnails.flatten(1).float()
    flat = flat - flat.mean(1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / length.clamp(min=_FLAT * math.sqrt(flat.shape[1]))


def _timing(files: Sequence[File], cache: PictureCache, recipe: Recipe) -> Timing:
    """Measure decoding, drawing and computing on an even sample of `files`, all of them large enough."""
    sample = [files[index] for index in np.unique(np.linspace(0, len(files) - 1, _SAMPLE).round().astype(int))]
    stages, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        packed = pack(sample, Path(folder))
        rate = _megapixels(packed) / (time.perf_counter() - began)
        fabric = make_fabric(recipe)
        for name, stage in _stages(recipe).items():
            try:
                stages.append(_stage_timing(name, stage, packed, recipe, fabric))
            except BackboneError as error:
                notes.append(f"a step of {name} was not measured: {error}")
        del packed  # and with it the memory map, before its file goes
    return Timing(rate, _megapixels(cache) / rate / 3600, tuple(stages), tuple(notes))


def _stage_timing(
    name: str, stage: StageRecipe, packed: PictureCache, recipe: Recipe, fabric: Fabric
) -> StageTiming:
    random, label_random = random_streams(recipe.seed, fabric)
    batch = trainer.batch_source(recipe, stage, packed, fabric, random)
    draw_s = _seconds(batch, fabric.device)
    players = make_players(recipe, fabric, label_random)
    step = trainer.stage_step(name, recipe, players, fabric)
    at_once = stage.batch_size if fabric.device.type == "cuda" else min(stage.batch_size, _MEASURED_BATCH)
    lr, hr = (tensor[:at_once] for tensor in batch())
    draws, position = 1, Position(name)
    if isinstance(stage, AdversarialStageRecipe):
        draws = trainer.discriminator_steps(recipe)
        position.step = stage.discriminator_alone_steps  # from where on all players move
    computing_s = _seconds(lambda: step(lambda: (lr, hr), position, stage.learning_rate), fabric.device)
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


def _sheet(hr: Tensor, lr: Tensor) -> pictures.Picture:
    """Pairs of (N,3,P,P) and (N,3,P/4,P/4) side by side, in rows that make the sheet about square."""
    pairs = torch.cat([hr, F.interpolate(lr, scale_factor=SCALE, mode="nearest")], 3)
    pairs = F.pad(pairs, (0, _GAP_PX, 0, _GAP_PX), value=1.0)
    columns = math.ceil(math.sqrt(len(pairs) / 2))
    missing = -len(pairs) % columns
    cells = torch.cat([pairs, pairs.new_ones(missing, *pairs.shape[1:])])
    rows = cells.view(-1, columns, *cells.shape[1:]).permute(0, 3, 1, 4, 2)  # (rows,P,columns,2P,3)
    sheet = rows.reshape(rows.shape[0] * rows.shape[1], -1, 3)[:-_GAP_PX, :-_GAP_PX]
    return pictures.Picture(sheet.mul(255).round().byte().contiguous().numpy())


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise PictureError(f"{path}: cannot be written: {error.strerror}") from error


def _print(report: DataReport, recipe: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in _rows(report, recipe):
        table.add_row(*row)
    console.print(table)
    for title, lines in _lists(report).items():
        if lines:
            console.print(f"\n{title}", style="bold")
            # Soft wrapping: a path stays in one piece, to be copied.
            for line in lines[:_LINES_SHOWN]:
                console.print(f"  {shown(line)}", soft_wrap=True)
            if len(lines) > _LINES_SHOWN:
                console.print(f"  and {len(lines) - _LINES_SHOWN} more")
    said = f"{report.problems} problems" if report.problems else "No problems found"
    console.print(f"\n{said}", style="bold red" if report.problems else "bold green")


def _rows(report: DataReport, recipe: str) -> Iterator[tuple[str, str]]:
    """What is printed as a table."""
    paired = f", {report.paired} with their own LR" if report.paired else ""
    yield "pictures", f"{report.pictures} readable, {report.held_out} of them held out for validation{paired}"
    yield "to train on", f"{report.megapixels:.1f} megapixels, for patches of {report.patch_hr_px} px ({recipe})"
    yield "left out", f"{len(report.left_out)} files"
    yield "too small", f"{len(report.too_small)} pictures"
    for note, files in report.unusual.items():
        yield "unusual", f"{files} pictures: {note}"
    for low, high in _JPEG_BINS:
        files = sum(files for quality, files in report.jpeg_qualities if low <= quality <= high)
        if files:
            bad = "  below what teaches well: prefer other files" if high < LOW_JPEG_QUALITY else ""
            yield f"JPEG {low}-{high}", f"{files} files{bad}"
    yield "leaks", f"{len(report.leaks)} held-out pictures have a near-duplicate in training"
    if report.duplicates is not None:
        yield "duplicates", f"{len(report.duplicates)} near-duplicates inside training"
    if report.timing:
        timing = report.timing
        yield (
            "decoding",
            f"{timing.decoded_megapixels_per_s:.0f} megapixels/s, once: {_duration(timing.decoding_hours)}",
        )
        for stage in timing.stages:
            yield stage.stage, f"{stage.verdict}; {stage.patches_per_s:.0f} patches/s drawn"
            yield (
                "",
                f"{1000 * stage.computing_s:.0f} ms a step beside {1000 * stage.loading_s:.1f} ms of loading; "
                f"{stage.steps:,} steps take {_duration(stage.hours)}",
            )
        for note in timing.notes:
            yield "not measured", note


def _lists(report: DataReport) -> dict[str, list[str]]:
    """What is printed line by line, under its title."""
    return {
        "Left out": [reason for _, reason in report.left_out],
        "Too small": list(report.too_small),
        "Held out, but trained on": [f"{one} = {other} ({r:.3f})" for one, other, r in report.leaks],
        "Near-duplicates inside training": [
            f"{one} = {other} ({r:.3f})" for one, other, r in report.duplicates or ()
        ],
    }


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.1f} seconds"
