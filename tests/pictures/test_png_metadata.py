"""What PNG files carry beside the common: raw profiles are kept, odd pixels and credentials told."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from srgan.pictures import decode, encode, losses

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">Somebody</x:xmpmeta>'
IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0a\x1c\x02\x50\0\x05Maker"


def exif() -> bytes:
    block = Image.Exif()
    block[ExifTags.Base.Make], block[ExifTags.Base.Orientation] = "Maker", 6
    return block.tobytes()


def raw(kind: str, body: bytes) -> tuple[str, str]:
    """As ImageMagick writes it."""
    digits = body.hex()
    lines = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    return f"Raw profile type {kind}", "\n".join(["", kind, f"{len(body):8}", *lines, ""])


def png(*texts: tuple[str, str], dtype: type = np.uint8, chunk: tuple[bytes, bytes] | None = None) -> bytes:
    info = PngImagePlugin.PngInfo()
    for keyword, text in texts:
        info.add_text(keyword, text, zip=True)
    buffer = io.BytesIO()
    Image.fromarray(np.arange(16 * 24, dtype=dtype).reshape(16, 24)).save(buffer, "PNG", pnginfo=info)
    content = buffer.getvalue()
    if not chunk:
        return content
    name, body = chunk
    packed = struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))
    return content[:33] + packed + content[33:]  # behind the header


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "texts",
    [
        (raw("exif", exif()), raw("xmp", XMP), raw("icc", SRGB)),
        (raw("exif", exif()[6:]), raw("APP1", b"http://ns.adobe.com/xap/1.0/\0" + XMP), raw("icm", SRGB)),
        (raw("APP1", exif()), raw("xmp", XMP), raw("icc", SRGB)),
    ],
)
def test_raw_profiles_are_read_as_what_they_are(dtype: type, texts: tuple[tuple[str, str], ...]) -> None:
    picture = decode(png(*texts, dtype=dtype))
    assert (picture.xmp, picture.icc, picture.texts) == (XMP, SRGB, ())
    for format in ("png", "jpg", "webp", "tiff"):
        again = decode(encode(picture, format))
        assert (again.xmp, again.icc) == (XMP, SRGB)
        with Image.open(io.BytesIO(encode(picture, format))) as image:
            assert image.getexif()[ExifTags.Base.Make] == "Maker"
            assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_raw_iptc_stays_in_png_and_is_told_elsewhere() -> None:
    picture = decode(png(raw("iptc", IPTC)))
    with Image.open(io.BytesIO(encode(picture, "png"))) as image:
        assert image.info["Raw profile type iptc"] == raw("iptc", IPTC)[1]
    assert losses(picture, "jpg") == ("JPEG cannot hold the IPTC data of the file",)


def test_raw_profiles_that_are_none_stay_texts() -> None:
    texts = (("Raw profile type exif", "\nexif\n   x\nzz"), ("Raw profile type other", "abc"))
    assert decode(png(*texts)).texts == texts


def test_the_file_that_lost_its_exif(shared: Path) -> None:
    path = shared / "repro" / "png-rawprofile-exif.png"
    if not path.exists():
        pytest.skip(f"no {path}")
    assert decode(path).exif


def jpeg_of_density(across: int, down: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    place = content.index(b"JFIF\0") + 7
    content[place : place + 5] = struct.pack(">BHH", 0, across, down)
    return bytes(content)


def avif_of_shape(across: int, down: int) -> bytes:
    """A still picture, with a box for the shape of its pixels among its properties."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8)).save(buffer, "AVIF")
    content = bytearray(buffer.getvalue())
    box = struct.pack(">L4sLL", 16, b"pasp", across, down)
    place = content.index(b"ipco") - 4
    content[place + 8 : place + 8] = box  # the places of the pixels are now wrong, which nobody is asked here
    for name in (b"ipco", b"iprp", b"meta"):
        start = content.index(name) - 4
        struct.pack_into(">L", content, start, struct.unpack_from(">L", content, start)[0] + len(box))
    return bytes(content)


@pytest.mark.parametrize(("across", "down", "told"), [(1, 1, False), (2, 1, True), (1, 3, True), (5, 5, False)])
def test_pixels_that_are_not_square_are_told(across: int, down: int, told: bool) -> None:
    from srgan.pictures.formats import boxes

    shape = f"({down}:{across})"
    for content in (png(chunk=(b"pHYs", struct.pack(">LLB", across, down, 0))), jpeg_of_density(across, down)):
        assert any(shape in words for words in decode(content).warnings) == told
    assert boxes.pixel_shape(avif_of_shape(across, down)) == (across, down)


def test_a_resolution_that_differs_by_side_is_kept() -> None:
    picture = decode(png(chunk=(b"pHYs", struct.pack(">LLB", 2000, 1000, 1))))
    assert picture.warnings == ()
    assert decode(encode(picture, "png")).dpi == pytest.approx((50.8, 25.4), rel=1e-3)


def test_content_credentials_are_told() -> None:
    picture = decode(png(chunk=(b"caBX", b"a signature")))
    assert any("C2PA" in words for words in picture.warnings)
