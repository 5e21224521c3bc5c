"""The figures by which results are judged: their names, units and decimals, and which way is better.

The one table for commands, pages, files and benchmarks. What computes the figures is elsewhere, so that whoever
only shows them needs neither torch nor numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

LOGGED = "validation/"  # what the log of a run puts before a measure's key
YARDSTICK = "bicubic/"  # and before that of bicubic enlargement, on the same pictures


@dataclass(frozen=True)
class Measure:
    """A figure: `name`, `unit` and `note` for a person, the `goal` a value is better for being near, decimals.

    `goal`: "high" or "low" as far as it goes, 0 or 1 as the value of a perfect result.
    """

    name: str
    unit: str
    note: str
    goal: Literal["high", "low", 0, 1]
    decimals: int

    @property
    def hint(self) -> str:
        """Unit and note in a few words, to stand beside the name."""
        return ", ".join(filter(None, (self.unit, self.note)))

    @property
    def sign(self) -> int:
        """1 if larger values are better, else -1."""
        return 1 if self.goal == "high" else -1

    def cost(self, value: float) -> float:
        """Return a number that is the smaller the better `value` is."""
        if self.goal == 0:
            return abs(value)
        if self.goal == 1:  # twice too much is as bad as half
            return abs(math.log(max(value, 1e-9)))
        return -self.sign * value

    def text(self, value: float) -> str:
        """Return `value` with as many decimals as are usual."""
        return "not finite" if math.isnan(value) else f"{value:.{self.decimals}f}"


MEASURES = {
    "psnr_y": Measure("PSNR-Y", "dB", "higher is better", "high", 2),
    "ssim_y": Measure("SSIM-Y", "", "1 is identical", "high", 4),
    "psnr_rgb": Measure("PSNR-RGB", "dB", "higher is better", "high", 2),
    "ssim_rgb": Measure("SSIM-RGB", "", "1 is identical", "high", 4),
    "lpips": Measure("LPIPS", "", "lower is better", "low", 4),
    "dists": Measure("DISTS", "", "lower is better", "low", 4),
    "lr_psnr": Measure("LR-PSNR", "dB", "SR reduced against LR", "high", 2),
    "colour_shift": Measure("Colour shift", "grey levels of 255", "", 0, 2),
    "sameness": Measure("Sameness", "", "0: no pattern of its own", 0, 3),
    "detail": Measure("Detail", "", "1 is as fine as HR", 1, 4),
    "seconds_per_megapixel": Measure("s/MP", "", "seconds for a megapixel of output", "low", 2),
    "fid": Measure("FID", "", "lower is better", "low", 2),
}


def logged_measure(scalar: str) -> Measure | None:
    """Return the measure that the log of a run calls `scalar`, or None if it is another scalar."""
    return MEASURES.get(scalar.removeprefix(LOGGED)) if scalar.startswith(LOGGED) else None
