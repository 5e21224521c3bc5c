"""JPEG files that end too early: taken where all of the picture is there, else refused or, if asked for, told."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from srgan.errors import PictureError
from srgan.pictures import decode, guarded
from srgan.pictures.formats.damage import NO_END

SAMSUNG = struct.pack("<HHL", 0, 0x0A01, 14) + b"Image_UTC_Data1606442695000"
SAMSUNG += b"SEFH" + struct.pack("<LLHHLL", 106, 1, 0, 0x0A01, 35, 35) + struct.pack("<L4s", 24, b"SEFT")


def noisy(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def flat(height: int = 60, width: int = 80) -> np.ndarray:
    """Return a ramp: its code is short and regular, and its last bytes are zeros."""
    return np.repeat(np.linspace(30, 240, width).astype(np.uint8)[None, :, None], height, axis=0).repeat(3, axis=2)


OPTIONS: dict[str, dict[str, Any]] = {
    "optimized": {"optimize": True},
    "progressive": {"progressive": True, "restart_marker_blocks": 3},
    "subsampled": {"subsampling": 2},
    "restarts": {"restart_marker_rows": 1},
}
KINDS = ("plain", "optimized", "progressive", "subsampled", "restarts", "grey", "cmyk")


def jpegs(kind: str) -> Iterator[bytes]:
    for levels in (noisy(), flat()):
        options = OPTIONS.get(kind, {})
        mode = {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
        buffer = io.BytesIO()
        Image.fromarray(levels).convert(mode).save(buffer, "JPEG", quality=92, **options)
        yield buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_picture_without_the_mark_is_taken(kind: str) -> None:
    for content in jpegs(kind):
        assert content.endswith(b"\xff\xd9")
        whole = decode(content)
        for behind in (b"", b"\xff", bytes(700), SAMSUNG, SAMSUNG + b"\xff\xd9"):
            picture = decode(content[:-2] + behind)
            np.testing.assert_array_equal(picture.pixels, whole.pixels)
            assert NO_END in picture.warnings
            told = "what its phone wrote behind the picture was not kept" in picture.warnings
            assert told == (b"SEFT" in behind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_picture_that_is_cut_short_is_refused(kind: str, share: float) -> None:
    for content in jpegs(kind):
        start = content.index(b"\xff\xda")
        cut = content[: start + int((len(content) - 2 - start) * share)]
        for behind in (b"", bytes(len(content)), SAMSUNG, SAMSUNG + b"\xff\xd9"):
            with pytest.raises(PictureError, match="damaged or incomplete"):
                decode(cut + behind)


@pytest.mark.parametrize("kind", ["plain", "optimized", "subsampled", "restarts", "grey"])
def test_what_is_there_is_taken_if_asked_for(kind: str) -> None:
    content = next(jpegs(kind))
    start = content.index(b"\xff\xda")
    cut = content[: start + (len(content) - start) // 2]
    picture = decode(cut, accept_damaged=True)
    whole = decode(content)
    assert picture.pixels.shape == whole.pixels.shape
    (warning,) = picture.warnings
    percent = int(warning.split(": ")[1].split("%")[0])
    assert 20 <= percent <= 50
    rows = percent * whole.height // 100
    np.testing.assert_array_equal(picture.pixels[:rows], whole.pixels[:rows])


def test_missing_details_of_a_progressive_picture_are_told() -> None:
    content = next(jpegs("progressive"))
    last = content.rindex(b"\xff\xda")
    with pytest.raises(PictureError):
        decode(content[:last])
    (warning,) = decode(content[:last], accept_damaged=True).warnings
    assert warning == "it is damaged or cut short: finer details of its picture are missing"


def test_without_any_pixel_nothing_can_be_taken() -> None:
    content = next(jpegs("plain"))
    with pytest.raises(PictureError):
        decode(content[: content.index(b"\xff\xda")], accept_damaged=True)


def test_guarded_alike(tmp_path: Path) -> None:
    content = next(jpegs("cmyk"))  # decoded in a process of its own
    path = tmp_path / "cut.jpg"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(PictureError):
        guarded.decode(path)
    assert "of its picture is whole" in " ".join(guarded.decode(path, accept_damaged=True).warnings)
    assert NO_END in guarded.decode(content[:-2]).warnings


def test_the_command(tmp_path: Path, tiny_model: Path) -> None:
    content = next(jpegs("plain"))
    path = tmp_path / "cut.jpg"
    path.write_bytes(content[: len(content) // 2])
    command = [sys.executable, "-m", "srgan", "upscale", str(path), "-n", str(tiny_model)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "damaged or incomplete" in refused.stdout + refused.stderr
    taken = subprocess.run([*command, "--accept-damaged"], capture_output=True, text=True, check=False)
    assert taken.returncode == 0
    assert "of its picture is whole" in taken.stdout + taken.stderr
    with Image.open(tmp_path / "cut_x4.jpg") as result:
        assert result.size == (320, 240)


@pytest.mark.parametrize("name", ["jpeg-no-eoi", "jpeg-noeoi-samsung-trailer"])
def test_real_files(shared: Path, name: str) -> None:
    assert NO_END in decode(shared / "repro" / f"{name}.jpg").warnings


def test_a_progressive_picture_that_is_cut_anywhere_is_taken_and_told() -> None:
    levels = np.asarray(Image.fromarray(noisy(6, 8)).resize((64, 48), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=85, progressive=True)
    content = buffer.getvalue()
    scans = [match.start() for match in re.finditer(rb"\xff\xda", content)]
    whole = decode(content).pixels.astype(int)
    finer = "it is damaged or cut short: finer details of its picture are missing"
    for end in range(scans[0] + 14, len(content) - 2, 5):
        picture = decode(content[:end], accept_damaged=True)
        (warning,) = picture.warnings
        if end < scans[1] - 200:
            assert "of its picture is whole, the rest was made up" in warning
        elif scans[1] < end < scans[-1]:
            assert warning == finer
            assert np.abs(picture.pixels - whole).mean() < 40  # it is there, if coarse
        elif end > scans[-1] + 14 and warning != finer:
            share = int(warning.split("%")[0].rsplit(" ", 1)[-1])
            assert warning.endswith("the rest lacks its finer details")
            assert (picture.pixels == whole)[: 48 * share // 100].all()
    (warning,) = decode(content[: len(content) * 7 // 10], accept_damaged=True).warnings
    assert warning == finer
