"""What Pillow leaves out of PNG: 16 bits per channel in colour, chunks about the meaning of colours, and speed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

import numpy as np
from isal import isal_zlib
from PIL import Image, ImageFile

from srgan.pictures.formats.damage import CUT_SHORT, DamageError

_PART_BYTES = 1 << 20

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_COLOUR_CHUNKS = {b"cHRM", b"gAMA", b"sRGB", b"cICP", b"mDCV", b"cLLI"}

_RAW_PROFILE = "raw profile type "
_RAW_KINDS = {"exif": "exif", "xmp": "xmp", "icc": "icc", "icm": "icc"}
_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"

# Samples of a pixel by PNG's colour type.
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}

# By channels: the raw modes by which Pillow's decoder keeps the high and the low byte of each 16-bit sample. PNG
# is big-endian, so "little-endian, high byte" is the low one.
_DEEP_MODES = {3: ("RGB;16B", "RGB;16L"), 4: ("RGBA;16B", "RGBA;16L")}


def is_deep(file: BinaryIO) -> bool:
    """Return whether the samples have 16 bits."""
    file.seek(24)  # the signature, then the header chunk's length, name, width and height
    return file.read(1) == b"\x10"


def deep_samples(file: BinaryIO) -> tuple[np.ndarray, ImageFile.ImageFile]:
    """Return the samples of a still 16-bit PNG, (H,W,C) uint16 with alpha last, and the loaded image.

    Pillow has no picture of 16-bit colour, but its decoder takes any raw mode; so it decodes twice, once for each
    byte of a sample, and does all the rest: filters, interlacing, checksums. Raises what Pillow does.
    """
    file.seek(25)
    channels = _CHANNELS[file.read(1)[0]]
    if channels == 1:
        image = _decoded(file, "I;16B")
        return np.asarray(image)[..., None], image
    if channels == 2:
        image = _decoded(_with_samples_as_bytes(file), "RGBA")
        return np.ascontiguousarray(image).view(">u2").astype(np.uint16), image
    high, low = _DEEP_MODES[channels]
    levels = np.asarray(_decoded(file, high)).astype(np.uint16) << 8
    image = _decoded(file, low)
    return levels | np.asarray(image), image


def _decoded(file: BinaryIO, raw_mode: str) -> ImageFile.ImageFile:
    file.seek(0)
    image = Image.open(file, formats=("PNG",))
    image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
    image.load()
    return image


def _with_samples_as_bytes(file: BinaryIO) -> BinaryIO:
    """Return a PNG of two samples of 16 bits as one of four of 8: to filters and interlacing they are the same."""
    file.seek(0)
    content = file.read()
    start = len(SIGNATURE)
    header = bytearray(content[start + 8 : start + 21])
    header[8:10] = 8, 6  # bits, and the colour type of RGBA
    return io.BytesIO(SIGNATURE + chunk(b"IHDR", bytes(header)) + content[start + 25 :])


def colour_chunks(file: BinaryIO) -> tuple[tuple[bytes, bytes], ...]:
    """Return the chunks before the pixels that say how colours are meant."""
    file.seek(len(SIGNATURE))
    chunks = []
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">L4s", head)
        if name in (b"IDAT", b"IEND"):
            break
        if name in _COLOUR_CHUNKS and length <= 32:
            chunks.append((name, file.read(length)))
            length = 0
        file.seek(length + 4, 1)  # its checksum, too
    return tuple(chunks)


def unkept(file: BinaryIO) -> list[str]:
    """Return what a PNG file carries that is not read, in a few words each."""
    file.seek(len(SIGNATURE))
    words = []
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">L4s", head)
        if name == b"IEND":
            break
        if name == b"caBX":
            words.append("content credentials (C2PA)")
        file.seek(length + 4, 1)
    return words


def raw_profiles(texts: Mapping[str, str]) -> dict[str, bytes]:
    """Return what ImageMagick and ExifTool keep as hexadecimal texts: blocks by "exif", "xmp" and "icc".

    IPTC data, which PNG holds in no other way, stays the text that it is.
    """
    found: dict[str, bytes] = {}
    for keyword, text in texts.items():
        kind = keyword.lower().removeprefix(_RAW_PROFILE)
        if kind == keyword.lower():
            continue
        try:  # a line of its kind, one of its length, and lines of digits
            _, length, digits = str(text).strip().split(maxsplit=2)
            body = bytes.fromhex(digits)[: int(length)]
        except ValueError:
            continue
        if kind == "app1":
            kind = "xmp" if body.startswith(_XMP_NAME) else "exif"
        if kind in _RAW_KINDS and body:
            found.setdefault(_RAW_KINDS[kind], body.removeprefix(_XMP_NAME) if kind == "xmp" else body)
    return found


def write(levels: np.ndarray, before: list[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG file of (H,W,C) levels of either depth, C of 1 to 4 with alpha last, after chunks `before`."""
    height, width, channels = levels.shape
    colour_type = {count: kind for kind, count in _CHANNELS.items()}[channels]
    header = struct.pack(">LLBBBBB", width, height, 8 * levels.itemsize, colour_type, 0, 0, 0)
    file = io.BytesIO()  # as a list of chunks it would be held twice
    file.write(SIGNATURE + chunk(b"IHDR", header))
    for name, body in before:
        file.write(chunk(name, body))
    for part in _deflated(levels):
        file.write(chunk(b"IDAT", part))
    file.write(chunk(b"IEND", b""))
    return file.getvalue()


def deflated(content: bytes | bytearray) -> bytes:
    """Return bytes as the zlib stream that a chunk of pixels holds."""
    return bytes(isal_zlib.compress(content))


def inflated(pieces: Iterable[bytes], *, to_its_end: bool = False) -> Iterator[bytes]:
    """Yield what a zlib stream holds, in parts of up to a megabyte, as far as it goes.

    Raises DamageError behind them if it is none or its checksum is wrong; with `to_its_end`, if that is missing.
    """
    stream = isal_zlib.decompressobj()
    try:
        for piece in pieces:
            part = stream.decompress(piece, _PART_BYTES)
            while part:
                yield part
                part = stream.decompress(stream.unconsumed_tail, _PART_BYTES)
            if stream.eof:
                return
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub takes the class for an instance
        raise DamageError("its data cannot be unpacked, or does not match its checksum") from error
    if to_its_end:
        raise DamageError(CUT_SHORT)


def _deflated(levels: np.ndarray) -> Iterator[bytes]:
    """Yield the compressed rows, each filtered by the mean of its neighbours, PNG's third filter.

    Of the fixed filters it gives the smallest files on upscaled photographs (docs/decisions.md).
    """
    height, width, channels = levels.shape
    compressor = isal_zlib.compressobj()
    pixel_bytes = channels * levels.itemsize
    rows_at_once = max(1, 2**20 // (width * pixel_bytes))
    above = np.zeros((1, width * pixel_bytes), np.uint8)
    for top in range(0, height, rows_at_once):
        big_endian = levels[top : top + rows_at_once].astype(levels.dtype.newbyteorder(">"), copy=False)
        block = np.ascontiguousarray(big_endian).view(np.uint8).reshape(-1, width * pixel_bytes)
        left = np.zeros_like(block)
        left[:, pixel_bytes:] = block[:, :-pixel_bytes]
        up = np.concatenate([above, block[:-1]])
        mean = (left & up) + ((left ^ up) >> 1)  # the floor of their mean, without a ninth bit
        rows = np.empty((len(block), 1 + block.shape[1]), np.uint8)
        rows[:, 0] = 3
        np.subtract(block, mean, out=rows[:, 1:])
        above = block[-1:]
        if part := compressor.compress(rows.data):
            yield part
    yield compressor.flush()


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))
