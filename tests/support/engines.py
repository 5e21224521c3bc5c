"""An engine that needs no weights, for what is done around engines."""

from __future__ import annotations

import numpy as np

from srgan.engines.protocol import Engine, StripEngine
from srgan.weights import ModelMetadata

METADATA = ModelMetadata(name="fake-x4", scale=4, halo_lr_px=0, architecture={})


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """LR (1,3,H,W) of evenly spread values in [0,1]."""
    return np.random.default_rng(seed).random((1, 3, height, width), dtype=np.float32)


def strips(engine: StripEngine, lr: np.ndarray, rows: int) -> np.ndarray:
    """SR of `lr`, made in strips of so many rows."""
    height, width = lr.shape[2:]
    pieces = engine.strips(height, width, rows, lambda start, stop: lr[:, :, start:stop])
    return np.concatenate([sr.copy() for _, sr in pieces], axis=2)


class NearestEngine:
    """Repeats every pixel, 4x4 by default: what is done around an engine is then seen exactly."""

    def __init__(self, metadata: ModelMetadata = METADATA) -> None:
        self.metadata = metadata
        self.calls: list[tuple[int, ...]] = []

    def run(self, lr: np.ndarray) -> np.ndarray:
        self.calls.append(lr.shape)
        assert lr.dtype == np.float32
        assert lr.flags.c_contiguous
        return lr.repeat(self.metadata.scale, axis=2).repeat(self.metadata.scale, axis=3)


class _Plain:
    def __init__(self, engine: Engine) -> None:
        self.metadata, self.run = engine.metadata, engine.run


def without_levels(engine: Engine) -> Engine:
    """Return `engine` as one that takes and gives nothing but float32."""
    return _Plain(engine)
