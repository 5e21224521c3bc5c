"""How long the frames of an animation are shown, and how often, as far as each format can say it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from srgan.pictures.picture import Picture


@dataclass(frozen=True)
class _Clock:
    """What a format says of time. `least_ms`, `most_ms`: of a frame. `most_plays`: the largest number of them.

    `step_ms`: to which it is rounded at the most, and `counts` in words. `most_whole_ms`: of all frames together.
    """

    step_ms: int
    counts: str
    most_ms: int
    most_plays: int
    least_ms: int = 0
    most_whole_ms: int | None = None


_THOUSANDTHS = "counts time in thousandths of a second"

_CLOCKS = {
    # 16 bits each; a program repeats as often as the file says after the first time.
    "gif": _Clock(10, "counts time in hundredths of a second", 655_350, 2**16),
    # 16 bits above and below the line; 32 for the plays.
    "png": _Clock(1000, "counts times of more than a minute in longer steps", 65_535_000, 2**32 - 1),
    # 24 bits; the sum is counted by libwebp's encoder, in 31.
    "webp": _Clock(1, _THOUSANDTHS, 2**24 - 1, 2**16 - 1, most_whole_ms=2**31 - 1),
    # 32 bits; no frame of libavif is shown for no time. Of plays it says nothing.
    "avif": _Clock(1, _THOUSANDTHS, 2**32 - 1, 0, least_ms=1),
}

_TOLD_FROM_MS = 0.1


def durations_ms(picture: Picture, format: str) -> list[float]:
    """Return how long a file of `format` shows each frame: whole steps, as near as it can to what is asked for."""
    clock = _CLOCKS[format]
    most = clock.most_ms
    if clock.most_whole_ms is not None:
        most = min(most, clock.most_whole_ms // len(picture.frames))
    asked = [min(max(clock.least_ms, frame.duration_ms or 0), most) for frame in picture.frames]
    if format == "png":
        return [_as_fraction(duration) for duration in asked]
    fitted: list[float] = [round(duration / clock.step_ms) * clock.step_ms for duration in asked]
    if format == "gif" and sum(fitted) > most:  # Pillow makes one frame of equal ones
        frames, left = picture.frames, most - fitted[0]
        for index in range(1, len(frames)):
            before, frame = frames[index - 1], frames[index]
            is_same = _looks_as(before, frame)
            fitted[index] = min(fitted[index], left if is_same else most)
            left = (left if is_same else most) - fitted[index]
    return fitted


def plays(picture: Picture, format: str) -> int:
    """Return how often a file of `format` says that the animation is shown, 0 for ever."""
    return min(picture.plays, _CLOCKS[format].most_plays)


def losses(picture: Picture, format: str) -> list[str]:
    """Return what of the time in an animation a file of `format` will not say, in a few words each."""
    clock, name = _CLOCKS[format], format.upper()
    asked = [frame.duration_ms or 0 for frame in picture.frames]
    fitted = durations_ms(picture, format)
    is_cut = [
        before - after > clock.step_ms / 2 + _TOLD_FROM_MS for before, after in zip(asked, fitted, strict=True)
    ]
    lost = []
    if any(is_cut):
        longest = max(after for after, cut in zip(fitted, is_cut, strict=True) if cut)
        lost.append(f"{name} cannot show a frame for so long, so it is shown for {longest / 1000:.10g} seconds")
    if any(
        abs(before - after) > _TOLD_FROM_MS and not cut
        for before, after, cut in zip(asked, fitted, is_cut, strict=True)
    ):
        lost.append(f"{name} {clock.counts}, so durations were rounded")
    if (most := plays(picture, format)) != picture.plays:
        times = "once" if picture.plays == 1 else f"{picture.plays} times"
        lost.append(f"{name} is written to play {f'{most} times' if most else 'for ever'}, and not {times}")
    return lost


def _looks_as(frame: Picture, other: Picture) -> bool:
    planes = zip((frame.pixels, frame.alpha), (other.pixels, other.alpha), strict=True)
    return all(np.array_equal(a, b) if a is not None and b is not None else a is b for a, b in planes)


def _as_fraction(duration_ms: float) -> float:
    """Return the nearest duration that is a fraction of a second with 16 bits above and below the line."""
    seconds = Fraction(duration_ms) / 1000
    most_below = 65535 if seconds < 1 else int(65535 / seconds)
    return float(seconds.limit_denominator(most_below)) * 1000
