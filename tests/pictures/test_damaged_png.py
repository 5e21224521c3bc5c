"""PNG files that are damaged: refused, or taken as far as they go if asked for; odd metadata costs no picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srgan.errors import PictureError
from srgan.pictures import decode, guarded
from srgan.pictures.formats.damage import NO_END

Chunk = tuple[bytes, bytes] | tuple[bytes, bytes, bool]
LEVELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def saved(levels: np.ndarray, *further: np.ndarray, **options: object) -> list[Chunk]:
    """Return the chunks of a PNG file."""
    buffer = io.BytesIO()
    frames = [Image.fromarray(frame) for frame in further]
    extra = {"save_all": True, "append_images": frames, "duration": 50} if frames else {}
    Image.fromarray(levels).save(buffer, "PNG", **options, **extra)
    content, place, chunks = buffer.getvalue(), 8, list[Chunk]()
    while place < len(content):
        length, name = struct.unpack_from(">L4s", content, place)
        chunks.append((name, content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def file_of(chunks: Sequence[Chunk]) -> bytes:
    """Return a PNG file of chunks; those with a third value get a wrong checksum."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for part in chunks:
        name, body = part[0], part[1]
        checksum = zlib.crc32(name + body) ^ (len(part) > 2)
        parts.append(struct.pack(">L", len(body)) + name + body + struct.pack(">L", checksum))
    return b"".join(parts)


HEADER, IDAT, END = saved(LEVELS)
PIXELS = IDAT[1]


def whole_rows(content: bytes) -> tuple[float, tuple[str, ...]]:
    """Return the share of rows that are right of a damaged file, and the warnings."""
    with pytest.raises(PictureError, match="damaged or incomplete"):
        decode(content)
    picture = decode(content, accept_damaged=True)
    is_right = (picture.pixels == LEVELS).reshape(len(LEVELS), -1).all(axis=1)
    return float(is_right.mean()), picture.warnings


def test_a_wrong_checksum_of_pixels_is_refused_and_told() -> None:
    third = len(PIXELS) // 3
    flipped = bytes([PIXELS[third] ^ 4])
    parts = [PIXELS[:third], flipped + PIXELS[third + 1 : 2 * third], PIXELS[2 * third :]]
    share, warnings = whole_rows(
        file_of([HEADER, (b"IDAT", parts[0]), (b"IDAT", parts[1], True), (b"IDAT", parts[2]), END])
    )
    assert 0.3 < share < 1
    (warning,) = warnings
    assert warning.startswith("it is damaged: ")
    assert "from 30% on may be wrong" in warning  # of 30 rows the first nine lie before the damage
    share, warnings = whole_rows(file_of([HEADER, (b"IDAT", PIXELS[:third] + flipped + parts[2], True), END]))
    assert "all of it may be wrong" in warnings[0]


def test_the_checksum_of_the_stream_is_looked_at() -> None:
    wrong = PIXELS[:-1] + bytes([PIXELS[-1] ^ 1])
    whole_rows(file_of([HEADER, (b"IDAT", wrong), END]))
    whole_rows(file_of([HEADER, (b"IDAT", wrong[:-4]), (b"IDAT", wrong[-4:]), END]))


def test_wrong_checksums_around_right_pixels_are_told() -> None:
    for chunks in ([HEADER, (b"IDAT", PIXELS, True), END], [(*HEADER, True), (b"IDAT", PIXELS), END]):
        share, warnings = whole_rows(file_of(chunks))
        assert share == 1
        assert warnings == ("its checksums are wrong, though all of its picture seems to be there",)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("has_end", [True, False])
def test_a_file_that_is_cut_is_refused_and_its_rows_are_taken(share: float, has_end: bool) -> None:
    content = file_of([HEADER, (b"IDAT", PIXELS), END])
    cut = content[: int(len(content) * share)]
    if has_end:  # as if copied with a hole that nobody sees
        cut = file_of([HEADER, (b"IDAT", cut[41:]), END])
    right, (warning,) = whole_rows(cut)
    assert share - 0.1 < right < share + 0.05
    assert ("all of it may be wrong" if has_end else f"{int(100 * right)}% of its picture is whole") in warning
    zeros, (warning,) = whole_rows(content[: int(len(content) * share)].ljust(len(content), b"\0"))
    assert zeros >= right - 0.05
    assert "could be read, but" in warning


def test_modes_of_all_depths_are_mended() -> None:
    rng = np.random.default_rng(1)
    deep = rng.integers(0, 65536, (30, 40), np.uint16)
    images = [Image.fromarray(rng.integers(0, 256, (30, 40, 4), np.uint8)).convert(mode) for mode in "1LP"]
    for image in [*images, Image.fromarray(LEVELS).convert("RGBA"), Image.fromarray(deep)]:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        whole = decode(buffer.getvalue()).pixels
        cut = decode(buffer.getvalue()[: len(buffer.getvalue()) * 3 // 4], accept_damaged=True)
        assert cut.pixels.dtype == whole.dtype
        np.testing.assert_array_equal(cut.pixels[:15], whole[:15])
        assert any("of its picture is whole" in warning for warning in cut.warnings)


def test_an_interlaced_file_is_mended_by_its_passes() -> None:
    """The seven passes of 8x8 flat pixels: 1, 1, 2, 4, 8, 16 and 32 of them (PNG, 8.2)."""
    rows = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
    raw = [b"".join(b"\0" + bytes([90] * columns) for _ in range(count)) for columns, count in rows]
    header = struct.pack(">LLBBBBB", 8, 8, 8, 0, 0, 0, 1)
    stored = zlib.compressobj(0)
    pieces = [stored.compress(part) + stored.flush(zlib.Z_SYNC_FLUSH) for part in raw] + [stored.flush()]
    content = file_of([(b"IHDR", header), (b"IDAT", b"".join(pieces)), END])
    assert (decode(content).pixels == 90).all()
    cut = content[: content.index(pieces[6])]
    picture = decode(cut, accept_damaged=True)
    assert picture.warnings == ("it is damaged or cut short: 50% of its picture is whole, the rest was made up",)
    assert (picture.pixels[::2] == 90).all()


def test_a_missing_end_is_told_where_all_pixels_are_there() -> None:
    content = file_of([HEADER, (b"IDAT", PIXELS), END])
    for missing in (1, 6, 12, 13, 16):
        picture = decode(content[:-missing])
        np.testing.assert_array_equal(picture.pixels, LEVELS)
        assert picture.warnings == ((NO_END,) if missing > 4 else ())


@pytest.mark.parametrize(
    ("chunk", "warning"),
    [
        ((b"tEXt", b"Comment\0hello", True), "its texts are damaged or too long and were not kept"),
        ((b"zTXt", b"Comment\0\0no zlib"), "its texts are damaged or too long and were not kept"),
        ((b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20))), "its texts are damaged or too long"),
        ((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0no zlib"), "its texts are damaged or too long"),
        ((b"iCCP", b"x"), "its colour profile is damaged or too long and was not kept"),
        ((b"iCCP", b"x\0\0no zlib"), "its colour profile is damaged or too long and was not kept"),
        ((b"gAMA", b""), "its description of its colours is damaged and was not kept"),
        ((b"pHYs", b"\0\0\0"), "its resolution is damaged and was not kept"),
        ((b"eXIf", b"II*\0\x08\0\0\0\0\0", True), "its EXIF data is damaged and was not kept"),
        ((b"tRNS", b"a"), "its transparency is damaged and was not kept"),
        ((b"acTL", b"a"), "its animation is damaged and was not kept"),
        ((b"fdAT", b"a"), "its animation is damaged and was not kept"),
        ((b"1234", b""), None),
        ((b"\xff\xff\xff\xff", b""), None),
        ((b"prVt", b"abc", True), None),
    ],
)
def test_odd_metadata_costs_no_picture(chunk: Chunk, warning: str | None) -> None:
    for chunks in ([HEADER, chunk, (b"IDAT", PIXELS), END], [HEADER, (b"IDAT", PIXELS), chunk, END]):
        picture = decode(file_of(chunks))
        np.testing.assert_array_equal(picture.pixels, LEVELS)
        assert picture.alpha is None
        assert [words[: len(warning or "")] for words in picture.warnings] == ([warning] if warning else [])


FRAMES = [np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8) for seed in range(5)]


def test_an_animation_without_all_of_its_frames_is_refused_and_the_whole_ones_are_taken() -> None:
    chunks = saved(*FRAMES)
    names = [name for name, *_ in chunks]
    pixels = [index for index, name in enumerate(names) if name == b"fdAT"]
    content = file_of(chunks)
    damaged = {
        "cut": (content[: len(content) * 7 // 10], 3),
        "cut between frames": (file_of(chunks[: pixels[1] + 1]), 3),
        "fewer": (file_of([*chunks[: pixels[1] + 1], END]), 3),
        "flipped": (file_of([*chunks[: pixels[2]], (b"fdAT", chunks[pixels[2]][1][:-9], True), *chunks[-3:]]), 3),
        "lost": (file_of(chunks[: pixels[0]] + chunks[pixels[0] + 1 :]), 1),
    }
    for content, count in damaged.values():
        with pytest.raises(PictureError, match="damaged or incomplete"):
            decode(content)
        picture = decode(content, accept_damaged=True)
        assert [frame.pixels.tobytes() for frame in picture.frames] == [f.tobytes() for f in FRAMES[:count]]
        assert picture.warnings == (
            f"it is damaged or cut short: {count} of its 5 frames are whole; the others were not kept",
        )
    assert [frame.pixels.tobytes() for frame in decode(file_of(chunks)).frames] == [f.tobytes() for f in FRAMES]


def test_files_pipes_and_strangers_meet_the_same(tmp_path: Path, shared: Path) -> None:
    content = file_of([HEADER, (b"IDAT", PIXELS, True), END])
    path = tmp_path / "damaged.png"
    path.write_bytes(content)
    with (
        guarded.GuardedDecoder(always=True) as decoder,
        pytest.raises(PictureError, match="checksum of its IDAT data is wrong"),
    ):
        decoder.decode(content)
    assert guarded.decode(path, accept_damaged=True).warnings
    with pytest.raises(PictureError, match="checksum of its IDAT data is wrong"):
        guarded.decode(shared / "repro" / "bad_crc.png")
