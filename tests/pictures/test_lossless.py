"""Files without loss hold the very levels that PNG does, wherever there is a choice."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms
from support.engines import NearestEngine

from srgan.errors import FormatError, PictureError, UsageError
from srgan.folder.making import Order, decide, make
from srgan.pictures import Picture, decode, encode, guarded, losses
from srgan.pictures.formats import coders
from srgan.upscale import Upscaler

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (21, 34, 3), np.uint8)
ALPHA = RNG.choice(np.array([0, 3, 128, 255], np.uint8), (21, 34))
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
UPSCALER = Upscaler(engine=NearestEngine())

needs_coders = pytest.mark.skipif(not coders.are_there(), reason="needs the extra codecs")
either = pytest.mark.parametrize("format", ["webp", pytest.param("avif", marks=needs_coders)])


def by_pillow(content: bytes, mode: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert(mode))


@either
@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("quality", ["lossless", None])
def test_colours_are_those_of_png(format: str, alpha: np.ndarray | None, quality: None) -> None:
    picture = Picture(COLOURS, alpha, icc=ICC, dpi=(300, 300), xmp=b"<x:xmpmeta/>")
    mode = "RGB" if alpha is None else "RGBA"
    content, png = encode(picture, format, quality=quality), encode(picture, "png")
    np.testing.assert_array_equal(by_pillow(content, mode), by_pillow(png, mode))
    np.testing.assert_array_equal(by_pillow(content, mode)[..., :3], COLOURS)  # also where nothing is seen of them
    again = decode(content)
    assert (again.lossy_quality, again.icc, again.xmp) == (None, ICC, b"<x:xmpmeta/>")
    assert again.dpi == pytest.approx((300, 300))
    assert guarded.encode(picture, format, quality=quality) == content


@pytest.mark.parametrize("format", ["webp", "avif"])
def test_greys_are_those_of_png(format: str) -> None:
    picture = Picture(COLOURS[..., 0], ALPHA)
    content = encode(picture, format, quality="lossless")
    np.testing.assert_array_equal(by_pillow(content, "RGBA")[..., 0], COLOURS[..., 0])
    np.testing.assert_array_equal(by_pillow(content, "RGBA")[..., 3], ALPHA)


@needs_coders
def test_a_large_picture_is_without_loss_in_each_of_its_tiles() -> None:
    levels = np.broadcast_to(np.arange(2100 * 4100, dtype=np.uint32).reshape(2100, 4100, 1) >> 4, (2100, 4100, 3))
    pixels = (levels + np.array([0, 85, 170])).astype(np.uint8)
    content = encode(Picture(pixels, icc=ICC), "avif", quality="lossless")
    np.testing.assert_array_equal(by_pillow(content, "RGB"), pixels)
    assert decode(content).icc == ICC


def test_an_animation_is_that_of_png() -> None:
    frames = [Picture(COLOURS, duration_ms=40), Picture(COLOURS[::-1].copy(), duration_ms=80)]
    again = decode(encode(replace(frames[0], further=(frames[1],)), "webp"))
    for frame, source in zip(again.frames, frames, strict=True):
        np.testing.assert_array_equal(frame.pixels, source.pixels)


def test_what_comes_from_a_lossy_file_stays_so_unless_it_is_asked() -> None:
    lossy = decode(encode(Picture(COLOURS), "jpg"))
    for format in ("webp", "avif"):
        assert decode(encode(lossy, format)).lossy_quality == 0
    assert decode(encode(lossy, "webp", quality="lossless")).lossy_quality is None
    assert decode(encode(Picture(COLOURS), "webp", quality=90)).lossy_quality == 0


def test_the_one_making_of_a_file_knows_it_from_the_source() -> None:
    for source, quality, expected in (
        (Picture(COLOURS), None, None),
        (Picture(COLOURS), 80, 0),
        (Picture(COLOURS, format="jpg", lossy_quality=90), None, 0),
        (Picture(COLOURS, format="jpg", lossy_quality=90), "lossless", None),
    ):
        order = Order(format="webp", quality=quality)  # type: ignore[arg-type]
        made = make(decide(source, order, UPSCALER), UPSCALER)
        assert decode(made.content).lossy_quality == expected
        if expected is None:
            np.testing.assert_array_equal(decode(made.content).pixels, made.picture.pixels)
    assert Order(quality="lossless").fingerprint("x", 4) != Order().fingerprint("x", 4)


def test_formats_that_cannot_are_refused_or_become_png() -> None:
    for format, words in (("jpg", "JPEG compresses with loss"), ("gif", "GIF holds 256 colours a frame")):
        with pytest.raises(UsageError, match=words):
            Order(format=format, quality="lossless")
        with pytest.raises(PictureError, match=words):
            encode(Picture(COLOURS), format, quality="lossless")
        decision = decide(Picture(COLOURS, format=format), Order(quality="lossless"), UPSCALER)
        assert decision.format == "png"
        assert words in decision.warnings[0]
    moving = Picture(COLOURS, format="avif", duration_ms=40, further=(Picture(COLOURS, duration_ms=40),))
    with pytest.raises(FormatError, match="an animated AVIF is compressed with loss"):
        decide(moving, Order(format="avif", quality="lossless"), UPSCALER)
    assert decide(moving, Order(), UPSCALER).format == "avif"


def test_without_the_package_colours_in_avif_are_refused_or_lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coders, "are_there", lambda: False)
    with pytest.raises(FormatError, match=r"AVIF without loss needs imagecodecs, which is not installed \(pip"):
        decide(Picture(COLOURS), Order(format="avif", quality="lossless"), UPSCALER)
    assert decode(encode(Picture(COLOURS), "avif")).lossy_quality == 0


def test_that_16_bits_are_rounded_is_told_as_before() -> None:
    deep = Picture(COLOURS.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode(encode(deep, "webp", quality="lossless")).pixels, COLOURS)
    assert any("so the 16 of the picture were rounded" in words for words in losses(deep, "webp"))
