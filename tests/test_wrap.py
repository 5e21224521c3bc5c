"""Pictures whose edges meet: against the middle of the same laid beside itself, and against themselves turned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.engines import NearestEngine
from support.photographs import photograph

from srgan.engines.openvino import OpenVinoEngine
from srgan.errors import UsageError
from srgan.folder.making import Order
from srgan.pictures import Mask, Picture, Region
from srgan.upscale import Request, Upscaler, Wrap


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Upscaler:
    return Upscaler(engine=OpenVinoEngine(tiny_model, faithful=True))


def texture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Levels whose edges meet."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(2 * np.pi * (a * y / height + b * x / width) + a) for a, b in ((1, 2), (3, -1), (2, 4))]
    levels = np.stack([127 + 40 * sum(waves[: c + 1]) for c in range(channels)], axis=-1)
    return np.asarray(np.clip(np.rint(levels), 0, 255), np.uint8)


def tiled(levels: np.ndarray, down: int, across: int) -> np.ndarray:
    return np.tile(levels, (down, across, 1)[: levels.ndim])


@pytest.mark.parametrize("settings", [{}, {"scale": 2.0}, {"scale": 1.5}, {"strength": 0.4}, {"scale": 0.0 + 1.0}])
@pytest.mark.parametrize("kind", ["colour", "alpha", "16 bits", "grey"])
def test_it_is_the_middle_of_three_by_three(tiny: Upscaler, settings: dict[str, float], kind: str) -> None:
    photo, alpha = photograph(84, 96, 4), None
    if kind == "alpha":
        alpha = photograph(84, 96, 5)[..., 0]
    depth = photo.astype(np.uint16) * 257 if kind == "16 bits" else photo
    pixels = depth[..., 1] if kind == "grey" else depth
    request = Request(**settings)  # type: ignore[arg-type]
    sheet = tiny.upscale(Picture(tiled(pixels, 3, 3), None if alpha is None else tiled(alpha, 3, 3)), request)
    result = tiny.upscale(Picture(pixels, alpha), Request(**settings, wrap="both"))  # type: ignore[arg-type]
    rows, columns = slice(result.height, 2 * result.height), slice(result.width, 2 * result.width)
    assert (sheet.height, sheet.width) == (3 * result.height, 3 * result.width)
    np.testing.assert_array_equal(result.pixels, sheet.pixels[rows, columns])
    if sheet.alpha is not None:
        np.testing.assert_array_equal(result.alpha, sheet.alpha[rows, columns])


def test_horizontally_it_is_the_middle_of_three_side_by_side(tiny: Upscaler) -> None:
    pixels = photograph(40, 96, 4)
    sheet = tiny.upscale(Picture(tiled(pixels, 1, 3)))
    result = tiny.upscale(Picture(pixels), wrap="horizontal")
    np.testing.assert_array_equal(result.pixels, sheet.pixels[:, 384:768])


@pytest.mark.parametrize(("side", "scale"), [(5, 4), (16, 4), (40, 4), (5, 2), (40, 2), (16, 6), (40, 6)])
def test_one_turned_around_becomes_the_same_turned_around(tiny: Upscaler, side: int, scale: int) -> None:
    """However small, and where the model runs twice: nothing says where the edges are."""
    pixels = photograph(side, side, 2)
    wrapped = tiny.upscale(Picture(pixels), scale=scale, wrap="both").pixels
    turned = tiny.upscale(Picture(np.roll(pixels, (2, 4), (0, 1))), scale=scale, wrap="both").pixels
    np.testing.assert_array_equal(np.roll(wrapped, (2 * scale, 4 * scale), (0, 1)), turned)


@pytest.mark.parametrize("tile", ["off", 32, "auto"])
@pytest.mark.parametrize("scale", [4.0, 2.0])
def test_beside_itself_it_has_no_edge(tiny_model: Path, tile: str, scale: float) -> None:
    engine = OpenVinoEngine(tiny_model, faithful=True)
    # The last of them in strips: it is given less memory than the whole takes.
    working_bytes = 20_000_000 if tile == "auto" else None
    upscaler = Upscaler(engine=engine, tile_lr_px=tile, working_bytes=working_bytes)  # type: ignore[arg-type]
    result = upscaler.upscale(Picture(texture(64, 72)), scale=scale, wrap="both").pixels.astype(int)
    for axis in (0, 1):
        inside = np.abs(np.diff(result, axis=axis)).max()
        across = np.abs(np.take(result, 0, axis) - np.take(result, -1, axis)).max()
        assert across <= inside
    whole = Upscaler(engine=engine, tile_lr_px="off").upscale(Picture(texture(64, 72)), scale=scale, wrap="both")
    np.testing.assert_array_equal(result, whole.pixels)


def test_a_region_and_a_mask_go_with_it(tiny: Upscaler) -> None:
    pixels = photograph(84, 96, 4)
    whole = tiny.upscale(Picture(pixels), wrap="both")
    part = tiny.upscale(Picture(pixels), wrap="both", region=Region(350, 0, 34, 20))
    np.testing.assert_array_equal(part.pixels, whole.pixels[:20, 350:])
    white = Mask.of(Picture(np.full((84, 96), 255, np.uint8)))
    pair = Upscaler(engine=NearestEngine(), partner=lambda: tiny)
    np.testing.assert_array_equal(pair.upscale(Picture(pixels), wrap="both", protect=white).pixels, whole.pixels)


def test_pages_wrap_each_around_itself() -> None:
    upscaler = Upscaler(engine=NearestEngine())
    pages = Picture(photograph(5, 6, 0), further=(Picture(photograph(7, 4, 1)),))
    for wrapped, plain in zip(
        upscaler.upscale(pages, wrap="both").frames, upscaler.upscale(pages).frames, strict=True
    ):
        np.testing.assert_array_equal(wrapped.pixels, plain.pixels)


def test_memory_counts_what_lies_around(tiny: Upscaler) -> None:
    picture = Picture(photograph(40, 40, 0))
    plain, wrapped = (tiny.memory(picture, Request(wrap=wrap)) for wrap in (None, "both"))
    assert wrapped.held > plain.held
    assert tiny.lr_px(picture, Request(wrap="both")) > tiny.lr_px(picture)


def test_it_is_part_of_the_settings_where_it_is_asked_for() -> None:
    prints = {Order(Request(wrap=wrap)).fingerprint("x", 4) for wrap in (None, "horizontal", "both")}
    assert len(prints) == 3
    assert "wrap" not in Request().settings()


@pytest.mark.parametrize("wrap", ["vertical", "", "on"])
def test_nonsense_is_refused(wrap: Wrap) -> None:
    with pytest.raises(UsageError, match="is not understood: choose horizontal or both"):
        Request(wrap=wrap)
