"""HR to LR: against Pillow's own reduction, and patches against whole pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from srgan.training.config import DegradationRecipe
from srgan.training.data.degradation import Bicubic, Realistic, bicubic


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H,W,3) uint8 with smooth parts, edges and noise, touching both ends of the range."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = 128 + 120 * np.sin(x / 7.0) * np.cos(y / 11.0)
    edges = 255.0 * (((x // 13) + (y // 9)) % 2)
    noise = random.integers(0, 256, (height, width))
    return np.stack([smooth, edges, noise], axis=2).clip(0, 255).astype(np.uint8)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(64, 96, 4), (16, 16, 4), (4, 200, 4), (64, 96, 2), (48, 96, 3), (64, 96, 8)],
)
def test_equals_pillow_within_a_level(height: int, width: int, scale: int) -> None:
    hr = photograph(height, width) // 2 + 64  # Pillow also clamps between its two passes: keep away from the ends
    theirs = np.asarray(
        Image.fromarray(hr).resize((width // scale, height // scale), Image.Resampling.BICUBIC), dtype=np.int64
    )
    ours = (bicubic(tensor(hr), scale)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.int64)
    assert np.abs(ours - theirs).max() <= 1  # and it rounds there


def test_equals_pillow_on_float_pictures_up_to_rounding() -> None:
    hr = photograph(64, 96)
    small = [
        np.asarray(Image.fromarray(channel).resize((24, 16), Image.Resampling.BICUBIC))
        for channel in np.moveaxis(hr.astype(np.float32), 2, 0)
    ]
    ours = bicubic(tensor(hr))[0].numpy() * 255
    np.testing.assert_allclose(ours, np.clip(small, 0, 255), rtol=0, atol=0.501)


def test_equals_the_kernel_by_hand() -> None:
    """One row through Keys' kernel, a = -0.5, stretched four times."""
    hr = np.random.default_rng(3).random(32)
    expected = []
    for out in range(8):
        centre = 4 * out + 1.5
        x = np.abs(np.arange(32) - centre) / 4
        weights = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
        weights[x >= 2] = 0
        expected.append(float((weights * hr).sum() / weights.sum()))
    row = torch.tensor(hr, dtype=torch.float32).view(1, 1, 1, 32).expand(1, 3, 32, 32)
    ours = bicubic(row)[0, 0, 4] * 255
    np.testing.assert_allclose(ours, np.clip(np.array(expected) * 255, 0, 255), rtol=0, atol=0.501)


def test_result_lies_on_8_bit_levels_in_range() -> None:
    hr = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    levels = bicubic(hr) * 255
    assert torch.equal(levels, levels.round())
    assert levels.min() >= 0
    assert levels.max() <= 255
    assert len(levels.unique()) > 50


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_patch_equals_the_crop_of_the_whole_picture(scale: int) -> None:
    hr = tensor(photograph(96, 96))
    whole, degrade, patch = bicubic(hr, scale), Bicubic(scale), 24
    margin = degrade.margin_hr_px
    assert margin == 2 * scale
    for top, left in ((margin, margin), (24, 48), (96 - patch - margin, 96 - patch - margin)):
        outer = hr[..., top - margin : top + patch + margin, left - margin : left + patch + margin]
        lr, inner = degrade(outer)
        assert torch.equal(inner, hr[..., top : top + patch, left : left + patch])
        crop = whole[..., top // scale : (top + patch) // scale, left // scale : (left + patch) // scale]
        assert torch.allclose(lr, crop, atol=1.01 / 255)  # a level where float rounding falls the other way
        assert (lr == crop).float().mean() > 0.99


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_realistic_degradation_reduces_by_the_scale(scale: int) -> None:
    degrade = Realistic(DegradationRecipe(kind="realistic"), torch.Generator().manual_seed(1), scale)
    side = 48 + 2 * degrade.margin_hr_px
    y, x = torch.meshgrid(torch.arange(side) / 17, torch.arange(side) / 23, indexing="ij")
    lr, hr = degrade((0.5 + 0.4 * torch.sin(x) * torch.cos(y)).expand(2, 3, side, side))
    assert degrade.margin_hr_px % scale == 0
    assert hr.shape == (2, 3, 48, 48)
    assert lr.shape == (2, 3, 48 // scale, 48 // scale)
    # The same place: reduced plainly, HR is like it but for blur, noise and JPEG.
    plain = F.interpolate(hr, size=lr.shape[-2:], mode="area")
    assert torch.corrcoef(torch.stack([lr.flatten(), plain.flatten()]))[0, 1] > 0.95


def test_a_narrower_margin_would_not_do() -> None:
    """What the margin is there for: a patch reduced without context differs at its edges."""
    hr = tensor(photograph(64, 64))
    assert not torch.equal(bicubic(hr[..., 16:48, 16:48]), bicubic(hr)[..., 4:12, 4:12])
