"""Upscalers, and pictures of any other program, measured against the truth in the field's protocol."""

from __future__ import annotations

import time
from collections import Counter
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
_MOST_SCALE = 16  # of what is measured; upscaling ends there, too


def pairs(
    hr_folder: Path,
    lr_folder: Path | None = None,
    scale: int = SCALE,
    changed: Counter[str] | None = None,
) -> Iterator[Pair]:
    """Yield the pictures of `hr_folder` with the LR of the same name, or with one made by bicubic reduction.

    HR is cut at the right and at the bottom to whole multiples of `scale`. `changed`: counts what of the pictures
    was not taken as it is. Raises UsageError if there are no pictures, an LR picture is missing, or HR is not
    `scale` times as large.
    """
    changed = Counter() if changed is None else changed
    paths = _pictures_in(hr_folder, "--hr")
    shipped = None if lr_folder is None else _partners(paths, lr_folder, "--lr", _lr_endings(scale))
    for path in paths:
        hr = _rgb(path, changed)
        height, width = hr.height // scale * scale, hr.width // scale * scale
        if min(height, width) < metrics.LEAST_PX:
            raise UsageError(
                f"{path} is {hr.width}x{hr.height} px: pictures below {metrics.LEAST_PX} px cannot be judged"
            )
        hr = Picture(np.ascontiguousarray(hr.pixels[:height, :width]))
        lr = _rgb(shipped[path], changed) if shipped else pictures.resized(hr, height // scale, width // scale)
        if (lr.height, lr.width) != (height // scale, width // scale):
            raise UsageError(
                f"{path.name}: HR is {width}x{height} and LR {lr.width}x{lr.height}, not {scale} times less"
            )
        yield Pair(path.name, hr, lr)


def scale_between(hr_folder: Path, lr_folder: Path, preferred: int = SCALE) -> int:
    """Return how many times larger the first picture of `hr_folder` is than its LR.

    Where the LR folder holds it in several sizes, by "x2" and the like behind its name, that of the `preferred`
    scale is taken, or else the largest. Raises UsageError if there is no such LR, or it is not smaller by one
    factor.
    """
    paths = _pictures_in(hr_folder, "--hr")
    scales = (preferred, *range(2, _MOST_SCALE + 1))
    endings = list(dict.fromkeys(ending for scale in scales for ending in _lr_endings(scale)))
    partners = _partners(paths[:1], lr_folder, "--lr", endings)
    hr, lr = (pictures.decode(path) for path in (paths[0], partners[paths[0]]))
    scale = hr.height // lr.height
    if scale != hr.width // lr.width or not 2 <= scale <= _MOST_SCALE:
        raise UsageError(
            f"{paths[0].name}: HR is {hr.width}x{hr.height} and LR {lr.width}x{lr.height}, not a whole number of "
            f"times less, from 2 to {_MOST_SCALE}"
        )
    return scale


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
    with "_x4", "x4", "_out" or "_SR" behind it, in any format. `notes`: gets what cannot be measured, and why, and
    in the end what of the pictures was not taken as it is.
    Raises UsageError for what is missing, before anything is computed; for a picture of another size when its turn
    comes.
    """
    paths = _pictures_in(hr_folder, "--hr")
    if lr_folder is not None:  # so that what is missing is said before networks are fetched
        _partners(paths, lr_folder, "--lr", _lr_endings(protocol.scale))
    endings = _sr_endings(protocol.scale)
    made = {name: _partners(paths, folder, "--sr", endings) for name, folder in (sr_folders or {}).items()}
    if clash := ({BASELINE, *upscalers} & made.keys()):
        raise UsageError(f"two contenders are called {clash.pop()}: give --sr another name, as NAME=DIR")
    notes = [] if notes is None else notes
    perceptual, changed = perceptual_metrics(notes), Counter[str]()
    for path, pair in zip(paths, pairs(hr_folder, lr_folder, protocol.scale, changed), strict=True):
        results = {BASELINE: pictures.resized(pair.lr, pair.hr.height, pair.hr.width)}
        seconds: dict[str, float] = {}
        for name, upscale in upscalers.items():
            began = time.perf_counter()
            results[name] = upscale(pair.lr)
            seconds[name] = time.perf_counter() - began
        for name, files in made.items():
            results[name] = _of_size(files[path], pair.hr, protocol.scale, changed)
        scores = {name: _scores(sr, pair, protocol, perceptual) for name, sr in results.items()}
        for name, taken in seconds.items():
            scores[name]["seconds_per_megapixel"] = taken / (pair.hr.height * pair.hr.width / 1e6)
        yield Measured(pair, results, scores)
    notes += [f"{files} pictures: {words}" for words, files in changed.most_common()]


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


def _lr_endings(scale: int) -> tuple[str, ...]:
    return ("", f"x{scale}")


def _sr_endings(scale: int) -> tuple[str, ...]:
    """What programs append to a picture's name."""
    return ("", f"_x{scale}", f"x{scale}", "_out", "_SR", "_sr")


def _rgb(path: Path, changed: Counter[str]) -> Picture:
    """Decode to (H,W,3) uint8, which is what published figures are of; `changed` counts what that changes."""
    picture = pictures.decode(path)
    pixels, words = pictures.flattened(picture)
    changed.update((*words, *picture.warnings))
    return Picture(pixels)


def _of_size(path: Path, hr: Picture, scale: int, changed: Counter[str]) -> Picture:
    """Decode what another program made, cut to the size of `hr` where HR itself was cut to whole multiples."""
    sr = _rgb(path, changed)
    if not (0 <= sr.height - hr.height < scale and 0 <= sr.width - hr.width < scale):
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
