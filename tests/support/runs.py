"""A training run of a few steps, and pictures that it can learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from srgan.training.config import Recipe, validated


def discs(count: int, size: int = 64, *, each: int = 10, radii: tuple[int, int] = (4, 16)) -> list[np.ndarray]:
    """Pictures of discs with sharp rims, which bicubic enlargement blurs and a trained generator need not."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    pictures = []
    for _ in range(count):
        picture = np.full((size, size, 3), random.integers(0, 100, 3), np.uint8)
        for _ in range(each):
            centre, radius = random.integers(0, size, 2), random.integers(*radii)
            picture[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = random.integers(0, 256, 3)
        pictures.append(picture)
    return pictures


def small(**changes: Any) -> Recipe:
    """Both stages, a few steps, networks of a few features; `changes` are merged in, section by section."""
    values: dict[str, Any] = {
        "precision": "fp32",  # compared with sums written out, so the same on every processor
        "generator": {"blocks": 1, "features": 4},
        "discriminator": {"features": 2},
        "losses": {"perceptual": {"weight": 0.0}},
        "data": {"held_out": 1},
        "pretrain": {"steps": 4, "batch_size": 2, "patch_hr_px": 16, "learning_rate": 1e-3, "ema_decay": 0.5},
        "adversarial": {"steps": 4, "batch_size": 2, "patch_hr_px": 16, "learning_rate": 1e-3, "ema_decay": 0.9},
        "log_steps": 2,
    }
    for name, change in changes.items():
        values[name] = values.get(name, {}) | change if isinstance(change, dict) else change
    return validated(values, "test")


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
