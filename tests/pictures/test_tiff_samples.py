"""TIFF files of instruments and maps, written and read by tifffile: samples, bands, scales, compressions."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from srgan.errors import PictureError, UnsupportedPictureError
from srgan.pictures import Picture, decode, encode, resized


def levels(dtype: type, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(0).integers(info.min, info.max, shape or (8, 10), dtype, endpoint=True)


def tiff(samples: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


def larger(content: bytes, times: int = 4) -> tuple[Picture, bytes]:
    """Return a picture as it is read, and the TIFF file of the same with all its pages so many times larger."""
    picture = decode(content)
    first, *further = (resized(page, times * page.height, times * page.width) for page in picture.frames)
    return picture, encode(Picture(**{**vars(first), "further": tuple(further)}), "tiff")


@pytest.mark.parametrize(("dtype", "bits"), [(np.int8, 8), (np.int16, 16)])
def test_signed_samples_keep_their_order_and_are_told(dtype: type, bits: int) -> None:
    samples = levels(dtype)
    picture = decode(tiff(samples))
    np.testing.assert_array_equal(picture.pixels, samples.astype(np.int64) + 2 ** (bits - 1))
    assert picture.warnings == (
        f"its signed samples were moved up by {2 ** (bits - 1)}, so that zero is mid-grey",
    )


@pytest.mark.parametrize(("dtype", "bits"), [(np.int8, 8), (np.int16, 16)])
def test_signed_colours_keep_their_order_and_are_told(dtype: type, bits: int) -> None:
    samples = levels(dtype, 8, 10, 3)
    picture = decode(tiff(samples, photometric="rgb"))
    np.testing.assert_array_equal(picture.pixels, samples.astype(np.int64) + 2 ** (bits - 1))
    assert [words for words in picture.warnings if f"moved up by {2 ** (bits - 1)}" in words]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_floating_point_from_0_to_1_is_read(dtype: type, channels: int, order: Any) -> None:
    samples: np.ndarray = np.random.default_rng(0).random((8, 10, 3)).astype(dtype)
    samples = samples if channels == 3 else samples[..., 0]
    kind = "rgb" if channels == 3 else "minisblack"
    picture = decode(tiff(samples, photometric=kind, byteorder=order))
    np.testing.assert_array_equal(picture.pixels, np.rint(samples.astype(np.float64) * 65535))
    assert picture.warnings == ("its floating-point samples were rounded to 16 bits",)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_bands_that_are_called_grey_or_lie_apart_are_read(planar: str, dtype: type) -> None:
    samples = levels(dtype, 8, 10, 4)
    stored = samples if planar == "contig" else np.ascontiguousarray(samples.transpose(2, 0, 1))
    for kind, colours in (("minisblack", samples[..., 0]), ("rgb", samples[..., :3])):
        extra = ("unspecified",) * (3 if kind == "minisblack" else 1)
        picture = decode(tiff(stored, photometric=kind, planarconfig=planar, extrasamples=extra))
        np.testing.assert_array_equal(picture.pixels, colours)
        assert picture.alpha is None
        assert picture.warnings == ("its additional channels were not kept",)


def test_points_without_data_are_told() -> None:
    picture = decode(tiff(levels(np.uint16), extratags=[(42113, 2, 6, "-9999", True)]))
    assert picture.warnings == (
        "its mark for points without data (-9999) was not kept, and they were taken for values",
    )


@pytest.mark.parametrize("bands", [2, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_additional_bands_are_told(bands: int, dtype: type) -> None:
    samples = levels(dtype, 8, 10, bands)
    colours = 1 if bands == 2 else 3
    unknown = ("unspecified",) * (bands - colours)
    photometric = "minisblack" if colours == 1 else "rgb"
    picture = decode(tiff(samples, photometric=photometric, planarconfig="contig", extrasamples=unknown))
    assert picture.alpha is None
    assert picture.warnings == ("its additional channels were not kept",)
    np.testing.assert_array_equal(picture.pixels, samples[..., 0] if colours == 1 else samples[..., :3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_is_no_additional_band(dtype: type) -> None:
    samples = levels(dtype, 8, 10, 4)
    picture = decode(tiff(samples, photometric="rgb", extrasamples=("unassalpha",)))
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, samples[..., 3])
    assert picture.warnings == ()


def test_the_scale_of_imagej_follows_the_size() -> None:
    options = {"imagej": True, "resolution": (2.5, 1.25), "metadata": {"unit": "um", "spacing": 1.5, "xorigin": 3}}
    picture, again = larger(tiff(levels(np.uint16, 2, 8, 10), **options))
    with tifffile.TiffFile(io.BytesIO(again)) as file:
        assert len(file.pages) == 2
        page = file.pages.first
        assert page.resolution == (10, 5)
        assert page.resolutionunit == 1
        told = file.imagej_metadata
    assert told is not None
    assert (told["unit"], told["spacing"], told["images"], told["xorigin"]) == ("um", 1.5, 2, 12)
    assert picture.warnings == ()


def test_pictures_of_a_stack_without_entries_are_told() -> None:
    content = tiff(levels(np.uint16, 2, 8, 10), imagej=True).replace(b"images=2\n", b"images=9\n")
    assert decode(content).warnings == (
        "7 pictures of its ImageJ stack have no entry of their own and were not read",
    )


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_sizes_of_ome_follow(dtype: type) -> None:
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeXUnit": "µm"}
    _, again = larger(tiff(levels(dtype, 2, 8, 10), ome=True, metadata=metadata))
    with tifffile.TiffFile(io.BytesIO(again)) as file:
        assert file.ome_metadata is not None
        (pixels,) = ET.fromstring(file.ome_metadata).iter(
            "{http://www.openmicroscopy.org/Schemas/OME/2016-06}Pixels"
        )
        assert file.series[0].shape == (2, 32, 40)
        assert file.series[0].dtype == np.uint16
    told = {
        name: pixels.attrib[name] for name in ("SizeX", "SizeY", "SizeC", "PhysicalSizeX", "PhysicalSizeY", "Type")
    }
    assert told == {
        "SizeX": "40",
        "SizeY": "32",
        "SizeC": "2",
        "PhysicalSizeX": "0.125",
        "PhysicalSizeY": "0.0625",
        "Type": "uint16",
    }
    assert pixels.attrib["PhysicalSizeXUnit"] == "µm"


def test_no_description_tells_another_shape() -> None:
    _, again = larger(tiff(levels(np.uint8, 8, 10), metadata={"sample": "a"}))
    with tifffile.TiffFile(io.BytesIO(again)) as file:
        assert file.pages.first.description == '{"sample": "a"}'
        assert file.series[0].shape == (32, 40)


def test_the_shape_of_pixels_is_kept() -> None:
    _, again = larger(tiff(levels(np.uint8, 8, 10), resolution=(2, 1), resolutionunit=1))
    with tifffile.TiffFile(io.BytesIO(again)) as file:
        assert file.pages.first.resolution == (8, 4)


def test_pyramids_are_told() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(levels(np.uint8, 32, 32, 3), photometric="rgb", subifds=1)
        writer.write(levels(np.uint8, 16, 16, 3), photometric="rgb", subfiletype=1)
    assert decode(buffer.getvalue()).warnings == ("its reduced copies and masks were not kept",)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        *((34712, "JPEG 2000"), (33005, "JPEG 2000"), (50001, "WebP"), (34887, "LERC"), (50002, "JPEG XL")),
        *((34933, "PNG"), (65123, "the method of number 65123")),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_compression_that_is_not_read_is_named(number: int, name: str, dtype: type) -> None:
    content = tiff(levels(dtype, 8, 10, 3), photometric="rgb")
    tag = (259).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    assert content.count(tag) == 1
    place = content.index(tag) + 8
    content = content[:place] + number.to_bytes(4, "little") + content[place + 4 :]
    with pytest.raises(UnsupportedPictureError, match=f"compressed by {name} is not supported"):
        decode(content)


def test_a_damaged_file_of_a_known_compression_is_no_unknown_one() -> None:
    buffer = io.BytesIO()
    Image.fromarray(levels(np.uint8, 64, 64)).save(buffer, "TIFF", compression="zstd")
    content = buffer.getvalue()
    np.testing.assert_array_equal(decode(content).pixels, levels(np.uint8, 64, 64))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        start = file.pages.first.dataoffsets[0]
    with pytest.raises(PictureError, match="damaged or incomplete"):
        decode(content[:start] + bytes(900) + content[start + 900 :])


@pytest.mark.parametrize(
    ("name", "words"),
    [("int8", "moved up by 128"), ("dem-int16", "-9999"), ("rgbn-8bit", "additional channels")],
)
def test_real_files(shared: Path, name: str, words: str) -> None:
    assert words in " ".join(decode(shared / "repro" / f"{name}.tif").warnings)
