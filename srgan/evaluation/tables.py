"""What a benchmark knows of its pictures and contenders, and the means over them; computes no metric itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from srgan.evaluation.measures import MEASURES
from srgan.pictures import Picture

BASELINE = "bicubic"  # always in the table
SCALE = 4  # of the usual benchmarks, where nothing says another
_RESAMPLES = 2000  # of the bootstrap: the ends of its intervals then move by a few hundredths of their width

# studio: 16 to 235, as MATLAB's rgb2ycbcr computes it; rounded: to whole levels, as it returns it for 8 bits;
# full: 0 to 255, as JPEG has it, which reads 1.3 dB lower.
Luma = Literal["studio", "rounded", "full"]


@dataclass(frozen=True)
class Protocol:
    """How pictures are compared; the defaults are the field's.

    `scale`: from LR to HR. `border_px`: shaved from each side before PSNR and SSIM. `luma`: range of the Y in
    PSNR-Y and SSIM-Y. `perceptual_border_px`: shaved before LPIPS and DISTS.
    """

    scale: int = SCALE
    border_px: int = SCALE
    luma: Luma = "studio"
    perceptual_border_px: int = 0

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"×{self.scale}, 8 bits, Y of BT.601 {self.luma} range, border {self.border_px} for PSNR and SSIM and "
            f"{self.perceptual_border_px} for LPIPS and DISTS"
        )


FIELD = Protocol()


@dataclass(frozen=True)
class Pair:
    """One test picture: `hr` (sh,sw,3) uint8 and the `lr` (h,w,3) uint8 it was reduced to, s times."""

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

    @property
    def margin(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


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
        return bootstrap(
            [MEASURES[key].cost(b) - MEASURES[key].cost(a) for a, b in zip(ours, theirs, strict=True)]
        )


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
