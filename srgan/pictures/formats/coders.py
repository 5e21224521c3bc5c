"""What imagecodecs codes and Pillow does not, where it is installed: colours in AVIF without loss."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np

from srgan.errors import UnsupportedPictureError
from srgan.installed import remedy

_SRGB_PRIMARIES, _SRGB_CURVE, _IDENTITY = 1, 13, 0  # ITU-T H.273; with the last, planes hold colours as they are
_AVIF_SPEED = 6  # Pillow's


@functools.cache
def are_there() -> bool:
    """Return whether imagecodecs is installed."""
    return importlib.util.find_spec("imagecodecs") is not None


def library() -> Any:
    """Return imagecodecs; raises UnsupportedPictureError without it."""
    try:
        import imagecodecs
    except ImportError as error:
        raise UnsupportedPictureError(f"imagecodecs is not installed: {remedy('codecs')}") from error
    return imagecodecs


def avif(levels: np.ndarray, threads: int) -> bytes:
    """Return (H,W,3) uint8 as an AVIF file without loss."""
    content: bytes = library().avif_encode(
        np.ascontiguousarray(levels),
        level=100,
        speed=_AVIF_SPEED,
        pixelformat="444",
        primaries=_SRGB_PRIMARIES,
        transfer=_SRGB_CURVE,
        matrix=_IDENTITY,
        numthreads=threads,
    )
    return bytes(content)
