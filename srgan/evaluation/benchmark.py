"""Upscalers, and pictures of any other program, measured against the truth in the field's protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from srgan import pictures
from srgan.errors import BackboneError, UsageError
from srgan.evaluation import metrics
from srgan.evaluation.measures import MEASURES
from srgan.evaluation.tables import BASELINE, FIELD, SCALE, Measured, Pair, Protocol
from srgan.pictures import Picture
from srgan.pictures.consistency import consistency

Upscale = Callable[[Picture], Picture]
_LR_ENDINGS = ("", f"x{SCALE}")
_SR_ENDINGS = ("", f"_x{SCALE}", f"x{SCALE}", "_out", "_SR", "_sr")  # what programs append to a picture's name


def pairs(hr_folder: Path, lr_folder: Path | None = None) -> Iterator[Pair]:
    """Yield the pictures of `hr_folder` with the LR of the same name, or with one made by bicubic reduction.

    HR is cut at the right and at the bottom to whole multiples of 4. Raises UsageError if there are no pictures,
    an LR picture is missing, or one is not a quarter of its HR.
    """
    paths = _pictures_in(hr_folder, "--hr")
    shipped = None if lr_folder is None else _partners(paths, lr_folder, "--lr", _LR_ENDINGS)
    for path in paths:
        hr = _rgb(path)
        height, width = hr.height // SCALE * SCALE, hr.width // SCALE * SCALE
        if min(height, width) < metrics.LEAST_PX:
            raise UsageError(
                f"{path} is {hr.width}x{hr.height} px: pictures below {metrics.LEAST_PX} px cannot be judged"
            )
        hr = Picture(np.ascontiguousarray(hr.pixels[:height, :width]))
        lr = _rgb(shipped[path]) if shipped else pictures.resized(hr, height // SCALE, width // SCALE)
        if (lr.height, lr.width) != (height // SCALE, width // SCALE):
            raise UsageError(
                f"{path.name}: HR is {width}x{height} and LR {lr.width}x{lr.height}, which is not a quarter"
            )
        yield Pair(path.name, hr, lr)


def evaluate(
    upscalers: Mapping[str, Upscale],
    hr_folder: Path,
    lr_folder: Path | None = None,
    sr_folders: Mapping[str, Path] | None = None,
    protocol: Protocol = FIELD,
    notes: list[str] | None = None,
) -> Iterator[Measured]:
    """Yield every picture, in the order of the names, with what bicubic, the upscalers and the folders have of it.

    `upscalers`: what makes SR, of HR's size, of an LR (h,w,3) uint8, by the name that it gets in the table; it is
    timed. `sr_folders`: pictures that another program made, by name likewise; each under the HR's name, perhaps
    with "_x4", "x4", "_out" or "_SR" behind it, in any format. `notes`: gets what cannot be measured, and why.
    Raises UsageError for what is missing, before anything is computed; for a picture of another size when its turn
    comes.
    """
    paths = _pictures_in(hr_folder, "--hr")
    if lr_folder is not None:  # so that what is missing is said before networks are fetched
        _partners(paths, lr_folder, "--lr", _LR_ENDINGS)
    made = {name: _partners(paths, folder, "--sr", _SR_ENDINGS) for name, folder in (sr_folders or {}).items()}
    if clash := ({BASELINE, *upscalers} & made.keys()):
        raise UsageError(f"two contenders are called {clash.pop()}: give --sr another name, as NAME=DIR")
    perceptual = perceptual_metrics([] if notes is None else notes)
    for path, pair in zip(paths, pairs(hr_folder, lr_folder), strict=True):
        results = {BASELINE: pictures.resized(pair.lr, pair.hr.height, pair.hr.width)}
        seconds: dict[str, float] = {}
        for name, upscale in upscalers.items():
            began = time.perf_counter()
            results[name] = upscale(pair.lr)
            seconds[name] = time.perf_counter() - began
        for name, files in made.items():
            results[name] = _of_size(files[path], pair.hr)
        scores = {name: _scores(sr, pair, protocol, perceptual) for name, sr in results.items()}
        for name, taken in seconds.items():
            scores[name]["seconds_per_megapixel"] = taken / (pair.hr.height * pair.hr.width / 1e6)
        yield Measured(pair, results, scores)


def perceptual_metrics(notes: list[str]) -> dict[str, Callable[..., float]]:
    """Return those of LPIPS and DISTS whose networks can be had, by key; `notes` gets why one cannot.

    Asked once for a benchmark, since a download may fail slowly.
    """
    available: dict[str, Callable[..., float]] = {}
    for key, network, metric in (
        ("lpips", metrics.lpips_network, metrics.lpips),
        ("dists", metrics.dists_network, metrics.dists),
    ):
        try:
            network("")
        except BackboneError as error:
            notes.append(f"without {MEASURES[key].name}: {error}")
        else:
            available[key] = metric
    return available


def _scores(
    sr: Picture, pair: Pair, protocol: Protocol, perceptual: Mapping[str, Callable[..., float]]
) -> dict[str, float]:
    both, border = (sr.pixels, pair.hr.pixels), protocol.border_px
    try:
        scores = {
            "psnr_y": metrics.psnr(*both, border=border, y_only=True, luma=protocol.luma),
            "ssim_y": metrics.ssim(*both, border=border, y_only=True, luma=protocol.luma),
            "psnr_rgb": metrics.psnr(*both, border=border, y_only=False),
            "ssim_rgb": metrics.ssim(*both, border=border, y_only=False),
        }
        for key, metric in perceptual.items():
            scores[key] = metric(*both, border=protocol.perceptual_border_px)
    except (ValueError, RuntimeError) as error:  # a border that leaves too little; AlexNet says it as torch does
        raise UsageError(f"{pair.name} cannot be judged with these borders: {error}") from error
    against_lr = consistency(pair.lr, sr)
    return scores | {"lr_psnr": against_lr.lr_psnr_db, "colour_shift": against_lr.colour_shift}


def _rgb(path: Path) -> Picture:
    """Decode to (H,W,3) uint8, which is what published figures are of."""
    pixels = pictures.decode(path).pixels
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Picture(np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)))


def _of_size(path: Path, hr: Picture) -> Picture:
    """Decode what another program made, cut to the size of `hr` where HR itself was cut to whole multiples."""
    sr = _rgb(path)
    if not (0 <= sr.height - hr.height < SCALE and 0 <= sr.width - hr.width < SCALE):
        raise UsageError(f"{path} is {sr.width}x{sr.height} px, and its HR {hr.width}x{hr.height}")
    return Picture(np.ascontiguousarray(sr.pixels[: hr.height, : hr.width]))


def _pictures_in(folder: Path, option: str) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give {option} a folder of pictures")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in pictures.PICTURE_SUFFIXES)
    if not paths:
        raise UsageError(f"no pictures in {folder}")
    return paths


def _partners(paths: Sequence[Path], folder: Path, option: str, endings: Sequence[str]) -> dict[Path, Path]:
    """Find each picture's counterpart in `folder` by its name without suffix, perhaps with an ending."""
    by_stem = {path.stem: path for path in reversed(_pictures_in(folder, option))}
    partners = {}
    for path in paths:
        partner = next((by_stem[f"{path.stem}{end}"] for end in endings if f"{path.stem}{end}" in by_stem), None)
        if partner is None:
            raise UsageError(f"no picture for {path.name} in {folder}, which {option} names")
        partners[path] = partner
    return partners
