"""How much of a result its picture does not say: a number, and a map with a legend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from srgan.pictures.picture import Picture
from srgan.pictures.resampling import resized

# The map's colours, from nothing to this many grey levels and more: the same for all maps, so that they compare.
MOST_LEVELS = 32
_COLOURS = ((0, 0, 0), (60, 20, 110), (170, 40, 100), (240, 110, 40), (255, 240, 170))

_LEGEND_PX, _LEAST_WIDTH_PX = 44, 360


@dataclass(frozen=True)
class Invention:
    """`levels`: (H,W) float32, for each pixel of a result by how many grey levels of 255 it is invented.

    `rms_levels`: of them all, the root of the mean of their squares.
    """

    levels: np.ndarray

    @property
    def rms_levels(self) -> float:
        """What is said of the picture in one number."""
        return float(np.sqrt(np.mean(np.square(self.levels, dtype=np.float64))))

    def drawn(self) -> Picture:
        """Return the map, (H+legend,W,3) uint8: black for nothing, yellow for `MOST_LEVELS` or more."""
        height, width = self.levels.shape
        image = Image.new("RGB", (max(width, _LEAST_WIDTH_PX), height + _LEGEND_PX), (32, 32, 32))
        image.paste(Image.fromarray(_coloured(self.levels)), (0, 0))
        ramp = np.linspace(0, MOST_LEVELS, 200, dtype=np.float32)[None].repeat(10, 0)
        image.paste(Image.fromarray(_coloured(ramp)), (8, height + 6))
        draw = ImageDraw.Draw(image)
        font = ImageFont.load_default()
        for level in range(0, MOST_LEVELS + 1, 8):
            more = " or more grey levels" if level == MOST_LEVELS else ""
            draw.text((8 + level * 199 // MOST_LEVELS, height + 16), f"{level}{more}", (255, 255, 255), font)
        draw.text((8, height + 29), f"invented: {self.rms_levels:.1f} levels rms", (255, 255, 255), font)
        return Picture(np.asarray(image))


def invention(picture: Picture, result: Picture, partner: Picture) -> Invention:
    """Return by how much `result`, made from `picture`, leaves what that supports; of the first frame.

    The difference to the result of a `partner` that invents nothing, and what `result` reduced again differs from
    the picture. Each is the root mean square over the colours of a pixel; pixels count as they are opaque.
    """
    again = resized(result, picture.height, picture.width)
    residual = _difference(again.pixels, picture.pixels)
    if picture.alpha is not None:
        residual *= picture.alpha / np.float32(np.iinfo(picture.alpha.dtype).max)
    levels = _difference(result.pixels, partner.pixels)
    if result.alpha is not None:
        levels *= result.alpha / np.float32(np.iinfo(result.alpha.dtype).max)
    rows = np.arange(result.height) * picture.height // result.height
    columns = np.arange(result.width) * picture.width // result.width
    for row, source in zip(levels, rows, strict=True):
        row += residual[source, columns]
    return Invention(levels)


def _difference(levels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the root mean square over the channels of the difference, (H,W) float32 in levels of 255."""
    out = np.empty(levels.shape[:2], np.float32)
    unit = np.float32(255 / np.iinfo(levels.dtype).max)
    for row, ours, theirs in zip(out, levels, others, strict=True):
        difference = (ours.astype(np.float32) - theirs).reshape(len(row), -1)
        row[:] = unit * np.sqrt(np.square(difference).mean(axis=1))
    return out


def _coloured(levels: np.ndarray) -> np.ndarray:
    places = np.linspace(0, MOST_LEVELS, len(_COLOURS))
    channels = [np.interp(levels, places, [colour[channel] for colour in _COLOURS]) for channel in range(3)]
    colours: np.ndarray = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colours
