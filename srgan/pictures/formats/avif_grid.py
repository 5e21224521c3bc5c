"""Large AVIF pictures as a grid of tiles, each coded by itself (ISO/IEC 23008-12, 6.6.2.3; MIAF, 7.3.11.4).

Pillow's encoder takes forty bytes for each pixel at once. Tiles bound that; readers put them together again.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from srgan.pictures.formats import boxes

# A tile's side at most. Pictures of up to two such tiles are coded at once.
TILE_PX = 2048

_ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"
_HIDDEN = 1

# Returns (h,w,3) or (h,w) uint8 as an AVIF file of its own; the second argument tells whether it is transparency.
EncodeTile = Callable[[np.ndarray, bool], bytes]


def is_needed(height: int, width: int) -> bool:
    """Return whether a still picture of that size is to be written in tiles."""
    return height * width > 2 * TILE_PX**2


def write(
    pixels: np.ndarray,
    alpha: np.ndarray | None,
    encode: EncodeTile,
    *,
    exif: bytes = b"",
    xmp: bytes = b"",
    icc: bytes = b"",
) -> bytes:
    """Return an AVIF file of (H,W,3) or (H,W) uint8, and (H,W) alpha or None, whose tiles `encode` makes.

    `exif`: with or without its header; `xmp`: the packet; `icc`: the profile, if it is not in the tiles. Raises
    what `encode` raises.
    """
    file = _File()
    colour = file.add_grid(pixels, encode, [_box(b"colr", b"prof" + icc)] if icc else [])
    if alpha is not None:
        file.references.append(
            (b"auxl", file.add_grid(alpha, encode, [_full_box(b"auxC", _ALPHA)], is_alpha=True), [colour])
        )
    if exif:
        block = bytes(4) + exif.removeprefix(b"Exif\0\0")
        file.references.append((b"cdsc", file.add(_Item(b"Exif", block)), [colour]))
    if xmp:
        packet = _Item(b"mime", xmp, name=b"\0application/rdf+xml\0")
        file.references.append((b"cdsc", file.add(packet), [colour]))
    return file.content()


@dataclass
class _Item:
    kind: bytes
    content: bytes
    properties: list[bytes] = field(default_factory=list)
    flags: int = 0
    name: bytes = b"\0"


@dataclass
class _File:
    """What will be a file: items, numbered from 1, of which the first grid is the picture."""

    items: list[_Item] = field(default_factory=list)
    references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)
    kind: bytes = b""

    def add(self, item: _Item) -> int:
        self.items.append(item)
        return len(self.items)

    def add_grid(
        self, plane: np.ndarray, encode: EncodeTile, extra: list[bytes], *, is_alpha: bool = False
    ) -> int:
        """Add a plane and return its number; one that is a single tile needs no grid."""
        height, width = plane.shape[:2]
        rows, columns = math.ceil(height / TILE_PX), math.ceil(width / TILE_PX)
        if rows == columns == 1:
            file = encode(plane, is_alpha)
            self.kind = self.kind or _kind(file)
            coded, properties = _coded(file)
            return self.add(_Item(b"av01", coded, properties + extra))
        large = max(height, width) > 0xFFFF
        layout = struct.pack(">BBBB", 0, large, rows - 1, columns - 1)
        layout += struct.pack(">LL" if large else ">HH", width, height)
        grid = _Item(b"grid", layout)
        number = self.add(grid)
        tiles = []
        for tile in _tiles(plane, rows, columns):
            file = encode(tile, is_alpha)
            self.kind = self.kind or _kind(file)
            coded, properties = _coded(file)
            tiles.append(self.add(_Item(b"av01", coded, properties + extra, _HIDDEN)))
        shared = [box for box in self.items[tiles[0] - 1].properties if box[4:8] not in (b"ispe", b"av1C")]
        grid.properties = [_full_box(b"ispe", struct.pack(">LL", width, height)), *shared]
        self.references.append((b"dimg", number, tiles))
        return number

    def content(self) -> bytes:
        length = len(self.kind) + len(self._meta(0)) + 8
        meta = self._meta(length)
        data = struct.pack(">L4s", 8 + sum(len(item.content) for item in self.items), b"mdat")
        return b"".join([self.kind, meta, data, *(item.content for item in self.items)])

    def _meta(self, start: int) -> bytes:
        """Return the box of everything but the items' contents, which begin at `start` of the file."""
        known: dict[bytes, int] = {}
        places, entries, associations = b"", b"", b""
        for number, item in enumerate(self.items, start=1):
            places += struct.pack(">HHHHLL", number, 0, 0, 1, start, len(item.content))
            start += len(item.content)
            head = struct.pack(">HH4s", number, 0, item.kind)
            entries += _full_box(b"infe", head + item.name, version=2, flags=item.flags)
            if item.properties:
                numbers = [known.setdefault(box, len(known) + 1) for box in item.properties]
                essential = [0x80 * (box[4:8] == b"av1C") for box in item.properties]
                marks = bytes(map(sum, zip(numbers, essential, strict=True)))
                associations += struct.pack(">HB", number, len(marks)) + marks
        described = sum(bool(item.properties) for item in self.items)
        links = b"".join(
            _box(kind, struct.pack(f">HH{len(to)}H", number, len(to), *to)) for kind, number, to in self.references
        )
        count = struct.pack(">H", len(self.items))
        properties = _box(b"ipco", b"".join(known))
        properties += _full_box(b"ipma", struct.pack(">L", described) + associations)
        parts = [
            _full_box(b"hdlr", bytes(4) + b"pict" + bytes(13)),
            _full_box(b"pitm", struct.pack(">H", 1)),
            _full_box(b"iloc", b"\x44\x00" + count + places, version=1),
            _full_box(b"iinf", count + entries),
            _full_box(b"iref", links),
            _box(b"iprp", properties),
        ]
        return _full_box(b"meta", b"".join(parts))


def _tiles(plane: np.ndarray, rows: int, columns: int) -> Iterator[np.ndarray]:
    """Yield tiles of one size, from the left and from the top; the last ones repeat the picture's edge."""
    height, width = (math.ceil(side / count) for side, count in zip(plane.shape, (rows, columns), strict=False))
    for top in range(0, rows * height, height):
        for left in range(0, columns * width, width):
            tile = plane[top : top + height, left : left + width]
            missing = [(0, height - tile.shape[0]), (0, width - tile.shape[1]), (0, 0)]
            yield np.pad(tile, missing[: plane.ndim], mode="edge")


def _kind(file: bytes) -> bytes:
    """Return the box that says what kind of file it is."""
    return file[: int.from_bytes(file[:4])]


def _coded(file: bytes) -> tuple[bytes, list[bytes]]:
    """Return what is coded in a file of one picture, and the boxes that describe it."""
    spans = list(boxes.spans(file))
    ((start, end),) = [(start, end) for name, start, end in spans if name == b"mdat"]
    ((first, last),) = [(start, end) for name, start, end in spans if name == b"ipco"]
    return file[start:end], [file[at - 8 : to] for _, at, to in spans if first < at <= to <= last]


def _box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">L4s", 8 + len(body), name) + body


def _full_box(name: bytes, body: bytes, *, version: int = 0, flags: int = 0) -> bytes:
    return _box(name, struct.pack(">L", version << 24 | flags) + body)
