"""A look at training patches: a sheet of them as a run will see them, HR beside LR."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from srgan.pictures import Picture
from srgan.training.config import Recipe
from srgan.training.data import degradation
from srgan.training.data.cache import pack, weighted
from srgan.training.data.patches import Patches
from srgan.training.data.sources import Source, list_files

_GAP_PX = 4


def preview(sources: Sequence[Source], recipe: Recipe, *, seed: int = 0, count: int = 16) -> Picture:
    """Return a sheet of `count` HR patches of `sources`, each beside its LR, enlarged by its pixels.

    (H,W,3) uint8, about square. LR is what `recipe` makes of the patch, or what was shipped with it. Patches are
    drawn as training draws them, from a sample of the pictures. Raises UsageError for a folder without any.
    """
    random = torch.Generator().manual_seed(seed)
    scale = recipe.generator.scale
    degrade = degradation.make(recipe.degradation, random, scale)
    stage, *_ = recipe.stages().values()
    files = list_files(sources, scale)
    sample = [files[index] for index in torch.randperm(len(files), generator=random)[: 2 * count].tolist()]
    with tempfile.TemporaryDirectory() as folder:
        patches = Patches(
            weighted(pack(sample, Path(folder)), sources),
            stage.patch_hr_px + 2 * degrade.margin_hr_px,
            torch.device("cpu"),
            random,
            recipe.data.energy_weighting,
        )
        # One at a time, so that each gets resizes of its own.
        pairs = [patches.pairs(1, degrade) for _ in range(count)]
        del patches  # and with it the memory map, before its file goes
    lr, hr = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return _sheet(hr, lr)


def _sheet(hr: Tensor, lr: Tensor) -> Picture:
    """Pairs of (N,3,P,P) and (N,3,P/s,P/s) side by side, in rows that make the sheet about square."""
    pairs = torch.cat([hr, F.interpolate(lr, size=hr.shape[-2:], mode="nearest")], 3)
    pairs = F.pad(pairs, (0, _GAP_PX, 0, _GAP_PX), value=1.0)
    columns = math.ceil(math.sqrt(len(pairs) / 2))
    missing = -len(pairs) % columns
    cells = torch.cat([pairs, pairs.new_ones(missing, *pairs.shape[1:])])
    rows = cells.view(-1, columns, *cells.shape[1:]).permute(0, 3, 1, 4, 2)  # (rows,P,columns,2P,3)
    sheet = rows.reshape(rows.shape[0] * rows.shape[1], -1, 3)[:-_GAP_PX, :-_GAP_PX]
    return Picture(sheet.mul(255).round().byte().contiguous().numpy())
