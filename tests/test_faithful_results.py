"""Results that, reduced again, are their picture: at every size, with transparency, in 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from support.photographs import photograph

from srgan.pictures import Picture, resized
from srgan.pictures.consistency import consistency
from srgan.upscale import Upscaler


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler("srgan-x4", precision="fp32")


@pytest.fixture(scope="module")
def picture() -> Picture:
    """With room at black and white: plateaus that were cut off there are no reduction of any picture."""
    texture = np.random.default_rng(0).integers(-15, 16, (48, 40, 3))
    return Picture(np.rint(25 + photograph(48, 40, 3) * 0.8 + texture).clip(0, 255).astype(np.uint8))


def farthest(picture: Picture, result: Picture) -> float:
    """How many grey levels of 255 a visible pixel of `result`, reduced again, is off at most."""
    again = resized(result, picture.height, picture.width)
    levels = np.iinfo(picture.pixels.dtype).max / 255
    off = np.abs(again.pixels.astype(float) - picture.pixels) / levels
    if picture.alpha is not None:
        off = off[picture.alpha >= 16 * levels]
    return float(off.max())


@pytest.mark.parametrize("scale", [None, 1, 1.5, 2, 3, 4, 6])
def test_every_size(upscaler: Upscaler, picture: Picture, scale: float | None) -> None:
    result = upscaler.upscale(picture, scale)
    assert consistency(picture, result).lr_psnr_db > 55
    assert farthest(picture, result) <= 2
    assert consistency(picture, result).colour_shift < 0.1


def test_16_bits(upscaler: Upscaler, picture: Picture) -> None:
    fine = Picture(picture.pixels.astype(np.uint16) * 257 + 77)
    result = upscaler.upscale(fine)
    assert consistency(fine, result).lr_psnr_db > 60
    assert farthest(fine, result) <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_transparency(upscaler: Upscaler, picture: Picture, bits: int) -> None:
    y, x = np.mgrid[: picture.height, : picture.width]
    alpha = np.rint(255 * np.clip((16 - np.hypot(y - 24, x - 20)) / 3, 0, 1))
    factor, kind = (1, np.uint8) if bits == 8 else (257, np.uint16)
    cut = Picture((picture.pixels.astype(np.uint16) * factor).astype(kind), (alpha * factor).astype(kind))
    result = upscaler.upscale(cut)
    assert result.alpha is not None
    assert farthest(cut, result) <= 2
    assert consistency(Picture((alpha * factor).astype(kind)), Picture(result.alpha)).lr_psnr_db > 55
    clear, opaque = (np.kron(inner, np.ones((4, 4))) > 0 for inner in (alpha == 0, alpha == 255))
    inside = np.hypot(y - 24, x - 20)
    assert result.alpha[np.kron(inside > 19, np.ones((4, 4))) > 0].max() == 0
    assert result.alpha[np.kron(inside < 11, np.ones((4, 4))) > 0].min() == np.iinfo(kind).max
    assert clear.any()
    assert opaque.any()


def test_strength_mixes_the_faithful_result(upscaler: Upscaler, picture: Picture) -> None:
    sharp, soft = (upscaler.upscale(picture, strength=strength).pixels for strength in (1.0, 0.0))
    between = upscaler.upscale(picture, strength=0.25).pixels
    assert np.abs(between - (soft + 0.25 * (sharp.astype(float) - soft))).max() <= 0.5
    np.testing.assert_array_equal(soft, resized(picture, 192, 160).pixels)


def test_off_is_the_model_alone(picture: Picture) -> None:
    free = Upscaler("srgan-x4", precision="fp32", faithful=False)
    assert not free.faithful
    assert consistency(picture, free.upscale(picture)).lr_psnr_db < 50


def test_pieces_are_the_whole(upscaler: Upscaler) -> None:
    large = Picture(photograph(150, 130, 5))
    whole = upscaler.upscale(large).pixels
    tiles = Upscaler("srgan-x4", precision="fp32", tile_lr_px=24).upscale(large).pixels
    strips = Upscaler("srgan-x4", precision="fp32", working_bytes=60_000_000).upscale(large).pixels
    np.testing.assert_array_equal(tiles, whole)
    np.testing.assert_array_equal(strips, whole)
