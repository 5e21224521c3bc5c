"""Models, and pictures of any other program, measured against the truth in the field's protocol."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from srgan import pictures
from srgan.errors import BackboneError, UsageError
from srgan.evaluation import metrics
from srgan.pictures import Picture
from srgan.pictures.consistency import consistency
from srgan.upscale import Upscaler
from srgan.weights import is_file_name

BASELINE = "bicubic"  # always in the table
SCALE = 4  # of the benchmarks
_RESAMPLES = 2000  # of the bootstrap: the ends of its intervals then move by a few hundredths of their width
_LR_ENDINGS = ("", f"x{SCALE}")
_SR_ENDINGS = ("", f"_x{SCALE}", f"x{SCALE}", "_out", "_SR", "_sr")  # what programs append to a picture's name


@dataclass(frozen=True)
class Protocol:
    """How pictures are compared; the defaults are the field's.

    `border_px`: shaved from each side before PSNR and SSIM. `luma`: range of the Y in PSNR-Y and SSIM-Y.
    `perceptual_border_px`: shaved before LPIPS and DISTS.
    """

    border_px: int = SCALE
    luma: metrics.Luma = "studio"
    perceptual_border_px: int = 0

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"×{SCALE}, 8 bits, Y of BT.601 {self.luma} range, border {self.border_px} for PSNR and SSIM and "
            f"{self.perceptual_border_px} for LPIPS and DISTS"
        )


@dataclass(frozen=True)
class Measure:
    """A column: its heading, the sign that makes the larger value the better one, and its decimals."""

    heading: str
    hint: str
    sign: int
    decimals: int


# Every figure that a picture gets, by key. LPIPS and DISTS are left out where their networks cannot be had.
MEASURES = {
    "psnr_y": Measure("PSNR-Y", "dB, higher is better", 1, 2),
    "ssim_y": Measure("SSIM-Y", "1 is identical", 1, 4),
    "psnr_rgb": Measure("PSNR-RGB", "dB, higher is better", 1, 2),
    "ssim_rgb": Measure("SSIM-RGB", "1 is identical", 1, 4),
    "lpips": Measure("LPIPS", "lower is better", -1, 4),
    "dists": Measure("DISTS", "lower is better", -1, 4),
    "lr_psnr": Measure("LR-PSNR", "dB, SR reduced again against LR", 1, 2),
    "colour_shift": Measure("Colour shift", "grey levels of 255, the worst channel", -1, 2),
    "seconds_per_megapixel": Measure("s/MP", "seconds for a megapixel of output", -1, 2),
}


@dataclass(frozen=True)
class Pair:
    """One test picture: `hr` (4h,4w,3) uint8 and the `lr` (h,w,3) uint8 it was reduced to."""

    name: str
    hr: Picture
    lr: Picture


@dataclass(frozen=True)
class Measured:
    """One picture, with what each contender made of it and the figures that it got, by key of `MEASURES`."""

    pair: Pair
    results: dict[str, Picture]
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Mean:
    """Mean of a figure over the pictures; `low` to `high`: its 95 % confidence interval, NaN with one picture."""

    value: float
    low: float
    high: float


@dataclass
class Table:
    """Figures of all pictures: `rows[contender][key]` is one number for each of `names`."""

    protocol: Protocol
    names: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what was not measured, and why
    fid: dict[str, float] = field(default_factory=dict)  # of each contender, where it was asked for

    def add(self, measured: Measured) -> None:
        """Take the figures of one more picture."""
        self.names.append(measured.pair.name)
        for contender, scores in measured.scores.items():
            columns = self.rows.setdefault(contender, {})
            for key, value in scores.items():
                columns.setdefault(key, []).append(value)

    def known_keys(self) -> list[str]:
        """Return the keys that any contender has, in the order of `MEASURES`."""
        return [key for key in MEASURES if any(key in columns for columns in self.rows.values())]

    def mean(self, contender: str, key: str) -> Mean | None:
        """Return the mean of a figure, or None if the contender has none."""
        values = self.rows[contender].get(key)
        return None if values is None else bootstrap(values)

    def advantage(self, contender: str, over: str, key: str) -> Mean | None:
        """Return by how much `contender` is better than `over`, picture by picture, above 0 if it is.

        The interval is far narrower than those of both means: what makes a picture hard does so for both.
        """
        ours, theirs = self.rows[contender].get(key), self.rows[over].get(key)
        if ours is None or theirs is None:
            return None
        return bootstrap([MEASURES[key].sign * (a - b) for a, b in zip(ours, theirs, strict=True)])


def bootstrap(values: Sequence[float]) -> Mean:
    """Return the mean of `values` with its percentile bootstrap interval (Efron 1979), the same at every call."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2 or not np.isfinite(array).all():
        return Mean(mean, math.nan, math.nan)
    random, count = np.random.default_rng(0), len(array)
    means = [array[random.integers(0, count, count)].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return Mean(mean, float(low), float(high))


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
    models: Sequence[str],
    hr_folder: Path,
    lr_folder: Path | None = None,
    sr_folders: Mapping[str, Path] | None = None,
    protocol: Protocol = Protocol(),
    notes: list[str] | None = None,
) -> Iterator[Measured]:
    """Yield every picture, in the order of the names, with what bicubic, the models and the folders have of it.

    `sr_folders`: pictures that another program made, by the name that it gets in the table; each under the HR's
    name, perhaps with "_x4", "x4", "_out" or "_SR" behind it, in any format. `notes`: gets what cannot be
    measured, and why. Raises UsageError for what is missing or of another scale, before anything is
    computed; for a picture of another size when its turn comes.
    """
    upscalers = {name: Upscaler(model) for name, model in _named(models).items()}
    for name, upscaler in upscalers.items():
        if upscaler.scale != SCALE:
            raise UsageError(f"{name} enlarges {upscaler.scale} times, and the benchmark is for {SCALE}")
    paths = _pictures_in(hr_folder, "--hr")
    if lr_folder is not None:  # so that what is missing is said before networks are fetched
        _partners(paths, lr_folder, "--lr", _LR_ENDINGS)
    made = {name: _partners(paths, folder, "--sr", _SR_ENDINGS) for name, folder in (sr_folders or {}).items()}
    if clash := ({BASELINE, *upscalers} & made.keys()):
        raise UsageError(f"two contenders are called {clash.pop()}: give --sr another name, as NAME=DIR")
    perceptual = _perceptual_metrics([] if notes is None else notes)
    for path, pair in zip(paths, pairs(hr_folder, lr_folder), strict=True):
        results = {BASELINE: pictures.resized(pair.lr, pair.hr.height, pair.hr.width)}
        seconds: dict[str, float] = {}
        for name, upscaler in upscalers.items():
            began = time.perf_counter()
            results[name] = upscaler.upscale(pair.lr)
            seconds[name] = time.perf_counter() - began
        for name, files in made.items():
            results[name] = _of_size(files[path], pair.hr)
        scores = {name: _scores(sr, pair, protocol, perceptual) for name, sr in results.items()}
        for name, taken in seconds.items():
            scores[name]["seconds_per_megapixel"] = taken / (pair.hr.height * pair.hr.width / 1e6)
        yield Measured(pair, results, scores)


def _named(models: Sequence[str]) -> dict[str, str]:
    """Return the models by what they are called in the table: files by their names, unless two have the same."""
    names = [Path(model).name if is_file_name(model) else model for model in dict.fromkeys(models)]
    return {
        name if names.count(name) == 1 else model: model
        for name, model in zip(names, dict.fromkeys(models), strict=True)
    }


def _scores(sr: Picture, pair: Pair, protocol: Protocol, perceptual: Sequence[str]) -> dict[str, float]:
    both, border = (sr.pixels, pair.hr.pixels), protocol.border_px
    try:
        scores = {
            "psnr_y": metrics.psnr(*both, border=border, y_only=True, luma=protocol.luma),
            "ssim_y": metrics.ssim(*both, border=border, y_only=True, luma=protocol.luma),
            "psnr_rgb": metrics.psnr(*both, border=border, y_only=False),
            "ssim_rgb": metrics.ssim(*both, border=border, y_only=False),
        }
        for key in perceptual:
            scores[key] = getattr(metrics, key)(*both, border=protocol.perceptual_border_px)
    except (ValueError, RuntimeError) as error:  # a border that leaves too little; AlexNet says it as torch does
        raise UsageError(f"{pair.name} cannot be judged with these borders: {error}") from error
    kept = consistency(pair.lr, sr)
    return scores | {"lr_psnr": kept.lr_psnr_db, "colour_shift": kept.colour_shift}


def _perceptual_metrics(notes: list[str]) -> list[str]:
    """Those of LPIPS and DISTS whose networks can be had; asked once, since a download may fail slowly."""
    known = []
    for key, network in (("lpips", metrics.lpips_network), ("dists", metrics.dists_network)):
        try:
            network("")
        except BackboneError as error:
            notes.append(f"without {MEASURES[key].heading}: {error}")
        else:
            known.append(key)
    return known


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
    found = {}
    for path in paths:
        partner = next((by_stem[f"{path.stem}{end}"] for end in endings if f"{path.stem}{end}" in by_stem), None)
        if partner is None:
            raise UsageError(f"no picture for {path.name} in {folder}, which {option} names")
        found[path] = partner
    return found
