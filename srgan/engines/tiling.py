"""Where to cut a picture so that the pieces, upscaled apart, are the whole picture upscaled.

Pure geometry, in LR pixels. A generator sees only `halo_lr_px` around a pixel, so a tile is read with that much
context on each side that lies inside the picture, and only its core is kept. At the picture's own edges a tile
ends where the picture ends: what the generator does there (zero padding, replicated edges) must happen there and
nowhere else. All tiles of a picture have one shape, so that an engine compiles once; only in blocks, for networks
that work in windows, the last ones may be smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload


@dataclass(frozen=True)
class Span:
    """One axis of a tile: `read_start:read_stop` goes to the engine, `start:stop` of it is kept."""

    read_start: int
    read_stop: int
    start: int
    stop: int


@dataclass(frozen=True)
class Tile:
    """A piece of a picture: which rows and columns to read and which to keep."""

    rows: Span
    columns: Span

    @property
    def read(self) -> tuple[slice, slice]:
        """Rows and columns of the LR picture to run, core and halo."""
        return (
            slice(self.rows.read_start, self.rows.read_stop),
            slice(self.columns.read_start, self.columns.read_stop),
        )

    @property
    def read_px(self) -> int:
        """How many LR pixels are run."""
        return math.prod(span.read_stop - span.read_start for span in (self.rows, self.columns))

    def kept(self, scale: int) -> tuple[slice, slice]:
        """Rows and columns of the tile's own output that are kept."""
        return tuple(  # type: ignore[return-value]  # two axes give two slices
            slice((span.start - span.read_start) * scale, (span.stop - span.read_start) * scale)
            for span in (self.rows, self.columns)
        )

    def target(self, scale: int) -> tuple[slice, slice]:
        """Rows and columns of the whole output where the kept part goes."""
        return (
            slice(self.rows.start * scale, self.rows.stop * scale),
            slice(self.columns.start * scale, self.columns.stop * scale),
        )


@dataclass(frozen=True)
class Grid(Sequence[Tile]):
    """Tiles row by row, each made when it is looked at: a plan may have millions, only to be refused."""

    rows: list[Span]
    columns: list[Span]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @overload
    def __getitem__(self, index: int) -> Tile: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tile]: ...

    def __getitem__(self, index: int | slice) -> Tile | list[Tile]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[number] for number in chosen]
        row, column = divmod(chosen, len(self.columns))
        return Tile(self.rows[row], self.columns[column])


def whole(height: int, width: int) -> Grid:
    """Return the plan of one tile that is the whole picture."""
    return Grid(_spans(height, 1, 0), _spans(width, 1, 0))


def tiles_of_size(height: int, width: int, *, tile_lr_px: int, halo_lr_px: int) -> Grid:
    """Return tiles whose cores are at most `tile_lr_px` a side, more at the picture's edges.

    There no halo is needed, so a core may take its place: the part that is read is never wider than
    `tile_lr_px + 2 * halo_lr_px`.
    """
    return Grid(
        *(_spans(length, _count(length, tile_lr_px, halo_lr_px), halo_lr_px) for length in (height, width))
    )


def tiles_within(height: int, width: int, *, max_read_px: int, halo_lr_px: int) -> Grid:
    """Return the plan that runs the fewest pixels in all with no tile above `max_read_px`.

    If the halo alone is larger than that, the tiles have cores of one halo: smaller ones would spend nearly all
    of the time on context.
    """
    smallest = max(1, halo_lr_px)
    plans = []
    for down in range(1, _count(height, smallest, halo_lr_px) + 1):
        read_height = _read_length(height, down, halo_lr_px)
        across = _fewest(width, max_read_px // read_height, halo_lr_px, smallest)
        if across is not None:
            tiles = down * across
            cost = tiles * read_height * _read_length(width, across, halo_lr_px)
            plans.append((cost, tiles, down, across))
    if not plans:
        return tiles_of_size(height, width, tile_lr_px=smallest, halo_lr_px=halo_lr_px)
    _, _, down, across = min(plans)
    return Grid(_spans(height, down, halo_lr_px), _spans(width, across, halo_lr_px))


def in_blocks(tiles: Grid, block_lr_px: int, height: int, width: int) -> Grid:
    """Return the plan in pixels of one in blocks of `block_lr_px` a side, the last ones cut off by the picture.

    So every read begins at a multiple of a block, and ends at one or with the picture.
    """

    def in_pixels(spans: list[Span], length: int) -> list[Span]:
        ends = [(span.read_start, span.read_stop, span.start, span.stop) for span in spans]
        return [Span(*(min(place * block_lr_px, length) for place in places)) for places in ends]

    return Grid(in_pixels(tiles.rows, height), in_pixels(tiles.columns, width))


def _count(length: int, tile_lr_px: int, halo_lr_px: int) -> int:
    """How many tiles cover `length`: the first and the last keep a halo's width more than the others."""
    return max(1, math.ceil((length - 2 * halo_lr_px) / tile_lr_px))


def _fewest(length: int, max_read: int, halo_lr_px: int, smallest: int) -> int | None:
    """The smallest number of tiles of which none reads more than `max_read`, or None if there is none."""
    if length <= max_read:
        return 1
    core = max_read - 2 * halo_lr_px
    return _count(length, core, halo_lr_px) if core >= smallest else None


def _read_length(length: int, count: int, halo_lr_px: int) -> int:
    if count == 1:
        return length
    return math.ceil((length - 2 * halo_lr_px) / count) + 2 * halo_lr_px


def _spans(length: int, count: int, halo_lr_px: int) -> list[Span]:
    """Return `count` equally long reads, spread evenly, whose kept parts follow each other without a gap."""
    read = _read_length(length, count, halo_lr_px)
    starts = [index * (length - read) // max(1, count - 1) for index in range(count)]
    # A core begins where its read has a full halo before it; there the core before ends.
    edges = [0, *(start + halo_lr_px for start in starts[1:]), length]
    return [Span(start, start + read, edges[i], edges[i + 1]) for i, start in enumerate(starts)]
