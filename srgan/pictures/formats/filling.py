"""What there is of files that are cut short, in formats without checksums: BMP, PPM, WebP, AVIF and HEIC.

What is missing is made up in several ways; rows that are the same in all of them are whole.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image

from srgan.pictures.faults import DECODER_ERRORS
from srgan.pictures.formats.damage import DamageError, partly_whole

Check = Callable[[int, int, int], None]
"""Raises for a width, a height and a number of frames that are too many."""

Decode = Callable[[bytes], np.ndarray]
"""Returns the rows of the picture in a file."""

MOST_BYTES = 1 << 26  # that are made up: a hostile file promises gigabytes


def filled(
    build: Callable[[int], bytes], fills: tuple[int, ...], decode: Decode, there: float
) -> tuple[BinaryIO, list[str]]:
    """Return a sound file and what is to be told of it.

    `build`: makes one with that byte in the place of all that are missing. `decode`: returns its rows. `there`:
    the share (0..1) of its bytes that are there. Raises DamageError if no row is whole.
    """
    pictures = {}
    for fill in fills:
        try:
            pictures[fill] = decode(build(fill))
        except DECODER_ERRORS:
            continue
    if len(pictures) < 2:
        raise DamageError(refusal(there))
    first, *others = pictures.values()
    is_whole = np.all([(first == other).reshape(len(first), -1).all(1) for other in others], axis=0)
    # From the top, or the bottom, where BMP files begin.
    rows = max(len(first) if order.all() else int(order.argmin()) for order in (is_whole, is_whole[::-1]))
    if not rows:
        raise DamageError(refusal(there))
    share = min(rows, len(first) - 1) / len(first)  # what was cut is not whole, whatever it looks like
    return io.BytesIO(build(next(iter(pictures)))), [partly_whole(share)]


def refusal(there: float) -> str:
    """Return why a file is refused of which such a share (0..1) is there."""
    return f"it is cut short: {100 * there:.0f}% of the file is there, of which no part of a picture can be made"


def by_pillow(format: str, check: Check) -> Decode:
    """Return what decodes a file of Pillow's `format` to its rows, unless `check` raises."""

    def decode(content: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(content), formats=(format,)) as image:
            check(image.width, image.height, 1)
            image.load()
            return np.asarray(image)

    return decode
