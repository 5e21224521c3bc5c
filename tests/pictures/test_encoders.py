"""Encoders: what crashes them costs one file, and no orientation reaches them."""

from __future__ import annotations

import contextlib
import io
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from srgan.errors import PictureError
from srgan.pictures import FORMATS, Picture, decode, encode, guarded, why_not
from srgan.pictures.guarded import GuardedDecoder, process

# A worker whose encoder dies on pictures of one pixel.
FRAGILE = f"""
import os
{process.START.removesuffix("serve()")}
from srgan import pictures
honest = pictures.encode
def fragile(picture, format, **options):
    return os.abort() if picture.pixels.size == 1 else honest(picture, format, **options)
pictures.encode = fragile
serve()
"""


def tiff_block(*entries: tuple[int, int, int, int], order: str = ">") -> bytes:
    """An EXIF block of one directory, (tag, type, count, value) each; behind it one with an orientation of 6."""
    directory = b"".join(
        struct.pack(order + "HHLHH", tag, kind, count, value, 0)
        if kind == 3
        else struct.pack(order + "HHLL", tag, kind, count, value)
        for tag, kind, count, value in entries
    )
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "LH", 8, len(entries))
    further = struct.pack(order + "H", 1) + struct.pack(order + "HHLHH", ORIENTATION, 3, 1, 6, 0) + bytes(4)
    return b"Exif\0\0" + head + directory + bytes(4) + further


ORIENTATION, EXIF_OFFSET = 0x0112, 0x8769
DOUBLED = [
    tiff_block((ORIENTATION, 3, 1, 6), (ORIENTATION, 3, 1, 6)),
    tiff_block((ORIENTATION, 3, 1, 6), (ORIENTATION, 3, 1, 6), order="<"),
    tiff_block((ORIENTATION, 3, 1, 6), (EXIF_OFFSET, 4, 1, 8 + 2 + 2 * 12 + 4)),
]


def levels(seed: int = 0, height: int = 24, width: int = 16) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def animation(**parts: object) -> Picture:
    frames = [Picture(levels(seed), duration_ms=100.0) for seed in range(3)]
    return replace(frames[0], further=tuple(frames[1:]), **parts)  # type: ignore[arg-type]


def orientations(content: bytes) -> set[int]:
    """All orientations that an EXIF block tells, entry by entry, in any directory reached by a link in another."""
    block = content.removeprefix(b"Exif\0\0")
    order = ">" if block[:2] == b"MM" else "<"
    todo, found = list(struct.unpack_from(order + "L", block, 4)), set()
    while todo:
        start = todo.pop()
        for place in range(start + 2, start + 2 + 12 * struct.unpack_from(order + "H", block, start)[0], 12):
            tag, _, _, value = struct.unpack_from(order + "HHLL", block, place)
            if tag == ORIENTATION:
                found.add(struct.unpack_from(order + "H", block, place + 8)[0])
            elif tag == EXIF_OFFSET:
                todo.append(value)
    return found


def turned(image: np.ndarray) -> np.ndarray:
    """By orientation 6: the first row of the file is the right side of the picture."""
    return np.rot90(image, -1)


@pytest.mark.parametrize("block", DOUBLED)
@pytest.mark.parametrize("format", ["jpg", "png", "webp", "avif", "tiff"])
def test_a_picture_is_turned_once_however_often_its_orientation_is_told(format: str, block: bytes) -> None:
    buffer = io.BytesIO()
    Image.fromarray(levels()).save(buffer, "PNG", exif=block)
    picture = decode(buffer.getvalue())
    np.testing.assert_array_equal(picture.pixels, turned(levels()))
    assert orientations(picture.exif) == {1}
    content = encode(picture, format)
    with Image.open(io.BytesIO(content)) as image:
        if format not in ("avif", "tiff"):  # there it is made anew, without
            assert orientations(image.info["exif"]) == {1}
        assert image.getexif().get(ORIENTATION, 1) == 1
        assert image.getexif().get_ifd(EXIF_OFFSET).get(ORIENTATION, 1) == 1
    np.testing.assert_allclose(decode(content).pixels.astype(int), picture.pixels, atol=40)


@pytest.mark.parametrize("format", ["png", "webp", "avif"])
def test_all_frames_of_an_animation_are_turned(format: str) -> None:
    frames = [Image.fromarray(levels(seed)) for seed in range(3)]
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    buffer = io.BytesIO()
    options: dict[str, Any] = {"append_images": frames[1:], "duration": 100, "exif": exif.tobytes()}
    frames[0].save(buffer, "PNG" if format == "avif" else format, save_all=True, lossless=True, **options)
    picture = decode(buffer.getvalue())
    if format == "avif":  # no sequence with an orientation can be made: Pillow's encoder crashes
        picture = decode(encode(picture, "avif"))
    assert [frame.duration_ms for frame in picture.frames] == [100, 100, 100]
    for seed, frame in enumerate(picture.frames):
        error = np.abs(frame.pixels.astype(int) - turned(levels(seed))).mean()
        assert error <= (3 if format == "avif" else 0)


@pytest.mark.parametrize("format", ["png", "webp", "avif"])
@pytest.mark.parametrize("block", DOUBLED)
def test_no_orientation_reaches_an_encoder(format: str, block: bytes) -> None:
    """Also from who made a picture by hand. The encoder of AVIF sequences would take the process with it."""
    content = guarded.encode(animation(exif=block), format)
    with Image.open(io.BytesIO(content)) as image:
        assert getattr(image, "n_frames", 1) == 3
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_the_animation_that_crashed_is_made(shared: Path) -> None:
    path = shared / "repro" / "avif-segfault.webp"
    if not path.exists():
        pytest.skip(f"no {path}")
    picture = guarded.decode(path)
    assert len(decode(guarded.encode(picture, "avif")).frames) == len(picture.frames)


def test_a_crash_of_an_encoder_costs_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START", FRAGILE)
    with GuardedDecoder(max_workers=1) as coder:
        with pytest.raises(PictureError, match=r"^as AVIF: crashes its encoder .Abort"):
            coder.encode(Picture(np.zeros((1, 1), np.uint8)), "avif")
        assert coder.crashes == 1
        assert decode(coder.encode(Picture(levels()), "avif")).format == "avif"
        assert coder.crashes == 1


@pytest.mark.parametrize("format", ["avif", "webp"])
def test_a_guarded_encoder_gives_what_the_encoder_gives(format: str) -> None:
    picture = animation(exif=DOUBLED[0], xmp=b"<x/>", dpi=(72.0, 72.0))
    by_worker, here = guarded.encode(picture, format, quality=50), encode(picture, format, quality=50)
    if format == "avif":  # whose frames say in seconds when they were made
        assert len(by_worker) == len(here)
        for frame, other in zip(decode(by_worker).frames, decode(here).frames, strict=True):
            np.testing.assert_array_equal(frame.pixels, other.pixels)
    else:
        assert by_worker == here
    if format == "webp":
        with pytest.raises(PictureError, match=r"^as WEBP: cannot be encoded"):
            guarded.encode(Picture(np.zeros((8, 8, 5), np.uint8)), format)


@pytest.mark.slow
def test_no_metadata_crashes_an_encoder() -> None:
    """2,000 pictures: any format, odd EXIF, XMP, profile, texts, durations and modes. Errors are fine."""
    before = guarded.decoder_of_own_pictures().crashes
    chance, noise = random.Random(1), np.random.default_rng(1)
    tags = (ORIENTATION, ORIENTATION, EXIF_OFFSET, 0x011A, 0x0100, 0x8825, 0xA005, 0x014A, 0x927C)
    for _ in range(2000):
        height, width, count = chance.randint(1, 20), chance.randint(1, 20), chance.choice([1, 1, 2, 3])
        dtype, channels = chance.choice([np.uint8, np.uint16]), chance.choice([(), (3,)])

        def samples(*shape: int, dtype: type = dtype) -> np.ndarray:
            return noise.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)

        frames = [
            Picture(
                samples(height, width, *channels),
                samples(height, width) if chance.random() < 0.4 else None,
                duration_ms=chance.choice([0.0, 10.0, 33.3, 2.0**31]) if count > 1 else None,
            )
            for _ in range(count)
        ]
        entries = [
            (
                chance.choice(tags),
                chance.choice([1, 2, 3, 4, 5, 7, 9, 12, 200]),
                chance.choice([0, 1, 2, 2**31]),
                6,
            )
            for _ in range(chance.randint(0, 4))
        ]
        picture = replace(
            frames[0],
            further=tuple(frames[1:]),
            exif=tiff_block(*entries, order=chance.choice("<>"))[: chance.choice([None, None, 30])],
            xmp=chance.choice([b"", b"<x/>", noise.bytes(50), b'tiff:Orientation="6"']),
            icc=chance.choice([None, None, noise.bytes(200)]),
            dpi=chance.choice([None, (1e5, 0.02), (72.0, 72.0)]),
            texts=chance.choice([(), (("Comment", "x\0y" * 9),), (("k" * 90, "é"),)]),
            plays=chance.choice([0, 1, 70_000, 2**31]),
        )
        format = chance.choice(list(FORMATS))
        if not why_not(picture, format):
            with contextlib.suppress(PictureError):
                guarded.encode(picture, format, quality=chance.choice([None, 1, 100]))
    assert guarded.decoder_of_own_pictures().crashes == before
