"""What files say by code points alone (nclx, cICP) is kept, as a profile where that is the way, or told."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from srgan.pictures import FORMATS, Picture, decode, encode, losses
from srgan.pictures.formats import bitstreams, boxes

# Display P3 to sRGB, both linear (CSS Color 4, section 17).
P3_TO_SRGB = [[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]]
WITHIN_BOTH = (200, 120, 90)


def pixels() -> np.ndarray:
    return np.full((16, 24, 3), WITHIN_BOTH, np.uint8)


def png(primaries: int, transfer: int, levels: np.ndarray | None = None) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add(b"cICP", bytes([primaries, transfer, 0, 1]))
    buffer = io.BytesIO()
    Image.fromarray(pixels() if levels is None else levels).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def avif(primaries: int, transfer: int, frames: int = 1) -> bytes:
    """What Pillow writes, with these code points in place of its own."""
    buffer = io.BytesIO()
    images = [Image.fromarray(pixels() + index) for index in range(frames)]
    images[0].save(buffer, "AVIF", save_all=frames > 1, append_images=images[1:], duration=100)
    before = b"colrnclx" + struct.pack(">HH", 1, 13)
    assert before in buffer.getvalue()
    return buffer.getvalue().replace(before, b"colrnclx" + struct.pack(">HH", primaries, transfer))


def srgb_by_formula(levels: tuple[int, ...]) -> np.ndarray:
    encoded = np.array(levels) / 255
    linear: np.ndarray = P3_TO_SRGB @ np.where(
        encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4
    )
    return 255 * np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


def srgb_by_profile(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        mode = "L" if image.mode == "L" else "RGB"
        converted = ImageCms.profileToProfile(
            image.convert(mode), profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    assert converted is not None
    seen: np.ndarray = np.asarray(converted)[8, 8]
    return seen


@pytest.mark.parametrize("source", [png(12, 13), avif(12, 13), avif(12, 13, 2)], ids=["png", "avif", "animation"])
def test_display_p3_is_kept_by_code_points_or_as_a_profile(source: bytes) -> None:
    picture = decode(source)
    animated = picture.is_animated
    assert picture.warnings == ()
    assert picture.icc is None
    content = encode(picture, "avif")
    assert b"colrnclx" + struct.pack(">HH", 12, 13) in content
    assert b"colrnclx" + struct.pack(">HH", 1, 13) not in content
    assert b"cICP" + bytes([12, 13, 0, 1]) in encode(picture, "png")
    for format in ("webp",) if animated else ("jpg", "webp", "tiff"):
        assert losses(picture, format) == ()
        np.testing.assert_allclose(srgb_by_profile(encode(picture, format)), srgb_by_formula(WITHIN_BOTH), atol=4)
    for format in ("gif",) if animated else ("gif", "bmp", "ppm"):
        assert any("Display P3" in words for words in losses(picture, format))


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_kept_or_told(transfer: int, name: str) -> None:
    for source in (png(9, transfer), avif(9, transfer)):
        picture = decode(source)
        assert b"cICP" + bytes([9, transfer, 0, 1]) in encode(picture, "png")
        assert b"colrnclx" + struct.pack(">HH", 9, transfer) in encode(picture, "avif")
        for format in set(FORMATS) - {"png", "avif"}:
            assert any(f"BT.2020 with {name}" in words for words in losses(picture, format))


def with_stream_alone(content: bytes, primaries: int, transfer: int) -> bytes:
    """A file of Pillow's without boxes for colours, with these in its stream, where they lie across bytes."""
    start = content.index(b"mdat") + 4
    bits = bin(int.from_bytes(b"\1" + content[start : start + 40]))[3:]
    before, after = (f"{1:b}{p:08b}{t:08b}{6:08b}" for p, t in ((1, 13), (primaries, transfer)))
    assert bits.count(before) == 1
    stream = int(bits.replace(before, after), 2).to_bytes(40)
    return content[:start].replace(b"colrnclx", b"freenclx") + stream + content[start + 40 :]


@pytest.mark.parametrize("frames", [1, 2])
def test_colours_that_the_stream_alone_tells_are_kept(frames: int) -> None:
    for code_points in ((12, 13), (9, 16), (9, 18)):
        picture = decode(with_stream_alone(avif(1, 13, frames), *code_points))
        assert picture.png_colour == ((b"cICP", bytes([*code_points, 0, 1])),)
    assert decode(with_stream_alone(avif(1, 13, frames), 1, 13)).png_colour == ()


@pytest.mark.parametrize("options", [{}, {"x265:scaling-list": "default"}, {"x265:sar": "3:2"}, {"chroma": "444"}])
def test_colours_that_the_stream_of_a_heic_file_alone_tells_are_kept(options: dict[str, str]) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    levels = np.random.default_rng(0).integers(0, 256, (70, 66, 3), np.uint8)
    for primaries, transfer in ((12, 13), (9, 16), (9, 18)):
        buffer = io.BytesIO()
        points = {"color_primaries": primaries, "transfer_characteristics": transfer, "enc_params": options}
        Image.fromarray(levels).save(buffer, "HEIF", matrix_coefficients=1, full_range_flag=1, **points)
        content = buffer.getvalue().replace(b"colrnclx", b"freenclx")
        assert decode(content).png_colour == ((b"cICP", bytes([primaries, transfer, 0, 1])),)


def test_streams_say_what_the_boxes_of_others_files_do(shared: Path) -> None:
    """By encoders of several makers, of 10 bits, in grids, and with gain maps."""
    paths = [*(shared / "corpora" / "valid").rglob("*.avif"), shared / "repro" / "nclx-p3.heic"]
    told = 0
    for path in paths:
        content = path.read_bytes()
        by_box, by_stream = boxes.colours(content), bitstreams.colours(content)
        if by_box and by_stream:
            assert by_box == by_stream, path
            told += by_box not in ((1, 13), (2, 2))
    assert told >= 4


def test_streams_cut_anywhere_say_nothing_wrong() -> None:
    content = with_stream_alone(avif(1, 13), 12, 13)
    for length in range(len(content)):
        assert bitstreams.colours(content[:length]) in (None, (12, 13))


def test_srgb_and_the_unsaid_need_no_word() -> None:
    for code_points in ((1, 13), (2, 2), (1, 2), (2, 13)):
        picture = decode(avif(*code_points))
        assert picture.png_colour == ()
        assert losses(picture, "jpg") == ()


def test_greys_get_a_profile_of_greys() -> None:
    picture = decode(png(12, 8, np.full((16, 24), 60, np.uint8)))  # linear light
    assert picture.is_grey
    expected = 255 * (1.055 * (60 / 255) ** (1 / 2.4) - 0.055)
    for format in ("jpg", "tiff"):
        np.testing.assert_allclose(srgb_by_profile(encode(picture, format)), expected, atol=2)


@pytest.mark.parametrize("primaries", [1, 5, 6, 7, 9, 11, 12, 22])
@pytest.mark.parametrize("transfer", [1, 4, 5, 6, 8, 13, 14, 15])
def test_white_stays_white(primaries: int, transfer: int) -> None:
    picture = Picture(
        np.full((16, 16, 3), 255, np.uint8), png_colour=((b"cICP", bytes([primaries, transfer, 0, 1])),)
    )
    np.testing.assert_allclose(srgb_by_profile(encode(picture, "tiff")), 255, atol=1)


@pytest.mark.parametrize("name", ["nclx-p3.avif", "nclx-p3.heic"])
def test_the_files_that_lost_their_colours(name: str, shared: Path) -> None:
    path = shared / "repro" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    if path.suffix == ".heic":
        pytest.importorskip("pillow_heif")
    assert b"cICP" + bytes([12, 13, 0, 1]) in encode(decode(path), "png")


def test_brightness_of_the_master_stays_in_png_and_is_told_elsewhere() -> None:
    bodies = {b"mDCV": bytes(range(24)), b"cLLI": bytes(range(8))}
    source = png(9, 16)
    chunks = b"".join(
        struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))
        for name, body in bodies.items()
    )
    picture = decode(source[:33] + chunks + source[33:])
    content = encode(picture, "png")
    assert all(name + body in content for name, body in bodies.items())
    assert any("mDCV" in words for words in losses(picture, "avif"))


@pytest.mark.parametrize(("plays", "segments"), [(0, None), (1, 1), (3, 3)])
def test_the_number_of_plays_is_read_and_its_loss_told(plays: int, segments: int | None) -> None:
    content = bytearray(avif(1, 13, 3))
    if segments:  # the track's duration against that of its edit list, as libavif writes and reads it
        track, edit = content.index(b"tkhd") + 4, content.index(b"elst") + 4
        (once,) = struct.unpack_from(">Q", content, edit + 8)
        struct.pack_into(">Q", content, track + 28, once * segments)
    picture = decode(bytes(content))
    assert picture.plays == plays
    assert any("3 times" in words for words in losses(picture, "avif")) == (plays == 3)
    assert decode(encode(picture, "png")).plays == plays
