"""What AVIF and HEIC files say in their boxes (ISO/IEC 14496-12) and Pillow neither reads nor writes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

# Boxes that hold others, and how many bytes of their own stand before those.
_CONTAINERS = {
    b"meta": 4,
    b"iprp": 0,
    b"ipco": 0,
    b"iinf": 6,
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


def is_identity(content: bytes) -> bool:
    """Return whether the planes of a file hold its colours as they are, as those without loss do."""
    return any(
        content[start : start + 4] == b"nclx" and content[start + 8 : start + 10] == b"\0\0"
        for start, _ in of_kind(content, b"colr")
    )


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


def has_gain_map(content: bytes) -> bool:
    """Return whether there is a gain map beside the picture: by ISO 21496-1, or of Apple's kind."""
    items = any(b"tmap" in content[start : start + 16] for start, _ in of_kind(content, b"infe"))
    return items or any(b"hdrgainmap" in content[start:end] for start, end in of_kind(content, b"auxC"))


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


def items(content: bytes) -> Iterator[Span]:
    """Yield kind, start and end of each item, as far as it lies in the file itself and in one piece."""
    kinds = {}
    for start, end in of_kind(content, b"infe"):
        if end >= start + 12 and content[start] in (2, 3):
            wide = 2 if content[start] == 2 else 4
            number = int.from_bytes(content[start + 4 : start + 4 + wide])
            kinds[number] = content[start + 6 + wide : start + 10 + wide]
    for start, end in of_kind(content, b"iloc"):
        for number, place, length in _locations(content[start:end]):
            yield kinds.get(number, b""), place, place + length


def _locations(body: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield number, place and length of the items in the body of an `iloc` box."""
    version, place = body[0], 6
    offset_bytes, length_bytes, base_bytes, index_bytes = (
        width for byte in body[4:6] for width in (byte >> 4, byte & 15)
    )

    def number(width: int) -> int:
        nonlocal place
        place += width
        return int.from_bytes(body[place - width : place])

    for _ in range(min(_MAX_BOXES, number(4 if version == 2 else 2))):
        if place >= len(body):
            return
        item = number(4 if version == 2 else 2)
        method = number(2) & 15 if version else 0
        place += 2
        base, parts = number(base_bytes), number(2)
        for _ in range(min(parts, _MAX_BOXES)):
            place += index_bytes if version else 0
            start, length = base + number(offset_bytes), number(length_bytes)
            if method == 0 and parts == 1:
                yield item, start, length


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
