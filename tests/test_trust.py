"""What is invented, what is protected, and a region: by the library and the one making of a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.engines import NearestEngine
from support.photographs import photograph

from srgan.engines.openvino import OpenVinoEngine
from srgan.errors import UsageError
from srgan.folder.making import Order, decide, make
from srgan.pictures import Mask, Picture, Region, invention, resized
from srgan.pictures.regions import Window
from srgan.upscale import Request, Upscaler
from srgan.weights import balance_models, bundled_models


class Shifted(NearestEngine):
    """As sharp, but everything 8 levels brighter."""

    def run(self, lr: np.ndarray) -> np.ndarray:
        brighter: np.ndarray = super().run(lr) + np.float32(8 / 255)
        return brighter


@pytest.fixture
def pair() -> Upscaler:
    """A model that is 8 levels brighter than its partner."""
    partner = Upscaler(engine=NearestEngine())
    return Upscaler(engine=Shifted(), partner=lambda: partner)


@pytest.fixture(scope="module")
def sharp() -> Upscaler:
    return Upscaler("srgan-x4", precision="fp32")


def mask(levels: np.ndarray) -> Mask:
    return Mask.of(Picture(levels.astype(np.uint8)))


# The map


def test_a_flat_picture_has_no_invention(sharp: Upscaler) -> None:
    flat = Picture(np.full((24, 20, 3), (90, 140, 60), np.uint8))
    assert sharp.invented(flat, sharp.upscale(flat)).rms_levels < 1


def test_the_map_is_the_difference_to_the_partner_and_to_the_picture() -> None:
    picture = Picture(np.full((6, 5, 3), 100, np.uint8))
    partner = Picture(np.full((24, 20, 3), 100, np.uint8))
    result = partner.pixels.copy()
    result[:, 10:] = (103, 104, 100)  # the root mean square of 3, 4 and 0 is 2.89
    told = invention(picture, replace(partner, pixels=result), partner)
    assert told.levels[:, :2].max() == 0
    np.testing.assert_allclose(told.levels[:, 18:], 2 * np.sqrt(25 / 3), rtol=1e-5)
    expected = np.sqrt(np.mean(np.square(told.levels)))
    assert told.rms_levels == pytest.approx(expected)
    sixteen = invention(
        replace(picture, pixels=picture.pixels.astype(np.uint16) * 257),
        Picture(result.astype(np.uint16) * 257),
        Picture(partner.pixels.astype(np.uint16) * 257),
    )
    np.testing.assert_allclose(sixteen.levels, told.levels, atol=0.3)


def test_what_is_clear_is_not_invented() -> None:
    alpha = np.array([[0, 255]], np.uint8)
    picture, other = Picture(np.full((1, 2), 50, np.uint8), alpha), Picture(np.full((4, 8), 50, np.uint8))
    result = Picture(np.full((4, 8), 60, np.uint8), alpha.repeat(4, 0).repeat(4, 1))
    told = invention(picture, result, other)
    assert told.levels[:, :4].max() == 0
    np.testing.assert_allclose(told.levels[:, 4:], 20)


def test_the_map_has_a_legend_below_the_picture(pair: Upscaler) -> None:
    picture = Picture(np.zeros((5, 100, 3), np.uint8))
    drawn = pair.invented(picture, pair.upscale(picture)).drawn()
    assert drawn.pixels.shape == (20 + 44, 400, 3)
    assert len(np.unique(drawn.pixels[:20].reshape(-1, 3), axis=0)) == 1  # 16 levels everywhere
    np.testing.assert_array_equal(drawn.pixels[0, 0], (170, 40, 100))
    ramp = drawn.pixels[20 + 8, 8:208].astype(int)
    np.testing.assert_array_equal(ramp[[0, -1]], [(0, 0, 0), (255, 240, 170)])
    assert (drawn.pixels[20 + 29 :].min(axis=2) > 100).sum() > 50  # words


def test_a_map_is_made_with_the_file(pair: Upscaler) -> None:
    picture = Picture(photograph(6, 7, 1))
    without = make(decide(picture, Order(), pair), pair)
    made = make(decide(picture, Order(map=True), pair), pair)
    assert without.invention is None
    assert made.content == without.content
    assert made.invention is not None
    assert made.invention.rms_levels > 8
    assert Order(map=True).fingerprint("x", 4) == Order().fingerprint("x", 4)


# Protecting


def test_a_mask_half_white_gives_both_results_and_no_seam(sharp: Upscaler) -> None:
    picture = Picture(photograph(40, 36, 2))
    left = np.zeros((40, 36))
    left[:, :18] = 255
    result = sharp.upscale(picture, protect=mask(left)).pixels.astype(int)
    both = [upscaler.upscale(picture).pixels.astype(int) for upscaler in (sharp.partner(), sharp)]
    assert np.abs(both[0] - both[1]).max() > 3
    np.testing.assert_array_equal(result[:, : 18 * 4 - 2], both[0][:, : 18 * 4 - 2])
    np.testing.assert_array_equal(result[:, 18 * 4 + 2 :], both[1][:, 18 * 4 + 2 :])
    edge = slice(18 * 4 - 3, 18 * 4 + 3)
    steps = [np.abs(np.diff(pixels[:, edge], axis=1)).max() for pixels in (result, *both)]
    assert steps[0] <= max(steps[1:]) + 2


def test_between_black_and_white_it_is_soft(pair: Upscaler) -> None:
    picture = Picture(np.full((3, 4, 3), 100, np.uint8))
    result = pair.upscale(picture, Request(protect=mask(np.full((3, 4), 64)))).pixels
    assert (result == round(108 - 8 * 64 / 255)).all()
    half = pair.upscale(picture, Request(protect=mask(np.full((3, 4), 255)), strength=0.5)).pixels
    np.testing.assert_array_equal(half, resized(picture, 12, 16).pixels)  # the strength is of both


def test_transparency_and_16_bits_are_protected_alike(pair: Upscaler) -> None:
    rng = np.random.default_rng(0)
    picture = Picture(rng.integers(9000, 20_000, (4, 4, 3), np.uint16), np.full((4, 4), 65535, np.uint16))
    white = pair.upscale(picture, Request(protect=mask(np.full((4, 4), 255))))
    np.testing.assert_array_equal(white.pixels, pair.partner().upscale(picture).pixels)
    assert white.alpha is not None
    assert white.alpha.dtype == np.uint16


def test_a_mask_of_another_size_is_refused(pair: Upscaler) -> None:
    with pytest.raises(UsageError, match=r"the mask has 4x3 pixels and the picture 5x3"):
        pair.upscale(Picture(np.zeros((3, 5), np.uint8)), Request(protect=mask(np.zeros((3, 4)))))


def test_the_mask_is_a_part_of_what_is_known_of_a_result() -> None:
    orders = [Order(Request(protect=mask(np.full((2, 2), level)))) for level in (0, 0, 1)]
    prints = [order.fingerprint("x", 4) for order in orders]
    assert prints[0] == prints[1] != prints[2]
    assert Order(Request(region=Region(0, 0, 1, 1))).fingerprint("x", 4) != Order().fingerprint("x", 4)


def test_a_model_without_a_partner_says_so(tiny_engine: OpenVinoEngine) -> None:
    alone, picture = Upscaler(engine=tiny_engine), Picture(np.zeros((3, 4), np.uint8))
    for order in (Order(map=True), Order(Request(protect=mask(np.zeros((3, 4)))))):
        with pytest.raises(UsageError, match="tiny-x4 has no partner"):
            decide(picture, order, alone)
    faithful, _ = balance_models()
    models = [model for model in bundled_models() if model.scale == 4]
    assert all(Upscaler(model.name).partner().metadata.name == faithful for model in models)
    with pytest.raises(UsageError, match="srresnet-x2 has no partner"):
        Upscaler("srresnet-x2").partner()


# A region


@pytest.mark.parametrize(
    "settings",
    [{}, {"scale": 2.0}, {"scale": 3.0}, {"long_side_px": 333}, {"scale": 0.0 + 1.0}, {"strength": 0.4}],
)
@pytest.mark.parametrize("kind", ["colour", "alpha", "grey part"])
def test_a_region_is_that_part_of_the_whole(tiny_model: Path, settings: dict[str, float], kind: str) -> None:
    upscaler = Upscaler(engine=OpenVinoEngine(tiny_model, faithful=True))
    pixels = photograph(90, 126, 4)
    alpha = None
    if kind == "alpha":
        alpha = photograph(90, 126, 5)[..., 0]
    if kind == "grey part":
        pixels[:, 40:] = pixels[:, 40:, :1]
    picture = Picture(pixels, alpha, dpi=(72, 72))
    request = Request(**settings)  # type: ignore[arg-type]
    whole = upscaler.upscale(picture, request)
    for region in (Region(whole.width // 2, whole.height // 3, 31, 17), Region(0, 0, 9, 9)):
        part = upscaler.upscale(picture, replace(request, region=region))
        rows = slice(region.top, region.top + region.height)
        columns = slice(region.left, region.left + region.width)
        np.testing.assert_array_equal(part.pixels, whole.pixels[rows, columns])
        if whole.alpha is not None:
            np.testing.assert_array_equal(part.alpha, whole.alpha[rows, columns])
        assert part.dpi == pytest.approx(whole.dpi)


def test_nothing_else_is_computed() -> None:
    engine = NearestEngine()
    upscaler, picture = Upscaler(engine=engine), Picture(photograph(50, 60, 0))
    request = Request(region=Region(100, 80, 40, 20))
    part = upscaler.upscale(picture, request)
    assert engine.calls == [(1, 3, 5, 10)]
    np.testing.assert_array_equal(part.pixels, picture.pixels[20:25, 25:35].repeat(4, 0).repeat(4, 1))
    assert upscaler.lr_px(picture, request) == 50
    assert request.label(4) == "x4_40x20+100+80"
    assert upscaler.output_size(picture, request) == (20, 40)
    small = Upscaler(engine=engine, max_output_megapixels=0.001)  # what is not made is not counted
    assert small.upscale(picture, request).pixels.shape == (20, 40, 3)


@pytest.mark.parametrize(
    "text", ["1,2,3", "1,2,3,0", "-1,2,3,4", "a,b,c,d", "1,2,3,4,5", "1.5,2,3,4", "", "\u0661,2,3,4"]
)
def test_nonsense_is_no_region(text: str) -> None:
    with pytest.raises(UsageError, match=r"^region .* is (none|not understood)"):
        Region.parsed(text)


def test_a_region_outside_is_refused(pair: Upscaler) -> None:
    with pytest.raises(UsageError, match=r"region 20,0,5,5 lies outside the result, which has 24x20 pixels"):
        pair.upscale(Picture(np.zeros((5, 6), np.uint8)), region=Region(20, 0, 5, 5))
    with pytest.raises(UsageError, match="leave the region away"):
        Order(Request(region=Region(0, 0, 1, 1)), map=True)


def test_a_window_begins_where_pixels_of_both_sizes_do() -> None:
    window = Window.around(slice(500, 520), source=400, result=1000, reach=3)
    assert (window.start, window.stop) == (196, 212)  # in steps of 2 pixels, which become 5
    assert (window.length, window.kept) == (40, slice(10, 30))
    whole = Window.around(slice(500, 520), source=401, result=1000, reach=3)
    assert (whole.start, whole.stop, whole.length) == (0, 401, 1000)
