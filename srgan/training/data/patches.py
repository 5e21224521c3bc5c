"""Training patches: drawn anywhere in the packed pictures, and gathered from them a batch at a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from srgan.errors import UsageError
from srgan.training.data.cache import PictureCache
from srgan.training.data.degradation import Degradation
from srgan.training.data.sources import ENERGY_BLOCK_PX
from srgan.training.device import sent

log = logging.getLogger(__name__)


class Patches:
    """Random HR patches with the eight dihedral flips, every position of every picture equally likely.

    Weights of sources and `energy_weighting` change that: this share of the patches is drawn in proportion to
    the gradient magnitude around them, the rest evenly. Pictures with a shipped LR are cut on its grid.

    One index computation gathers a whole batch from the packed cache, on the CPU from the memory map, or on a
    GPU from its own memory when `device` is one and has room. All randomness comes from `random`, a CPU generator
    that the checkpoint stores.
    """

    def __init__(
        self,
        cache: PictureCache,
        patch_px: int,
        device: torch.device,
        random: torch.Generator,
        energy_weighting: float = 0.0,
    ) -> None:
        too_small = int(((cache.heights < patch_px) | (cache.widths < patch_px)).sum())
        if too_small:
            log.warning("%d pictures are smaller than a patch of %d px and are not used", too_small, patch_px)
        if too_small == len(cache):
            raise UsageError(f"no training picture is at least {patch_px} px on both sides: add larger pictures")
        self._cache, self._patch_px, self._device, self._random = cache, patch_px, device, random
        self._lr_widths = cache.widths // cache.scale
        self._steps = torch.where(cache.lr_offsets < 0, 1, cache.scale)
        self._cells = _Cells.of(cache, patch_px, self._steps, energy_weighting)
        self._ends = self._cells.mass.cumsum(0)
        self._pixels = cache.pixels.to(device) if _fits(cache.pixels, device) else cache.pixels
        with_lr = cache.lr_offsets[self._cells.picture] >= 0
        self._some_shipped, self._all_shipped = bool(with_lr.any()), bool(with_lr.all())

    def pairs(self, count: int, degrade: Degradation) -> tuple[Tensor, Tensor]:
        """Return LR (count,3,h,w) and HR (count,3,sh,sw), float32 in [0,1] on the device, of the same places.

        sh, for the scale s, is the patch without the margin of `degrade`, which makes LR where no LR picture was
        shipped. `degrade` is given (count,3,P,P), channels_last.
        """
        places = self._places(count)
        cache, margin, scale = self._cache, degrade.margin_hr_px, self._cache.scale
        outer = self._gather(places, cache.offsets, cache.widths, self._patch_px)
        if not self._some_shipped:
            return degrade(outer)
        shipped = (cache.lr_offsets[places.picture] >= 0).nonzero()[:, 0]
        inner = places.reduced(shipped, margin, scale)
        given = self._gather(inner, cache.lr_offsets, self._lr_widths, (self._patch_px - 2 * margin) // scale)
        if self._all_shipped:
            return given, outer[..., margin : self._patch_px - margin, margin : self._patch_px - margin]
        lr, hr = degrade(outer)
        return lr.index_copy(0, sent(shipped, lr.device), given), hr

    def _places(self, count: int) -> _Places:
        # float64: 53 bits place a patch evenly among all positions of a million pictures.
        chance = torch.rand(4, count, dtype=torch.float64, generator=self._random)
        cells = self._cells
        cell = torch.searchsorted(self._ends, chance[0] * self._ends[-1], right=True).clamp(
            max=len(self._ends) - 1
        )
        picture = cells.picture[cell]
        step = self._steps[picture]
        top = cells.top[cell] + step * (chance[1] * cells.rows[cell]).long()
        left = cells.left[cell] + step * (chance[2] * cells.columns[cell]).long()
        return _Places(picture, top, left, (chance[3] * 8).long())

    def _gather(self, places: _Places, offsets: Tensor, widths: Tensor, side_px: int) -> Tensor:
        """Cut (count,3,side,side) float32 in [0,1] out of pictures that begin at `offsets` and are `widths` wide.

        Flips and transposition are index arithmetic.
        """
        device, (picture, *corner_and_flips) = self._pixels.device, places
        columns = sent(torch.stack([offsets[picture], widths[picture], *corner_and_flips]), device)
        offsets, widths, top, left, flips = columns.view(5, -1, 1, 1).unbind()
        grid, last = torch.arange(side_px, device=device), side_px - 1
        down, across = grid.view(1, -1, 1), grid.view(1, 1, -1)
        transposed, upside_down, mirrored = ((flips >> bit) & 1 == 1 for bit in range(3))
        y, x = torch.where(transposed, across, down), torch.where(transposed, down, across)
        y, x = torch.where(upside_down, last - y, y), torch.where(mirrored, last - x, x)
        first = offsets + 3 * ((top + y) * widths + left + x)
        index = first.unsqueeze(-1) + torch.arange(3, device=device)
        patches = sent(self._pixels[index], self._device)  # (count,side,side,3)
        return patches.permute(0, 3, 1, 2).float().div_(255)  # permuted NHWC is channels_last as it stands


class _Places(NamedTuple):
    """Where patches are cut, (count,) each: of which picture, from where, turned in which of eight ways (0..7)."""

    picture: Tensor
    top: Tensor
    left: Tensor
    flips: Tensor

    def reduced(self, which: Tensor, margin_hr_px: int, scale: int) -> _Places:
        """Return the same places of `which` patches in their LR pictures, without the margin."""
        top, left = ((column[which] + margin_hr_px) // scale for column in (self.top, self.left))
        return _Places(self.picture[which], top, left, self.flips[which])


@dataclass(frozen=True)
class _Cells:
    """Rectangles of patch positions with one density each: rows by columns of them from (top, left)."""

    picture: Tensor
    top: Tensor
    left: Tensor
    rows: Tensor
    columns: Tensor
    mass: Tensor  # float64

    @staticmethod
    def of(cache: PictureCache, patch_px: int, steps: Tensor, energy_weighting: float) -> _Cells:
        """Return the cells of all pictures that hold a patch; `steps`: (count,) pixels between positions."""
        usable = ((cache.heights >= patch_px) & (cache.widths >= patch_px)).nonzero()[:, 0]
        step = steps[usable]
        rows = (cache.heights[usable] - patch_px) // step + 1
        columns = (cache.widths[usable] - patch_px) // step + 1
        side = ENERGY_BLOCK_PX // step if energy_weighting else torch.maximum(rows, columns)
        high, wide = (rows + side - 1) // side, (columns + side - 1) // side
        picture = torch.repeat_interleave(torch.arange(len(usable)), high * wide)
        place = torch.arange(len(picture)) - ((high * wide).cumsum(0) - high * wide)[picture]
        i, j = place // wide[picture], place % wide[picture]
        cells = _Cells(
            picture=usable[picture],
            top=i * (side * step)[picture],
            left=j * (side * step)[picture],
            rows=torch.minimum(side[picture], rows[picture] - i * side[picture]),
            columns=torch.minimum(side[picture], columns[picture] - j * side[picture]),
            mass=torch.empty(0),
        )
        mass = (cells.rows * cells.columns * step[picture] ** 2).double()
        detail = mass * _energies(cache, cells, patch_px) if energy_weighting else mass
        if not cache.source_weights:
            return replace(cells, mass=_mixed(mass, detail, energy_weighting))
        sources = cache.sources[cells.picture]
        for source, weight in enumerate(cache.source_weights):
            of_source = sources == source
            mass[of_source] = weight * _mixed(mass[of_source], detail[of_source], energy_weighting)
        if not mass.sum() > 0:
            raise UsageError("no source with a weight above 0 has a picture as large as a patch: add larger ones")
        return replace(cells, mass=mass)


def _mixed(mass: Tensor, detail: Tensor, share: float) -> Tensor:
    """Blend two masses, each made to sum to 1; pictures without any detail are drawn evenly."""
    even = mass / mass.sum()
    return even if not detail.sum() > 0 else (1 - share) * even + share * detail / detail.sum()


def _energies(cache: PictureCache, cells: _Cells, patch_px: int) -> Tensor:
    """Mean energy of the blocks that the patches of each cell touch, (cells,) float64."""
    reach = (ENERGY_BLOCK_PX + patch_px - 2) // ENERGY_BLOCK_PX + 1  # blocks under the patches of a cell
    numbers, counts = np.unique(cells.picture.numpy(), return_counts=True)
    ends, energies = counts.cumsum(), []
    for picture, begin, end in zip(numbers.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True):
        blocks = cache.energy_of(picture)
        high, wide = blocks.shape
        sums = torch.zeros(high + 1, wide + 1, dtype=torch.float64)
        sums[1:, 1:] = blocks.double().cumsum(0).cumsum(1)
        i, j = cells.top[begin:end] // ENERGY_BLOCK_PX, cells.left[begin:end] // ENERGY_BLOCK_PX
        bottom, right = (i + reach).clamp(max=high), (j + reach).clamp(max=wide)
        total = sums[bottom, right] - sums[i, right] - sums[bottom, j] + sums[i, j]
        energies.append((total / ((bottom - i) * (right - j))).clamp(min=0))
    return torch.cat(energies)


def _fits(pixels: Tensor, device: torch.device) -> bool:
    """Whether the cache may live on `device`; half of what a GPU has free is left to the networks."""
    return device.type == "cpu" or (
        device.type == "cuda" and pixels.numel() <= torch.cuda.mem_get_info(device)[0] // 2
    )
