"""How large a GIF file's pictures are: Pillow finds out while it makes room for them."""

from __future__ import annotations

import struct
from typing import BinaryIO

_EXTENSION, _IMAGE, _END = b"!", b",", b";"


def canvas(file: BinaryIO) -> tuple[int, int, int]:
    """Return width and height that hold the screen and every frame, and the number of frames.

    Raises struct.error if the file ends within a frame's header.
    """
    file.seek(6)
    width, height, flags = struct.unpack("<HHB2x", file.read(7))
    _skip_palette(file, flags)
    frames = 0
    while (kind := file.read(1)) not in (b"", _END):
        if kind == _EXTENSION:
            file.seek(1, 1)
            _skip_blocks(file)
        elif kind == _IMAGE:
            left, top, across, down, flags = struct.unpack("<HHHHB", file.read(9))
            width, height, frames = max(width, left + across), max(height, top + down), frames + 1
            _skip_palette(file, flags)
            file.seek(1, 1)
            _skip_blocks(file)
    return width, height, frames


def _skip_palette(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << ((flags & 7) + 1), 1)


def _skip_blocks(file: BinaryIO) -> None:
    while length := file.read(1):
        if length == b"\0":
            return
        file.seek(length[0], 1)
