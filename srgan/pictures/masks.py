"""Masks: where a result is to be one thing, and where another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from srgan.errors import UsageError
from srgan.pictures.flattening import flattened
from srgan.pictures.picture import Picture


@dataclass(frozen=True, eq=False)
class Mask:
    """`levels`: (H,W) uint8 of the size of a picture, 255 for white. `sha256`: of them and their size."""

    levels: np.ndarray
    sha256: str

    @classmethod
    def of(cls, picture: Picture) -> Mask:
        """Return the brightness of a picture, its first frame; what is transparent counts as what lies behind."""
        pixels, _ = flattened(picture)
        levels = np.asarray(Image.fromarray(pixels).convert("L"))
        return cls(levels, hashlib.sha256(repr(levels.shape).encode() + levels.tobytes()).hexdigest())

    def refuse_for(self, picture: Picture) -> None:
        """Raise UsageError if a frame of `picture` has another size."""
        height, width = self.levels.shape
        for frame in picture.frames:
            if (frame.height, frame.width) != (height, width):
                raise UsageError(
                    f"the mask has {width}x{height} pixels and the picture {frame.width}x{frame.height}; give "
                    "one of the same size"
                )


def mixed(result: Picture, other: Picture, levels: np.ndarray) -> Picture:
    """Return `other` where `levels` (h,w) uint8, enlarged to its size, are white, `result` where they are black.

    Between them it is a mixture; enlarging is bilinear, so it is so across a pixel of `levels` at an edge in them.
    """
    enlarged = Image.fromarray(levels).resize((result.width, result.height), Image.Resampling.BILINEAR)
    share = np.asarray(enlarged)

    def between(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        out = np.empty_like(ours)
        for row, of_ours, of_theirs, whites in zip(out, ours, theirs, share, strict=True):
            part = (whites / np.float32(255)).reshape(-1, *[1] * (ours.ndim - 2))
            row[:] = np.rint(of_ours + part * (of_theirs.astype(np.float32) - of_ours))
        return out

    alpha = None
    if result.alpha is not None and other.alpha is not None:
        alpha = between(result.alpha, other.alpha)
    return replace(result, pixels=between(result.pixels, other.pixels), alpha=alpha)
