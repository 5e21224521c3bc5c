"""What metadata may not do: cost more than its size, or the picture that it came with."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from support import hostile
from support.hostile import camera_exif, jpeg_with

from srgan.errors import PictureError
from srgan.pictures import Picture, decode, encode, losses, metadata


@pytest.mark.timeout(20)
def test_thumbnails_without_an_end_are_looked_for_once() -> None:
    """Each anew would take this for hours."""
    endless = b"<xmp:Thumbnails" * 100_000
    assert metadata.fitted_xmp(endless, 1, 1, None) == endless
    closed = b"a<xmp:Thumbnails>1</xmp:Thumbnails>b<xmp:Thumbnails x='1'>\n2</xmp:Thumbnails>c"
    assert metadata.fitted_xmp(closed + endless, 1, 1, None) == b"abc" + endless


def thumbnail_link(block: bytes) -> tuple[str, int]:
    """The byte order of a block and the place of its second directory, both in the block itself."""
    order = "<" if block[6:8] == b"II" else ">"
    first = 6 + struct.unpack_from(order + "L", block, 10)[0]
    link = first + 2 + 12 * struct.unpack_from(order + "H", block, first)[0]
    return order, 6 + struct.unpack_from(order + "L", block, link)[0]


@pytest.mark.parametrize("start", [0, 4, 8, 10, 60])
@pytest.mark.parametrize("size", [1, 40, 2**31, 2**32 - 1])
def test_a_thumbnail_that_lies_among_the_tags_takes_no_tag_away(start: int, size: int) -> None:
    block = bytearray(camera_exif())
    order, second = thumbnail_link(bytes(block))
    struct.pack_into(order + "L", block, second + 2 + 12 + 8, start)
    struct.pack_into(order + "L", block, second + 2 + 24 + 8, size)
    with pytest.raises(ValueError, match="tags lie"):
        metadata.fitted_exif(bytes(block), 48, 64, (72.0, 72.0))


def test_a_thumbnail_is_still_taken_out() -> None:
    block = camera_exif()
    fitted = metadata.fitted_exif(block, 48, 64, None)
    assert b"\xff\xd8" in block
    assert b"\xff\xd8" not in fitted


def test_a_resolution_that_is_a_text_costs_the_exif_alone() -> None:
    block = bytearray(camera_exif())
    order = "<" if block[6:8] == b"II" else ">"
    tag = block.index(struct.pack(order + "HHL", 0x011A, 5, 1))
    struct.pack_into(order + "HL4s", block, tag + 2, 2, 2, b"5")
    picture = decode(jpeg_with((0xE1, bytes(block))))
    assert (picture.width, picture.exif) == (64, b"")
    assert picture.warnings == ("its EXIF data is damaged and was not kept",)
    with pytest.raises(PictureError, match="not a picture"):
        decode(b"\xff\xd8\xff\xe1\0\x08Exif\0\0" + bytes(100))


def test_values_that_lie_among_the_tags_are_not_written_there() -> None:
    for start in (0, 4, 10, 30):
        block = bytearray(camera_exif())
        order = "<" if block[6:8] == b"II" else ">"
        tag = block.index(struct.pack(order + "HHL", 0x011A, 5, 1))
        struct.pack_into(order + "L", block, tag + 8, start)
        with pytest.raises(ValueError, match="tags lie"):
            metadata.fitted_exif(bytes(block), 48, 64, (300.0, 300.0))


def test_exif_that_cannot_be_rewritten_is_told() -> None:
    block = bytearray(camera_exif())
    order = "<" if block[6:8] == b"II" else ">"
    tag = block.index(struct.pack(order + "HHL", 0x011B, 5, 1))
    struct.pack_into(order + "HL4s", block, tag + 2, 2, 2, b"x")
    picture = decode(jpeg_with((0xE1, bytes(block))))
    assert picture.exif
    assert losses(picture, "jpg") == ()
    for format in ("tiff", "avif"):
        assert "damaged" in losses(picture, format)[0]
        assert decode(encode(picture, format)).width == picture.width


@pytest.mark.parametrize("format", ["png", "jpg", "tiff", "webp", "avif"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_costs_no_result(format: str) -> None:
    """It has been through an upscaling by then."""
    block = camera_exif()
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(block)
        for place in generator.integers(6, 220, 3):
            damaged[place] = generator.integers(0, 256)
        encode(decode(jpeg_with((0xE1, bytes(damaged)))), format)
    for exif in (hostile.exif_looping(), hostile.exif_sharing(2000, 60_000)):
        encode(Picture(np.zeros((4, 4), np.uint8), exif=b"Exif\0\0" + exif), format)
