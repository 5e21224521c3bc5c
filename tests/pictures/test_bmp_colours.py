"""The colours of BMP files with headers of version 4 and 5, which the tests write by their specification."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageCms

from srgan.pictures import decode, encode, why_not

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LEVELS = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)


def bmp(kind: bytes, profile: bytes = b"", *, gamma: int = 0, size: int = 124) -> bytes:
    """Return LEVELS with a header of version 5, or of version 4 if its size is 108."""
    rows = LEVELS[::-1, :, ::-1].tobytes()
    place = 14 + size
    header = struct.pack("<LllHHLLllLL", size, 8, 5, 1, 24, 0, len(rows), 2835, 2835, 0, 0)
    header += struct.pack("<4L4s36x3L", 0, 0, 0, 0, kind, gamma, gamma, gamma)
    if size == 124:
        header += struct.pack("<4L", 4, size + len(rows), len(profile), 0)
    return struct.pack("<2sLHHL", b"BM", place + len(rows) + len(profile), 0, 0, place) + header + rows + profile


def test_a_profile_is_kept() -> None:
    picture = decode(bmp(b"DEBM", SRGB))
    np.testing.assert_array_equal(picture.pixels, LEVELS)
    assert (picture.icc, picture.warnings) == (SRGB, ())
    assert why_not(picture, "bmp") == "BMP cannot hold a colour profile"
    assert decode(encode(picture, "png")).icc == SRGB


@pytest.mark.parametrize(
    ("content", "warnings"),
    [
        (bmp(b"BGRs"), ()),
        (bmp(b" niW"), ()),
        (bmp(bytes(4)), ()),
        (bmp(bytes(4), gamma=0x0001_2000), ("its gamma and primaries were not kept",)),
        (bmp(bytes(4), gamma=0x0001_2000, size=108), ("its gamma and primaries were not kept",)),
        (bmp(b"KNIL", b"C:\\a.icm\0"), ("its colour profile lies in another file and was not kept",)),
        (bmp(b"DEBM", b"no profile"), ("its colour profile is damaged and was not kept",)),
        (bmp(b"DEBM", SRGB)[:-1], ("its colour profile is damaged and was not kept",)),
    ],
)
def test_what_is_not_kept_is_told(content: bytes, warnings: tuple[str, ...]) -> None:
    picture = decode(content)
    np.testing.assert_array_equal(picture.pixels, LEVELS)
    assert (picture.icc, picture.warnings) == (None, warnings)


def test_a_real_file(shared: Path) -> None:
    icc = decode(shared / "repro" / "bmp-v5-icc.bmp").icc
    assert icc is not None
    assert ImageCms.getOpenProfile(io.BytesIO(icc)).profile.xcolor_space.strip() == "RGB"
