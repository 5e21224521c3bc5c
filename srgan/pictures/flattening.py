"""A picture as training and benchmarks take it: one frame, 8-bit RGB, nothing to be seen through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from srgan.pictures.backgrounds import WHITE, laid_on
from srgan.pictures.picture import Picture


def flattened(picture: Picture) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Return (H,W,3) uint8 in 0..255 of the first frame and, in a few words each, what was not taken as it is.

    Transparency is laid on white, as on a page, since the colours under it are arbitrary; 16 bits are rounded to
    8 after that; grey becomes three equal channels.
    """
    changed = []
    if picture.further:
        changed.append(f"only the first {'frame' if picture.is_animated else 'page'}")
    if picture.alpha is not None and picture.alpha.min() < np.iinfo(picture.alpha.dtype).max:
        picture = laid_on(
            replace(picture, icc=None, png_colour=(), further=()), WHITE
        )  # white is that in all of them
        changed.append("transparency laid on white")
    pixels = picture.pixels
    if pixels.dtype == np.uint16:
        pixels = (pixels.astype(np.uint32) + 128) // 257  # to the nearest: 65535 is 255 times 257
        changed.append("16 bits rounded to 8")
    colours = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(colours, dtype=np.uint8), tuple(changed)
