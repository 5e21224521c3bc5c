"""Netpbm files whose largest value is not 255: Pillow cuts them to 8 bits, or takes a second for a megapixel."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np
from PIL import ImageFile

from srgan.pictures.formats.damage import CUT_SHORT, DamageError


def is_scaled(opened: ImageFile.ImageFile) -> bool:
    """Return whether `samples` reads it, not Pillow."""
    return _largest(opened) not in (None, 255)


def samples(opened: ImageFile.ImageFile, file: BinaryIO) -> np.ndarray:
    """Return (H,W,C) with C of 1 or 3: uint16 in 0..65535 if the largest value is above 255, else uint8 in 0..255.

    Raises ValueError if there are fewer than promised, or others than numbers.
    """
    largest = _largest(opened)
    assert largest is not None  # noqa: S101  # `is_scaled` was asked
    channels = 3 if opened.mode == "RGB" else 1
    count = opened.width * opened.height * channels
    file.seek(0)
    is_plain = file.read(2) in (b"P2", b"P3")
    file.seek(opened.tile[0].offset)
    if is_plain:
        text = re.sub(rb"#[^\r\n]*", b"", file.read())
        words = text.split(maxsplit=count)[:count]
        if max(map(len, words), default=0) > 10:  # an array of words takes as much for each as for the longest
            raise ValueError("a value is too long")
        values = np.array(words).astype(np.int64)
    else:
        kind = np.dtype(np.uint8 if largest < 256 else ">u2")
        levels = file.read(count * kind.itemsize)
        values = np.frombuffer(levels[: len(levels) // kind.itemsize * kind.itemsize], kind).astype(np.int64)
    if len(values) < count:
        raise DamageError(CUT_SHORT)
    if values.min() < 0 or values.max() > largest:
        raise ValueError(f"a value is not within 0 and {largest}")
    dtype = np.uint16 if largest > 255 else np.uint8
    peak = np.iinfo(dtype).max
    return ((values * peak + largest // 2) // largest).astype(dtype).reshape(opened.height, opened.width, channels)


def _largest(opened: ImageFile.ImageFile) -> int | None:
    """Return the largest value that the header promises, None if it is not one of grey levels or colours."""
    codec, _, _, arguments = opened.tile[0]
    if opened.mode in ("1", "F"):
        return None
    if codec == "raw":
        return 65535 if arguments == "I;16B" else 255
    return int(arguments[1]) if isinstance(arguments, tuple) else 255
