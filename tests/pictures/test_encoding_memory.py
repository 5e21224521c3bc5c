"""What encoders take: as much as is said before, and no longer than somebody waits."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from upscale_memory import measured

from srgan.pictures import FORMATS, Picture, costs, decode, encode
from srgan.pictures.formats import avif_grid, boxes
from srgan.pictures.guarded import GuardedDecoder, process, shared

MEASURE = Path(__file__).parents[2] / "benchmarks" / "encoding_memory.py"

# A worker whose encoder never ends.
SLEEPY = f"""
import time
{process.START.removesuffix("serve()")}
from srgan import pictures
pictures.encode = lambda *arguments, **options: time.sleep(600)
serve()
"""


def levels(height: int, width: int, channels: int = 3) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16 + 2, width // 16 + 2, channels), np.uint8)
    planes = [Image.fromarray(np.ascontiguousarray(coarse[..., at])) for at in range(channels)]
    return np.dstack([np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC)) for plane in planes])


def test_every_format_and_kind_has_its_cost() -> None:
    assert {format for format, _ in costs.BYTES_PER_PX} == set(FORMATS)
    animated = {format for format, kind in costs.BYTES_PER_PX if kind == "frames"}
    assert animated == {name for name, facts in FORMATS.items() if facts.holds & {"animation", "pages"}}
    for (format, _), row in costs.BYTES_PER_PX.items():
        assert ("RGBA" in row) == ("alpha" in FORMATS[format].holds)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("format", "kind", "mode"), [(*case, mode) for case, row in costs.BYTES_PER_PX.items() for mode in row]
)
def test_encoders_take_what_the_table_says(format: str, kind: str, mode: str) -> None:
    """And no less than a third of it: a table that is far too high refuses what could be done."""
    stated = costs.BYTES_PER_PX[format, kind][mode]
    megapixels = "2" if format == "avif" or kind == "frames" else "8"
    command = [sys.executable, str(MEASURE), format, kind, mode, megapixels]
    measured = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # A few megabytes do not grow with the picture.
    assert stated / 3 - 3 < measured <= stated + 20e6 / (float(megapixels) * 1e6)


SIZES = [(3000, 4000), (2000, 3000), (1736, 2296), (1224, 1632)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_bound_of_800_megabytes_is_kept(
    format: str, height: int, width: int, tiny_model: Path, tmp_path: Path
) -> None:
    """By all processes together, the 140 MB of the program among it; or the picture is refused before any work."""
    source, target = tmp_path / "source.png", tmp_path / f"result{FORMATS[format].suffixes[0]}"
    source.write_bytes(encode(Picture(levels(height, width)), "png"))
    arguments = ["upscale", str(source), "-o", str(target), "-n", str(tiny_model), "--memory", "800M"]
    peak_bytes, code, lines = measured(arguments)
    assert peak_bytes < 1.2e9
    if code == 0:
        with Image.open(target) as image:
            assert image.size == (4 * width, 4 * height)
        return
    assert width > 1632, lines
    (line,) = lines
    assert "800 MB of memory are too little" in line
    assert not target.exists()


def test_large_avif_pictures_take_what_their_tiles_do() -> None:
    picture = Picture(np.zeros((1, 1, 3), np.uint8))
    once = costs.encoding_bytes(picture, "avif", [(2048, 4096)])
    assert costs.encoding_bytes(picture, "avif", [(12_000, 16_000)]) < once + 4 * 192e6


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_a_grid_of_tiles_is_the_picture(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of one size whose last ones reach over the edge, with all that belongs to the picture."""
    monkeypatch.setattr(avif_grid, "TILE_PX", 100)
    height, width = 150, 333
    samples = levels(height, width, 4)
    alpha = np.ascontiguousarray(samples[..., 3]) if "A" in mode else None
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    picture = Picture(
        np.ascontiguousarray(samples[..., 0] if mode[0] == "L" else samples[..., :3]),
        alpha,
        icc=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        exif=exif.tobytes(),
        xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>",
    )
    content = encode(picture, "avif")
    assert b"grid" in content
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (width, height)
        assert image.info["icc_profile"] == picture.icc
        assert image.getexif()[0x010F] == "a camera"
    again = decode(content)
    assert again.xmp == picture.xmp
    error = np.abs(again.pixels.reshape(height, width, -1).astype(int) - picture.pixels.reshape(height, width, -1))
    assert error.mean() < 2.5
    assert error.max() < 60
    if alpha is not None:
        assert again.alpha is not None
        assert np.abs(again.alpha.astype(int) - alpha).mean() < 2


def test_a_grid_says_what_colours_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avif_grid, "TILE_PX", 100)
    picture = replace(Picture(levels(150, 333)), png_colour=((b"cICP", bytes([12, 16, 0, 1])),))
    assert boxes.colours(encode(picture, "avif")) == (12, 16)


@pytest.mark.parametrize("is_clear", [False, True])
def test_few_colours_of_a_large_gif_are_exact(is_clear: bool) -> None:
    """More rows and pixels than decide on a palette, and in the last rows a colour that is not before."""
    colours = np.random.default_rng(0).integers(0, 256, (250, 3), np.uint8)
    pixels = colours[np.random.default_rng(1).integers(0, 249, (600, 500))]
    pixels[-1, -1] = colours[249]
    alpha = None
    if is_clear:
        alpha = np.full((600, 500), 255, np.uint8)
        alpha[100:200] = 0
        pixels[100:200] = np.random.default_rng(2).integers(0, 256, (100, 500, 3))
    again = decode(encode(Picture(pixels, alpha), "gif"))
    visible = np.s_[:] if alpha is None else alpha > 0
    np.testing.assert_array_equal(again.pixels[visible], pixels[visible])
    if alpha is not None:
        np.testing.assert_array_equal(again.alpha, alpha)


def test_a_coder_for_strangers_encodes_all_formats_elsewhere() -> None:
    pixels = shared.empty((1200, 1200, 3), np.dtype(np.uint8))  # large enough to be mapped
    pixels[:] = levels(1200, 1200)
    picture = Picture(pixels)
    with GuardedDecoder(always=True, max_workers=1) as coder:
        for format in sorted(set(FORMATS) - {"avif"}):
            assert coder.encode(picture, format) == encode(picture, format)
            assert len(coder.worker_pids) == 1


def test_arrays_that_can_be_mapped_are_those_that_are_whole() -> None:
    array = shared.empty((1500, 1500), np.dtype(np.uint16))
    array[:] = np.arange(1500)
    if (path := shared.path_of(array)) is None:
        pytest.skip("no memfd_create")
    np.testing.assert_array_equal(shared.mapped(path, (1500, 1500), np.dtype(np.uint16)), array)
    assert shared.path_of(array[:10]) is None
    assert shared.path_of(array.T) is None
    assert shared.path_of(np.zeros((1500, 1500), np.uint16)) is None
    assert shared.path_of(shared.empty((2, 2), np.dtype(np.uint8))) is None


def test_an_encoder_ends_when_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    class GoneError(Exception):
        pass

    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) > 2:
            raise GoneError

    monkeypatch.setattr(process, "START", SLEEPY)
    with GuardedDecoder(max_workers=1) as coder:
        with pytest.raises(GoneError):
            coder.encode(Picture(levels(16, 16)), "avif", check=check)
        assert coder.worker_pids == []
        assert coder.crashes == 0


def test_many_colours_become_a_gif_of_what_a_sample_has() -> None:
    """Of all the pixels it would take minutes, and thirty bytes each."""
    pixels = levels(600, 700)
    assert np.abs(decode(encode(Picture(pixels), "gif")).pixels.astype(int) - pixels).mean() < 12
