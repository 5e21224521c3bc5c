"""Files that came out wrong once, each with what is to become of it by the command line, alone and in a folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.engines import NearestEngine

from srgan.folder.making import Order, decide, make
from srgan.pictures import Picture, decode
from srgan.upscale import Request, Upscaler

# The mean colour of the picture that most of them hold.
MEAN = (130, 125, 85)


@dataclass(frozen=True)
class Expected:
    """What is to become of a file: format, size in pixels and frames of its result; what is told, in order.

    `words`: of the refusal, if there is no `format`. `holds`: what must be there of a `Picture`. `long_side_px`:
    what is asked for of pictures of 8 and 12 megapixels, of which four times as much would take minutes.
    """

    format: str | None
    size: tuple[int, int] = (0, 0)
    words: tuple[str, ...] = ()
    frames: int = 1
    mean: tuple[int, ...] | None = MEAN
    holds: tuple[str, ...] = ()
    long_side_px: int | None = None


REDUCED = "was reduced without the model"
NOT_SQUARE, NO_END = "pixels are not square", "ends without the mark for its end"
FILM, SIGNED = "the film of its motion photo was not kept", "its signed samples were moved up"
EXPECTED = {
    "BigTIFF.tif": Expected("tiff", (256, 256), mean=None),
    "a33.tif": Expected("tiff", (200, 143), (REDUCED,), mean=(253,), long_side_px=200),
    "anim-orientation6.png": Expected("png", (64, 96), frames=3),
    "anim-orientation6.webp": Expected("webp", (64, 96), frames=3),
    "anim_cut.gif": Expected(None, words=("it is cut short",)),
    "anim_whole.gif": Expected("gif", (224, 160), frames=6, mean=None),
    "avif_12MP_oom.avif": Expected("avif", (150, 200), (REDUCED,), mean=(147, 124, 98), long_side_px=200),
    "avif-segfault.webp": Expected("webp", (192, 128), frames=2),
    "bad_crc.png": Expected(None, words=("the checksum of its IDAT data is wrong",)),
    "bmp-v5-icc.bmp": Expected("png", (160, 128), ("BMP cannot hold a colour profile",), holds=("icc",)),
    "cut16.tif": Expected(None, words=("it is cut short",)),
    "dem-int16.tif": Expected(
        "tiff", (160, 128), (SIGNED, r"points without data \(-9999\)", "georeference"), mean=None
    ),
    "dup-orientation-ifd0.jpg": Expected("jpg", (128, 192), holds=("exif",)),
    "extended-xmp.jpg": Expected("jpg", (192, 128), ("its extended XMP data was not kept",)),
    "gainmap-ultrahdr.jpg": Expected("jpg", (192, 128), ("its gain map",)),
    "gif-dispose-background.gif": Expected("gif", (96, 64), frames=3, mean=None, holds=("alpha",)),
    "gif-four-frames-original.gif": Expected("gif", (96, 64), frames=4),
    "gif-half-zeros.gif": Expected(None, words=("other data stands in the place of the rest",)),
    "gpano-360.jpg": Expected("jpg", (256, 128), holds=("xmp",)),
    "imagej-calibrated.tif": Expected("tiff", (160, 128), frames=2, mean=None),
    "int8.tif": Expected("tiff", (160, 128), (SIGNED,), mean=None),
    "jpeg-no-eoi.jpg": Expected("jpg", (160, 128), (NO_END,)),
    "jpeg-noeoi-samsung-trailer.jpg": Expected("jpg", (256, 192), (NO_END, FILM, "wrote behind the picture")),
    "microscope.ome.tif": Expected("tiff", (160, 128), frames=2, mean=None),
    "motion-photo.jpg": Expected("jpg", (192, 128), (FILM,)),
    "nclx-p3.avif": Expected("avif", (256, 192), holds=("png_colour",)),
    "nclx-p3.heic": Expected("png", (256, 192), ("HEIC is read but not written",), holds=("png_colour",)),
    "noeof.tif": Expected("tiff", (24, 16), (NO_END,), mean=None),
    "png-nonsquare-aspect.png": Expected("png", (160, 128), (NOT_SQUARE,)),
    "png-rawprofile-exif.png": Expected("png", (128, 192), holds=("exif",)),
    "rgbn-8bit.tif": Expected("tiff", (160, 128), ("its additional channels were not kept",)),
    "tiff-jpeg2000.tif": Expected(None, words=("TIFF compressed by JPEG 2000 is not supported",)),
    "train16.png": Expected("png", (800, 640), mean=(36939, 39197, 43958)),
    "whole16.tif": Expected("tiff", (224, 160), mean=None),
    "xmp_type7.tif": Expected("tiff", (64, 48), mean=(10, 200, 30)),
}


@pytest.fixture(scope="module")
def repro(shared: Path) -> Path:
    if not (shared / "repro").is_dir():
        pytest.skip(f"no {shared / 'repro'}")
    return shared / "repro"


def test_every_picture_has_its_row(repro: Path) -> None:
    assert {path.name for path in repro.iterdir() if path.suffix != ".onnx"} == EXPECTED.keys()


def check(name: str, result: bytes | None, warnings: list[str], refusal: str | None) -> Picture | None:
    expected = EXPECTED[name]
    if expected.format is None:
        assert result is None, name
        assert re.search(expected.words[0], refusal or ""), name
        return None
    assert result is not None, (name, refusal)
    picture = decode(result)
    assert (picture.format, picture.width, picture.height) == (expected.format, *expected.size), name
    assert len(picture.frames) == expected.frames, name
    assert len(warnings) == len(expected.words), (name, warnings)
    assert all(re.search(words, told) for words, told in zip(expected.words, warnings, strict=True)), (
        name,
        warnings,
    )
    for part in expected.holds:
        value = getattr(picture, part)
        assert value is not None, (name, part)
        assert len(value), (name, part)
    return picture


@pytest.mark.parametrize("name", EXPECTED)
def test_the_making(name: str, repro: Path) -> None:
    """By an engine that repeats pixels: the colours of the result are those of the file."""
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif")
    upscaler = Upscaler(engine=NearestEngine())
    if EXPECTED[name].format is None:
        with pytest.raises(Exception, match=EXPECTED[name].words[0]):
            decode(repro / name)
        return
    order = Order(Request(long_side_px=EXPECTED[name].long_side_px))
    made = make(decide(decode(repro / name), order, upscaler), upscaler)
    picture = check(name, made.content, list(made.warnings), None)
    assert picture is not None
    mean = EXPECTED[name].mean
    if mean is not None:
        np.testing.assert_allclose(picture.pixels.mean((0, 1)), mean, atol=1.5)


@pytest.mark.parametrize("way", ["files", "folder"])
@pytest.mark.parametrize("long_side_px", [None, 200])
def test_the_command_line(
    way: str, long_side_px: int | None, repro: Path, tmp_path: Path, tiny_model: Path
) -> None:
    pytest.importorskip("pillow_heif")
    names = {name for name, expected in EXPECTED.items() if expected.long_side_px == long_side_px}
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_bytes((repro / name).read_bytes())
    sources = [tmp_path / "in"] if way == "folder" else sorted((tmp_path / "in").iterdir())
    report = tmp_path / "report.json"
    options = ["-o", tmp_path / "out", "-n", tiny_model, "--json", report]
    if long_side_px is not None:
        options += ["--long-side", str(long_side_px)]
    command = [sys.executable, "-m", "srgan", "upscale", *sources, *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == int(any(EXPECTED[name].format is None for name in names)), done.stderr
    assert "Traceback" not in done.stderr
    files = json.loads(report.read_text())["files"]
    assert {Path(file["source"]).name for file in files} == names
    for file in files:
        content = Path(file["target"]).read_bytes() if file["target"] else None
        # What a name says, and how GIF holds what a network has made, are not of the file.
        told = [words for words in file["warnings"] if not re.search("so the result is named|^GIF holds", words)]
        check(Path(file["source"]).name, content, told, file["error"])
