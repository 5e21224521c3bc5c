"""What lies in a file beside its picture, or behind it: kept where there is a place for it, and else told."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from srgan.pictures import decode, encode
from srgan.pictures.formats import beside

COLOURS = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
PACKET = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
CREDENTIALS = "its content credentials (C2PA) were not kept, since they vouch for the original alone"
BEHIND = "14 bytes behind the picture in its file were not kept"


def saved(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(COLOURS)
    (image.quantize(8) if format == "GIF" else image).save(buffer, format, **options)
    return buffer.getvalue()


def png(name: bytes, body: bytes) -> bytes:
    chunk = struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))
    content = saved("PNG")
    return content[:33] + chunk + content[33:]  # behind the header


def riff(name: bytes, body: bytes) -> bytes:
    content = saved("WEBP")
    content += name + struct.pack("<L", len(body)) + body + bytes(len(body) % 2)
    return content[:4] + struct.pack("<L", len(content) - 8) + content[8:]


def box(name: bytes, body: bytes) -> bytes:
    return saved("AVIF") + struct.pack(">L", 8 + len(body)) + name + body


def gif(kind: bytes, *blocks: bytes) -> bytes:
    content = saved("GIF")
    start = 13 + (3 << ((content[10] & 7) + 1))
    body = b"".join(bytes([len(block)]) + block for block in blocks)
    return content[:start] + b"!" + kind + body + b"\0" + content[start:]


def auxiliary(kind: bytes) -> bytes:
    """A still picture with a property of an auxiliary one, in a box that no item points to."""
    content = bytearray(saved("AVIF"))
    body = struct.pack(">L4s4x", 12 + len(kind) + 1, b"auxC") + kind + b"\0"
    place = content.index(b"ipco") + struct.unpack_from(">L", content, content.index(b"ipco") - 4)[0] - 4
    content[place:place] = body
    for name in (b"ipco", b"iprp", b"meta"):
        start = content.index(name) - 4
        struct.pack_into(">L", content, start, struct.unpack_from(">L", content, start)[0] + len(body))
    return bytes(content)


UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
TOLD = {
    "png place": (png(b"oFFs", bytes(9)), "its place on a page was not kept"),
    "png scale": (png(b"sCAL", b"\x011.5\0002"), "its physical scale was not kept"),
    "png stereo": (png(b"sTER", b"\0"), "its mark for a stereo pair was not kept"),
    "png of others": (png(b"prVt", b"abc"), "its data of other programs (prVt) was not kept"),
    "png behind": (saved("PNG") + b"some more text", BEHIND),
    "webp of others": (riff(b"VEND", b"abc"), "its data of other programs (VEND) was not kept"),
    "webp credentials": (riff(b"C2PA", b"abcd"), CREDENTIALS),
    "webp behind": (saved("WEBP") + b"some more text", BEHIND),
    "avif film": (box(b"mpvd", bytes(20)), "the film of its motion photo was not kept"),
    "avif credentials": (box(b"uuid", UUID + b"abc"), CREDENTIALS),
    "avif of others": (box(b"uuid", bytes(20)), "its data of other programs (uuid) was not kept"),
    "avif behind": (saved("AVIF") + b"some more text", BEHIND),
    "gif profile": (gif(b"\xff", b"ICCRGBG1012", PROFILE[:250]), "its colour profile was not kept"),
    "gif credentials": (gif(b"\xff", b"C2PA_GIF\1\0\0", b"abc"), CREDENTIALS),
    "gif of others": (
        gif(b"\xff", b"PROGRAM 1.0", b"abc"),
        "its data of other programs (PROGRAM 1.0) was not kept",
    ),
    "gif text": (
        gif(b"\x01", bytes(12), b"hello"),
        "the text that programs are to draw upon it was not kept",
    ),
    "gif behind": (saved("GIF") + b"some more text", BEHIND),
    "two ppm": (
        2 * encode(decode(saved("PNG")), "ppm"),
        "only the first picture of the file was read; others behind it are not kept",
    ),
    "ppm behind": (encode(decode(saved("PNG")), "ppm") + b"some more text", BEHIND),
    "jpeg profile": (
        b"\xff\xd8\xff\xe2\0\x14ICC_PROFILE\0\1\2half" + saved("JPEG")[2:],
        "its colour profile is damaged and was not kept",
    ),
}


@pytest.mark.parametrize("kind", TOLD)
def test_what_is_not_read_is_told(kind: str) -> None:
    content, words = TOLD[kind]
    picture = decode(content)
    assert picture.warnings == (words,)
    assert picture.pixels.shape == COLOURS.shape


@pytest.mark.parametrize(
    "content",
    [
        *(saved(format) for format in ("PNG", "WEBP", "AVIF", "GIF", "BMP", "PPM", "TIFF", "JPEG")),
        *(png(name, body) for name, body in ((b"tIME", bytes(7)), (b"sBIT", b"\5\6\5"), (b"bKGD", bytes(6)))),
        gif(b"\xff", b"NETSCAPE2.0", b"\1\0\0"),
        gif(b"\xff", b"ImageMagick", b"gamma=0.454545"),
        box(b"free", bytes(9)),
        encode(decode(saved("PNG")), "ppm") + b"\n",
    ],
)
def test_of_what_is_read_or_says_nothing_of_the_picture_nothing_is_told(content: bytes) -> None:
    assert decode(content).warnings == ()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth", "its depth map was not kept"),
        (b"urn:mpeg:hevc:2015:auxid:2", "its depth map was not kept"),
        (
            b"urn:com:apple:photo:2018:aux:portraiteffectsmatte",
            "the pictures beside it for editing (portraiteffectsmatte) were not kept",
        ),
    ],
)
def test_auxiliary_pictures_are_told(kind: bytes, words: str) -> None:
    assert beside.unkept(auxiliary(kind)) == [words]
    assert beside.unkept(auxiliary(b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha")) == []


def test_the_packet_of_a_gif_file_is_kept_where_there_is_a_place_for_it() -> None:
    # As its specification puts it there: not in blocks, with an end that leads readers of blocks to the last byte.
    magic = b"\1" + bytes(range(255, -1, -1))
    content = saved("GIF")
    start = 13 + (3 << ((content[10] & 7) + 1))
    content = content[:start] + b"!\xff\x0bXMP DataXMP" + PACKET + magic + b"\0" + content[start:]
    picture = decode(content)
    assert (picture.xmp, picture.warnings) == (PACKET, ())
    assert decode(encode(picture, "png")).xmp == PACKET


def test_all_comments_are_kept() -> None:
    content = gif(b"\xfe", b"the first")
    start = content.index(b"!\xfe")
    content = content[:start] + b"!\xfe\4last\0" + content[start:]
    assert decode(content).texts == (("Comment", "last\nthe first"),)
    content = saved("JPEG", comment=b"the first")
    start = content.index(b"\xff\xfe")
    content = content[:start] + b"\xff\xfe\0\6last" + content[start:]
    picture = decode(content)
    assert picture.texts == (("Comment", "last\nthe first"),)
    assert decode(encode(picture, "jpg")).texts == picture.texts
