"""`srgan data check` and `srgan data preview`: look at the pictures before hours are spent on them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from srgan import pictures
from srgan.errors import PictureError, UsageError
from srgan.files import write_atomically
from srgan.texts import duration, one_line
from srgan.training.config import load_recipe
from srgan.training.data import check as data_check
from srgan.training.data import preview as data_preview
from srgan.training.data.check import LOW_JPEG_QUALITY, Findings
from srgan.training.data.sources import parse_source

DEFAULT_RECIPE = "srgan_x4"
_LARGEST_SHEET = 400
_LINES_SHOWN = 20
_JPEG_BINS = ((1, 49), (50, 74), (75, 84), (85, 89), (90, 94), (95, 100))


def check(
    folders: Sequence[str | Path],
    lr: Path | None = None,
    json_path: Path | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Check `folders`, print what was found, and return 0, or 1 if there are problems.

    `folders`: as `srgan train --data` takes them, see `sources.parse_source`. `lr`: the folder of shipped LR
    pictures, for a single folder of HR. `json_path`: where everything found goes as well. `recipe`: for which the
    sizes and times are, a bundled name or a TOML file; `overrides`: as of `srgan train --set`. Raises UsageError
    for a folder that does not exist or has no picture in it, PictureError if the file cannot be written.
    """
    sources = [parse_source(str(folder)) for folder in folders]
    if lr is not None:
        if len(sources) != 1 or sources[0].lr_folder is not None:
            raise UsageError("--lr belongs to one folder of HR pictures; give several as HR_DIR:LR_DIR")
        sources = [replace(sources[0], lr_folder=lr)]
    name = recipe or DEFAULT_RECIPE
    findings = data_check.check(sources, load_recipe(name, overrides))
    show(findings, name)
    if json_path is not None:
        text = json.dumps({**asdict(findings), "problems": findings.problems}, indent=2) + "\n"
        _write(json_path, text.encode())
    return 1 if findings.problems else 0


def preview(
    folders: Sequence[str | Path],
    out: Path,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    *,
    seed: int = 0,
    count: int = 16,
) -> None:
    """Write a sheet of `count` patches of `folders` to `out`, .png or .jpg, as `training.preview` draws it.

    `folders`: as `srgan train --data` takes them. Raises UsageError for a folder or a suffix that cannot be used,
    PictureError if the sheet cannot be written.
    """
    format = pictures.format_of_suffix(out.suffix)
    if format is None:
        raise UsageError(f"{out}: give the sheet a name that ends in .png or .jpg")
    if not 1 <= count <= _LARGEST_SHEET:
        raise UsageError(f"--count {count}: give 1 to {_LARGEST_SHEET}")
    settings = load_recipe(recipe or DEFAULT_RECIPE, overrides)
    sources = [parse_source(str(folder)) for folder in folders]
    sheet = data_preview.preview(sources, settings, seed=seed, count=count)
    _write(out, pictures.encode(sheet, format))


def show(findings: Findings, recipe: str) -> None:
    """Print what was found; `recipe`: the name of what the sizes and times are for."""
    console = Console(highlight=False, markup=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in _rows(findings, recipe):
        table.add_row(*row)
    console.print(table)
    for title, lines in _lists(findings).items():
        if lines:
            console.print(f"\n{title}", style="bold")
            # Soft wrapping: a path stays in one piece, to be copied.
            for line in lines[:_LINES_SHOWN]:
                console.print(f"  {one_line(line)}", soft_wrap=True)
            if len(lines) > _LINES_SHOWN:
                console.print(f"  and {len(lines) - _LINES_SHOWN} more")
    verdict = f"{findings.problems} problems" if findings.problems else "No problems found"
    console.print(f"\n{verdict}", style="bold red" if findings.problems else "bold green")


def _rows(findings: Findings, recipe: str) -> Iterator[tuple[str, str]]:
    """What is printed as a table."""
    paired = f", {findings.paired} with their own LR" if findings.paired else ""
    yield "pictures", f"{findings.pictures} readable, {findings.held_out} of them held out for validation{paired}"
    yield (
        "to train on",
        f"{findings.megapixels:.1f} megapixels, for patches of {findings.patch_hr_px} px ({recipe})",
    )
    yield "left out", f"{len(findings.left_out)} files"
    yield "too small", f"{len(findings.too_small)} pictures"
    for note, files in findings.unusual.items():
        yield "unusual", f"{files} pictures: {note}"
    for low, high in _JPEG_BINS:
        files = sum(files for quality, files in findings.jpeg_qualities if low <= quality <= high)
        if files:
            bad = "  below what teaches well: prefer other files" if high < LOW_JPEG_QUALITY else ""
            yield f"JPEG {low}-{high}", f"{files} files{bad}"
    yield "leaks", f"{len(findings.leaks)} held-out pictures have a near-duplicate in training"
    if findings.duplicates is not None:
        yield "duplicates", f"{len(findings.duplicates)} near-duplicates inside training"
    if findings.timing:
        timing = findings.timing
        yield (
            "decoding",
            f"{timing.decoded_megapixels_per_s:.0f} megapixels/s, once: {duration(3600 * timing.decoding_hours)}",
        )
        for stage in timing.stages:
            yield stage.stage, f"{stage.verdict}; {stage.patches_per_s:.0f} patches/s drawn"
            yield (
                "",
                f"{1000 * stage.computing_s:.0f} ms a step beside {1000 * stage.loading_s:.1f} ms of loading; "
                f"{stage.steps:,} steps take {duration(3600 * stage.hours)}",
            )
        for note in timing.notes:
            yield "not measured", note


def _lists(findings: Findings) -> dict[str, list[str]]:
    """What is printed line by line, under its title."""
    return {
        "Left out": [reason for _, reason in findings.left_out],
        "Too small": list(findings.too_small),
        "Held out, but trained on": [f"{name} = {like} ({r:.3f})" for name, like, r in findings.leaks],
        "Near-duplicates inside training": [
            f"{name} = {like} ({r:.3f})" for name, like, r in findings.duplicates or ()
        ],
    }


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise PictureError(f"{path}: cannot be written: {error.strerror}") from error
