"""Transparent pictures on a colour: against sums in floating point, in the picture's own colours."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from support.engines import NearestEngine

from srgan.errors import FormatError, PictureError, UsageError
from srgan.folder.making import Order, decide, make
from srgan.pictures import Background, Picture, decode, laid_on
from srgan.pictures.colour import profile_of
from srgan.upscale import Request, Upscaler

RNG = np.random.default_rng(0)
UPSCALER = Upscaler(engine=NearestEngine())
ORANGE = Background(255, 128, 0)


def clear(dtype: type, *shape: int) -> Picture:
    peak = int(np.iinfo(dtype).max)
    return Picture(RNG.integers(0, peak + 1, shape, dtype), RNG.integers(0, peak + 1, shape[:2], dtype))


def by_hand(picture: Picture, levels: tuple[float, ...]) -> np.ndarray:
    """`levels`: of 255, one or for each colour."""
    assert picture.alpha is not None
    peak = float(np.iinfo(picture.alpha.dtype).max)
    pixels = picture.pixels if picture.pixels.ndim == 3 or len(levels) == 1 else picture.pixels[..., None]
    opacity = picture.alpha / peak if pixels.ndim == 2 else picture.alpha[..., None] / peak
    behind = np.array(levels) * peak / 255 if len(levels) > 1 else levels[0] * peak / 255
    return np.asarray(np.rint(pixels * opacity + behind * (1 - opacity)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_levels_are_mixed_as_they_are(dtype: type) -> None:
    for shape in ((9, 7, 3), (9, 7)):
        picture = clear(dtype, *shape)
        result = laid_on(picture, ORANGE)
        assert result.alpha is None
        assert result.pixels.dtype == dtype
        np.testing.assert_array_equal(result.pixels, by_hand(picture, (255, 128, 0)))
    grey = laid_on(picture, Background(40, 40, 40))
    assert grey.is_grey
    np.testing.assert_array_equal(grey.pixels, by_hand(picture, (40,)))
    opaque = Picture(picture.pixels)
    assert laid_on(opaque, ORANGE).pixels is opaque.pixels


def test_the_colour_is_brought_to_those_of_the_picture() -> None:
    """sRGB's orange in Display P3, by the matrices of CSS Color 4."""
    srgb = np.array([[0.41239, 0.35758, 0.18048], [0.21264, 0.71517, 0.07219], [0.01933, 0.11919, 0.95053]])
    p3 = np.array([[0.48657, 0.26567, 0.19822], [0.22897, 0.69174, 0.07929], [0.0, 0.04511, 1.04394]])
    encoded = np.array([255, 128, 0]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    there = np.clip(np.linalg.solve(p3, srgb @ linear), 0, 1)
    expected = 255 * np.where(there <= 0.0031308, there * 12.92, 1.055 * there ** (1 / 2.4) - 0.055)
    hidden = np.zeros((1, 1, 3), np.uint8)
    alpha = np.zeros((1, 1), np.uint8)
    by_profile = laid_on(Picture(hidden, alpha, icc=profile_of(12, 13)), ORANGE)
    assert np.abs(by_profile.pixels[0, 0] - expected).max() < 1.5
    by_code_points = laid_on(Picture(hidden, alpha, png_colour=((b"cICP", bytes([12, 13, 0, 1])),)), ORANGE)
    np.testing.assert_array_equal(by_code_points.pixels, by_profile.pixels)
    white = laid_on(Picture(hidden, alpha, icc=profile_of(12, 13)), Background(255, 255, 255))
    assert white.pixels.min() == 255
    assert laid_on(Picture(hidden, alpha, icc=b"no profile"), ORANGE).pixels[0, 0].tolist() == [255, 128, 0]


def test_greys_of_a_profile_stay_greys() -> None:
    picture = Picture(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), icc=profile_of(1, 8, grey=True))
    (level,) = laid_on(picture, Background(128, 128, 128)).pixels.reshape(-1)
    assert abs(int(level) - 255 * ((128 / 255 + 0.055) / 1.055) ** 2.4) < 2  # without a curve
    with pytest.raises(PictureError, match="for greys alone, which #ff8000 is not"):
        decide(picture, Order(format="jpg", background=ORANGE), UPSCALER)


@pytest.mark.parametrize("format", ["jpg", "bmp", "ppm"])
def test_it_is_put_where_the_format_holds_no_transparency(format: str) -> None:
    picture = clear(np.uint8, 5, 6, 3)
    order = Order(Request(2), format=format, background=ORANGE)
    made = make(decide(picture, order, UPSCALER), UPSCALER)
    expected = by_hand(made.picture, (255, 128, 0))
    result = np.asarray(Image.open(io.BytesIO(made.content)).convert("RGB"))
    assert np.abs(result - expected).max() <= (40 if format == "jpg" else 0)
    names = {"jpg": "JPEG", "bmp": "BMP", "ppm": "PPM"}
    assert f"{names[format]} cannot hold transparency, so it was laid on #ff8000" in made.warnings
    with pytest.raises(FormatError, match="cannot hold transparency"):
        decide(picture, Order(format=format), UPSCALER)


def test_elsewhere_transparency_stays() -> None:
    picture = clear(np.uint8, 5, 6, 3)
    for source in (picture, Picture(picture.pixels, picture.alpha, format="webp")):
        made = make(decide(source, Order(background=ORANGE), UPSCALER), UPSCALER)
        np.testing.assert_array_equal(decode(made.content).alpha, made.picture.alpha)
        assert made.warnings == ()
    bmp = decide(Picture(picture.pixels, picture.alpha, format="bmp"), Order(background=ORANGE), UPSCALER)
    assert bmp.format == "bmp"
    opaque = make(decide(Picture(picture.pixels), Order(format="bmp", background=ORANGE), UPSCALER), UPSCALER)
    assert opaque.warnings == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("white", "#ffffff"), ("#F80", "#ff8800"), ("#ff8000", "#ff8000"), (" rgb(1,2,3) ", "#010203")],
)
def test_colours_are_understood_as_in_css(text: str, expected: str) -> None:
    assert str(Background.parsed(text)) == expected
    orders = (Order(background=Background.parsed(text)), Order(background=Background.parsed(expected)))
    assert orders[0].fingerprint("x", 4) == orders[1].fingerprint("x", 4) != Order().fingerprint("x", 4)


@pytest.mark.parametrize("text", ["", "whit", "#12345", "#ff800080", "rgba(1,2,3,4)", "rgb(1,2)", "x" * 200])
def test_nonsense_is_no_colour(text: str) -> None:
    with pytest.raises(UsageError, match=r"^background .* is not understood: give a colour"):
        Background.parsed(text)
