"""Photographs for HDR screens: their gain maps stay, in the right place and size, and cost no picture."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support import ultra_hdr
from support.engines import NearestEngine
from support.ultra_hdr import by_iso, by_xmp, jpeg, segment

from srgan.errors import UsageError
from srgan.folder.making import Order, decide, make
from srgan.pictures import GainMap, Picture, Region, decode, encode, guarded, losses, resized
from srgan.upscale import Request, Upscaler

UPSCALER = Upscaler(engine=NearestEngine())
WORDS = "its gain map, which lets HDR screens show it brighter,"
Y, X = np.mgrid[:48, :64]
PHOTOGRAPH = np.dstack([4 * X, 5 * Y, 128 + 0 * X]).astype(np.uint8)

GREY: dict[str, object] = {
    "GainMapMin": -0.5,
    "GainMapMax": 2.0,
    "Gamma": 1.25,
    "HDRCapacityMin": 0,
    "HDRCapacityMax": 2.5,
}
GREY |= {"OffsetSDR": 0.02, "OffsetHDR": 0.03}
COLOURS: dict[str, object] = {
    "GainMapMin": (-0.5, 0.0, 0.25),
    "GainMapMax": (1.0, 1.5, 2.0),
    "Gamma": (1.0, 1.25, 0.8),
}
COLOURS |= {"OffsetSDR": (0.01, 0.02, 0.03), "OffsetHDR": (0.03, 0.02, 0.01)}
COLOURS |= {"HDRCapacityMin": 0.5, "HDRCapacityMax": 3}
NAMES = ("GainMapMin", "GainMapMax", "Gamma", "OffsetSDR", "OffsetHDR")


def three(value: object) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,) * 3


def forms(values: Mapping[str, object], form: str) -> list[bytes]:
    count = 3 if any(isinstance(value, tuple) for value in values.values()) else 1
    channels = [tuple(three(values[name])[channel] for name in NAMES) for channel in range(count)]
    iso = by_iso((values["HDRCapacityMin"], values["HDRCapacityMax"]), channels)  # type: ignore[arg-type]
    return {"xmp": [by_xmp(**values)], "iso": [iso], "both": [by_xmp(**values), iso]}[form]


def map_levels(part: float, *, grey: bool = True) -> np.ndarray:
    """Return a smooth map of so much of the photograph's size, down and across."""
    y, x = np.mgrid[: round(48 * part), : round(64 * part)] / part
    levels: np.ndarray = 40 + 120 * x / 64 + 60 * np.sin(y / 12) ** 2
    levels = levels if grey else np.dstack([levels, 255 - levels, levels[::-1]])
    rounded: np.ndarray = np.rint(levels).astype(np.uint8)
    return rounded


def source(part: float = 0.5, *segments: bytes, wrong: int = 0, exif: bytes = b"", xmp: str = "") -> bytes:
    gain_map = jpeg(map_levels(part), *(segments or forms(GREY, "both")))
    return ultra_hdr.ultra_hdr(PHOTOGRAPH, gain_map, wrong=wrong, exif=exif, xmp=xmp)


def made(content: bytes, order: Order | None = None) -> tuple[bytes, tuple[str, ...]]:
    result = make(decide(guarded.decode(content), order or Order(), UPSCALER), UPSCALER)
    return result.content, result.warnings


def reduced(boosts: np.ndarray, times: int) -> np.ndarray:
    height, width, _ = boosts.shape
    means: np.ndarray = np.log2(boosts).reshape(height // times, times, width // times, times, 3).mean((1, 3))
    return 2**means


@pytest.mark.parametrize("form", ["xmp", "iso", "both"])
@pytest.mark.parametrize("part", [1, 0.5, 0.25])
@pytest.mark.parametrize("values", [GREY, COLOURS], ids=["grey", "colours"])
def test_ratios_survive_in_a_map_that_has_grown_with_the_picture(
    values: Mapping[str, object], part: float, form: str
) -> None:
    file = jpeg(map_levels(part, grey=values is GREY), *forms(values, form))
    content = ultra_hdr.ultra_hdr(PHOTOGRAPH, file)
    again, warnings = made(content)
    assert warnings == ()
    result = ultra_hdr.read(again)  # sees to places and lengths
    assert result.picture.size == (256, 192)
    assert result.gain_map.size == (256 * part, 192 * part)
    assert result.gain_map.mode == ("L" if values is GREY else "RGB")
    before = replace(result, gain_map=Image.open(io.BytesIO(file)))
    expected = {name: three(value) for name, value in values.items()}
    for told in (result.by_xmp, result.by_iso):
        for name, value in expected.items():
            assert told[name] == pytest.approx(value, abs=1e-6), name
        ratios = reduced(result.boosts(told), 4) / before.boosts(expected)
        assert np.abs(ratios[1:-1, 1:-1] - 1).max() < 0.01
        assert np.abs(ratios - 1).max() < 0.03  # at the rim, where nothing lies beyond


def test_what_was_made_is_made_again() -> None:
    once = decode(made(source())[0])
    assert once.gain_map is not None
    assert (once.warnings, once.gain_map.levels.shape) == ((), (96, 128))
    assert ultra_hdr.read(encode(once, "jpg")).by_iso == ultra_hdr.read(made(source())[0]).by_iso


def test_exif_turns_picture_and_map() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decode(source(exif=exif.tobytes()))
    assert (picture.height, picture.width) == (64, 48)
    assert picture.gain_map is not None
    upright = np.rot90(map_levels(0.5), -1).astype(int)
    assert np.abs(picture.gain_map.levels - upright).max() <= 2
    result = ultra_hdr.read(made(source(exif=exif.tobytes()))[0])
    assert (result.picture.size, result.gain_map.size) == ((192, 256), (96, 128))
    assert result.picture.getexif().get(0x0112) == 1


@pytest.mark.parametrize(
    ("request_", "size"),
    [(Request(2), (128, 96)), (Request(1.5, strength=0.5), (96, 72)), (Request(long_side_px=32), (32, 24))],
)
def test_every_size_and_strength_takes_the_map_along(request_: Request, size: tuple[int, int]) -> None:
    result = ultra_hdr.read(made(source(), Order(request_))[0])
    assert (result.picture.size, result.gain_map.size) == (size, (size[0] // 2, size[1] // 2))
    assert np.abs(np.asarray(result.gain_map).mean() - map_levels(0.5).mean()) < 1


def test_a_region_takes_its_part_of_the_map() -> None:
    whole = ultra_hdr.read(made(source())[0]).gain_map
    part = ultra_hdr.read(made(source(), Order(Request(region=Region(64, 40, 100, 60))))[0])
    assert (part.picture.size, part.gain_map.size) == ((100, 60), (50, 30))
    cut = np.asarray(whole.crop((32, 20, 82, 50)), int)
    assert np.abs(np.asarray(part.gain_map) - cut).max() <= 3


def test_a_map_is_picture_and_no_metadata() -> None:
    content = source(xmp='xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="here"')
    kept, _ = made(content)
    assert b'dc:source="here"' in kept
    bare, warnings = made(content, Order(metadata="strip"))
    assert (warnings, b"here" in bare) == ((), False)
    assert ultra_hdr.read(bare).gain_map.size == ultra_hdr.read(kept).gain_map.size


def test_a_map_is_dropped_where_that_is_asked_for() -> None:
    again, warnings = made(source(), Order(hdr="drop"))
    assert warnings == (f"{WORDS} was left out",)
    assert not any(word in again for word in (b"MPF\0", b"hdrgm", b"21496", b"Container"))
    assert made(jpeg(PHOTOGRAPH), Order(hdr="drop"))[1] == ()
    with pytest.raises(UsageError, match="hdr 'none' is not understood: choose keep or drop"):
        Order(hdr="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["png", "webp", "avif", "tiff", "bmp"])
def test_formats_that_hold_none_say_so(format: str) -> None:
    again, warnings = made(source(), Order(format=format))
    name = "WEBP" if format == "webp" else format.upper()
    assert (
        f"{name} cannot hold a gain map, so HDR screens will show the picture no brighter than others" in warnings
    )
    assert b"hdrgm" not in again


def test_the_map_lies_over_the_same_places_in_the_library() -> None:
    picture = decode(source())
    again = resized(picture, 96, 128)
    assert again.gain_map is not None
    assert again.gain_map.levels.shape == (48, 64)
    assert UPSCALER.upscale(picture).gain_map is not None
    assert UPSCALER.memory(picture).held > UPSCALER.memory(picture.without_gain_map()).held
    assert losses(again, "jpg") == ()


# What lies, or is damaged


@pytest.mark.parametrize("wrong", [-20, 7, 100_000])
def test_wrong_places_and_lengths_are_made_right(wrong: int) -> None:
    again, warnings = made(source(wrong=wrong))
    assert warnings == ()
    assert ultra_hdr.read(again).gain_map.size == (128, 96)


@pytest.mark.parametrize(
    "values",
    [
        {"GainMapMax": "nan", "HDRCapacityMax": 2},
        {"GainMapMax": "inf", "HDRCapacityMax": 2},
        {"GainMapMax": "much", "HDRCapacityMax": 2},
        {"GainMapMax": 2},
        {"GainMapMax": 2, "HDRCapacityMax": "nan"},
        {"GainMapMax": 2, "HDRCapacityMax": -1},
        {"GainMapMax": 2, "HDRCapacityMax": 2, "Gamma": 0},
        {"GainMapMax": 2, "HDRCapacityMax": 2, "OffsetSDR": 1e30},
        {"GainMapMax": 2, "GainMapMin": 3, "HDRCapacityMax": 2},
        {"GainMapMax": (1, 2), "HDRCapacityMax": 2},
        {"GainMapMax": 1e300, "HDRCapacityMax": 2},
        {"GainMapMax": 2, "HDRCapacityMax": 2, "BaseRenditionIsHDR": "True"},
    ],
)
def test_metadata_without_sense_costs_the_map_alone(values: Mapping[str, object]) -> None:
    again, warnings = made(source(0.5, by_xmp(**values)))
    assert warnings == (f"{WORDS} does not say how it is meant and was not kept",)
    assert Image.open(io.BytesIO(again)).size == (256, 192)
    assert b"hdrgm" not in again


def test_damaged_iso_metadata_leaves_that_of_xmp() -> None:
    iso = forms(GREY, "iso")[0]
    zeros = iso[:-8] + bytes(8)  # a denominator of zero
    for broken in (zeros, segment(0xE2, iso[4:-9]), segment(0xE2, iso[4:33] + b"\xff" + iso[34:])):
        assert ultra_hdr.read(made(source(0.5, broken, *forms(GREY, "xmp")))[0]).by_iso["GainMapMax"] == (2,) * 3
        assert made(source(0.5, broken))[1] == (f"{WORDS} does not say how it is meant and was not kept",)


def test_iso_metadata_with_one_denominator() -> None:
    numbers = [0, 250, -50, 200, 100, 2, 2]
    body = struct.pack(">HHBL7l", 0, 0, 0x48, 100, *numbers)
    result = ultra_hdr.read(made(source(0.5, segment(0xE2, ultra_hdr.ISO + body)))[0])
    assert (result.by_xmp["GainMapMin"], result.by_xmp["HDRCapacityMax"]) == ((-0.5,) * 3, (2.5,) * 3)


def told(content: bytes) -> tuple[str, ...]:
    picture = guarded.decode(content)
    assert (picture.pixels.shape, picture.gain_map) == ((48, 64, 3), None)
    return picture.warnings


def test_maps_that_cannot_be_read_cost_nothing_but_themselves() -> None:
    plain = forms(GREY, "xmp")
    assert told(source()[:-40]) == (f"{WORDS} is cut short and was not kept",)
    assert told(source(2, *plain)) == (f"{WORDS} is larger than the picture and was not kept",)
    words = "says nothing of how it is meant"
    assert told(source(0.5, segment(0xE1, b"other"))) == (f"{WORDS} {words} and was not kept",)
    inked = io.BytesIO()
    Image.new("CMYK", (32, 24)).save(inked, "JPEG")
    file = inked.getvalue()[:2] + plain[0] + inked.getvalue()[2:]
    words = "has other colours than red, green and blue"
    assert told(ultra_hdr.ultra_hdr(PHOTOGRAPH, file)) == (f"{WORDS} {words} and was not kept",)
    broken = jpeg(map_levels(0.5), *plain).replace(b"\xff\xc0", b"\xff\xc3", 1)  # of a kind that nobody decodes
    assert told(ultra_hdr.ultra_hdr(PHOTOGRAPH, broken))[0].startswith(WORDS)
    many = jpeg(map_levels(0.5), *plain)
    scan = many[many.index(b"\xff\xda") : -2]
    assert told(ultra_hdr.ultra_hdr(PHOTOGRAPH, many[:-2] + 30 * scan + b"\xff\xd9")) == (
        f"{WORDS} takes too long to read and was not kept",
    )


def test_further_pictures_beside_a_map_are_told() -> None:
    gain_map = jpeg(map_levels(0.5), *forms(GREY, "both"))
    content = jpeg(PHOTOGRAPH, ultra_hdr.index(0, 0, 0, count=3)) + jpeg(PHOTOGRAPH[:8, :8]) + gain_map
    picture = decode(content)
    assert picture.gain_map is not None
    words = "only the first picture and its gain map were read; others behind it are not kept"
    assert picture.warnings == (words,)


def test_xmp_that_leaves_no_room_for_the_map_is_told() -> None:
    gain_map = decode(source()).gain_map
    levels = np.zeros((48, 64, 3), np.uint8)
    long = Picture(levels, xmp=ultra_hdr.packet(f'Item:x="{"y" * 64_800}"'), gain_map=gain_map)
    assert losses(long, "jpg") == ("JPEG holds 64 KB of XMP data, so this was not kept",)
    assert losses(replace(long, gain_map=None), "jpg") == ()
    broken = Picture(levels, xmp=b"<x:xmpmeta", gain_map=gain_map)
    assert losses(broken, "jpg") == ("its XMP data is damaged and was not kept",)
    for picture in (long, broken):
        ultra_hdr.read(encode(picture, "jpg"))


def test_a_profile_of_its_own_stays_where_the_map_needs_it() -> None:
    gain_map = decode(source()).gain_map
    assert gain_map is not None
    icc = Image.open(io.BytesIO(made_with_profile())).info["icc_profile"]
    for needs in (True, False):
        picture = Picture(PHOTOGRAPH, gain_map=replace(gain_map, icc=icc, in_base_colours=not needs))
        again = decode(encode(picture, "jpg")).gain_map
        assert again is not None
        assert (again.icc, again.in_base_colours) == ((icc if needs else None), not needs)


def made_with_profile() -> bytes:
    from PIL import ImageCms

    buffer = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", icc_profile=profile)
    return buffer.getvalue()


def test_a_map_passes_between_processes() -> None:
    with guarded.GuardedDecoder(always=True) as decoder:
        picture = decoder.decode(source())
        assert isinstance(picture.gain_map, GainMap)
        result = ultra_hdr.read(decoder.encode(picture, "jpg"))
    assert result.gain_map.size == (32, 24)


def test_maps_of_avif_files_are_told() -> None:
    name = struct.pack(">LHH4s", 2 << 24, 2, 0, b"tmap") + b"\0"
    entry = struct.pack(">L4s", 8 + len(name), b"infe") + name
    box = struct.pack(">L4sLH", 14 + len(entry), b"iinf", 0, 1) + entry
    picture = decode(encode(Picture(PHOTOGRAPH), "avif") + box)
    assert f"{WORDS} was not kept" in picture.warnings
