"""What survives from file to file: depth, colours, metadata, frames and pages; with independent readers."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from srgan.errors import PictureError, PictureTooLargeError
from srgan.pictures import FORMATS, Picture, decode, encode, losses, resized, why_not

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" exif:PixelXDimension="7">
<tiff:ImageWidth>7</tiff:ImageWidth><dc:creator>Somebody</dc:creator>
<xmp:Thumbnails><rdf:li>AAAA</rdf:li></xmp:Thumbnails></rdf:Description></x:xmpmeta>"""


def deep(channels: int = 3, height: int = 13, width: int = 9, seed: int = 0) -> np.ndarray:
    """(H,W,C) of 16 bits, every one of them used."""
    return np.random.default_rng(seed).integers(0, 65536, (height, width, channels), np.uint16)


def smooth(height: int = 24, width: int = 32) -> np.ndarray:
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (np.stack([rows, columns, 1 - rows], -1) * 200 + 20).astype(np.uint8)


def saved(image: np.ndarray | Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def joined(picture: Picture) -> np.ndarray:
    return np.dstack([picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha])


def picture_of(levels: np.ndarray, **parts: Any) -> Picture:
    channels = levels.shape[2]
    colours = levels[..., 0] if channels < 3 else levels[..., :3]
    return Picture(colours, levels[..., -1] if channels in (2, 4) else None, **parts)


# PNG of 16 bits, by a writer and a reader that know nothing of ours


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(levels: np.ndarray, *between: bytes, interlaced: bool = False) -> bytes:
    """A 16-bit PNG without filters; interlaced by Adam7."""
    height, width, channels = levels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced)
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, across in passes:
        part = levels[top::down, left::across]
        if part.size:
            rows += b"".join(b"\0" + row.astype(">u2").tobytes() for row in part)
    body = png_chunk(b"IHDR", header) + b"".join(between) + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        name, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        assert zlib.crc32(name + body) == struct.unpack_from(">I", content, place + 8 + length)[0]
        found.append((name, body))
        place += 12 + length
    return found


def unfiltered(content: bytes) -> np.ndarray:
    """The samples of a 16-bit PNG, by the letter of its specification (section 9), byte by byte."""
    chunks = png_chunks(content)
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, interlaced) == (16, 0)
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[kind]
    data = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    step, length = 2 * channels, 2 * channels * width
    rows, above = [], bytes(length)
    for start in range(0, len(data), length + 1):
        rule, row = data[start], bytearray(data[start + 1 : start + 1 + length])
        for i in range(length):
            a, b = (row[i - step] if i >= step else 0), above[i]
            c = above[i - step] if i >= step else 0
            paeth = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            row[i] = (row[i] + (0, a, b, (a + b) // 2, paeth)[rule]) & 255
        rows.append(bytes(row))
        above = rows[-1]
    return np.frombuffer(b"".join(rows), ">u2").reshape(height, width, channels)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_is_read_exactly(channels: int, interlaced: bool) -> None:
    levels = deep(channels)
    picture = decode(png(levels, interlaced=interlaced))
    assert picture.bits == 16
    np.testing.assert_array_equal(joined(picture), levels)
    assert picture.is_grey == (channels < 3)
    assert picture.warnings == ()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (13, 9), (90, 3000)])
def test_png_of_16_bits_is_written_exactly(channels: int, size: tuple[int, int]) -> None:
    levels = deep(channels, *size)
    content = encode(picture_of(levels), "png")
    if size != (90, 3000):
        np.testing.assert_array_equal(unfiltered(content), levels)
    np.testing.assert_array_equal(joined(decode(content)), levels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_clear_colour_of_16_bits_is_compared_in_all_of_them(channels: int) -> None:
    levels = np.full((2, 2, channels), 0x1234, np.uint16)
    levels[0, 1] = 0x1235
    key = png_chunk(b"tRNS", struct.pack(">H", 0x1234) * channels)
    picture = decode(png(levels, key))
    np.testing.assert_array_equal(picture.alpha, [[0, 65535], [0, 0]])


def test_depth_comes_from_the_file_and_never_from_its_values() -> None:
    dark = np.full((4, 4, 3), 7, np.uint16)
    assert decode(png(dark)).pixels.dtype == np.uint16
    assert decode(encode(Picture(dark), "png")).pixels.max() == 7


def test_a_fine_ramp_keeps_its_levels() -> None:
    ramp = np.linspace(20_000, 22_000, 1000).astype(np.uint16).reshape(1, -1, 1).repeat(4, 0)
    for format in ("png", "tiff", "ppm"):
        again = decode(encode(picture_of(ramp), format))
        assert len(np.unique(again.pixels)) == len(np.unique(ramp)) > 256
        assert len(np.unique(resized(again, 8, 2000).pixels)) > 1000


# TIFF, by tifffile


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize(("channels", "kind"), [(1, "minisblack"), (3, "rgb"), (4, "rgb")])
def test_tiff_of_16_bits_is_read_exactly(
    order: Literal[">", "<"], planar: str, tile: tuple[int, int] | None, channels: int, kind: str
) -> None:
    levels = deep(channels, 37, 41)
    for compression, predictor in ((None, False), ("zlib", False), ("zlib", True)):
        buffer = io.BytesIO()
        tifffile.imwrite(
            buffer,
            levels[..., 0] if channels == 1 else levels if planar == "contig" else np.moveaxis(levels, -1, 0),
            byteorder=order,
            photometric=kind,
            planarconfig=None if channels == 1 else planar,
            tile=tile,
            rowsperstrip=None if tile else 5,
            compression=compression,
            predictor=predictor,
            bigtiff=order == "<" and channels == 3,
            extrasamples=["unassalpha"] if channels == 4 else None,
            metadata=None,
        )
        picture = decode(buffer.getvalue())
        np.testing.assert_array_equal(joined(picture), levels)
        assert (picture.format, picture.warnings) == ("tiff", ())


def test_grey_with_alpha_of_16_bits_in_tiff() -> None:
    levels = deep(2)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, levels, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"], metadata=None
    )
    np.testing.assert_array_equal(joined(decode(buffer.getvalue())), levels)


def test_premultiplied_and_inverted_samples_of_16_bits() -> None:
    alpha = np.array([[65535, 32768, 0]], np.uint16)
    premultiplied = np.dstack([np.array([[40_000, 20_000, 0]], np.uint16)] * 3 + [alpha])
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, premultiplied, photometric="rgb", extrasamples=["assocalpha"], metadata=None)
    picture = decode(buffer.getvalue())
    np.testing.assert_allclose(picture.pixels[0, :2], 40_000, atol=1)
    np.testing.assert_array_equal(picture.alpha, alpha)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, deep(1)[..., 0], photometric="miniswhite", metadata=None)
    np.testing.assert_array_equal(decode(buffer.getvalue()).pixels, 65535 - deep(1)[..., 0])


def test_other_samples_in_tiff_are_said() -> None:
    cases: list[tuple[np.ndarray, list[list[int]]]] = [
        (np.array([[-32768, 0, 32767]], np.int16), [[0, 32768, 65535]]),
        (np.array([[0, 0.5, 1]], np.float32), [[0, 32768, 65535]]),
    ]
    for levels, expected in cases:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, levels, photometric="minisblack", metadata=None)
        picture = decode(buffer.getvalue())
        np.testing.assert_array_equal(picture.pixels, expected)
        assert picture.pixels.dtype == np.uint16
    assert "floating-point" in picture.warnings[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_is_written_exactly_and_compressed(channels: int, dtype: type) -> None:
    levels: np.ndarray = (deep(channels, 600, 500) // 64 * 64).astype(dtype)
    content = encode(picture_of(levels, exif=exif(), dpi=(300, 150), icc=SRGB), "tiff")
    assert len(content) < levels.nbytes
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        (page,) = file.pages
        assert isinstance(page, tifffile.TiffPage)
        tags = page.tags
        assert (tags["Compression"].value, tags["Predictor"].value) == (8, 2)
        assert tags["XResolution"].value == (300, 1)
        assert tags["Make"].value == "Maker"
        assert tags["ExifTag"].value["DateTimeOriginal"] == "2020:01:02 03:04:05"
        assert tags["InterColorProfile"].value == SRGB
        offsets = tags["StripOffsets"].value
        rows = b"".join(
            zlib.decompress(content[offset : offset + count])
            for offset, count in zip(offsets, tags["StripByteCounts"].value, strict=True)
        )
        assert len(offsets) > 1
    differences = np.frombuffer(rows, np.dtype(dtype)).reshape(levels.shape)
    np.testing.assert_array_equal(differences.cumsum(axis=1, dtype=dtype), levels)
    np.testing.assert_array_equal(joined(decode(content)), levels)


# PPM


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("kind", "channels"), [(2, 1), (3, 3)])
@pytest.mark.parametrize("largest", [1, 100, 255, 256, 1023, 65535])
def test_ppm_of_any_depth(plain: bool, kind: int, channels: int, largest: int) -> None:
    values = np.random.default_rng(0).integers(0, largest + 1, (5, 4, channels))
    values.flat[0] = largest
    head = b"P%d # a comment\n4 5\n%d\n" % (kind if plain else kind + 3, largest)
    numbers = " ".join(map(str, values.ravel())).encode() + b"\n"
    body = numbers if plain else values.astype(">u2" if largest > 255 else np.uint8).tobytes()
    picture = decode(head + body)
    peak = 65535 if largest > 255 else 255
    np.testing.assert_array_equal(joined(picture), (values * peak + largest // 2) // largest)
    with pytest.raises(PictureError):
        decode(head + body[: len(body) // 2])


def test_ppm_is_written_exactly() -> None:
    levels = deep(3)
    content = encode(Picture(levels), "ppm")
    head, body = content[:15], content[15:]
    assert head == b"P6\n9 13\n65535\n" + body[:0] + content[14:15]
    np.testing.assert_array_equal(np.frombuffer(content[14:], ">u2").reshape(levels.shape), levels)


# Colours


def cmyk_profile() -> bytes | None:
    for path in Path("/usr/share/color/icc").rglob("*.icc"):
        if path.read_bytes()[16:20] == b"CMYK":
            return path.read_bytes()
    return None


def test_cmyk_without_a_profile_is_converted_and_said() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    picture = decode(saved(image, "TIFF"))
    np.testing.assert_array_equal(picture.pixels[0, 0], [255, 0, 0])
    assert picture.icc is None
    assert "CMYK" in picture.warnings[0]
    jpeg = decode(saved(image, "JPEG", quality=100))
    np.testing.assert_allclose(jpeg.pixels[0, 0], [255, 0, 0], atol=3)
    wrong = decode(saved(image, "TIFF", icc_profile=SRGB))
    assert "not one for CMYK" in wrong.warnings[0]
    assert wrong.icc is None


def test_cmyk_goes_through_its_profile(shared: Path) -> None:
    path = shared / "corpora/valid/twelvemonkeys/imageio/imageio-jpeg/src/test/resources/jpeg/cmyk-sample.jpg"
    if not path.exists():
        pytest.skip(f"no {path}")
    picture = decode(path)
    with Image.open(path) as image:
        profile = image.info.get("icc_profile")
        naive = np.asarray(image.convert("RGB"))
    if not profile:
        pytest.skip("without a profile")
    assert picture.warnings[0] == "its CMYK colours were converted to sRGB by their profile"
    assert np.abs(picture.pixels.astype(int) - naive).mean() > 1  # it makes a difference


def test_lab_becomes_srgb() -> None:
    """White, black, and the red of sRGB, which has L* 54.3, a* 80.8, b* 69.9 under D50."""
    for lab, expected in [
        ((255, 0, 0), (255, 255, 255)),
        ((0, 0, 0), (0, 0, 0)),
        ((138, 81, 70), (255, 0, 0)),
    ]:
        image = Image.frombytes("LAB", (1, 1), bytes(lab))
        picture = decode(saved(image, "TIFF"))
        np.testing.assert_allclose(picture.pixels[0, 0], expected, atol=6)
    assert "L*a*b*" in picture.warnings[0]


def test_png_gamma_and_primaries_stay_in_png() -> None:
    gamma = struct.pack(">I", 100_000)
    for bits in (8, 16):
        levels = deep(3) if bits == 16 else smooth()
        info = PngImagePlugin.PngInfo()
        info.add(b"gAMA", gamma)
        content = saved(levels, "PNG", pnginfo=info) if bits == 8 else png(levels, png_chunk(b"gAMA", gamma))
        picture = decode(content)
        assert (b"gAMA", gamma) in png_chunks(encode(picture, "png"))
        assert any("gamma" in words for words in losses(picture, "jpg"))


# Metadata


def exif(thumbnail: bool = False, **tags: object) -> bytes:
    block = Image.Exif()
    block[0x010F] = "Maker"
    block.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    block.get_ifd(0x8769)[0xA002] = 7
    block.get_ifd(0x8769)[0xA003] = 11
    block[0x011A], block[0x011B], block[0x0128] = 300.0, 300.0, 2
    for name, value in tags.items():
        block[getattr(ExifTags.Base, name)] = value
    content = block.tobytes()
    if not thumbnail:
        return content
    tiff = bytearray(content[6:])
    order = "<" if tiff[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "L", tiff, 4)
    end = first + 2 + 12 * struct.unpack_from(order + "H", tiff, first)[0]
    struct.pack_into(order + "L", tiff, end, len(tiff))
    places = (len(tiff) + 2 + 24 + 4, len(THUMBNAIL))
    entries = b"".join(
        struct.pack(order + "HHLL", tag, 4, 1, value) for tag, value in zip((0x0201, 0x0202), places, strict=True)
    )
    return b"Exif\0\0" + bytes(tiff) + struct.pack(order + "H", 2) + entries + bytes(4) + THUMBNAIL


THUMBNAIL = b"\xff\xd8 a small picture \xff\xd9"


@pytest.mark.parametrize("format", ["jpg", "png", "webp", "avif", "tiff"])
def test_exif_tells_the_new_size_and_keeps_the_rest(format: str) -> None:
    block = exif(thumbnail=True, Orientation=6, ImageWidth=7, ImageLength=11)
    picture = decode(saved(np.zeros((11, 7, 3), np.uint8), "JPEG", exif=block))
    assert (picture.width, picture.height) == (11, 7)
    larger = resized(picture, 28, 44)
    content = encode(larger, format)
    assert THUMBNAIL not in content
    again = Image.open(io.BytesIO(content)).getexif()
    inside = again.get_ifd(0x8769)
    assert again[0x010F] == "Maker"
    assert inside[0x9003] == "2020:01:02 03:04:05"
    assert again.get(0x0112, 1) == 1
    assert (inside[0xA002], inside[0xA003]) == (44, 28)
    assert (again[0x011A], again[0x011B]) == (1200, 1200)  # as large on paper as before
    assert (again.get(0x0100, 44), again.get(0x0101, 28)) == (44, 28)


def test_a_size_that_needs_more_bits_gets_them() -> None:
    from srgan.pictures.metadata import fitted_exif

    fitted = fitted_exif(exif(), 70_000, 70_001, None)
    block = Image.Exif()
    block.load(fitted)
    assert block.get_ifd(0x8769)[0xA002] == 70_001
    assert len(fitted) == len(exif())


@pytest.mark.parametrize("format", ["jpg", "png", "webp", "avif", "tiff"])
def test_xmp_is_kept_and_true(format: str) -> None:
    picture = decode(saved(np.zeros((11, 7, 3), np.uint8), "WEBP", xmp=XMP, exif=exif(Orientation=1)))
    again = decode(encode(resized(picture, 44, 28), format))
    assert b'tiff:Orientation="1"' in again.xmp
    assert b'exif:PixelXDimension="28"' in again.xmp
    assert b"<tiff:ImageWidth>28</tiff:ImageWidth>" in again.xmp
    assert b"Somebody" in again.xmp
    assert b"Thumbnails" not in again.xmp


@pytest.mark.parametrize("format", ["jpg", "png", "tiff", "bmp", "webp", "avif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_size_on_paper_stays(format: str, dtype: type) -> None:
    picture = Picture(np.zeros((12, 10, 3), dtype), dpi=(300, 150))
    again = decode(encode(resized(picture, 24, 40), format))
    assert again.dpi == pytest.approx((1200, 300), rel=1e-3)


def test_resolution_turns_with_the_picture() -> None:
    block = exif(Orientation=6)
    for format, options in (("JPEG", {"dpi": (300, 150)}), ("TIFF", {"dpi": (300, 150)})):
        assert decode(saved(smooth(), format, exif=block, **options)).dpi == pytest.approx((150, 300))


def test_texts_and_comments() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "A picture")
    info.add_itxt("Author", "Zoë 写真")
    picture = decode(saved(smooth(), "PNG", pnginfo=info))
    assert dict(picture.texts) == {"Title": "A picture", "Author": "Zoë 写真"}
    assert dict(decode(encode(picture, "png")).texts) == dict(picture.texts)
    assert any("texts" in words for words in losses(picture, "jpg"))
    deep_one = replace(picture, pixels=picture.pixels.astype(np.uint16) * 257)
    assert dict(decode(encode(deep_one, "png")).texts) == dict(picture.texts)
    for format in ("JPEG", "GIF"):
        commented = decode(saved(smooth(), format, comment=b"Hello"))
        assert commented.texts == (("Comment", "Hello"),)
        assert decode(encode(commented, commented.format)).texts == commented.texts


@pytest.mark.filterwarnings("ignore")
def test_what_is_too_large_for_jpeg_is_left_out_and_said() -> None:
    picture = Picture(smooth(), exif=exif() + bytes(70_000), xmp=XMP + b" " * 70_000)
    assert len(losses(picture, "jpg")) == 2
    again = decode(encode(picture, "jpg"))
    assert (again.exif, again.xmp) == (b"", b"")


def test_without_metadata_only_what_is_seen_is_left() -> None:
    picture = Picture(smooth(), icc=SRGB, exif=exif(), xmp=XMP, texts=(("a", "b"),), duration_ms=10)
    bare = replace(picture, further=(picture,)).without_metadata()
    for frame in bare.frames:
        assert (frame.exif, frame.xmp, frame.texts) == (b"", b"", ())
        assert (frame.icc, frame.duration_ms) == (SRGB, 10)


# Animations and pages


def frames(count: int = 3, clear: bool = False) -> list[np.ndarray]:
    """Plain frames of few colours; with a clear hole that moves."""
    made = []
    for index in range(count):
        frame = np.full((12, 16, 4 if clear else 3), 255, np.uint8)
        frame[..., :3] = [(200, 30, 40), (20, 180, 60), (30, 60, 210)][index % 3]
        frame[3:9, index : index + 6, :3] = (250, 250, 20)
        if clear:
            frame[:, 10 - index : 12 - index, 3] = 0
        made.append(frame.repeat(6, axis=0).repeat(6, axis=1))
    return made


def animation(format: str, plays: int, clear: bool = False) -> Picture:
    durations = (100, 250, 40)
    parts = [
        picture_of(frame, format=format, duration_ms=float(duration))
        for frame, duration in zip(frames(clear=clear), durations, strict=True)
    ]
    return replace(parts[0], plays=plays, further=tuple(parts[1:]))


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("plays", [0, 1, 3])
@pytest.mark.parametrize("format", ["gif", "png", "webp", "avif"])
def test_animations_play_as_before(format: str, plays: int, clear: bool) -> None:
    before = animation(format, plays, clear)
    content = encode(before, format)
    after = decode(content)
    assert after.is_animated
    assert [frame.duration_ms for frame in after.frames] == [100, 250, 40]
    assert after.plays == (0 if format == "avif" else plays)  # Pillow neither reads nor writes it there
    for one, other in zip(before.frames, after.frames, strict=True):
        assert (one.alpha is None) == (other.alpha is None)
        seen = np.ones(one.pixels.shape[:2], bool) if one.alpha is None else one.alpha > 0
        error = np.abs(one.pixels[seen].astype(int) - other.pixels[seen])
        assert error.mean() <= (0 if format in ("gif", "png") else 4)
        if one.alpha is not None and other.alpha is not None:
            assert np.abs(one.alpha.astype(int) - other.alpha).max() <= (0 if format in ("gif", "png") else 8)
    with Image.open(io.BytesIO(content)) as image:
        assert getattr(image, "n_frames", 1) == 3


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_frames_of_gif_come_as_they_are_seen(disposal: int) -> None:
    """Two small frames on a ground, written block by block with palettes of their own."""

    def block(left: int, top: int, width: int, height: int, colour: bytes, how: int) -> bytes:
        control = b"\x21\xf9\x04" + struct.pack(
            "<BHBB", how << 2 | 1, 5, 3, 0
        )  # colour 3, which none has, is clear
        place = b"," + struct.pack("<HHHHB", left, top, width, height, 0x80)
        codes = "100" + "".join(f"{0:03b}" + "100" for _ in range(width * height)) + "101"  # clear before each
        bits = "".join(code[::-1] for code in re.findall("...", codes))
        data = bytes(int(bits[i : i + 8].ljust(8, "0")[::-1], 2) for i in range(0, len(bits), 8))
        return control + place + colour + bytes(3) + b"\x02" + bytes([len(data)]) + data + b"\0"

    red, green, blue = b"\xff\0\0", b"\0\xff\0", b"\0\0\xff"
    content = b"GIF89a" + struct.pack("<HHBBB", 6, 4, 0, 0, 0)
    content += block(0, 0, 6, 4, red, 1) + block(0, 0, 3, 2, green, disposal) + block(3, 2, 3, 2, blue, 1) + b";"
    picture = decode(content)
    canvas = np.zeros((4, 6, 3), np.uint8)
    canvas[:] = (255, 0, 0)
    np.testing.assert_array_equal(picture.pixels, canvas)
    before = canvas.copy()
    canvas[:2, :3] = (0, 255, 0)
    np.testing.assert_array_equal(picture.further[0].pixels, canvas)
    last = picture.further[1]
    expected = before.copy() if disposal == 3 else canvas.copy()
    expected[2:, 3:] = (0, 0, 255)
    gone = np.zeros((4, 6), bool)
    gone[:2, :3] = disposal == 2
    if disposal == 2:
        assert last.alpha is not None
        np.testing.assert_array_equal(last.alpha == 0, gone)
    np.testing.assert_array_equal(last.pixels[~gone], expected[~gone])


@pytest.mark.parametrize("blend", [0, 1])
@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_frames_of_apng_come_as_they_are_seen(blend: int, disposal: int) -> None:
    def control(number: int, left: int, width: int) -> bytes:
        return png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, 2, left, 0, 1, 10, disposal, blend))

    def pixels(colour: tuple[int, ...], width: int) -> bytes:
        return zlib.compress((b"\0" + bytes(colour) * width) * 2)

    header = struct.pack(">IIBBBBB", 4, 2, 8, 6, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"acTL", struct.pack(">II", 3, 2))
    content += control(0, 0, 4) + png_chunk(b"IDAT", pixels((200, 0, 0, 255), 4))
    half = (0, 0, 200, 0)
    content += control(1, 0, 2) + png_chunk(b"fdAT", struct.pack(">I", 2) + pixels(half, 2))
    content += control(3, 2, 2) + png_chunk(b"fdAT", struct.pack(">I", 4) + pixels((0, 200, 0, 255), 2))
    content += png_chunk(b"IEND", b"")
    picture = decode(content)
    canvas = np.zeros((2, 4, 4), np.uint8)
    for frame, (colour, columns) in zip(
        picture.frames,
        [((200, 0, 0, 255), slice(0, 4)), (half, slice(0, 2)), ((0, 200, 0, 255), slice(2, 4))],
        strict=True,
    ):
        before = canvas.copy()
        if blend == 0 or colour[3]:
            canvas[:, columns] = colour
        seen = joined(frame if frame.alpha is not None else replace(frame, alpha=np.full((2, 4), 255, np.uint8)))
        np.testing.assert_array_equal(seen[..., 3], canvas[..., 3])
        np.testing.assert_array_equal(seen[canvas[..., 3] > 0], canvas[canvas[..., 3] > 0])
        if disposal == 1 or (disposal == 2 and frame is picture.frames[0]):
            canvas[:, columns] = 0
        elif disposal == 2:
            canvas = before
    assert (picture.plays, picture.duration_ms) == (2, 100)


def test_an_animation_counts_with_all_its_frames() -> None:
    content = encode(animation("gif", 0), "gif")
    assert len(decode(content, max_megapixels=3 * 36 * 192 / 1e6).frames) == 3
    with pytest.raises(PictureTooLargeError, match="in 3 frames"):
        decode(content, max_megapixels=2.9 * 36 * 192 / 1e6)


def test_pages_come_one_by_one_each_as_it_is() -> None:
    pages = (
        Picture(deep(3), icc=SRGB, dpi=(300, 300), format="tiff", exif=exif()),
        Picture(smooth(), format="tiff"),
        Picture(deep(1, 5, 6)[..., 0], deep(1, 5, 6, 1)[..., 0], format="tiff"),
    )
    content = encode(replace(pages[0], further=pages[1:]), "tiff")
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        assert [page.shape for page in file.pages] == [(13, 9, 3), (24, 32, 3), (5, 6, 2)]
        assert [getattr(page, "bitspersample", 0) for page in file.pages] == [16, 8, 16]
    again = decode(content)
    assert not again.is_animated
    for one, other in zip(pages, again.frames, strict=True):
        np.testing.assert_array_equal(joined(other), joined(one))
        assert (other.icc, other.dpi) == (one.icc, one.dpi)
    with pytest.raises(PictureTooLargeError):
        decode(content, max_megapixels=(13 * 9 + 24 * 32) / 1e6)


def test_small_copies_of_a_page_are_left_out_and_said() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(smooth(), photometric="rgb", metadata=None)
        writer.write(smooth()[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    picture = decode(buffer.getvalue())
    assert picture.further == ()
    assert picture.warnings == ("its reduced copies and masks were not kept",)


def test_gif_of_many_colours_stays_near() -> None:
    picture = Picture(smooth(96, 128), format="gif")
    again = decode(encode(picture, "gif"))
    assert np.abs(again.pixels.astype(int) - picture.pixels).mean() < 6
    ground = np.abs(again.pixels.mean((0, 1)) - picture.pixels.mean((0, 1)))
    assert ground.max() < 0.5


def test_libtiff_does_not_print(capfd: pytest.CaptureFixture[str]) -> None:
    content = saved(smooth(), "TIFF", compression="tiff_lzw")
    place = content.index(zlib.crc32(b"") and b"II*")
    for damage in range(place + 8, len(content) - 8, 37):
        bad = bytearray(content)
        bad[damage : damage + 4] = b"\xff\xff\xff\xff"
        try:
            decode(bytes(bad), max_megapixels=1)
        except PictureError:
            continue
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""


def test_heic_is_read_where_it_can_be() -> None:
    heif = pytest.importorskip("pillow_heif")
    made = heif.from_pillow(Image.fromarray(smooth(64, 96)))
    buffer = io.BytesIO()
    made.save(buffer, quality=90, exif=exif(Orientation=1), format="HEIF")
    picture = decode(buffer.getvalue())
    assert picture.format == "heic"
    assert np.abs(picture.pixels.astype(int) - smooth(64, 96)).mean() < 4
    assert picture.exif
    assert why_not(picture, "heic") == "HEIC is read but not written"


def test_heic_without_its_reader_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(PictureError, match="pip install pillow-heif"):
        decode(struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100))


# The table of docs/formats.md

COLUMNS: dict[str, Callable[[], Picture]] = {
    "16 bits": lambda: Picture(deep(3)),
    "transparency": lambda: Picture(smooth(), np.tile(np.arange(0, 256, 8, dtype=np.uint8), (24, 1))),
    "ICC": lambda: Picture(smooth(), icc=SRGB),
    "EXIF": lambda: Picture(smooth(), exif=exif()),
    "XMP": lambda: Picture(smooth(), xmp=XMP),
    "DPI": lambda: Picture(smooth(), dpi=(300, 300)),
    "animation": lambda: animation("png", 0),
    "pages": lambda: replace(Picture(smooth()), further=(Picture(smooth()),)),
}


def like_in_transparency(before: Picture, after: Picture) -> bool:
    assert before.alpha is not None
    assert after.alpha is not None
    return bool(np.abs(before.alpha.astype(int) - after.alpha).max() <= 6)


SURVIVES: dict[str, Callable[[Picture, Picture], bool]] = {
    "16 bits": lambda before, after: np.array_equal(before.pixels, after.pixels),
    "transparency": like_in_transparency,
    "ICC": lambda before, after: after.icc == before.icc,
    "EXIF": lambda before, after: bool(after.exif) and b"Maker" in after.exif,
    "XMP": lambda before, after: b"Somebody" in after.xmp,
    "DPI": lambda before, after: after.dpi is not None and abs(after.dpi[0] - 300) < 0.1,
    "animation": lambda before, after: after.is_animated and len(after.frames) == 3,
    "pages": lambda before, after: len(after.frames) == 2 and not after.is_animated,
}


def table() -> dict[str, dict[str, str]]:
    """The table of the documents: format to column to cell."""
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    rows = [line.strip("| \n").split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in row] for row in rows]
    start = next(index for index, row in enumerate(rows) if row[0] == "Format")
    heads = rows[start]
    found = {}
    for row in rows[start + 1 :]:
        if len(row) == len(heads) and not set(row[0]) <= {"-"}:
            found[row[0]] = dict(zip(heads[1:], row[1:], strict=True))
    return found


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("format", FORMATS)
def test_the_table_of_the_documents_is_true(format: str, column: str) -> None:
    before = COLUMNS[column]()
    if why_not(before, format):
        truth = "refused"
        with pytest.raises(PictureError):
            encode(before, format)
    else:
        after = decode(encode(before, format))
        told = set(losses(before, format)) - set(losses(Picture(smooth()), format))
        truth = "yes" if SURVIVES[column](before, after) else "told"
        assert bool(told) == (truth == "told"), told
    assert table()[FORMATS[format].pillow.replace("PPM", "PPM, PGM")][column] == truth


def test_the_table_has_no_other_rows_or_columns() -> None:
    assert {name.split(",")[0] for name in table()} == {format.pillow for format in FORMATS.values()}
    assert all(set(row) == set(COLUMNS) for row in table().values())
