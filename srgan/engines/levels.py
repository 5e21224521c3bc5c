"""From levels of 8 or 16 bits to what an engine takes, and back."""

from __future__ import annotations

import numpy as np


def from_levels(levels: np.ndarray) -> np.ndarray:
    """Return (N,3,h,w) float32 in [0,1] of (N,h,w,3) or grey (N,h,w) levels, uint8 or uint16."""
    if levels.ndim == 4:
        channels = np.moveaxis(levels, -1, 1)
    else:
        channels = np.broadcast_to(levels[:, None], (len(levels), 3, *levels.shape[1:]))
    nchw: np.ndarray = np.divide(channels, np.iinfo(levels.dtype).max, dtype=np.float32)
    return nchw


def to_levels(sr: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return `sr`, (N,3,h,w) float32, not clamped, as levels of the type of `like`: (N,h,w,3), or grey (N,h,w)."""
    # A grey picture went in as three equal channels and comes out as three nearly equal ones.
    values = np.moveaxis(sr, 1, -1) if like.ndim == 4 else sr.mean(axis=1)
    peak = np.float32(np.iinfo(like.dtype).max)
    levels: np.ndarray = np.rint(values.clip(0, 1) * peak)  # truncating would darken by half a level
    return levels.astype(like.dtype)
