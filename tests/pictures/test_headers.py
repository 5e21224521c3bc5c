"""What a file promises, read from its first bytes."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import hostile
from support.hostile import chunk, jpeg_of_scans, jpeg_with, photo, png, saved

from srgan.errors import PictureError, PictureTooLargeError
from srgan.pictures.guarded import headers
from srgan.pictures.guarded.headers import Header, Limits, read_header, refuse


def header(content: bytes, max_scans: int = 100) -> Header:
    found = read_header(io.BytesIO(content), max_scans=max_scans)
    assert found is not None
    return found


ORDINARY = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True, "quality": 95}),
    ("JPEG", {"restart_marker_blocks": 2, "comment": b"\xff\xda" * 500, "exif": b"Exif\0\0II*\0"}),
    ("PNG", {"exif": b"Exif\0\0II*\0"}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"exif": b"Exif\0\0II*\0", "icc_profile": b"profile"}),
]


@pytest.mark.parametrize(("format", "options"), ORDINARY)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_ordinary_photographs_are_known(format: str, options: dict[str, Any], mode: str) -> None:
    found = header(saved(photo(301, 407).convert(mode), format, **options))
    assert (found.width, found.height) == (407, 301)
    assert found.ordinary
    assert not found.truncated


def test_transparency_is_ordinary() -> None:
    image = photo()
    image.putalpha(100)
    for format, lossless in [("PNG", False), ("WEBP", False), ("WEBP", True)]:
        found = header(saved(image, format, lossless=lossless))
        assert (found.width, found.height, found.ordinary) == (64, 48, True)


@pytest.mark.parametrize("filling", [b"\xff\xfe\x00\x02", b"\xff\x01"])
def test_a_jpeg_of_countless_markers_is_for_the_guarded_process(filling: bytes) -> None:
    """Only its first markers are looked at, so it takes no longer however large it is."""
    content = saved(photo(), "JPEG", progressive=True)
    assert header(content).scans > 1
    scan = content.index(b"\xff\xda")
    stuffed = content[:scan] + content[scan : scan + 20] + filling * 100_000 + content[scan:]
    file = io.BytesIO(stuffed)
    assert read_header(file, max_scans=100) is None
    assert header(content[:scan] + content[scan : scan + 20] + filling * 5000 + content[scan:]).scans > 1


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animations_are_not_ordinary(format: str) -> None:
    content = saved(photo(), format, save_all=True, append_images=[photo(48, 64).rotate(90)])
    found = header(content)
    assert (found.width, found.height, found.ordinary) == (64, 48, False)


@pytest.mark.parametrize("format", ["TIFF", "BMP", "PPM", "AVIF", "GIF", "TGA", "JPEG2000"])
def test_other_formats_are_not_judged(format: str) -> None:
    assert read_header(io.BytesIO(saved(photo(), format)), max_scans=100) is None


@pytest.mark.parametrize("count", [10, 40, 100, 101, 300])
def test_scans_are_counted_to_the_limit(count: int) -> None:
    assert header(jpeg_of_scans(count)).scans == min(count, 101)


def test_scans_of_a_sequential_jpeg_are_counted_if_they_are_several() -> None:
    content = bytearray(jpeg_of_scans(30))
    frame = next(start for marker, start, _ in hostile.segments(bytes(content)) if marker == 0xC2)
    content[frame + 1] = 0xC0
    scan = next(start for marker, start, _ in hostile.segments(bytes(content)) if marker == 0xDA)
    assert content[scan + 4] == 3
    assert header(bytes(content)).scans == 1  # all three components at once: the decoder reads no further
    content[frame + 9] = 4
    assert header(bytes(content)).scans == 30


def test_scans_are_counted_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg_of_scans(20) + jpeg_of_scans(50)  # the second picture is nobody's business
    for piece_bytes in [*range(1, 12), 997]:
        monkeypatch.setattr(headers, "_PIECE_BYTES", piece_bytes)
        assert header(content).scans == 20


def test_marker_bytes_inside_a_segment_between_scans_are_no_scans() -> None:
    content = jpeg_of_scans(12)
    starts = [start for marker, start, _ in hostile.segments(content) if marker == 0xDA]
    comment = b"\xff\xfe\x01\x02" + b"\xff\xda" * 128
    assert header(content[: starts[5]] + comment + content[starts[5] :]).scans == 12


def test_a_short_file_cannot_hold_a_large_picture() -> None:
    assert header(hostile.jpeg_claiming(13_000, 13_000)).truncated
    assert header(hostile.jpeg_claiming(13_000, 13_000, progressive=True)).truncated
    assert header(hostile.bare_png(16_000, 12_000, bytes(99))).truncated


@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {"quality": 1, "optimize": True}), ("JPEG", {"progressive": True, "quality": 1}), ("PNG", {})],
)
def test_a_flat_picture_is_no_short_one(format: str, options: dict[str, Any]) -> None:
    """The barest that encoders make of the most pixels."""
    found = header(saved(Image.new("L", (4000, 3000), 128), format, **options))
    assert not found.truncated
    assert header(saved(Image.new("1", (5000, 5000)), "PNG", compress_level=9)).truncated is False


def test_many_scans_of_many_pixels_are_not_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg_of_scans(99, 128)
    assert header(content).ordinary
    monkeypatch.setattr(headers, "_ORDINARY_SCAN_MEGAPIXELS", 1)
    assert not header(content).ordinary


def test_what_is_odd_is_not_ordinary() -> None:
    exif = (0xE1, b"Exif\0\0" + bytes(100))
    odd = {
        "CMYK": saved(photo().convert("CMYK"), "JPEG"),
        "two EXIF blocks": jpeg_with(exif, exif),
        "large EXIF": png(chunk(b"eXIf", bytes(70_000))),
        "much metadata": png(chunk(b"prVt", bytes(9 << 20))),
        "many chunks of metadata": png(*[chunk(b"tEXt", b"a\0b")] * 200),
        "no end": saved(photo(), "PNG")[:-12] + chunk(b"IDAT", b"") * 20_000 + chunk(b"IEND", b""),
        "one colour": saved(Image.new("RGB", (4000, 4000)), "WEBP", lossless=True),
    }
    assert {name for name, content in odd.items() if header(content).ordinary} == set()
    for content in (
        b"\xff\xd8" + b"\xff" * 100 + saved(photo(), "JPEG")[2:],
        jpeg_with((0xC0, bytes(20))),
        jpeg_with(*[(0xFE, b"")] * 1001),
    ):
        assert read_header(io.BytesIO(content), max_scans=100) is None


def test_more_than_the_limits_is_refused_by_name() -> None:
    limits = Limits(max_megapixels=2.0, max_side_px=5000, max_scans=100, max_frames=3)
    refuse(Header(2000, 1000), "x.png", limits)
    refuse(Header(500, 1000, frames=3), "x.gif", limits)
    for found, error, reason in [
        (Header(2001, 1000), PictureTooLargeError, r"^x\.png: 2001x1000 pixels .* 2 megapixels"),
        (Header(1, 5001), PictureTooLargeError, "5000 pixels a side"),
        (Header(1000, 1000, frames=3), PictureTooLargeError, "1000x1000 pixels in 3 frames .* 2 megapixels"),
        (Header(10, 10, frames=4), PictureTooLargeError, "4 frames are more than the limit of 3"),
        (Header(10, 10, scans=101), PictureTooLargeError, "more than 100 scans"),
        (Header(10, 10, truncated=True), PictureError, "incomplete: too short for 10x10"),
    ]:
        with pytest.raises(error, match=reason):
            refuse(found, "x.png", limits)


SEEDS = [saved(photo(), format) for format in ("JPEG", "PNG", "WEBP")] + [
    jpeg_of_scans(12),
    saved(photo(), "WEBP", exif=hostile.exif_looping()),
    png(chunk(b"eXIf", hostile.exif_looping())),
]


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    st.integers(0, 10**6),
)
def test_damaged_bytes_never_raise(seed: bytes, changes: list[tuple[int, int]], length: int) -> None:
    content = bytearray(seed)
    for position, value in changes:
        content[position % min(len(content), 200)] = value
    if length % 2:
        del content[length % len(content) :]
    read_header(io.BytesIO(bytes(content)), max_scans=100)


@given(st.sampled_from([seed[:12] for seed in SEEDS]), st.binary(max_size=400))
def test_junk_behind_a_signature_never_raises(signature: bytes, junk: bytes) -> None:
    read_header(io.BytesIO(signature + junk), max_scans=100)


def test_every_half_is_judged_without_an_error() -> None:
    for seed, cut in itertools.product(SEEDS, range(0, 1200, 7)):
        read_header(io.BytesIO(seed[:cut]), max_scans=100)
