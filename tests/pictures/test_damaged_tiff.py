"""TIFF files that are cut short or have odd tags: refused, or taken as far as they go; metadata costs none."""

from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from srgan.errors import PictureError
from srgan.pictures import decode, guarded
from srgan.pictures.formats.damage import NO_END

RNG = np.random.default_rng(0)


def tiff(samples: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


def noise(dtype: type = np.uint8, *shape: int) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape or (40, 24, 3), dtype, endpoint=True)


LAYOUTS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rowsperstrip": 8},
    "tiles": {"tile": (16, 16)},
    "deflate": {"compression": "deflate", "rowsperstrip": 8},
    "deflated tiles": {"compression": "deflate", "tile": (16, 16)},
    "big": {"bigtiff": True, "rowsperstrip": 8},
    "big-endian": {"byteorder": ">", "rowsperstrip": 8},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_file_that_is_cut_is_refused_and_its_rows_are_taken(layout: str, dtype: type, share: float) -> None:
    samples = noise(dtype)
    content = tiff(samples, photometric="rgb", metadata=None, **LAYOUTS[layout])
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        starts = (*page.dataoffsets, page.dataoffsets[-1] + page.databytecounts[-1])
    cut = content[: starts[0] + int((starts[-1] - starts[0]) * share)]  # the directory comes first
    pieces = sum(end <= len(cut) for end in starts[1:])
    with pytest.raises(PictureError, match="is damaged or incomplete: it is cut short"):
        decode(cut)
    picture = decode(cut, accept_damaged=True)
    whole = int((picture.pixels == samples).reshape(40, -1).all(axis=1).sum())
    if "tile" in layout:
        assert whole == pieces // 2 * 16  # two stand side by side
    elif layout == "deflate":
        assert whole == pieces * 8
    else:
        assert whole == int(40 * share)
    (warning,) = picture.warnings
    told = int(warning.split("%", maxsplit=1)[0].rsplit(" ", 1)[-1])
    assert told == 100 * whole // 40


def test_strips_that_cannot_be_unpacked_end_what_is_taken() -> None:
    samples = noise()
    content = bytearray(tiff(samples, photometric="rgb", compression="deflate", rowsperstrip=8))
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as file:
        (third, size) = file.pages[0].dataoffsets[2], file.pages[0].databytecounts[2]
    content[third : third + size] = bytes(size)
    with pytest.raises(PictureError, match="damaged or incomplete"):
        decode(bytes(content))
    picture = decode(bytes(content), accept_damaged=True)
    np.testing.assert_array_equal(picture.pixels[:16], samples[:16])
    assert picture.warnings == ("it is damaged or cut short: 40% of its picture is whole, the rest was made up",)


def test_pages_that_are_missing_are_told() -> None:
    buffer = io.BytesIO()
    levels = [noise(np.uint8, 20, 24) for _ in range(4)]
    with tifffile.TiffWriter(buffer) as writer:
        for page in levels:
            writer.write(page, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(io.BytesIO(buffer.getvalue())) as file:
        third = file.pages[2].dataoffsets[0]
    cut = buffer.getvalue()[: third + 100]
    with pytest.raises(PictureError, match="it is cut short"):
        decode(cut)
    picture = decode(cut, accept_damaged=True)
    assert [page.pixels.tobytes() for page in picture.frames] == [page.tobytes() for page in levels[:2]]
    assert picture.warnings == (
        "it is damaged or cut short: only its first 2 pages are whole; what followed was not kept",
    )


def with_tag(tag: int, kind: int, count: int, value: bytes, *, is_deep: bool = False) -> tuple[bytes, np.ndarray]:
    """Return a small TIFF file that has this entry, in place of its own of that tag, and its samples."""
    samples = np.arange(48, dtype=np.uint16 if is_deep else np.uint8).reshape(6, 8)
    body = samples.tobytes()
    tags = {
        256: (3, 1, struct.pack("<HH", 8, 0)),
        257: (3, 1, struct.pack("<HH", 6, 0)),
        258: (3, 1, struct.pack("<HH", 8 * samples.itemsize, 0)),
        259: (3, 1, struct.pack("<HH", 1, 0)),
        262: (3, 1, struct.pack("<HH", 1, 0)),
        273: (4, 1, struct.pack("<L", 8)),
        277: (3, 1, struct.pack("<HH", 1, 0)),
        278: (3, 1, struct.pack("<HH", 6, 0)),
        279: (4, 1, struct.pack("<L", len(body))),
        tag: (kind, count, value),
    }
    entries = b"".join(struct.pack("<HHL", tag, *rest[:2]) + rest[2] for tag, rest in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<L", 0)
    return struct.pack("<2sHL", b"II", 42, 8 + len(body)) + body + directory + bytes(range(64)), samples


# Descriptions, resolutions, pages, copies, XMP, IPTC, Photoshop, ICC, EXIF, GPS, GeoTIFF, GDAL, DNG, unknown ones.
METADATA = (
    *(
        254,
        255,
        269,
        270,
        271,
        274,
        280,
        282,
        283,
        285,
        296,
        297,
        301,
        305,
        306,
        315,
        318,
        330,
        333,
        340,
        700,
        33432,
    ),
    *(33550, 33723, 33922, 34377, 34665, 34675, 34735, 34853, 37500, 40094, 42112, 42113, 50706, 50838, 50839),
    *(60000, 65535, 0, 1),
)


OF_SAMPLES = (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 324, 338, 339)
OF_PROGRAMS = ("object", "unpack", "buffer", "index", "tuple", "NoneType", "Error", "argument", "invalid literal")
FEW = [(kind, count) for kind in (0, 1, 2, 3, 5, 7, 12, 255) for count in (1, 2, 2**31)]
MANY = [
    (kind, count) for kind in (*range(20), 255, 65535) for count in (0, 1, 2, 3, 5, 17, 1000, 2**31, 2**32 - 1)
]
EXTENTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]
VALUES = (bytes(4), struct.pack("<L", 130), b"\xff\xff\xff\xff")


@pytest.mark.parametrize("is_deep", [False, True])
@pytest.mark.parametrize("forms", EXTENTS, ids=["few", "many"])
def test_odd_metadata_costs_no_picture(forms: list[tuple[int, int]], is_deep: bool) -> None:
    for tag, (kind, count) in itertools.product(METADATA, forms):
        for value in VALUES if forms is MANY else VALUES[1:2]:
            content, samples = with_tag(tag, kind, count, value, is_deep=is_deep)
            picture = decode(content)
            assert sorted(picture.pixels.ravel()) == sorted(samples.ravel())  # it may be turned
            if tag != 274:
                np.testing.assert_array_equal(picture.pixels, samples)


@pytest.mark.parametrize("forms", EXTENTS, ids=["few", "many"])
@pytest.mark.parametrize("accept_damaged", [False, True])
def test_odd_tags_of_the_samples_are_refused_in_plain_words(
    forms: list[tuple[int, int]], accept_damaged: bool
) -> None:
    for tag, (kind, count) in itertools.product(OF_SAMPLES, forms):
        for value in VALUES if forms is MANY else VALUES[1:2]:
            content, _ = with_tag(tag, kind, count, value)
            message = ""
            try:
                decode(content, max_megapixels=1, accept_damaged=accept_damaged)
            except PictureError as error:
                message = str(error)
            assert not [word for word in OF_PROGRAMS if word in message], (tag, kind, count, value, message)


@pytest.mark.parametrize("kind", [1, 2, 7])
def test_xmp_is_read_whatever_its_type(kind: int) -> None:
    packet = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    content = tiff(noise(), photometric="rgb", metadata=None, extratags=[(700, kind, len(packet), packet, True)])
    picture = decode(content)
    assert picture.xmp == packet
    assert picture.warnings == ()


@pytest.mark.parametrize(("kind", "value"), [(1, b"\x06"), (3, b"\x06\0"), (4, b"\x06\0\0\0"), (9, b"\x06\0\0\0")])
def test_an_orientation_of_any_whole_type_is_followed(kind: int, value: bytes) -> None:
    content, samples = with_tag(274, kind, 1, value.ljust(4, b"\0"))
    np.testing.assert_array_equal(decode(content).pixels, np.rot90(samples, -1))
    for odd in (b"\0", b"\x09", b"\x21"):
        content, samples = with_tag(274, 3, 1, odd.ljust(4, b"\0"))
        np.testing.assert_array_equal(decode(content).pixels, samples)


def test_what_cannot_be_read_of_the_metadata_is_told() -> None:
    for tag, words in ((700, "XMP data"), (34675, "colour profile"), (282, "resolution"), (34665, "EXIF data")):
        content, _ = with_tag(tag, 7, 2**31, b"\xff\xff\xff\xff")
        assert decode(content).warnings == (f"its {words} is damaged and was not kept",)


def test_a_file_that_ends_with_its_last_entry_is_taken() -> None:
    content, samples = with_tag(305, 2, 1, bytes(4))
    picture = decode(content[:-68])  # what stands behind the directory, and its link to another
    np.testing.assert_array_equal(picture.pixels, samples)
    assert picture.warnings == (NO_END,)


FLOATS = RNG.random((20, 24, 3)).astype(np.float16)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "deflate"}, {"byteorder": ">"}, {"planarconfig": "separate"}, {"tile": (16, 16)}],
)
def test_half_precision_is_read(options: dict[str, Any]) -> None:
    for samples in (FLOATS, FLOATS[..., 0]):
        is_separate = "planarconfig" in options and samples.ndim == 3
        layout = {**options} if is_separate or "planarconfig" not in options else {}
        stored = samples.transpose(2, 0, 1) if is_separate else samples
        kind = "rgb" if samples.ndim == 3 else "minisblack"
        picture = decode(tiff(np.ascontiguousarray(stored), photometric=kind, metadata=None, **layout))
        np.testing.assert_array_equal(picture.pixels, np.rint(samples.astype(np.float64) * 65535))
        assert picture.warnings == ("its floating-point samples were rounded to 16 bits",)


def test_half_precision_by_differences_of_bytes_is_read() -> None:
    """The predictor of Adobe's technical note 3: high bytes before low ones, and each less the one before."""
    for width in (24, 20):
        samples = FLOATS[:, :width, 0]
        rows = []
        for row in np.pad(samples, ((0, 0), (0, 24 - width))):
            big = row.astype(">f2").view(np.uint8).reshape(-1, 2)
            apart = np.concatenate([big[:, 0], big[:, 1]])
            rows.append(np.diff(apart, prepend=np.uint8(0)))
        content = bytearray(tiff(samples, photometric="minisblack", metadata=None, rowsperstrip=20))
        if width < 24:
            continue
        with tifffile.TiffFile(io.BytesIO(bytes(content))) as file:
            place = file.pages[0].dataoffsets[0]
        content[place:] = np.stack(rows).tobytes()
        entry = content.index(struct.pack("<HHL", 339, 3, 1))
        struct.pack_into("<HHLL", content, entry, 339, 3, 1, 3)
        picture = decode(with_predictor(bytes(content)))
        np.testing.assert_array_equal(picture.pixels, np.rint(samples.astype(np.float64) * 65535))


def with_predictor(content: bytes) -> bytes:
    """Return a TIFF file whose tag 305 (Software) is 317 (Predictor), of 3."""
    edited = bytearray(content)
    entry = content.index(struct.pack("<HH", 305, 2))
    struct.pack_into("<HHLL", edited, entry, 317, 3, 1, 3)
    return bytes(edited)


def test_half_precision_beyond_its_range_is_refused() -> None:
    for value in (1.5, -0.25, np.nan, np.inf):
        with pytest.raises(PictureError, match="floating-point samples beyond 0 to 1"):
            decode(tiff(np.full((4, 4), value, np.float16)))


def test_the_files_that_were_found(shared: Path) -> None:
    for name in ("a33", "noeof", "xmp_type7", "BigTIFF", "whole16"):
        assert guarded.decode(shared / "repro" / f"{name}.tif").pixels.size
    with pytest.raises(PictureError, match="it is cut short"):
        guarded.decode(shared / "repro" / "cut16.tif")
    whole, cut = (
        guarded.decode(shared / "repro" / f"{name}16.tif", accept_damaged=True) for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(cut.pixels[:39], whole.pixels[:39])
