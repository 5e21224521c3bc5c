"""Packed pictures in memory, and patches of them as they are cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from srgan.training.data.cache import PictureCache
from srgan.training.data.patches import Patches
from srgan.training.data.sources import ENERGY_BLOCK_PX, THUMBNAIL_PX

Pixels = npt.NDArray[np.uint8]


def cache_of(*pictures: Pixels, sha256: str = "a" * 64) -> PictureCache:
    """Pack `pictures`, (H,W,3) uint8 each, named 0.png, 1.png and so on, of one source, without LR and detail."""
    count = len(pictures)
    sizes = np.array([picture.shape[:2] for picture in pictures])
    blocks = (-(-sizes // ENERGY_BLOCK_PX)).prod(1)
    lengths = torch.from_numpy(3 * sizes.prod(1))
    return PictureCache(
        pixels=torch.from_numpy(np.concatenate([picture.reshape(-1) for picture in pictures])),
        offsets=lengths.cumsum(0) - lengths,
        heights=torch.from_numpy(sizes[:, 0]),
        widths=torch.from_numpy(sizes[:, 1]),
        lr_offsets=torch.full((count,), -1),
        sources=torch.zeros(count, dtype=torch.int64),
        energy_offsets=torch.from_numpy(blocks.cumsum() - blocks),
        energy=torch.zeros(int(blocks.sum())),
        jpeg_qualities=torch.zeros(count, dtype=torch.int64),
        thumbnails=torch.zeros(count, THUMBNAIL_PX, THUMBNAIL_PX, dtype=torch.uint8),
        names=[f"{index}.png" for index in range(count)],
        notes=[""] * count,
        sha256=sha256,
        skipped=(),
    )


class Whole:
    """Stands in for a degradation: HR as it was cut, and every fourth pixel of it as LR."""

    margin_hr_px = 0

    def __call__(self, hr_with_margin: Tensor) -> tuple[Tensor, Tensor]:
        return hr_with_margin[..., ::4, ::4], hr_with_margin


def hr_patches(patches: Patches, count: int) -> Tensor:
    """Draw (count,3,P,P) in [0,1]."""
    _, hr = patches.pairs(count, Whole())
    return hr
