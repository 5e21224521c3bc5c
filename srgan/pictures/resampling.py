"""Pictures at another size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from srgan.pictures.gain_map import GainMap
from srgan.pictures.picture import Picture
from srgan.pictures.regions import Region

# Enlarging and reducing keep all of a flat area and a third of the finest detail: so this takes most of both.
_STEP = np.float32(1.4)


def resized(picture: Picture, height: int, width: int) -> Picture:
    """Return `picture` at another size by bicubic resampling (a = -0.5), antialiased when it gets smaller.

    The resolution follows, so that the picture is as large on paper as before. Frames and pages behind the first
    are left as they are. A gain map gets as many times larger as the picture.
    """
    # Apart, not as RGBA: Pillow premultiplies there, which rounds the colour of faint pixels away.
    alpha = None if picture.alpha is None else _resized(picture.alpha, height, width)
    pixels = _resized(picture.pixels, height, width)
    gain_map = resized_gain_map(picture, height, width)
    dpi = scaled_dpi(picture, height, width)
    return replace(picture, pixels=pixels, alpha=alpha, dpi=dpi, gain_map=gain_map)


def resized_gain_map(picture: Picture, height: int, width: int, region: Region | None = None) -> GainMap | None:
    """Return the gain map of `picture` at that size, or of a region of that; None if it has none.

    It keeps its share of the picture's pixels, across and down, and lies over the same places.
    """
    gain_map = picture.gain_map
    if gain_map is None:
        return None
    map_height, map_width = gain_map.levels.shape[:2]
    part = region or Region(0, 0, width, height)
    sides = (
        max(1, round(part.width * map_width / picture.width)),
        max(1, round(part.height * map_height / picture.height)),
    )
    across, down = map_width / width, map_height / height
    box = (
        part.left * across,
        part.top * down,
        min(map_width, (part.left + part.width) * across),
        min(map_height, (part.top + part.height) * down),
    )
    image = Image.fromarray(gain_map.levels).resize(sides, Image.Resampling.BICUBIC, box)
    return replace(gain_map, levels=np.asarray(image))


def back_project(levels: np.ndarray, source: np.ndarray) -> None:
    """Bring `levels`, (H,W) or (H,W,3) uint8 or uint16, nearer to what reduces to `source`, in place.

    `source`: the same of another size. One round of back-projection: what `levels`, reduced by bicubic with
    antialiasing, lack of it is enlarged and added.
    """
    (height, width), (source_height, source_width) = levels.shape[:2], source.shape[:2]
    peak = np.iinfo(levels.dtype).max
    planes = (np.moveaxis(array.reshape(*array.shape[:2], -1), -1, 0) for array in (levels, source))
    for plane, reduced in zip(*planes, strict=True):
        again = _resized_floats(plane.astype(np.float32), source_height, source_width).clip(0, peak)
        missing = _resized_floats(reduced.astype(np.float32) - again, height, width)
        plane[:] = np.rint((plane + _STEP * missing).clip(0, peak))


def scaled_dpi(picture: Picture, height: int, width: int) -> tuple[float, float] | None:
    """Return the resolution by which `picture` at another size is as large on paper as before."""
    if picture.dpi is None:
        return None
    return picture.dpi[0] * width / picture.width, picture.dpi[1] * height / picture.height


def _resized(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (H,W) or (H,W,3) uint8 or uint16 as the same of another size."""
    if levels.dtype == np.uint8:
        return np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC))
    # Pillow resizes 16 bits one channel at a time and as floats alone.
    channels = levels.reshape(*levels.shape[:2], -1)
    out = np.empty((height, width, channels.shape[2]), levels.dtype)
    for index in range(channels.shape[2]):
        floats = _resized_floats(channels[..., index].astype(np.float32), height, width)
        out[..., index] = np.rint(floats).clip(0, np.iinfo(levels.dtype).max)
    return out.reshape(height, width, *levels.shape[2:])


def _resized_floats(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (H,W) float32 as the same of another size."""
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
