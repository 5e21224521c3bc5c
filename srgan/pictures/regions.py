"""A part of a result, and what of a picture it is made from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from srgan.errors import UsageError


@dataclass(frozen=True)
class Region:
    """A rectangle in pixels of the whole result, from its upper left corner."""

    left: int
    top: int
    width: int
    height: int

    def __post_init__(self) -> None:
        """Refuse what is no rectangle."""
        if min(self.left, self.top) < 0 or min(self.width, self.height) < 1:
            raise UsageError(f"region {self} is none: its corner is 0 or more, its width and height 1 or more")

    def __str__(self) -> str:
        """Return it as it is asked for."""
        return f"{self.left},{self.top},{self.width},{self.height}"

    @classmethod
    def parsed(cls, text: str) -> Region:
        """Return what "X,Y,W,H" says; raises UsageError if it says nothing of the kind."""
        if not re.fullmatch(r"\d{1,7}(,\d{1,7}){3}", text, re.ASCII):
            raise UsageError(f"region {text[:40]!r} is not understood: give X,Y,W,H in pixels of the result")
        return cls(*map(int, text.split(",")))

    def refuse_outside(self, height: int, width: int) -> None:
        """Raise UsageError if a result of that size does not hold it all."""
        if self.left + self.width > width or self.top + self.height > height:
            raise UsageError(f"region {self} lies outside the result, which has {width}x{height} pixels")


@dataclass(frozen=True)
class Window:
    """Of one axis: `start:stop` of a picture becomes `length` pixels of the result, `kept` of them asked for."""

    start: int
    stop: int
    length: int
    kept: slice

    @classmethod
    def around(cls, kept: slice, source: int, result: int, reach: int, multiple: int = 1) -> Window:
        """Return what it takes for `kept` of `result` pixels that `source` pixels become.

        `reach`: how many pixels of the source around each one count. It begins and ends at the picture's edges or
        at a multiple of `multiple` where a pixel of the source begins with one of the result, so that the part is
        resampled as the whole would be.
        """
        step = math.lcm(source // math.gcd(source, result), multiple)
        start = max(0, (kept.start * source // result - reach) // step * step)
        stop = min(source, -(-(-(-kept.stop * source // result) + reach) // step) * step)
        before = start * result // source
        length = stop * result // source - before
        return cls(start, stop, length, slice(kept.start - before, kept.stop - before))
