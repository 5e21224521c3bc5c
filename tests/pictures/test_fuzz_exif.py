"""EXIF blocks of any kind, in the files that carry them: none costs a good picture, and what goes is told."""

from __future__ import annotations

import functools
import io
import random
import struct
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from support.hostile import camera_exif, exif_looping, exif_sharing

from srgan.pictures import Picture, decode, encode, losses

pytestmark = pytest.mark.filterwarnings("ignore")

# No side as long as another after a turn; of one colour a block, so that lossy formats keep it.
LEVELS = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)

# Those that are read, moved or scaled, those that lead to others, and one that nobody knows.
TAGS: tuple[int, ...] = (0x0112, 0x011A, 0x011B, 0x0128, 0x0100, 0x010E, 0x8769, 0x8825, 0xA005, 0x927C)
TAGS += (0x9214, 0xA214, 0xA20E, 0xA20F, 0xA210, 0xA002, 0xA003, 0x0201, 0x0202, 0xFDE8)
EXTREMES = (0, 1, 2, 3, 6, 8, 9, 26, 255, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)


def block(chance: random.Random) -> bytes:
    """Directories of any tags, types, counts and values, which may lead anywhere; or a camera's with odd bytes."""
    if chance.random() < 0.3:
        content = bytearray(camera_exif())
        for _ in range(chance.randint(1, 6)):
            content[chance.randrange(6, len(content))] = chance.choice([0, 1, 127, 255, chance.randrange(256)])
        return bytes(content)
    order = chance.choice("<>")
    content = bytearray((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8))
    for _ in range(chance.randint(1, 3)):
        count = chance.randint(0, 6)
        content += struct.pack(order + "H", chance.choice([count, count, count, 0xFFFF]))
        for _ in range(count):
            kind, number = chance.choice([1, 2, 3, 3, 4, 4, 5, 5, 7, 9, 12, 0, 200]), chance.choice([1, 1, 2, 4])
            content += struct.pack(
                order + "HHL", chance.choice(TAGS), kind, chance.choice([number, *EXTREMES[:10]])
            )
            value = chance.choice([*EXTREMES, chance.randrange(200)])
            content += (
                struct.pack(order + "HH", value % 2**16, 0) if kind == 3 else struct.pack(order + "L", value)
            )
        content += struct.pack(order + "L", chance.choice([0, 0, 8, len(content), 2**31]))
    content += chance.randbytes(chance.choice([0, 40]))
    return b"Exif\0\0" + bytes(content[: chance.choice([None, None, None, chance.randrange(len(content))])])


@functools.cache
def carrier(format: str) -> tuple[bytes, np.ndarray]:
    """A file with a placeholder for its block, and its pixels."""
    content = with_exif(format, b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    return content, decode(content).pixels


def with_exif(format: str, exif: bytes) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"WEBP": {"lossless": True}}.get(format, {})
    Image.fromarray(LEVELS).save(buffer, format, exif=exif, **options)
    return buffer.getvalue()


def turns(pixels: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(side, turn) for side in (pixels, pixels[:, ::-1]) for turn in range(4)]


def check(format: str, exif: bytes) -> None:
    picture = decode(with_exif(format, exif))
    assert any(np.array_equal(picture.pixels, turned) for turned in turns(carrier(format)[1]))
    told = any("EXIF" in words for words in picture.warnings)
    assert picture.exif or told or not exif.removeprefix(b"Exif\0\0")
    larger = Picture(
        np.asarray(picture.pixels).repeat(2, axis=0).repeat(2, axis=1),
        **{name: getattr(picture, name) for name in ("exif", "dpi", "xmp", "read_size")},
    )
    for target in ("jpg", "png", "webp", "avif", "tiff"):
        content = encode(larger, target)
        with Image.open(io.BytesIO(content)) as image:
            assert image.size == (larger.width, larger.height)
        assert decode(content).pixels.shape == larger.pixels.shape
        if target in ("jpg", "png", "webp"):  # carried along as it was; the others are made anew
            with Image.open(io.BytesIO(content)) as image:
                assert orientation(image) == 1
                assert image.info.get("exif") or not picture.exif or losses(larger, target)


def orientation(image: Image.Image) -> object:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (ValueError, SyntaxError, struct.error, OSError, TypeError, ArithmeticError, LookupError):
        return 1
    return value if value in range(1, 9) else 1


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_no_block_costs_a_picture(format: str) -> None:
    for seed in range(25):
        check(format, block(random.Random(seed)))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II",
        b"Exif\0\0" + exif_looping(),
        b"Exif\0\0" + exif_sharing(100, 20_000),
        b"Exif\0\0" + bytes(60),
    ],
    ids=["empty", "two bytes", "to itself", "shared", "zeros"],
)
def test_blocks_of_no_use(format: str, exif: bytes) -> None:
    check(format, exif)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_no_block_of_many_costs_a_picture(format: str) -> None:
    for seed in range(100, 600):
        check(format, block(random.Random(seed)))
