"""Tables over benchmark folders: models beside bicubic, in the field's protocol."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from srgan import pictures
from srgan.errors import BackboneError, SrganError, UsageError
from srgan.evaluation import metrics
from srgan.files import write_atomically
from srgan.pictures import Picture
from srgan.upscale import Upscaler

BASELINE = "bicubic"  # always in the table
SCALE = 4  # of the benchmarks


@dataclass(frozen=True)
class Scores:
    """Figures of one model on one picture, or their means.

    `psnr_y` (dB) and `ssim_y`: luma, border 4. `lpips`: AlexNet, whole picture; None where its weights cannot be
    had. `lr_psnr` (dB): SR reduced again, against LR. `colour_shift`: grey levels of 255 by which the worst
    channel's mean departs from LR's. `seconds_per_megapixel`: of output, decoding and encoding not counted.
    """

    model: str
    picture: str
    psnr_y: float
    ssim_y: float
    lpips: float | None
    lr_psnr: float
    colour_shift: float
    seconds_per_megapixel: float


@dataclass(frozen=True)
class Pair:
    """One test picture: `hr` (4h,4w,3) uint8 and the `lr` (h,w,3) uint8 it was reduced to."""

    name: str
    hr: Picture
    lr: Picture


def pairs(hr_folder: Path, lr_folder: Path | None = None) -> Iterator[Pair]:
    """Yield the pictures of `hr_folder` with the LR of the same name, or with one made by bicubic reduction.

    HR is cut at the right and at the bottom to whole multiples of 4. Raises UsageError if there are no pictures,
    an LR picture is missing, or one is not a quarter of its HR.
    """
    if not hr_folder.is_dir():
        raise UsageError(f"{hr_folder} is not a folder: give --hr a folder of pictures")
    paths = sorted(path for path in hr_folder.iterdir() if path.suffix.lower() in pictures.PICTURE_SUFFIXES)
    if not paths:
        raise UsageError(f"no pictures in {hr_folder}")
    for path in paths:
        hr = _rgb(path)
        height, width = hr.height // SCALE * SCALE, hr.width // SCALE * SCALE
        hr = Picture(np.ascontiguousarray(hr.pixels[:height, :width]))
        if lr_folder is None:
            lr = pictures.resized(hr, height // SCALE, width // SCALE)
        else:
            lr = _rgb(_partner(path, lr_folder))
        if (lr.height, lr.width) != (height // SCALE, width // SCALE):
            raise UsageError(
                f"{path.name}: HR is {width}x{height} and LR {lr.width}x{lr.height}, which is not a quarter"
            )
        yield Pair(path.name, hr, lr)


def evaluate(models: Sequence[str], hr_folder: Path, lr_folder: Path | None = None) -> list[Scores]:
    """Return the figures of bicubic and of every model for every picture, pictures in the order of their names."""
    upscalers = {name: Upscaler(name) for name in models}
    rows = []
    for pair in pairs(hr_folder, lr_folder):
        rows.append(_scores(BASELINE, pair, pictures.resized(pair.lr, pair.hr.height, pair.hr.width), 0.0))
        for name, upscaler in upscalers.items():
            began = time.perf_counter()
            sr = upscaler.upscale(pair.lr)
            rows.append(_scores(name, pair, sr, time.perf_counter() - began))
    return rows


def means(rows: Sequence[Scores]) -> list[Scores]:
    """Return one row for each model, in order of appearance: the mean over its pictures."""
    found = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        distances = [row.lpips for row in own if row.lpips is not None]
        found.append(
            Scores(
                model=model,
                picture=f"mean of {len(own)}",
                psnr_y=fmean(row.psnr_y for row in own),
                ssim_y=fmean(row.ssim_y for row in own),
                lpips=fmean(distances) if distances else None,
                lr_psnr=fmean(row.lr_psnr for row in own),
                colour_shift=fmean(row.colour_shift for row in own),
                seconds_per_megapixel=fmean(row.seconds_per_megapixel for row in own),
            )
        )
    return found


def evaluate_command(hr: Path, lr: Path | None, models: list[str], json_path: Path | None) -> None:
    """Print the table of `srgan evaluate` and write every row to `json_path` if it is given."""
    from rich.console import Console
    from rich.table import Table

    rows = evaluate(models, hr, lr)
    table = Table(title=f"{hr} ×{SCALE}, Y of BT.601 studio range, border {SCALE}, 8-bit")
    for heading in ("model", "PSNR-Y dB", "SSIM-Y", "LPIPS", "LR-PSNR dB", "colour shift /255", "s/MP"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in means(rows):
        table.add_row(
            row.model,
            f"{row.psnr_y:.2f}",
            f"{row.ssim_y:.4f}",
            "–" if row.lpips is None else f"{row.lpips:.4f}",
            f"{row.lr_psnr:.2f}",
            f"{row.colour_shift:.2f}",
            f"{row.seconds_per_megapixel:.2f}" if row.seconds_per_megapixel else "–",
        )
    Console().print(table)
    if json_path is not None:
        report = {"means": [asdict(row) for row in means(rows)], "pictures": [asdict(row) for row in rows]}
        try:
            write_atomically(json_path, json.dumps(report, indent=1).encode())
        except OSError as error:
            raise SrganError(f"{json_path} cannot be written: {error.strerror}") from error


def _scores(model: str, pair: Pair, sr: Picture, seconds: float) -> Scores:
    again = pictures.resized(sr, pair.lr.height, pair.lr.width).pixels
    try:
        distance = metrics.lpips(sr.pixels, pair.hr.pixels)
    except BackboneError:
        distance = None
    return Scores(
        model=model,
        picture=pair.name,
        psnr_y=metrics.psnr(sr.pixels, pair.hr.pixels, border=SCALE, y_only=True),
        ssim_y=metrics.ssim(sr.pixels, pair.hr.pixels, border=SCALE, y_only=True),
        lpips=distance,
        lr_psnr=metrics.psnr(again, pair.lr.pixels, border=0, y_only=False),
        colour_shift=float(np.abs(again.mean((0, 1)) - pair.lr.pixels.mean((0, 1))).max()),
        seconds_per_megapixel=seconds / (sr.height * sr.width / 1e6),
    )


def _rgb(path: Path) -> Picture:
    picture = pictures.decode(path)
    if picture.is_grey:
        return Picture(np.repeat(picture.pixels[..., None], 3, axis=2))
    return Picture(np.ascontiguousarray(picture.pixels))


def _partner(hr: Path, lr_folder: Path) -> Path:
    if not lr_folder.is_dir():
        raise UsageError(f"{lr_folder} is not a folder: give --lr the folder of the LR pictures")
    for stem in (hr.stem, f"{hr.stem}x{SCALE}"):  # DIV2K and its kind write the scale into the name
        found = sorted(path for path in lr_folder.iterdir() if path.stem == stem)
        if found:
            return found[0]
    raise UsageError(f"no LR picture for {hr.name} in {lr_folder}")
