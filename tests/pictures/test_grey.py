"""Grey stays grey: what is a level or two from it comes out without a tint, whatever it was saved as."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from srgan.pictures import Picture, decode, encode, without_tint
from srgan.upscale import Request, Upscaler


def grey(height: int = 24, width: int = 32) -> np.ndarray:
    walk = np.cumsum(np.random.default_rng(0).normal(0, 6, (height, width)), axis=1)
    return (walk + 128).clip(0, 255).astype(np.uint8)


def tint(pixels: np.ndarray) -> int:
    return 0 if pixels.ndim == 2 else int(np.ptp(pixels.astype(int), axis=2).max())


def test_tints_of_two_levels_are_none_and_three_are_colour() -> None:
    for dtype, step in ((np.uint8, 1), (np.uint16, 257)):
        levels = np.repeat(grey().clip(3, 250)[..., None], 3, axis=2).astype(dtype) * np.array(step, dtype)
        levels[3, 4, 2] += 2 * step
        straight = without_tint(levels)
        assert straight.dtype == dtype
        assert tint(straight) == 0
        assert np.abs(straight.astype(int) - levels).max() <= 2 * step
        levels[3, 4, 2] += step
        np.testing.assert_array_equal(without_tint(levels), levels)


@pytest.mark.parametrize("request_", [Request(), Request(scale=2, strength=0.5), Request(strength=0)])
def test_a_grey_photograph_in_lossy_webp_is_upscaled_without_a_tint(request_: Request) -> None:
    buffer = io.BytesIO()
    Image.fromarray(grey()).convert("RGB").save(buffer, "WEBP", quality=80)
    picture = decode(buffer.getvalue())
    assert 0 < tint(picture.pixels) <= 2  # what it is about
    upscaler = Upscaler()
    clear = np.full(picture.pixels.shape[:2], 255, np.uint8)
    clear[:3] = 0
    for variant in (picture, replace(picture, alpha=clear)):
        assert tint(upscaler.upscale(variant, request_).pixels) == 0


@pytest.mark.parametrize("format", ["webp", "avif"])
@pytest.mark.parametrize("quality", [None, 50, 10])
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("clear", [False, True])
def test_results_of_grey_pictures_stay_within_a_level(
    format: str, quality: int | None, channels: tuple[int, ...], clear: bool
) -> None:
    pixels = np.repeat(grey()[..., None], 3, axis=2) if channels else grey()
    alpha = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (24, 1)) if clear else None
    content = encode(Picture(pixels, alpha), format, quality=quality)
    with Image.open(io.BytesIO(content)) as image:
        assert tint(np.asarray(image.convert("RGB"))) <= (1 if format == "webp" else 0)
