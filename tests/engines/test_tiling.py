"""Geometry: every pixel once, with its full context, in tiles of one shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srgan.engines.tiling import Grid, Span, Tile, tiles_of_size, tiles_within, whole

sides = st.integers(1, 300)
halos = st.integers(0, 40)


def check(tiles: Grid, height: int, width: int, halo: int) -> tuple[int, int]:
    """Assert what must hold of every plan, and return the shape that its tiles read."""
    times = np.zeros((height, width), int)
    for tile in tiles:
        times[tile.target(1)] += 1
        for span, length in ((tile.rows, height), (tile.columns, width)):
            assert 0 <= span.read_start <= span.start < span.stop <= span.read_stop <= length
            assert span.read_start == 0 or span.start - span.read_start >= halo
            assert span.read_stop == length or span.read_stop - span.stop >= halo
    assert (times == 1).all()
    shapes = {(t.rows.read_stop - t.rows.read_start, t.columns.read_stop - t.columns.read_start) for t in tiles}
    assert len(shapes) == 1
    return shapes.pop()


@given(sides, sides, st.integers(5, 128), halos)
def test_tiles_of_size(height: int, width: int, tile: int, halo: int) -> None:
    tiles = tiles_of_size(height, width, tile_lr_px=tile, halo_lr_px=halo)
    read = check(tiles, height, width, halo)
    assert max(read) <= tile + 2 * halo


@given(sides, sides, st.integers(1, 100_000), halos)
def test_tiles_within(height: int, width: int, limit: int, halo: int) -> None:
    tiles = tiles_within(height, width, max_read_px=limit, halo_lr_px=halo)
    read = check(tiles, height, width, halo)
    smallest = max(1, halo) + 2 * halo
    if limit >= smallest**2:
        assert read[0] * read[1] <= limit
    else:
        assert read[0] * read[1] <= max(limit, smallest**2)


@given(sides, sides, st.integers(150, 400), halos)
def test_tiles_within_run_no_more_than_square_tiles_of_that_area(
    height: int, width: int, side: int, halo: int
) -> None:
    square = tiles_of_size(height, width, tile_lr_px=side - 2 * halo, halo_lr_px=halo)
    chosen = tiles_within(height, width, max_read_px=side**2, halo_lr_px=halo)

    def cost(tiles: Grid) -> int:
        return len(tiles) * int(np.prod(check(tiles, height, width, halo)))

    assert cost(chosen) <= cost(square)


def test_a_picture_that_fits_is_one_tile() -> None:
    assert tiles_within(300, 400, max_read_px=120_000, halo_lr_px=40) == whole(300, 400)
    assert len(tiles_within(300, 401, max_read_px=120_000, halo_lr_px=40)) == 2
    assert tiles_of_size(100, 90, tile_lr_px=20, halo_lr_px=40) == whole(100, 90)  # all of it is in reach anyway


def test_a_plan_of_more_tiles_than_memory_holds_is_made() -> None:
    """What is refused for its memory is planned before: 10^10 tiles as a list would be terabytes."""
    tiles = tiles_of_size(100_000, 100_000, tile_lr_px=1, halo_lr_px=0)
    assert len(tiles) == 10**10
    assert tiles[-1] == Tile(*[Span(99_999, 100_000, 99_999, 100_000)] * 2)
    assert [tile.read for tile in tiles[99_999:100_001]] == [
        (slice(0, 1), slice(99_999, 100_000)),
        (slice(1, 2), slice(0, 1)),
    ]


def test_a_long_strip_is_cut_across_only() -> None:
    tiles = tiles_within(10, 100_000, max_read_px=100_000, halo_lr_px=40)
    assert {(tile.rows.start, tile.rows.stop) for tile in tiles} == {(0, 10)}


def test_slices_of_a_tile() -> None:
    tile = Tile(Span(10, 40, 15, 35), Span(0, 20, 0, 15))
    assert tile.read == (slice(10, 40), slice(0, 20))
    assert tile.kept(4) == (slice(20, 100), slice(0, 60))
    assert tile.target(4) == (slice(60, 140), slice(0, 60))


@pytest.mark.parametrize("length", [61, 100, 101, 140, 141, 500])
def test_the_least_is_run_for_the_number_of_tiles(length: int) -> None:
    tiles = tiles_of_size(1, length, tile_lr_px=40, halo_lr_px=10)
    (read,) = {tile.columns.read_stop - tile.columns.read_start for tile in tiles}
    assert (read - 1 - 20) * len(tiles) < length - 20  # one pixel less would not cover it
