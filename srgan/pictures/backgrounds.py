"""What is put behind a transparent picture where its format holds no transparency."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import ImageColor

from srgan.errors import PictureError, UsageError
from srgan.pictures import colour
from srgan.pictures.picture import Picture


@dataclass(frozen=True)
class Background:
    """A colour in sRGB, each of the three from 0 to 255."""

    red: int
    green: int
    blue: int

    def __str__(self) -> str:
        """Return it as #rrggbb."""
        return f"#{self.red:02x}{self.green:02x}{self.blue:02x}"

    @classmethod
    def parsed(cls, text: str) -> Background:
        """Return what CSS means by "white", "#ff8000" or "rgb(255,128,0)"; raises UsageError for what is none."""
        try:
            levels = ImageColor.getrgb(text.strip())
        except ValueError:
            levels = (256, 0, 0)
        if len(levels) != 3 or max(levels) > 255:
            raise UsageError(f"background {text[:40]!r} is not understood: give a colour such as white or #ff8000")
        return cls(*levels)


WHITE = Background(255, 255, 255)


def laid_on(picture: Picture, background: Background) -> Picture:
    """Return `picture` with `background` behind each of its frames that can be seen through, and opaque.

    The colour is brought to the picture's own colours, by its profile or code points. Levels are mixed as they
    are, which is how browsers and viewers show the picture on that colour; grey becomes RGB if the background is
    not grey. Raises PictureError for a picture whose profile is for greys alone, on one that is not.
    """
    frames = [_laid_on(frame, _levels(picture, background)) for frame in picture.frames]
    return replace(frames[0], further=tuple(frames[1:]))


def _levels(picture: Picture, background: Background) -> tuple[int, ...]:
    """Return the background in the colours of `picture`, three levels of 255, or one for its greys."""
    rgb = (background.red, background.green, background.blue)
    code_points = colour.code_points(picture.png_colour)
    icc = picture.icc
    if icc is None and code_points is not None:
        icc = colour.profile_of(*code_points, grey=picture.is_grey)
    is_grey = len(set(rgb)) == 1
    if icc is None:
        return rgb[:1] if picture.is_grey and is_grey else rgb
    if picture.is_grey and not is_grey:
        raise PictureError(f"its colour profile is for greys alone, which {background} is not; choose a grey")
    return colour.from_srgb(rgb, icc, grey=picture.is_grey)


def _laid_on(frame: Picture, levels: tuple[int, ...]) -> Picture:
    if frame.alpha is None:
        return frame
    peak = int(np.iinfo(frame.alpha.dtype).max)
    behind = np.array(levels, np.uint32) * (peak // 255)
    out = np.empty((frame.height, frame.width, 3) if len(levels) == 3 else frame.pixels.shape, frame.pixels.dtype)
    channels = out.reshape(frame.height, frame.width, -1)
    # By rows: the sums of all would be four times the picture. 65535 · 65535 and half of 65535 still fit 32 bits.
    for row, pixels, alpha in zip(channels, frame.pixels, frame.alpha, strict=True):
        opacity = alpha.astype(np.uint32)[:, None]
        row[:] = (pixels.reshape(len(pixels), -1) * opacity + behind * (peak - opacity) + peak // 2) // peak
    return replace(frame, pixels=out, alpha=None)
