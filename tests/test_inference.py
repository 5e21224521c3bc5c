"""Pictures in pieces: the pieces are the whole, and as many as the memory asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srgan import inference, tiling
from srgan.engine import OpenVinoEngine
from srgan.errors import UsageError
from srgan.inference import Inference
from srgan.weights import ModelMetadata

HALO = 12  # of the tiny model
METADATA = ModelMetadata(name="fake-x4", scale=4, halo_lr_px=0, architecture={})


class NearestEngine:
    """Repeats every pixel 4x4: what is done around an engine is then seen exactly."""

    def __init__(self, metadata: ModelMetadata = METADATA) -> None:
        self.metadata = metadata
        self.calls: list[tuple[int, ...]] = []

    def run(self, lr: np.ndarray) -> np.ndarray:
        self.calls.append(lr.shape)
        assert lr.dtype == np.float32
        assert lr.flags.c_contiguous
        return lr.repeat(4, axis=2).repeat(4, axis=3)


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
    tiles = Inference(NearestEngine(replace(METADATA, halo_lr_px=40)))._plan(3000, 4000)
    read = tiles[0].read
    assert (read[0].stop - read[0].start) * (read[1].stop - read[1].start) <= 592 * 592
    assert Inference(NearestEngine())._plan(512, 512) == tiling.whole(512, 512)


@pytest.mark.parametrize("tile", [0, -1])
def test_tiles_out_of_range(tile: int) -> None:
    with pytest.raises(UsageError, match="tile"):
        Inference(NearestEngine(), tile_lr_px=tile)
