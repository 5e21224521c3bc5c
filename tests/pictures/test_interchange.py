"""`Picture` to and from NumPy arrays and Pillow's images, and what it does in a notebook."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from srgan.errors import PictureError, UnsupportedPictureError, UsageError
from srgan.pictures import Picture, decode, encode

RNG = np.random.default_rng(0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def levels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


# Arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3), (3, 5, 4)])
def test_levels_go_in_and_out_as_they_are(shape: tuple[int, ...], dtype: type) -> None:
    array = levels(*shape, dtype=dtype)
    picture = Picture.from_array(array)
    assert (picture.height, picture.width, picture.bits) == (3, 5, 8 * array.itemsize)
    assert picture.is_grey == (len(shape) == 2)
    assert (picture.alpha is not None) == (shape[-1] == 4)
    result = picture.to_array()
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_from_0_to_1(dtype: type) -> None:
    array: np.ndarray = np.array([[0, 0.25, 1]], dtype)
    picture = Picture.from_array(array)
    assert picture.pixels.tolist() == [[0, 16384, 65535]]
    result: np.ndarray = picture.to_array(dtype)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, array, atol=1e-3 if dtype is np.float16 else 1e-5)


def test_other_byte_orders_and_strides_are_taken() -> None:
    array = levels(4, 6, 3, dtype=np.uint16)
    np.testing.assert_array_equal(Picture.from_array(array.astype(">u2")[::-1, ::2]).to_array(), array[::-1, ::2])


def test_depths_are_turned_into_each_other() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(Picture.from_array(every).to_array(np.uint16), every * np.uint16(257))
    assert np.array_equal(Picture.from_array(every * np.uint16(257)).to_array(np.uint8), every)
    assert np.array_equal(Picture.from_array(every).to_array(np.float64), every / 255)


def test_what_is_given_back_is_not_what_is_kept() -> None:
    for dtype in (np.uint8, np.uint16):
        picture = Picture.from_array(levels(2, 2, dtype=dtype))
        before = picture.pixels.copy()
        picture.to_array()[:] = 7
        np.testing.assert_array_equal(picture.pixels, before)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 4, 2), np.uint8), r"\(3,4,2\) of uint8"),
        (np.zeros((1, 3, 4, 3), np.float32), r"\(1,3,4,3\)"),
        (np.zeros(5, np.uint8), r"\(5\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0,4,3\)"),
        (np.zeros((2, 2), np.int32), "of int32"),
        (np.zeros((2, 2), bool), "of bool"),
        (np.full((2, 2), 255.0), "from 255 to 255"),
        (np.full((2, 2), np.nan), "from nan to nan"),
        (np.full((2, 2), -0.1), "from -0.1"),
    ],
)
def test_other_arrays_are_refused_with_what_can_be_taken(array: np.ndarray, reason: str) -> None:
    with pytest.raises(UnsupportedPictureError, match=rf"\(H,W,3\) RGB.*{reason}"):
        Picture.from_array(array)


def test_another_type_of_array_is_refused() -> None:
    with pytest.raises(UnsupportedPictureError, match="choose uint8"):
        Picture.from_array(levels(2, 2)).to_array(np.int64)


# Pillow


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_images_go_in_and_out_as_they_are(mode: str) -> None:
    channels = len(mode)
    array = levels(3, 5, channels) if channels > 1 else levels(3, 5)
    image = Image.fromarray(array, mode=None)
    assert image.mode == mode
    result = Picture.from_pil(image).to_pil()
    assert (result.mode, result.size) == (mode, (5, 3))
    np.testing.assert_array_equal(np.asarray(result), array)


@pytest.mark.parametrize(
    ("mode", "becomes"), [("1", "L"), ("P", "RGB"), ("CMYK", "RGB"), ("YCbCr", "RGB"), ("RGBa", "RGBA")]
)
def test_other_modes_become_what_they_show(mode: str, becomes: str) -> None:
    image = Image.fromarray(levels(6, 6, 3)).convert("RGBA" if mode == "RGBa" else "RGB").convert(mode)
    assert Picture.from_pil(image).to_pil().mode == becomes


def test_16_bits_stay_where_pillow_has_a_mode_for_them() -> None:
    grey = levels(3, 5, dtype=np.uint16)
    image = Image.fromarray(grey)
    assert image.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(Picture.from_pil(image).to_pil()), grey)
    colours = levels(3, 5, 3, dtype=np.uint16)
    np.testing.assert_array_equal(np.asarray(Picture(colours).to_pil()), np.rint(colours / 257).astype(np.uint8))


def test_an_image_comes_upright_with_what_it_carries() -> None:
    image = Image.fromarray(levels(4, 6, 3))
    exif = image.getexif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, icc_profile=SRGB, dpi=(300, 150))
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    picture, read = Picture.from_pil(opened), decode(buffer.getvalue())
    np.testing.assert_array_equal(picture.pixels, read.pixels)
    assert (picture.width, picture.height, picture.icc, picture.dpi) == (4, 6, SRGB, (150, 300))
    result = picture.to_pil()
    again = io.BytesIO()
    result.save(again, "JPEG", exif=result.info["exif"], icc_profile=result.info["icc_profile"])
    tags = Image.open(io.BytesIO(again.getvalue())).getexif()
    assert (tags[0x0112], tags[0x010F]) == (1, "Maker")


def test_an_image_with_damaged_exif_is_taken_without_it() -> None:
    image = Image.fromarray(levels(4, 6, 3))
    image.info["exif"] = b"Exif\0\0II*\0\xff\xff\xff\xff"
    picture = Picture.from_pil(image)
    assert picture.exif == b""
    assert (picture.width, picture.height) == (6, 4)


def test_the_current_frame_is_taken() -> None:
    frames = [Image.fromarray(levels(4, 6, 3)) for _ in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    opened = Image.open(buffer)
    opened.seek(1)
    np.testing.assert_array_equal(Picture.from_pil(opened).pixels, np.asarray(frames[1]))


# Files and notebooks


@pytest.mark.parametrize("name", ["a.png", "b.TIF", "c.webp", "d.jpeg"])
def test_save_goes_by_the_suffix_and_tells_what_is_lost(name: str, tmp_path: Path) -> None:
    picture = Picture(levels(3, 5, 3, dtype=np.uint16))
    lost = picture.save(tmp_path / name)
    saved = decode(tmp_path / name)
    assert (saved.width, saved.height) == (5, 3)
    assert bool(lost) == (saved.bits == 8)


def test_save_refuses_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"choose one of \.png"):
        Picture(levels(3, 5)).save(str(tmp_path / "a.xyz"))
    with pytest.raises(PictureError, match="transparency"):
        Picture(levels(3, 5), levels(3, 5)).save(tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_short_in_a_console_and_shown_in_a_notebook() -> None:
    still = Picture(levels(3, 5, 3), levels(3, 5))
    assert repr(still) == "<Picture 5x3 RGB and alpha, 8 bits>"
    pages = Picture(levels(3, 5, dtype=np.uint16), further=(Picture(levels(3, 5, dtype=np.uint16)),))
    assert repr(pages) == "<Picture 5x3 grey, 16 bits, 2 pages>"
    shown = Picture(still.pixels, still.alpha)._repr_png_()
    np.testing.assert_array_equal(decode(shown).pixels, decode(encode(still, "png")).pixels)
    assert decode(pages._repr_png_()).further == ()
