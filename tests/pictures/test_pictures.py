"""Files to pictures and back: everything kept, or refused by name."""

from __future__ import annotations

import csv
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from srgan.errors import PictureError, PictureTooLargeError, SrganError, UnsupportedPictureError
from srgan.pictures import FORMATS, PICTURE_SUFFIXES, Picture, decode, encode, format_of_suffix, resized, why_not

LOSSLESS = ["png", "tiff", "bmp", "ppm"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def colours(height: int = 11, width: int = 7, channels: int | None = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def gradient(height: int = 24, width: int = 32) -> np.ndarray:
    """A picture that lossy formats hold well."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (np.stack([rows, columns, 1 - rows], -1) * 200 + 20).astype(np.uint8)


def saved(array: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif(**tags: int) -> bytes:
    block = Image.Exif()
    block[0x010F] = "Maker"
    block.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    for name, value in tags.items():
        block[getattr(ExifTags.Base, name)] = value
    return block.tobytes()


def decoded(source: Path | bytes) -> Picture | SrganError:
    """The picture, or our own error; any other exception is a failure."""
    try:
        return decode(source, max_megapixels=20)
    except SrganError as error:
        return error


# What is read


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("channels", [None, 3])
def test_reads_what_pillow_wrote(format: str, channels: int | None) -> None:
    array = colours(channels=channels)
    picture = decode(saved(array, format))
    np.testing.assert_array_equal(picture.pixels, array)
    assert picture.pixels.dtype == np.uint8
    assert (picture.height, picture.width, picture.is_grey) == (11, 7, channels is None)
    assert picture.alpha is None
    assert picture.format == format.lower()
    assert picture.warnings == ()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [2, 4])
def test_reads_transparency_apart(format: str, channels: int) -> None:
    array = colours(channels=channels)
    picture = decode(saved(array, format))
    np.testing.assert_array_equal(picture.pixels, array[..., 0] if channels == 2 else array[..., :3])
    np.testing.assert_array_equal(picture.alpha, array[..., -1])


def test_palette_and_one_bit_become_what_they_mean() -> None:
    image = Image.fromarray(colours(16, 16)).quantize(7)
    np.testing.assert_array_equal(decode(saved(image)).pixels, np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(decode(saved(image, "GIF")).pixels, np.asarray(image.convert("RGB")))
    bits = Image.fromarray(colours(16, 16, None)).convert("1")
    picture = decode(saved(bits))
    assert picture.is_grey
    np.testing.assert_array_equal(picture.pixels, np.asarray(bits) * np.uint8(255))


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_palette_entry(format: str) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture = decode(saved(image, format, transparency=1))
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, [[255, 0], [255, 0]])
    np.testing.assert_array_equal(picture.pixels[:, 0], [[255, 0, 0], [0, 0, 255]])


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_transparent_colour_key(mode: str) -> None:
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert(mode)
    picture = decode(saved(image, transparency=(255, 255, 255) if mode == "RGB" else 255))
    np.testing.assert_array_equal(picture.alpha, [[255, 0], [0, 255]])
    assert decode(encode(picture, "png")).alpha is not None  # no key is left to trip the encoder


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_reads_lossy_formats(format: str) -> None:
    content = saved(gradient(), format)
    picture = decode(content)
    np.testing.assert_array_equal(picture.pixels, np.asarray(Image.open(io.BytesIO(content))))
    assert picture.format == {"JPEG": "jpg"}.get(format, format.lower())


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(saved(colours()))
    assert decode(path).format == "png"


# Orientation and metadata


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_applied_once(format: str, orientation: int) -> None:
    content = saved(gradient(), format, exif=exif(Orientation=orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    picture = decode(content)
    np.testing.assert_array_equal(picture.pixels, expected)
    for kept in ("png", "jpg", "webp", "tiff", "avif"):
        again = Image.open(io.BytesIO(encode(picture, kept)))
        assert again.getexif().get(0x0112, 1) == 1
        assert again.size == (picture.width, picture.height)


@pytest.mark.parametrize("orientation", [1, 6])
def test_transparency_turns_with_the_colour(orientation: int) -> None:
    content = saved(colours(channels=4), exif=exif(Orientation=orientation))
    picture = decode(content)
    assert picture.alpha is not None
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(np.dstack([picture.pixels, picture.alpha]), expected)


@pytest.mark.parametrize("format", ["jpg", "png", "webp", "tiff", "avif"])
def test_profile_and_exif_are_kept(format: str) -> None:
    content = saved(gradient(), "JPEG", icc_profile=SRGB, exif=exif(Orientation=3))
    picture = decode(content)
    assert picture.icc == SRGB
    again = decode(encode(picture, format))
    assert again.icc == SRGB
    written = Image.open(io.BytesIO(encode(picture, format))).getexif()
    assert written[0x010F] == "Maker"
    assert written.get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05"


def test_exif_is_changed_in_the_orientation_alone() -> None:
    block = exif(Orientation=6)
    kept = decode(saved(gradient(), "JPEG", exif=block)).exif
    assert len(kept) == len(block)
    differing = [index for index, (a, b) in enumerate(zip(block, kept, strict=True)) if a != b]
    assert len(differing) == 1
    assert kept[differing[0]] == 1


@pytest.mark.parametrize("junk", [b"junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_costs_itself_and_not_the_picture(junk: bytes) -> None:
    array = colours()
    content = saved(array)
    body = b"eXIf" + junk.removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    picture = decode(content[:33] + chunk + content[33:])
    np.testing.assert_array_equal(picture.pixels, array)
    assert picture.exif == b""
    assert picture.warnings == ("its EXIF data is damaged and was not kept",)


def test_pictures_behind_the_first_of_a_jpeg_are_told() -> None:
    first, second = Image.fromarray(gradient()), Image.fromarray(gradient()[::-1])
    picture = decode(saved(first, "MPO", save_all=True, append_images=[second]))
    assert picture.format == "jpg"
    assert np.abs(picture.pixels.astype(int) - gradient()).mean() < 5
    assert "first picture" in picture.warnings[0]


# What is refused


def refused() -> dict[str, bytes]:
    floats = np.full((4, 4), 0.5, np.float32)
    beyond, lost = floats.copy(), floats.copy()
    beyond[0, 0], lost[1, 1] = 1.5, np.nan
    return {
        "float TIFF beyond white": saved(Image.fromarray(beyond), "TIFF"),
        "float TIFF below black": saved(Image.fromarray(-beyond), "TIFF"),
        "float TIFF with a hole": saved(Image.fromarray(lost), "TIFF"),
        "float PFM": b"Pf 1 1 -1.0\n" + struct.pack("<f", 3),
        "32-bit TIFF": saved(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"),
    }


@pytest.mark.parametrize(("name", "content"), refused().items())
def test_what_would_be_damaged_is_refused(name: str, content: bytes) -> None:
    Image.open(io.BytesIO(content)).load()  # a good file, as such
    with pytest.raises(UnsupportedPictureError, match="not supported"):
        decode(content)


def test_the_pixel_limit_holds_before_decoding() -> None:
    content = saved(Image.new("1", (2000, 1000)))
    assert decode(content, max_megapixels=2).width == 2000
    with pytest.raises(PictureTooLargeError, match="2000x1000"):
        decode(content[:60], max_megapixels=1.999)  # the header is enough
    with pytest.raises(PictureTooLargeError, match="limit of 200 megapixels"):
        decode(b"P5 20000 10001 255\n")


def test_up_to_our_limit_no_other_applies() -> None:
    """Pillow's own would warn at 89 megapixels and refuse at 179."""
    with pytest.raises(PictureError, match="damaged"):
        decode(b"P5 18000 11000 255\n")  # passes the limit and then has no pixels


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF"])
def test_truncated_files_are_refused(format: str) -> None:
    content = saved(colours(64, 64), format)
    for length in (len(content) // 4, len(content) // 2, len(content) * 3 // 4):
        with pytest.raises(PictureError):
            decode(content[:length])


def test_half_a_picture_is_never_returned() -> None:
    """On such a file the metadata parser fails first, and a load after that succeeds on half of the pixels."""
    content = saved(colours(64, 64))
    body = content.index(b"IDAT") + 4
    for damage in range(body + 2, len(content) - 12, 97):
        bad = bytearray(content)
        bad[damage] ^= 0xFF
        with pytest.raises(PictureError):
            decode(bytes(bad))


@pytest.mark.parametrize("content", [b"", b"x", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"%PDF-1.4", b"<svg/>", b"BM"])
def test_what_is_no_picture(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(PictureError):
        decode(content)
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=r"x\.png: "):
        decode(path)


def test_formats_outside_the_list_are_refused() -> None:
    for format in ("TGA", "ICO", "PCX", "JPEG2000", "DDS", "EPS"):
        with pytest.raises(PictureError, match="known format"):
            decode(saved(colours(16, 16), format))


@pytest.mark.timeout(20)
def test_what_is_no_file(tmp_path: Path) -> None:
    folder, pipe, loop = tmp_path / "folder.png", tmp_path / "pipe.png", tmp_path / "loop.png"
    folder.mkdir()
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path, reason in [
        (folder, "is a folder"),
        (pipe, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (loop, "cannot be read"),
        (tmp_path / "missing.png", "No such file"),
        (Path("a\0b.png"), "cannot be read"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ]:
        with pytest.raises(PictureError, match=reason):
            decode(path)


def test_an_enormous_sparse_file_is_not_read_through(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(PictureError):
        decode(path)


@settings(max_examples=200)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=8),
    st.integers(0, 10_000),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_a_picture_or_our_error(format: str, flips: list[tuple[int, int]], length: int) -> None:
    content = bytearray(saved(gradient(), format, exif=exif(Orientation=6)))
    for position, change in flips:
        content[position % len(content)] ^= change
    if length % 2:
        del content[length % len(content) :]
    result = decoded(bytes(content))
    assert isinstance(result, Picture) or "\n" not in str(result)


@pytest.mark.filterwarnings("ignore")
def test_odd_and_hostile_files(shared: Path) -> None:
    corpora = shared / "corpora"
    if not corpora.is_dir():
        pytest.skip(f"no odd files in {corpora}")
    with (corpora / "index.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) > 300
    read = 0
    for row in rows:
        result = decoded(corpora / row["path"])
        if isinstance(result, Picture):
            read += 1
            # The last byte alone is missing there: all ten scans are in the file.
            assert row["expect"] != "reject" or row["path"].endswith("/truncated_jpeg.jpg"), row["path"]
            again = decode(encode(result, "png" if why_not(result, "png") is None else "tiff"))
            assert again.pixels.shape == result.pixels.shape
        else:
            assert row["expect"] != "accept", f"{row['path']}: {result}"
            assert "\n" not in str(result)
    assert read > 170


# What is written


@pytest.mark.parametrize("format", LOSSLESS)
@pytest.mark.parametrize("channels", [None, 3])
def test_lossless_formats_give_back_the_pixels(format: str, channels: int | None) -> None:
    picture = Picture(colours(channels=channels), format="png")
    again = decode(encode(picture, format))
    np.testing.assert_array_equal(again.pixels, picture.pixels)
    assert again.format == format


@pytest.mark.parametrize("format", ["png", "tiff", "webp", "avif"])
@pytest.mark.parametrize("channels", [None, 3])
def test_transparency_is_written(format: str, channels: int | None) -> None:
    alpha = np.tile(np.array([0, 85, 170, 255], np.uint8).repeat(8), (24, 1))
    pixels = gradient() if channels else gradient()[..., 1]
    again = decode(encode(Picture(pixels, alpha), format))
    assert again.alpha is not None
    assert np.abs(again.alpha.astype(int) - alpha).max() <= (0 if format in LOSSLESS else 6)


@pytest.mark.parametrize("format", ["jpg", "webp", "avif"])
def test_lossy_formats_are_near_by_default_and_smaller_on_request(format: str) -> None:
    picture = Picture(gradient(96, 128), lossy_quality=0)
    near = encode(picture, format)
    assert np.abs(decode(near).pixels.astype(int) - picture.pixels).mean() < 1.5
    assert len(encode(picture, format, quality=20)) < len(near)


def test_jpeg_keeps_full_colour_resolution() -> None:
    content = encode(Picture(gradient()), "jpg")
    opened = Image.open(io.BytesIO(content))
    assert isinstance(opened, JpegImageFile)
    assert [component[1:3] for component in opened.layer] == [(1, 1)] * 3


def test_grey_stays_one_channel() -> None:
    grey = Picture(colours(channels=None))
    for format in ("png", "jpg", "tiff", "bmp", "ppm"):
        assert Image.open(io.BytesIO(encode(grey, format))).mode == "L"


def test_what_a_format_cannot_hold_is_refused() -> None:
    plain, clear = Picture(colours()), Picture(colours(), np.zeros((11, 7), np.uint8))
    wide = Picture(np.zeros((1, 16_384), np.uint8))
    profiled = Picture(colours(), icc=SRGB)
    grows = Picture(
        colours(), duration_ms=100, further=(Picture(np.zeros((30, 7, 3), np.uint8), duration_ms=100),)
    )
    for picture, format, reason in [
        (grows, "webp", "frames differ in size"),
        (grows, "avif", "frames differ in size"),
        (clear, "jpg", "transparency"),
        (clear, "bmp", "transparency"),
        (wide, "webp", "16383"),
        (profiled, "ppm", "profile"),
        (plain, "heic", "not written"),
    ]:
        assert reason in (why_not(picture, format) or "")
        with pytest.raises(PictureError, match=reason):
            encode(picture, format)
    assert all(why_not(plain, format) is None for format in FORMATS)
    assert why_not(grows, "png") is why_not(grows, "gif") is None


def test_suffixes() -> None:
    assert format_of_suffix(".JPEG") == "jpg"
    assert format_of_suffix(".tif") == "tiff"
    assert format_of_suffix(".heic") is None
    assert {".png", ".jpg", ".webp", ".avif", ".gif", ".pbm"} <= PICTURE_SUFFIXES


def test_resized_is_antialiased_and_keeps_levels() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    small = resized(Picture(board.astype(np.uint8), alpha=np.full((64, 64), 7, np.uint8)), 16, 20)
    assert small.pixels.shape == (16, 20)
    assert np.abs(small.pixels[4:-4, 4:-4].astype(int) - 127).max() <= 16
    assert np.all(small.alpha == 7)
    assert resized(Picture(colours()), 5, 3).pixels.shape == (5, 3, 3)


def test_resizing_keeps_the_colour_of_faint_pixels() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    faint = resized(Picture(red, np.full((8, 8), 1, np.uint8)), 4, 4)
    assert (faint.pixels == [200, 0, 0]).all()
