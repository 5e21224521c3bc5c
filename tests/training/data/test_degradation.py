"""HR to LR: against Pillow's own reduction, and patches against whole pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from srgan.training.data.degradation import MARGIN_HR_PX, bicubic, pair


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


@pytest.mark.parametrize(("height", "width"), [(64, 96), (16, 16), (4, 200)])
def test_equals_pillow_within_a_level(height: int, width: int) -> None:
    hr = photograph(height, width) // 2 + 64  # Pillow also clamps between its two passes: keep away from the ends
    theirs = np.asarray(
        Image.fromarray(hr).resize((width // 4, height // 4), Image.Resampling.BICUBIC), dtype=np.int64
    )
    ours = (bicubic(tensor(hr))[0].permute(1, 2, 0).numpy() * 255).round().astype(np.int64)
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


def test_pair_equals_the_crop_of_the_whole_picture() -> None:
    hr = tensor(photograph(96, 80))
    whole = bicubic(hr)
    patch = 32
    for top, left in ((MARGIN_HR_PX, MARGIN_HR_PX), (24, 40), (96 - 40, 80 - 40)):
        outer = hr[
            ...,
            top - MARGIN_HR_PX : top + patch + MARGIN_HR_PX,
            left - MARGIN_HR_PX : left + patch + MARGIN_HR_PX,
        ]
        lr, inner = pair(outer)
        assert torch.equal(inner, hr[..., top : top + patch, left : left + patch])
        crop = whole[..., top // 4 : (top + patch) // 4, left // 4 : (left + patch) // 4]
        assert torch.equal(lr, crop)


def test_a_narrower_margin_would_not_do() -> None:
    """What the margin is there for: a patch reduced without context differs at its edges."""
    hr = tensor(photograph(64, 64))
    assert not torch.equal(bicubic(hr[..., 16:48, 16:48]), bicubic(hr)[..., 4:12, 4:12])
