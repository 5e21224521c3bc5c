"""How good the averaged generator is on pictures that were never trained on."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srgan.errors import BackboneError
from srgan.evaluation import metrics
from srgan.networks.generator import SCALE
from srgan.pictures import Picture
from srgan.pictures.consistency import consistency
from srgan.training.config import DegradationRecipe
from srgan.training.data import degradation
from srgan.training.data.cache import PictureCache

log = logging.getLogger(__name__)

_CROP_PX = 256  # of each held-out picture: enough to judge, and a second for eight of them on two cores
_LEAST_PX = 64  # a side: AlexNet has no output below 31, and a window of SSIM says little of a smaller one
_COMPARED = 32  # pictures for the sameness: more would only fill memory
_STRIP_PX = 128  # of each row of the sample strip
_STRIP_ROWS = 4
_BICUBIC = DegradationRecipe()


def validate(generator: nn.Module, cache: PictureCache, recipe: DegradationRecipe = _BICUBIC) -> dict[str, float]:
    """Return mean figures of `generator` over the centres of held-out pictures; empty if there are none.

    LR is made as `recipe` says, of each picture alike at every call. Pictures below 64 px a side are passed over:
    LPIPS and SSIM cannot judge them.

    validation/psnr_y (dB), /ssim_y, /lpips (left out where AlexNet's weights cannot be had), /lr_psnr (dB, at most
    99) and /colour_shift (grey levels of 255), see `Consistency`, /detail (deviation of SR's Laplacian over HR's:
    far below 1 is blur, far above is invention) and /sameness (mean correlation of the Laplacians of any two SR,
    left out with fewer: 0 as between photographs, 1 where the generator draws one pattern whatever it is shown).
    """
    rows, drawn = [], list[npt.NDArray[np.uint8]]()
    for index in _large_enough(cache):
        lr, sr, hr = _triple(generator, _centre(cache.picture(index), _CROP_PX), recipe, index)
        rows.append(_row(lr, sr, hr))
        drawn += [sr] if len(drawn) < _COMPARED else []
    scores = {key: float(np.mean([row[key] for row in rows])) for key in (rows[0] if rows else {})}
    if len(drawn) > 1:
        scores["sameness"] = sameness(drawn)
    return {f"validation/{key}": value for key, value in scores.items()}


def sample_strip(
    generator: nn.Module, cache: PictureCache, recipe: DegradationRecipe = _BICUBIC
) -> npt.NDArray[np.uint8]:
    """Return (H,W,3): a row for each of the first held-out pictures, LR enlarged by its pixels, SR and HR.

    LR is made as `recipe` says. Pictures below 64 px a side are passed over as in `validate`; one at least must be
    larger.
    """
    rows = []
    for index in _large_enough(cache)[:_STRIP_ROWS]:
        lr, sr, hr = _triple(generator, _centre(cache.picture(index), _STRIP_PX), recipe, index)
        nearest = lr.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        row = np.concatenate([nearest, sr, hr], axis=1)
        missing = [(0, _STRIP_PX - row.shape[0]), (0, 3 * _STRIP_PX - row.shape[1]), (0, 0)]
        rows.append(np.pad(row, missing, constant_values=255))  # for pictures smaller than a strip's row
    return np.concatenate(rows)


def _large_enough(cache: PictureCache) -> list[int]:
    return [index for index in range(len(cache)) if min(cache.heights[index], cache.widths[index]) >= _LEAST_PX]


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
    kept = consistency(Picture(lr), Picture(sr))
    row = {
        "psnr_y": metrics.psnr(sr, hr, border=SCALE, y_only=True),
        "ssim_y": metrics.ssim(sr, hr, border=SCALE, y_only=True),
        "lr_psnr": min(kept.lr_psnr_db, 99.0),  # inf has no mean
        "colour_shift": kept.colour_shift,
        "detail": float(_laplacian(sr).std() / _laplacian(hr).std().clamp(min=1e-6)),
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
    generator: nn.Module, hr: Tensor, recipe: DegradationRecipe, number: int
) -> tuple[npt.NDArray[np.uint8], ...]:
    """LR, SR and HR as (H,W,3) uint8."""
    device = next(generator.parameters()).device
    lr = degradation.held_out(recipe, _tensor(hr).to(device), number)
    generator.eval()
    with torch.inference_mode():
        sr = generator(lr)
    return _picture(lr), _picture(sr), hr.numpy()


def _laplacian(picture: npt.NDArray[np.uint8]) -> Tensor:
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(_tensor(torch.from_numpy(picture)).mean(1, keepdim=True), kernel)


def _tensor(picture: Tensor) -> Tensor:
    return picture.permute(2, 0, 1)[None].float() / 255


def _picture(tensor: Tensor) -> npt.NDArray[np.uint8]:
    levels = tensor[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().byte()
    return np.ascontiguousarray(levels.cpu().numpy())


def _centre(picture: Tensor, crop_px: int) -> Tensor:
    height, width = (min(size, crop_px) // SCALE * SCALE for size in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]
