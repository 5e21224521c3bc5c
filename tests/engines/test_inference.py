"""Pictures in pieces: the pieces are the whole, and as many as the memory asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import METADATA, NearestEngine

from srgan.engines import inference
from srgan.engines.inference import Inference
from srgan.engines.openvino import OpenVinoEngine
from srgan.engines.protocol import LevelsEngine, ReadRows, StripFacts
from srgan.errors import EngineError, OutOfMemoryError, PrecisionError, UsageError

HALO = 12  # of the tiny model


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)


TILE = 16
# Where the plan changes: one halo, two (all is in reach), and one, two or three tiles.
EDGES = [edge + step for edge in (HALO, 2 * HALO, 2 * HALO + TILE, 2 * HALO + 2 * TILE) for step in (-1, 0, 1)]


@pytest.mark.parametrize("height", [1, 2, *EDGES, 97])
def test_tiled_equals_whole_around_every_edge(tiny_engine: OpenVinoEngine, height: int) -> None:
    for width in (1, 2 * HALO + 2 * TILE + 1):
        lr = noise(height, width)
        whole = tiny_engine.run(lr)
        tiled = Inference(tiny_engine, tile_lr_px=TILE).array(lr)
        assert np.abs(tiled - whole).max() <= 1e-5


@settings(max_examples=10)
@given(height=st.integers(1, 80), width=st.integers(1, 80), tile=st.integers(8, 40))
def test_tiled_equals_whole(tiny_engine: OpenVinoEngine, height: int, width: int, tile: int) -> None:
    lr = noise(height, width)
    tiled = Inference(tiny_engine, tile_lr_px=tile).array(lr)
    assert np.abs(tiled - tiny_engine.run(lr)).max() <= 1e-5


def test_a_smaller_halo_shows_seams(tiny_engine: OpenVinoEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: every pixel of the halo matters."""
    lr = noise(60, 60)
    whole = tiny_engine.run(lr)
    for halo, least in ((0, 1e-2), (HALO - 2, 1e-5)):
        monkeypatch.setattr(tiny_engine, "metadata", replace(tiny_engine.metadata, halo_lr_px=halo))
        tiled = Inference(tiny_engine, tile_lr_px=16).array(lr)
        assert np.abs(tiled - whole).max() > least


def test_auto_is_whole_when_small_and_tiled_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = NearestEngine()
    Inference(engine).array(noise(300, 300))
    assert engine.calls == [(1, 3, 300, 300)]
    monkeypatch.setattr(inference, "available_bytes", lambda: 3 * 8192 * 10_000)
    engine.calls.clear()
    result = Inference(engine).array(noise(300, 300))
    np.testing.assert_array_equal(result, noise(300, 300).repeat(4, 2).repeat(4, 3))
    assert len(engine.calls) == 9
    assert all(shape[2] * shape[3] <= 10_000 for shape in engine.calls)


def test_auto_bounds_the_tile_whatever_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "available_bytes", lambda: 2**50)
    engine = NearestEngine(replace(METADATA, halo_lr_px=40))
    Inference(engine).run(600, 1200, lambda rows, columns: noise(600, 1200)[:, :, rows, columns], lambda *_: None)
    assert len(engine.calls) > 1
    assert all(shape[2] * shape[3] <= 576 * 576 for shape in engine.calls)


@settings(max_examples=50)
@given(height=st.integers(1, 20_000), width=st.integers(1, 20_000), limit=st.integers(120_000_000, 4_000_000_000))
def test_a_plan_keeps_within_its_memory_and_covers_the_picture(height: int, width: int, limit: int) -> None:
    """With the facts of the bundled models, whose smallest tile takes 118 MB: 120 pixels a side."""
    plan = Inference(StripFake()).plan(height, width, limit)
    assert plan.needed_bytes <= limit
    px = plan.strip_rows * plan.tiles[0].read_px // height if plan.strip_rows else plan.tiles[0].read_px
    assert px * 7500 <= limit
    assert sum(tile.read_px for tile in plan.tiles) <= 6.5 * height * width + 500_000
    ends = {(tile.rows.stop, tile.columns.stop) for tile in plan.tiles}
    assert max(ends) == (height, width)
    if plan.strip_rows:
        assert {(tile.rows.start, tile.rows.stop) for tile in plan.tiles} == {(0, height)}


def test_plans_for_well_known_sizes() -> None:
    plans = Inference(StripFake())

    def shape(height: int, width: int, limit: float) -> tuple[int, int]:
        plan = plans.plan(height, width, limit)
        return len(plan.tiles), plan.strip_rows

    assert shape(500, 500, 2.7e9) == (1, 0)  # whole
    assert shape(500, 500, 1e9) == (1, 32)
    assert shape(3000, 4000, 2.7e9) == (2, 32)  # 12 megapixels
    assert shape(1500, 2000, 2.7e9) == (1, 16)
    assert shape(10, 100_000, 2.7e9) == (7, 0)  # few rows, and strips lag by 40
    assert plans.plan(3000, 4000, 2.7e9).cost < 1.12 * 3000 * 4000


def test_the_smallest_plan_where_nothing_fits() -> None:
    plan = Inference(StripFake()).plan(3000, 4000, 1)
    assert plan.needed_bytes == min(
        Inference(StripFake()).plan(3000, 4000, limit).needed_bytes for limit in (1, 10, 1000, 1e7, 1e8)
    )


@pytest.mark.parametrize("size", [(1, 70), (70, 1), (61, 67), (100, 30)])
def test_strips_and_columns_of_strips_equal_the_whole(tiny_engine: OpenVinoEngine, size: tuple[int, int]) -> None:
    lr = noise(*size)
    whole = tiny_engine.run(lr)
    least = math.ceil(Inference(tiny_engine).plan(*size, 1).needed_bytes)
    for limit in (least, max(least, 4_000_000)):
        sr = Inference(tiny_engine, memory_bytes=limit).array(lr)
        assert np.abs(sr - whole).max() <= 1e-6


def test_a_narrow_picture_takes_no_more_memory_than_its_width_asks_for() -> None:
    plan = Inference(StripFake()).plan(12_000, 100, 2.7e9)
    assert plan.strip_rows
    assert plan.needed_bytes < 60e6


def test_a_wide_short_picture_takes_no_more_than_strips_would() -> None:
    assert Inference(StripFake()).plan(100, 12_000, 2.7e9).needed_bytes <= 1.2e9


def test_a_bound_that_nothing_fits_is_refused_with_what_is_needed() -> None:
    with pytest.raises(UsageError, match=r"0\.001 MB .* too little .* 100x12000 pixels: 25 MB are needed"):
        Inference(StripFake(), memory_bytes=1000).run(12_000, 100, lambda *_: noise(1, 1), lambda *_: None)


# Out of memory


class StripFake(NearestEngine):
    """Also in strips. Fails as if the memory of `most_px` LR pixels were all there is."""

    def __init__(self, most_px: float = float("inf"), fail_at_strip: int = 0) -> None:
        super().__init__(replace(METADATA, halo_lr_px=40))
        self.strip_facts = StripFacts(lag_lr_px=40, bytes_per_column=42_416)
        self.most_px, self.fail_at_strip, self.forgotten = most_px, fail_at_strip, 0

    def run(self, lr: np.ndarray) -> np.ndarray:
        if lr[0, 0].size > self.most_px:
            raise OutOfMemoryError("not enough memory for a tile")
        return super().run(lr)

    def strips(self, height: int, width: int, rows: int, read: ReadRows) -> Iterator[tuple[slice, np.ndarray]]:
        for number, start in enumerate(range(0, height, rows)):
            if rows * width > self.most_px and number >= self.fail_at_strip:
                raise OutOfMemoryError("not enough memory for strips")
            stop = min(height, start + rows)
            yield slice(4 * start, 4 * stop), super().run(np.ascontiguousarray(read(start, stop)))

    def forget(self) -> None:
        self.forgotten += 1


def test_out_of_memory_takes_half_of_it_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "available_bytes", lambda: 2**50)
    engine = StripFake(most_px=4000, fail_at_strip=2)
    seen: list[float] = []
    lr, sr = noise(300, 301), np.zeros((1, 3, 1200, 1204), np.float32)

    def write(rows: slice, columns: slice, piece: np.ndarray) -> None:
        sr[:, :, rows, columns] = piece

    Inference(engine).run(300, 301, lambda rows, columns: lr[:, :, rows, columns], write, report=seen.append)
    np.testing.assert_array_equal(sr, lr.repeat(4, 2).repeat(4, 3))
    assert engine.forgotten == 2  # whole, strips of 32 rows, strips of fewer
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_out_of_memory_four_times_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "available_bytes", lambda: 2**50)
    engine = StripFake(most_px=0)
    with pytest.raises(OutOfMemoryError, match=r"not enough memory .* allow this one more") as caught:
        Inference(engine).array(noise(300, 300))
    assert "\n" not in str(caught.value)
    assert engine.forgotten == 3


@pytest.mark.parametrize("tile", [200, "off"])
def test_out_of_memory_with_a_tile_that_was_asked_for(tile: int | Literal["off"]) -> None:
    engine = StripFake(most_px=100)
    with pytest.raises(OutOfMemoryError, match="smaller tile"):
        Inference(engine, tile_lr_px=tile).array(noise(30, 30))
    assert engine.forgotten == 0


def test_another_failure_is_never_tried_again() -> None:
    class Broken(NearestEngine):
        def run(self, lr: np.ndarray) -> np.ndarray:
            super().run(lr)
            raise EngineError("out of order")

    engine = Broken()
    with pytest.raises(EngineError, match="out of order"):
        Inference(engine).array(noise(9, 9))
    assert len(engine.calls) == 1


@pytest.mark.parametrize("tile", [0, -1])
def test_tiles_out_of_range(tile: int) -> None:
    with pytest.raises(UsageError, match="tile"):
        Inference(NearestEngine(), tile_lr_px=tile)


@pytest.mark.parametrize("memory", [0, -1])
def test_memory_out_of_range(memory: int) -> None:
    with pytest.raises(UsageError, match="memory"):
        Inference(NearestEngine(), memory_bytes=memory)


# Levels


class GivesLevels(NearestEngine):
    """Takes levels; counts how many pieces were under way, and cannot compute one whose mean is above `most`."""

    batch_lr_px = 2 * 20 * 20
    bytes_per_lr_px = 1000.0

    def __init__(self, most: float = math.inf) -> None:
        super().__init__()
        self.most, self.under_way, self.at_once = most, 0, 0

    def submit_levels(self, levels: np.ndarray) -> Callable[[], np.ndarray]:
        self.under_way += 1
        self.at_once = max(self.at_once, self.under_way)
        self.calls.append(levels.shape)

        def result() -> np.ndarray:
            self.under_way -= 1
            if levels.mean() > self.most:
                raise PrecisionError("fp16 is not precise enough")
            return levels.repeat(4, axis=1).repeat(4, axis=2)

        return result

    def run_precisely(self, lr: np.ndarray) -> np.ndarray:
        return super().run(np.ascontiguousarray(lr))

    def free_bytes(self) -> int:
        return 2**30

    def forget(self) -> None:
        pass


@pytest.mark.parametrize("channels", [(3,), ()])
def test_one_piece_is_computed_while_the_one_before_is_copied(channels: tuple[int, ...]) -> None:
    engine = GivesLevels()
    assert isinstance(engine, LevelsEngine)
    levels = np.random.default_rng(0).integers(0, 256, (90, 70, *channels), np.uint8)
    seen: list[float] = []
    sr = Inference(engine, tile_lr_px=20).levels(levels, report=seen.append)
    np.testing.assert_array_equal(sr, levels.repeat(4, 0).repeat(4, 1))
    assert (engine.at_once, engine.under_way) == (2, 0)
    assert {shape[0] for shape in engine.calls} == {2}  # twenty tiles, in pairs
    assert seen == pytest.approx([number / 10 for number in range(1, 11)])


def test_a_bound_for_one_picture_holds_for_tiles_that_are_run_together() -> None:
    engine = GivesLevels()
    levels = np.zeros((40, 40), np.uint8)
    Inference(engine, tile_lr_px=20).levels(levels, limit_bytes=1000 * 20 * 20)
    assert {shape[0] for shape in engine.calls} == {1}
    engine.calls.clear()
    Inference(engine, tile_lr_px=20).levels(levels, limit_bytes=2 * 1000 * 20 * 20)
    assert {shape[0] for shape in engine.calls} == {2}


def test_levels_that_half_precision_cannot_do_are_made_in_float32_and_told() -> None:
    engine, told = GivesLevels(most=100), list[str]()
    levels = np.full((40, 40, 3), 50, np.uint16)
    levels[:20, :20] = 60_000
    sr = Inference(engine, tile_lr_px=20, memory_bytes=1000 * 400).levels(levels, warn=told.append)
    np.testing.assert_array_equal(sr, levels.repeat(4, 0).repeat(4, 1))
    assert told == ["fp16 is not precise enough, so parts were run again in float32"]


def test_tiles_are_as_large_as_measured_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GivesLevels, "free_bytes", lambda _: 2**50)
    engine = GivesLevels()
    for most_bytes, pieces in ((None, 1), (4_000_000, 4)):
        engine.calls.clear()
        Inference(engine, memory_bytes=most_bytes).levels(np.zeros((120, 120), np.uint8))
        assert len(engine.calls) == pieces
    engine.bytes_per_lr_px = 1e6
    engine.calls.clear()
    Inference(engine).levels(np.zeros((120, 120), np.uint8))
    assert all(shape[1] * shape[2] * 1e6 <= 7e9 for shape in engine.calls)
    assert len(engine.calls) > 1
