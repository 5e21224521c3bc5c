"""GIF block by block: how large the pictures are, before Pillow makes room for them, and what is seen of each."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from srgan.pictures.planes import Planes

_EXTENSION, _IMAGE, _END = b"!", b",", b";"
_CONTROL = b"\xf9"
_TO_CLEAR, _TO_BEFORE = 2, 3


@dataclass(frozen=True)
class _Frame:
    """A frame as it is stored. `box`: left, top, width, height. `file`: a GIF file of it alone."""

    box: tuple[int, int, int, int]
    disposal: int
    duration_ms: float
    file: bytes


def canvas(file: BinaryIO) -> tuple[int, int, int]:
    """Return width and height that hold the screen and every frame, and the number of frames.

    Raises struct.error if the file ends within a frame's header, ValueError if it ends in what is no block.
    """
    file.seek(6)
    width, height, _ = struct.unpack("<HHB2x", file.read(7))
    frames = 0
    for frame in _frames(file):
        left, top, across, down = frame.box
        width, height, frames = max(width, left + across), max(height, top + down), frames + 1
    return width, height, frames


def seen_frames(file: BinaryIO) -> Iterator[tuple[Planes, float]]:
    """Yield each frame of an animation as it is seen, whole, and how long, in milliseconds.

    What no frame covers and what one has cleared behind it is transparent, as in browsers and ImageMagick; Pillow
    takes the background colour there. Raises what `canvas` and Pillow do.
    """
    width, height, _ = canvas(file)
    pixels, alpha = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    for frame in _frames(file):
        left, top, across, down = frame.box
        place = slice(top, top + down), slice(left, left + across)
        before = pixels[place].copy(), alpha[place].copy()
        with Image.open(io.BytesIO(frame.file), formats=("GIF",)) as image:
            image.load()
            planes = Planes.of_image(image, [])
        colours = planes.pixels if planes.pixels.ndim == 3 else np.repeat(planes.pixels[..., None], 3, axis=2)
        opaque = np.ones((down, across), bool) if planes.alpha is None else planes.alpha > 0
        pixels[place][opaque], alpha[place][opaque] = colours[opaque], 255
        yield Planes(pixels.copy(), alpha.copy()), frame.duration_ms
        if frame.disposal == _TO_CLEAR:
            pixels[place], alpha[place] = 0, 0
        elif frame.disposal == _TO_BEFORE:
            pixels[place], alpha[place] = before


def _frames(file: BinaryIO) -> Iterator[_Frame]:
    file.seek(6)
    (flags,) = struct.unpack("<4xB2x", file.read(7))
    palette = file.read(_palette_bytes(flags))
    control = bytes(6)
    is_stray = False
    while (kind := file.read(1)) not in (b"", _END):
        is_stray = kind not in (_EXTENSION, _IMAGE)
        if kind == _EXTENSION:
            is_control = file.read(1) == _CONTROL
            body = _blocks(file)
            if is_control and len(body) >= 6:
                control = body[:6]  # the length, flags, duration in hundredths, the clear colour, and an end
        elif kind == _IMAGE:
            box = struct.unpack("<HHHH", file.read(8))
            head = file.read(1)
            (own_flags,) = struct.unpack("B", head)
            rest = head + file.read(_palette_bytes(own_flags)) + file.read(1) + _blocks(file)
            alone = b"GIF89a" + struct.pack("<HHBBB", *box[2:], flags, 0, 0) + palette
            alone += b"!\xf9\x04" + bytes([control[1] & 1]) + control[2:5] + b"\0"
            alone += b"," + struct.pack("<HHHH", 0, 0, *box[2:]) + rest + b";"
            yield _Frame(box, control[1] >> 2 & 7, 10.0 * int.from_bytes(control[2:4], "little"), alone)
            control = bytes(6)
    if is_stray and kind != _END:
        raise ValueError("the file ends in something that is no part of a picture")


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _blocks(file: BinaryIO) -> bytes:
    """Return the blocks that follow with their lengths and the empty one behind them."""
    parts = []
    while length := file.read(1):
        parts.append(length)
        if length == b"\0":
            break
        parts.append(file.read(length[0]))
    return b"".join(parts)
