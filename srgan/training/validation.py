"""How good the averaged generator is on pictures that were never trained on."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srgan.errors import BackboneError
from srgan.evaluation import metrics
from srgan.evaluation.measures import LOGGED, MEASURES
from srgan.pictures import Picture
from srgan.pictures.consistency import consistency
from srgan.training.config import DegradationRecipe
from srgan.training.data import degradation
from srgan.training.data.cache import PictureCache
from srgan.training.data.sources import ENERGY_BLOCK_PX

log = logging.getLogger(__name__)

_CROP_PX = 192  # 48 LR pixels a side at ×4: most of a crop is out of reach of its own edges
_CROPS = 4  # of a held-out picture at most; of eight pictures they take a few seconds on two cores
_LEAST_PX = 64  # a side: AlexNet has no output below 31, and a window of SSIM says little of a smaller one
_COMPARED = 32  # pictures for the sameness: more would only fill memory
_STRIP_PX = 128  # of each row of the sample strip
_STRIP_ROWS = 4
_MOST_DB = 99.0  # of what is exact, whose PSNR is infinite and has no mean
_NOTHING = 0.5 / 255  # deviation of a Laplacian below which a picture has no detail to compare
_BICUBIC = DegradationRecipe()

# The figure by which a stage is judged: content loss alone gives the closest pixels, the game the likest pictures.
JUDGED_BY = {"pretrain": "psnr_y", "adversarial": "lpips"}


class Bicubic(nn.Module):
    """The yardstick: (N,3,h,w) in [0,1] enlarged `scale` times by Pillow's bicubic."""

    def __init__(self, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, lr: Tensor) -> Tensor:
        """Return (N,3,sh,sw) in [0,1]."""
        return F.interpolate(lr, scale_factor=self.scale, mode="bicubic", antialias=True).clamp(0, 1)


def cost(scores: Mapping[str, float], stage: str) -> float | None:
    """Return a number that is the lower the better `scores` of `stage` are; None if they do not tell.

    The game is not judged by PSNR where LPIPS cannot be had: it gives some away from its first step on.
    """
    key = JUDGED_BY[stage]
    value = scores.get(f"{LOGGED}{key}")
    return None if value is None else MEASURES[key].cost(value)


def validate(generator: nn.Module, cache: PictureCache, recipe: DegradationRecipe = _BICUBIC) -> dict[str, float]:
    """Return mean figures of `generator` over crops of held-out pictures; empty if there are none.

    Of each picture up to four crops of 192 px are taken, those with the most texture, which do not overlap. LR is
    the one that was shipped with the picture, or is made as `recipe` says, alike at every call. Pictures below
    64 px a side are passed over: LPIPS and SSIM cannot judge them.

    validation/psnr_y (dB, at most 99), /ssim_y, /lpips (left out where AlexNet's weights cannot be had), /lr_psnr
    (dB, at most 99) and /colour_shift (grey levels of 255), see `Consistency`, /detail (deviation of SR's
    Laplacian over HR's, of all crops together: far below 1 is blur, far above is invention; left out where HR is
    flat) and /sameness (mean correlation of the Laplacians of any two SR, left out with fewer: 0 as between
    photographs, 1 where the generator draws one pattern whatever it is shown).
    """
    rows, details, drawn = [], [], list[npt.NDArray[np.uint8]]()
    for crop in _crops(cache):
        lr, sr, hr = _triple(generator, crop, recipe, cache.scale)
        rows.append(_row(lr, sr, hr))
        details.append([float(_laplacian(picture).std()) for picture in (sr, hr)])
        drawn += [sr] if len(drawn) < _COMPARED else []
    scores = {key: float(np.mean([row[key] for row in rows])) for key in (rows[0] if rows else {})}
    if rows:
        of_sr, of_hr = np.mean(details, axis=0)
        if of_hr > _NOTHING:
            scores["detail"] = float(of_sr / of_hr)
    if len(drawn) > 1:
        scores["sameness"] = sameness(drawn)
    return {f"{LOGGED}{key}": value for key, value in scores.items()}


def sample_strip(
    generator: nn.Module, cache: PictureCache, recipe: DegradationRecipe = _BICUBIC
) -> npt.NDArray[np.uint8]:
    """Return (H,W,3): a row for each of the first held-out pictures, LR enlarged by its pixels, SR and HR.

    LR is as in `validate`, of the place with the most texture. Pictures below 64 px a side are passed over as
    there; one at least must be larger.
    """
    rows = []
    for index in _large_enough(cache)[:_STRIP_ROWS]:
        lr, sr, hr = _triple(generator, _textured(cache, index, _STRIP_PX, 1)[0], recipe, cache.scale)
        nearest = lr.repeat(cache.scale, axis=0).repeat(cache.scale, axis=1)
        row = np.concatenate([nearest, sr, hr], axis=1)
        missing = [(0, _STRIP_PX - row.shape[0]), (0, 3 * _STRIP_PX - row.shape[1]), (0, 0)]
        rows.append(np.pad(row, missing, constant_values=255))  # for pictures smaller than a strip's row
    return np.concatenate(rows)


class _Crop(NamedTuple):
    """A place in a held-out picture: HR (H,W,3) uint8, its shipped LR or None, and a number of its own."""

    hr: Tensor
    lr: Tensor | None
    number: int


def _large_enough(cache: PictureCache) -> list[int]:
    return [index for index in range(len(cache)) if min(cache.heights[index], cache.widths[index]) >= _LEAST_PX]


def _crops(cache: PictureCache) -> Iterator[_Crop]:
    for index in _large_enough(cache):
        yield from _textured(cache, index, _CROP_PX, _CROPS)


def _textured(cache: PictureCache, index: int, crop_px: int, most: int) -> list[_Crop]:
    """Cut up to `most` crops that do not overlap: those with the most detail, then the nearest the centre."""
    picture, lr_picture, scale = cache.picture(index), cache.lr_picture(index), cache.scale
    height, width = (min(size, crop_px) // scale * scale for size in picture.shape[:2])
    blocks = (-(-height // ENERGY_BLOCK_PX), -(-width // ENERGY_BLOCK_PX))
    energy = F.avg_pool2d(cache.energy_of(index)[None, None], blocks, stride=1)[0, 0]  # of each window of blocks
    tops, lefts = (_places(picture.shape[axis], size, scale) for axis, size in enumerate((height, width)))
    top, left = torch.meshgrid(torch.tensor(tops), torch.tensor(lefts), indexing="ij")
    off = torch.hypot(top - (picture.shape[0] - height) / 2, left - (picture.shape[1] - width) / 2)
    order = np.lexsort((off.flatten(), -energy[: len(tops), : len(lefts)].flatten()))
    chosen: list[tuple[int, int]] = []
    for y, x in torch.stack([top.flatten(), left.flatten()], 1)[torch.from_numpy(order)].tolist():
        if len(chosen) < most and all(abs(y - v) >= height or abs(x - u) >= width for v, u in chosen):
            chosen.append((y, x))
    crops = []
    for number, (y, x) in enumerate(chosen):
        hr, lr = picture[y : y + height, x : x + width], None
        if lr_picture is not None:
            v, u = y // scale, x // scale
            lr = lr_picture[v : v + height // scale, u : u + width // scale]
        crops.append(_Crop(hr, lr, most * index + number))
    return crops


def _places(size: int, crop: int, scale: int) -> list[int]:
    """Where crops may begin, on the grid of LR: at the blocks of the energy, or in the middle of little room."""
    if size - crop < ENERGY_BLOCK_PX:
        return [(size - crop) // 2 // scale * scale]
    return [at // scale * scale for at in range(0, size - crop + 1, ENERGY_BLOCK_PX)]


def sameness(pictures: Sequence[npt.NDArray[np.uint8]]) -> float:
    """Return the mean correlation of the Laplacians of any two of (H,W,3) `pictures`, cut to a common size.

    -1 to 1. Far above 0 they share a pattern: a mode collapse, or the grid of a sub-pixel convolution. Flat
    pictures share nothing.
    """
    height, width = (min(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    details = [_laplacian(picture[:height, :width]).flatten().double() for picture in pictures]
    directions = torch.stack([detail / detail.norm().clamp(min=1e-6) for detail in details])
    # The square of a sum is the sum of all products, those of each with itself left out.
    squares = directions.square().sum()
    return float((directions.sum(0).square().sum() - squares) / (len(pictures) * (len(pictures) - 1)))


def _row(lr: npt.NDArray[np.uint8], sr: npt.NDArray[np.uint8], hr: npt.NDArray[np.uint8]) -> dict[str, float]:
    kept, scale = consistency(Picture(lr), Picture(sr)), hr.shape[0] // lr.shape[0]
    row = {
        "psnr_y": min(metrics.psnr(sr, hr, border=scale, y_only=True), _MOST_DB),
        "ssim_y": metrics.ssim(sr, hr, border=scale, y_only=True),
        "lr_psnr": min(kept.lr_psnr_db, _MOST_DB),
        "colour_shift": kept.colour_shift,
    }
    if lpips_available():
        row["lpips"] = metrics.lpips(sr, hr)
    return row


@functools.cache
def lpips_available() -> bool:
    """Whether AlexNet's weights are there; asked once, since the answer may cost a download that fails slowly."""
    try:
        metrics.lpips_network()
    except BackboneError as error:
        log.warning("validation goes without LPIPS: %s", error)
        return False
    return True


def _triple(
    generator: nn.Module, crop: _Crop, recipe: DegradationRecipe, scale: int
) -> tuple[npt.NDArray[np.uint8], ...]:
    """LR, SR and HR as (H,W,3) uint8."""
    parameter = next(generator.parameters(), None)
    device = crop.hr.device if parameter is None else parameter.device
    if crop.lr is None:
        lr = degradation.held_out(recipe, _tensor(crop.hr).to(device), crop.number, scale)
    else:
        lr = _tensor(crop.lr).to(device)
    generator.eval()
    with torch.inference_mode():
        sr = generator(lr)
    return _picture(lr), _picture(sr), crop.hr.numpy()


def _laplacian(picture: npt.NDArray[np.uint8]) -> Tensor:
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(_tensor(torch.from_numpy(picture)).mean(1, keepdim=True), kernel)


def _tensor(picture: Tensor) -> Tensor:
    return picture.permute(2, 0, 1)[None].float() / 255


def _picture(tensor: Tensor) -> npt.NDArray[np.uint8]:
    levels = tensor[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().byte()
    return np.ascontiguousarray(levels.cpu().numpy())
