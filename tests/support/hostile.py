"""Files made to do harm, each built from nothing: bombs, loops, lies and halves."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from srgan import pictures
from srgan.errors import SrganError
from srgan.pictures import Picture
from srgan.pictures.guarded import headers
from srgan.pictures.guarded.headers import Limits

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def photo(height: int = 48, width: int = 64) -> Image.Image:
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray((np.stack([rows, columns, 1 - rows], -1) * 200 + 20 + noise).astype(np.uint8))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, format, **options)  # an image remembers how it was saved
    return buffer.getvalue()


# JPEG


def segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end (with the coded data behind it) of every segment."""
    position = 2
    while content[position + 1] != 0xD9:
        start, marker = position, content[position + 1]
        position += 2 + int.from_bytes(content[position + 2 : position + 4])
        if marker == 0xDA:
            while content[position] != 0xFF or content[position + 1] == 0:
                position += 1
        yield marker, start, position


def jpeg_of_scans(count: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan comes again and again until there are `count`."""
    content = saved(photo(side, side), "JPEG", progressive=True)
    found = list(segments(content))
    scans = [start for marker, start, _ in found if marker == 0xDA]
    last = content[scans[-1] : found[-1][2]]
    return content[: found[-1][2]] + last * (count - len(scans)) + b"\xff\xd9"


def jpeg_claiming(width: int, height: int, **options: Any) -> bytes:
    """A small JPEG whose header promises much more."""
    content = bytearray(saved(photo(), "JPEG", **options))
    frame = next(start for marker, start, _ in segments(bytes(content)) if marker in (0xC0, 0xC2))
    struct.pack_into(">HH", content, frame + 5, height, width)
    return bytes(content)


def jpeg_with(*bodies: tuple[int, bytes]) -> bytes:
    """A good JPEG with further segments in front."""
    extra = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in bodies)
    content = saved(photo(), "JPEG")
    return content[:2] + extra + content[2:]


def jpeg_of_lying_icc() -> bytes:
    """Profile pieces that contradict one another, of a profile that says it has 4 GB."""
    header = b"ICC_PROFILE\0"
    body = struct.pack(">L", 2**32 - 1) + b"acsp" * 100
    return jpeg_with((0xE2, header + b"\x01\x03" + body), (0xE2, header + b"\xff\x03" + body))


# PNG


def chunk(kind: bytes, body: bytes, *, length: int | None = None) -> bytes:
    said = len(body) if length is None else length
    return struct.pack(">I", said) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*inserted: bytes, image: Image.Image | None = None) -> bytes:
    """A good PNG with `inserted` behind its header chunk."""
    content = saved(image or photo(), "PNG")
    return content[:33] + b"".join(inserted) + content[33:]


def bare_png(
    width: int, height: int, rows: bytes, *, bits: int = 8, colour: int = 2, interlaced: int = 0
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_bombs(megabytes: int = 80) -> dict[str, bytes]:
    packer = zlib.compressobj(9)
    zeros = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(megabytes)), packer.flush()])
    return {
        "iCCP bomb": png(chunk(b"iCCP", b"profile\0\0" + zeros)),
        "zTXt bomb": png(chunk(b"zTXt", b"Comment\0\0" + zeros)),
        "iTXt bomb": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + zeros)),
        "many zTXt bombs": png(*[chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000)))] * 200),
        "zTXt bomb behind the pixels": saved(photo(), "PNG")[:-12]
        + chunk(b"zTXt", b"Comment\0\0" + zeros)
        + chunk(b"IEND", b""),
        "IDAT bomb": bare_png(64, 48, bytes(megabytes << 20)),
    }


def mended(content: bytes) -> bytes:
    """A PNG file with the checksums of all its chunks made right, as far as it can be read; any other as it is."""
    if not content.startswith(PNG_SIGNATURE):
        return content
    parts, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">L4s", content, position)
        parts.append(chunk(kind, content[position + 8 : position + 8 + length], length=length))
        position += 12 + length
    return b"".join(parts) + content[position:]


def apng(*, frames: int, width: int, height: int, x: int = 0, y: int = 0) -> bytes:
    """An animation whose second frame is announced as `width` x `height` at (`x`, `y`)."""
    image = photo()
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(image)))

    def frame(number: int, *place: int) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, *place, 1, 10, 0, 0))

    return (
        PNG_SIGNATURE
        + chunk(b"IHDR", struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0))
        + chunk(b"acTL", struct.pack(">II", frames, 0))
        + frame(0, image.width, image.height, 0, 0)
        + chunk(b"IDAT", pixels)
        + frame(1, width, height, x, y)
        + chunk(b"fdAT", struct.pack(">I", 2) + pixels)
        + chunk(b"IEND", b"")
    )


# EXIF


def exif_sharing(entries: int, size_bytes: int) -> bytes:
    """A block of TIFF structure whose entries all own all of it: a reader that copies needs their product."""
    directory = b"".join(
        struct.pack("<HHLL", 0x8000 + number % 0x7000, 7, size_bytes - 8, 8) for number in range(entries)
    )
    block = b"II*\0" + struct.pack("<LH", 8, entries) + directory + bytes(4)
    return block.ljust(size_bytes, b"\0")


def exif_looping() -> bytes:
    """Directories that lead to themselves: the next one, the Exif one, the GPS one and a sub-directory."""
    entries = [(0x0112, 3, 1, 6), (0x014A, 4, 1, 8), (0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0xA005, 4, 1, 8)]
    directory = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + directory + struct.pack("<L", 8)


# TIFF


def tiff(*changes: tuple[int, int, int, int], next_ifd: int = 0, pixels: int = 64 * 48 * 3) -> bytes:
    """An uncompressed 64x48 RGB file in which `changes` (tag, type, count, value) overrule the truth."""
    data_at = 400
    entries = {
        entry[0]: entry
        for entry in (
            *[(256, 3, 1, 64), (257, 3, 1, 48), (258, 3, 3, 380), (259, 3, 1, 1), (262, 3, 1, 2)],
            *[(273, 4, 1, data_at), (277, 3, 1, 3), (278, 3, 1, 48), (279, 4, 1, 64 * 48 * 3)],
            *changes,
        )
    }
    directory = b"".join(struct.pack("<HHLL", *entries[tag]) for tag in sorted(entries))
    start = b"II*\0" + struct.pack("<LH", 8, len(entries)) + directory + struct.pack("<L", next_ifd)
    return start.ljust(380, b"\0") + struct.pack("<HHH", 8, 8, 8).ljust(20, b"\0") + bytes(pixels)


def tiffs() -> dict[str, bytes]:
    return {
        "TIFF directory that leads to itself": tiff(next_ifd=8),
        "TIFF directory beyond the end": tiff(next_ifd=2**31),
        "TIFF Exif directory that is its own": tiff((0x8769, 4, 1, 8)),
        "TIFF sub-directory that is its own": tiff((0x014A, 4, 1, 8)),
        "TIFF strip beyond the end": tiff((273, 4, 1, 2**31 - 1)),
        "TIFF strip of the wrong size": tiff((279, 4, 1, 5)),
        "TIFF strip of four gigabytes": tiff((279, 4, 1, 2**32 - 1)),
        "TIFF with a thousand million strips": tiff((273, 4, 10**9, 400), (279, 4, 10**9, 400), (278, 3, 1, 1)),
        "TIFF without strips": tiff((273, 4, 0, 0), (279, 4, 0, 0)),
        "TIFF with rows of no height": tiff((278, 4, 1, 0)),
        "TIFF of enormous tiles": tiff((322, 4, 1, 2**20), (323, 4, 1, 2**20), (324, 4, 1, 400), (325, 4, 1, 9)),
        "TIFF of no samples": tiff((277, 3, 1, 0)),
        "TIFF of 60,000 samples": tiff((277, 3, 1, 60_000)),
        "TIFF whose strip is no deflate": tiff((259, 3, 1, 8)),
        "TIFF whose strip is no JPEG": tiff((259, 3, 1, 7)),
        "TIFF whose strip is no fax": tiff((259, 3, 1, 4), (262, 3, 1, 0), (258, 3, 1, 1), (277, 3, 1, 1)),
        "TIFF of unknown compression": tiff((259, 3, 1, 34_000)),
        "TIFF that claims to be 20000x9000": tiff((256, 4, 1, 20_000), (257, 4, 1, 9_000), (278, 4, 1, 9_000)),
        "TIFF that claims four gigapixels": tiff((256, 4, 1, 65_535), (257, 4, 1, 65_535)),
        "TIFF whose tags share the file": exif_sharing(4000, 1 << 18),
    }


# GIF


def gif(frames: int, width: int, height: int, *, frame_side: int | None = None) -> bytes:
    """An animation of frames as large as the screen, or announced as `frame_side` squared."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    sides = (frame_side, frame_side) if frame_side else (width, height)
    frame = b"\x21\xf9\x04\x08\x0a\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, *sides, 0) + b"\x02\x02\x4c\x01\0"
    return screen + frame * frames + b";"


# All of them


def halves(format: str, step: int = 64) -> dict[str, bytes]:
    content = saved(photo(96, 128), format)
    return {f"{format} cut at {length}": content[:length] for length in range(step, len(content) - 1, step)}


def polyglots() -> dict[str, bytes]:
    script = b"=1;/*" + b"*/alert(1)//"
    archive = b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18)
    return {
        "GIF that is a script": saved(photo().quantize(4), "GIF") + script,
        "PNG that is an archive": saved(photo(), "PNG") + archive,
        "JPEG that is a page": jpeg_with((0xFE, b"<html><script>alert(1)</script>")),
        "PNG that is a PDF": png(chunk(b"tEXt", b"x\0%PDF-1.4\n%%EOF")),
        "BMP behind a script": script + saved(photo(), "BMP"),
    }


def good_in_spite() -> dict[str, bytes]:
    """Odd, but whole: these give a picture."""
    return polyglots_that_are_pictures() | {
        "JPEG whose profile lies": jpeg_of_lying_icc(),
        "JPEG whose EXIF leads to itself": jpeg_with((0xE1, b"Exif\0\0" + exif_looping())),
        "PNG whose EXIF leads to itself": png(chunk(b"eXIf", exif_looping())),
        "JPEG of 90 scans": jpeg_of_scans(90),
        "PNG of a thousand chunks": png(*[chunk(b"prVt", b"")] * 1000),
        "TIFF directory that leads to itself": tiff(next_ifd=8),
        "zTXt comment": png(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"hello"))),
    }


def polyglots_that_are_pictures() -> dict[str, bytes]:
    return {name: content for name, content in polyglots().items() if "behind" not in name}


def hostile() -> dict[str, bytes]:
    """Name to content; every file here is refused, or gives a picture at a bounded price."""
    white = saved(Image.new("1", (4000, 4000), 1), "PNG")
    return dict(
        itertools.chain(
            {
                "empty": b"",
                "one byte": b"\xff",
                "JPEG of a thousand scans": jpeg_of_scans(1000),
                "JPEG that claims to be 13000x13000": jpeg_claiming(13_000, 13_000),
                "progressive JPEG that claims to be 13000x13000": jpeg_claiming(13_000, 13_000, progressive=True),
                "JPEG that claims to be 4000x4000": jpeg_claiming(4_000, 4_000),
                "JPEG of no height": jpeg_claiming(64, 0),
                "JPEG behind a megabyte of fill": b"\xff\xd8" + b"\xff" * (1 << 20) + saved(photo(), "JPEG")[2:],
                "JPEG of two hundred EXIF segments": jpeg_with(*[(0xE1, b"Exif\0\0" + bytes(60_000))] * 200),
                "JPEG whose EXIF shares its bytes": jpeg_with((0xE1, b"Exif\0\0" + exif_sharing(5000, 65_000))),
                "PNG of 2**31 pixels a side": bare_png(2**31 - 1, 2**31 - 1, b""),
                "PNG of no size": bare_png(0, 0, b""),
                "PNG that claims to be 16000x12000": bare_png(16_000, 12_000, bytes(99)),
                "PNG of 200 megapixels in one row": bare_png(200_000_000, 1, bytes(99)),
                "white PNG": white,
                "PNG whose EXIF shares its bytes": png(chunk(b"eXIf", exif_sharing(28_000, 400_000))),
                "PNG of 200,000 chunks": png(*[chunk(b"prVt", b"")] * 200_000),
                "PNG with a chunk of two gigabytes": png(chunk(b"tEXt", b"x\0y", length=2**31 - 1)),
                "PNG whose profile lies": png(
                    chunk(b"iCCP", b"x\0\0" + zlib.compress(struct.pack(">L", 2**32 - 1) + bytes(200)))
                ),
                "APNG of two thousand million frames": apng(frames=2**31 - 1, width=64, height=48),
                "APNG frame larger than the screen": apng(frames=2, width=30_000, height=30_000),
                "APNG frame outside the screen": apng(frames=2, width=64, height=48, x=2**31 - 1, y=2**31 - 1),
                "APNG frame of no size": apng(frames=2, width=0, height=0),
                "GIF of ten thousand frames of 65535x65535": gif(10_000, 65_535, 65_535),
                "GIF of ten thousand frames of 4000x4000": gif(10_000, 4_000, 4_000),
                "GIF frame larger than its screen": gif(1, 10, 10, frame_side=60_000),
                "GIF that grows to 60000x60000": gif(1, 10, 10)[:-1] + gif(1, 10, 10, frame_side=60_000)[19:],
                "GIF of one frame without pixels": gif(1, 4_000, 4_000),
                "plain PPM of few figures": b"P3 16000 12000 255\n" + b"1 " * 1000,
                "plain PPM of a figure without end": b"P3 4 4 255\n" + b"1" * (1 << 20),
                "PPM that claims to be 16000x12000": b"P6 16000 12000 255\n" + bytes(1000),
                "BMP that claims to be 16000x12000": saved(photo(), "BMP")[:18]
                + struct.pack("<ll", 16_000, 12_000)
                + saved(photo(), "BMP")[26:],
                "WebP that claims to be 16384x12000": webp_claiming(16_384, 12_000),
            }.items(),
            png_bombs().items(),
            tiffs().items(),
            polyglots().items(),
        )
    )


def webp_claiming(width: int, height: int) -> bytes:
    content = saved(photo(), "WEBP", exif=exif_looping())
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return content[:24] + canvas + content[30:]


# Where fuzzing starts from


def deep_png(colour: int) -> bytes:
    """A PNG of 16 bits per channel, of PNG's colour type 0, 2, 4 or 6."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    samples = np.random.default_rng(0).integers(0, 65536, (7, 5, channels), np.uint16).astype(">u2")
    return bare_png(5, 7, b"".join(b"\0" + row.tobytes() for row in samples), bits=16, colour=colour)


def deep_tiff(*changes: tuple[int, int, int, int]) -> bytes:
    """An RGB TIFF of 16 bits per channel."""
    content = bytearray(tiff((279, 4, 1, 64 * 48 * 6), *changes, pixels=64 * 48 * 6))
    struct.pack_into("<HHH", content, 380, 16, 16, 16)
    return bytes(content)


def camera_exif() -> bytes:
    """A block with the directories, the resolution and the thumbnail that a camera writes."""
    block = Image.Exif()
    block[0x010F], block[0x0112], block[0x011A], block[0x011B], block[0x0128] = "Maker", 6, 72.0, 72.0, 2
    block.get_ifd(0x8769).update({0x9003: "2020:01:02 03:04:05", 0xA002: 64, 0xA003: 48})
    block.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, 1.5)})
    content = bytearray(block.tobytes())
    start = len(b"Exif\0\0")
    order = "<" if content[start : start + 2] == b"II" else ">"
    first = start + struct.unpack_from(order + "L", content, start + 4)[0]
    link = first + 2 + 12 * struct.unpack_from(order + "H", content, first)[0]
    thumbnail = saved(photo(12, 16), "JPEG")
    place = len(content) - start
    struct.pack_into(order + "L", content, link, place)
    entries = [(0x0103, 4, 1, 6), (0x0201, 4, 1, place + 42), (0x0202, 4, 1, len(thumbnail))]
    directory = b"".join(struct.pack(order + "HHLL", *entry) for entry in entries)
    return bytes(content) + struct.pack(order + "H", 3) + directory + bytes(4) + thumbnail


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3" tiff:XResolution="72/1">
<tiff:ImageWidth>64</tiff:ImageWidth><xmp:Thumbnails>x</xmp:Thumbnails></rdf:Description></rdf:RDF></x:xmpmeta>"""


def seeds() -> dict[str, bytes]:
    """Small good files of every format and kind that is read, with all the metadata that is."""
    small, other = photo(14, 20), photo(14, 20).rotate(180)
    clear = small.copy()
    clear.putalpha(Image.linear_gradient("L").resize(small.size))
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    everything: dict[str, Any] = {"icc_profile": icc, "exif": camera_exif(), "xmp": XMP}
    moving: dict[str, Any] = {"save_all": True, "append_images": [other, small], "duration": 40, "loop": 2}
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "plain")
    texts.add_text("Title", "packed" * 9, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    pages = {"save_all": True, "append_images": [other.copy()]}
    deep = Image.fromarray(np.arange(280, dtype=np.uint16).reshape(14, 20) * 200)
    return {
        "JPEG": saved(small, "JPEG", **everything, comment=b"a comment", dpi=(72, 72)),
        "JPEG grey": saved(small.convert("L"), "JPEG"),
        "JPEG progressive": saved(small, "JPEG", progressive=True),
        "JPEG CMYK": saved(small.convert("CMYK"), "JPEG", icc_profile=icc),
        "MPO": saved(small, "MPO", save_all=True, append_images=[other]),
        "PNG": saved(clear, "PNG", icc_profile=icc, exif=camera_exif(), pnginfo=texts, dpi=(72, 72)),
        "PNG palette": saved(small.quantize(5), "PNG", transparency=1),
        "PNG one bit": saved(small.convert("1"), "PNG", transparency=1),
        "PNG interlaced": bare_png(4, 4, bytes(70), interlaced=1),
        "PNG described": png(chunk(b"gAMA", bytes(4)), chunk(b"cICP", b"\1\1\0\1"), image=small),
        **{f"PNG deep {colour}": deep_png(colour) for colour in (0, 2, 4, 6)},
        "APNG": saved(small, "PNG", **moving),
        "GIF": saved(small.quantize(9), "GIF", comment=b"a comment"),
        "GIF animated": saved(small, "GIF", **moving),
        "WebP": saved(clear, "WEBP", **everything),
        "WebP lossless": saved(small, "WEBP", lossless=True),
        "WebP animated": saved(small, "WEBP", **moving),
        "AVIF": saved(clear, "AVIF", **everything),
        "AVIF animated": saved(small, "AVIF", save_all=True, append_images=[other]),
        "TIFF": saved(clear, "TIFF", exif=camera_exif(), icc_profile=icc, dpi=(72, 72)),
        "TIFF deflate": saved(clear, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF LZW": saved(small, "TIFF", compression="tiff_lzw"),
        "TIFF JPEG": saved(small, "TIFF", compression="jpeg"),
        "TIFF fax": saved(small.convert("1"), "TIFF", compression="group4"),
        "TIFF pages": saved(small, "TIFF", **pages),
        "TIFF big": saved(small, "TIFF", big_tiff=True),
        "TIFF deep": deep_tiff(),
        "TIFF deep grey": saved(deep, "TIFF", compression="tiff_lzw"),
        "TIFF float": saved(Image.fromarray(np.linspace(0, 1, 280, dtype=np.float32).reshape(14, 20)), "TIFF"),
        "TIFF CMYK": saved(small.convert("CMYK"), "TIFF"),
        "TIFF LAB": saved(Image.new("LAB", (8, 8)), "TIFF"),
        "BMP": saved(small, "BMP"),
        "BMP palette": saved(small.quantize(9), "BMP"),
        "PPM": saved(small, "PPM"),
        "PPM deep": b"P6 2 1 65535\n" + bytes(range(12)),
        "PPM plain": b"P3 # a comment\n 3 1 1000 1 2 3 4 5 6 7 8 1000\n",
        "PBM": saved(small.convert("1"), "PPM"),
        "PFM": b"Pf 2 1 -1.0\n" + struct.pack("<ff", 0.25, 0.5),
    }


def read_and_write(content: bytes, max_megapixels: float = 1) -> Picture | None:
    """Judge, decode and encode `content`; None if it is refused. Whatever else is raised is a finding."""
    header = headers.read_header(io.BytesIO(content), max_scans=100)
    try:
        if header is not None:
            headers.refuse(header, "the picture", Limits.of_own_pictures(max_megapixels))
        picture = pictures.decode(content, max_megapixels=max_megapixels)
    except SrganError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert refusal.startswith("the picture: ")
        assert "\n" not in refusal
        return None
    assert picture.pixels.dtype in (np.uint8, np.uint16)
    assert picture.pixels.shape in ((picture.height, picture.width), (picture.height, picture.width, 3))
    assert picture.alpha is None or picture.alpha.shape == (picture.height, picture.width)
    assert 0 < picture.width * picture.height <= max_megapixels * 1e6
    if len({(frame.width, frame.height) for frame in picture.frames}) > 1 and picture.is_animated:
        return picture  # a GIF that grows as it goes; formats of animations have one size and refuse it
    for format in {picture.format, "png", "tiff", "webp"}:
        if pictures.why_not(picture, format) is None:
            pictures.encode(picture, format)
    return picture
