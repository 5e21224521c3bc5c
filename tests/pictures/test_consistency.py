"""Results against their inputs: what is measured, and that the bundled weights keep colours."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srgan.pictures import Picture, decode
from srgan.pictures.consistency import consistency
from srgan.upscale import Upscaler

EXAMPLES = sorted(
    path for path in (Path(__file__).parents[2] / "examples").iterdir() if path.suffix in {".png", ".jpg"}
)


def flat(*colour: int, side: int = 12) -> Picture:
    return Picture(np.full((side, side, 3), colour, np.uint8))


def test_a_shift_is_that_of_the_worst_channel() -> None:
    measured = consistency(flat(100, 100, 100), flat(101, 98, 100, side=48))
    assert measured.colour_shift == pytest.approx(2, abs=1e-3)
    assert measured.lr_psnr_db == pytest.approx(20 * math.log10(255 / math.sqrt(5 / 3)), abs=1e-3)


def test_equal_pictures_are_infinitely_near() -> None:
    measured = consistency(flat(9, 8, 7), flat(9, 8, 7, side=48))
    assert measured.lr_psnr_db == math.inf
    assert measured.colour_shift == 0


def test_depths_are_compared_on_one_scale() -> None:
    grey = Picture(np.arange(144, dtype=np.uint8).reshape(12, 12))
    deep = replace(grey, pixels=grey.pixels.astype(np.uint16) * 257)
    assert consistency(grey, deep).lr_psnr_db > 100
    assert consistency(deep, grey).colour_shift < 1e-3


def test_clear_pixels_do_not_count() -> None:
    alpha = np.zeros((12, 12), np.uint8)
    alpha[:, :6] = 255
    pixels = np.full((12, 12, 3), 50, np.uint8)
    result = np.full((48, 48, 3), 50, np.uint8)
    result[:, 32:] = 250
    assert (
        consistency(Picture(pixels, alpha), Picture(result, alpha.repeat(4, 0).repeat(4, 1))).colour_shift < 1e-3
    )
    assert consistency(Picture(pixels), Picture(result)).colour_shift > 50


def test_colour_is_not_compared_with_grey() -> None:
    with pytest.raises(ValueError, match="grey"):
        consistency(flat(1, 2, 3), Picture(np.zeros((48, 48), np.uint8)))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
@pytest.mark.parametrize("model", ["srgan-x4", pytest.param("srresnet-x4", marks=pytest.mark.slow)])
def test_the_bundled_weights_keep_colours(bundled: dict[str, Upscaler], model: str, path: Path) -> None:
    picture = decode(path)
    measured = consistency(picture, bundled[model].upscale(picture))
    assert measured.colour_shift < 1
    assert measured.lr_psnr_db > 30


@pytest.fixture(scope="module")
def bundled() -> dict[str, Upscaler]:
    return {name: Upscaler(name) for name in ("srgan-x4", "srresnet-x4")}
