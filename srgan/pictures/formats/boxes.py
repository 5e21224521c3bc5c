"""What AVIF files say in their boxes (ISO/IEC 14496-12) and Pillow neither reads nor writes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

# Boxes that hold others, and how many bytes of their own stand before those.
_CONTAINERS = {
    b"meta": 4,
    b"iprp": 0,
    b"ipco": 0,
    b"moov": 0,
    b"trak": 0,
    b"edts": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"stsd": 8,
    b"av01": 78,
}
_MAX_BOXES = 10_000

Span = tuple[bytes, int, int]


def colours(content: bytes) -> tuple[int, int] | None:
    """Return the code points (ITU-T H.273) of primaries and transfer in an nclx box, if there is one."""
    for start, end in of_kind(content, b"colr"):
        if content[start : start + 4] == b"nclx" and end >= start + 8:
            primaries, transfer = struct.unpack_from(">HH", content, start + 4)
            return primaries, transfer
    return None


def with_colours(content: bytes, primaries: int, transfer: int) -> bytes:
    """Return the file with these in all of its nclx boxes."""
    edited = bytearray(content)
    for start, end in of_kind(content, b"colr"):
        if content[start : start + 4] == b"nclx" and end >= start + 8:
            struct.pack_into(">HH", edited, start + 4, primaries, transfer)
    return bytes(edited)


def pixel_shape(content: bytes) -> tuple[int, int]:
    """Return how wide and how high a pixel is, in proportion."""
    for start, end in of_kind(content, b"pasp"):
        if end < start + 8:
            break
        across, down = struct.unpack_from(">LL", content, start)
        return across, down
    return 1, 1


def plays(content: bytes) -> int:
    """Return how often a sequence is shown, 0 for ever and where nothing is said: track by edit list."""
    durations, edits = (list(of_kind(content, kind)) for kind in (b"tkhd", b"elst"))
    if not durations or not edits:
        return 0
    whole, forever = _duration(content, durations[0][0], before=(16, 24))
    once, _ = _duration(content, edits[0][0], before=(4, 4))
    if not content[edits[0][0] + 3] & 1:  # the list is gone through once
        return 1
    return 0 if forever or not once else -(-whole // once)


def _duration(content: bytes, start: int, before: tuple[int, int]) -> tuple[int, bool]:
    """Return a duration of 32 or 64 bits behind so many bytes after the version, and whether it is without end."""
    is_long = content[start] == 1
    place = start + 4 + before[is_long]
    duration = int.from_bytes(content[place : place + (8 if is_long else 4)])
    return duration, duration == 2 ** (64 if is_long else 32) - 1


def of_kind(content: bytes, kind: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the bodies of such boxes begin and end, in the order of the file."""
    for name, start, end in spans(content):
        if name == kind:
            yield start, end


def spans(content: bytes) -> Iterator[Span]:
    """Yield name, start and end of the bodies of all boxes, parents first; ends where the structure is broken."""
    todo = [(0, len(content))]
    for _ in range(_MAX_BOXES):
        while todo and todo[-1][0] + 8 > todo[-1][1]:
            todo.pop()
        if not todo:
            return
        place, outer_end = todo.pop()
        size, name = struct.unpack_from(">L4s", content, place)
        start = place + 8
        if size == 1 and start + 8 <= outer_end:
            (size,) = struct.unpack_from(">Q", content, start)
            start += 8
        end = place + size if size else outer_end
        if not start <= end <= outer_end:
            return
        todo.append((end, outer_end))
        if name in _CONTAINERS:
            todo.append((start + _CONTAINERS[name], end))
        yield name, start, end
