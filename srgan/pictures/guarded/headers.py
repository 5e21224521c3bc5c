"""What a file promises, read without decoding a pixel and without any image library.

A first look at JPEG, PNG and WebP, in plain Python: enough to refuse what cannot be a picture of a sane size,
and to tell the ordinary photograph from what needs care. It reads little of the file, or of a progressive JPEG all
of it once, in pieces.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

from srgan.errors import PictureError, PictureTooLargeError

# Every full-resolution block of 8x8 pixels costs a Huffman-coded JPEG a bit or more (its DC code).
_JPEG_MOST_PX_PER_BYTE = 512

# Deflate's best: 258 bytes for two bits (RFC 1951). A little is allowed for the stream's own frame.
_DEFLATE_BEST_RATIO = 1032
_DEFLATE_FRAME_BYTES = 1024

# From here on a file may still be a picture, of one colour perhaps, and is decoded with care.
_ORDINARY_PX_PER_BYTE = 256
_ORDINARY_RATIO_FROM_PX = 1_000_000

# Of a JPEG: passes over the pixels, in megapixels. A photograph has one pass or about ten.
_ORDINARY_SCAN_MEGAPIXELS = 600

# A camera writes some twenty segments, an encoder a chunk for every 8 KB of pixels.
_ORDINARY_SEGMENTS = 1_000
# Between its scans a progressive JPEG has a few tables each; to count 8 million empty comments takes four seconds.
_ORDINARY_MARKERS = 10_000
_ORDINARY_CHUNKS = 20_000

# Beside the pixels: profile, thumbnail, comments. Entries of EXIF may share their bytes, so a reader may need the
# square of its size.
_ORDINARY_METADATA_BYTES = 8 << 20
_ORDINARY_METADATA_CHUNKS = 100
_ORDINARY_EXIF_BYTES = 1 << 16

_PIECE_BYTES = 1 << 20

_EOI, _SOS, _APP1 = 0xD9, 0xDA, 0xE1
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_FRAMES_OF_JPEG = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA), 0xFF})

# In coded data 0xFF is followed by zero, by a restart number or by more of itself; all else is a marker.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


@dataclass(frozen=True)
class Limits:
    """What one picture may cost. The defaults are those for pictures of strangers.

    `max_megapixels` (of all frames together), `max_side_px`, `max_scans` (of a JPEG), `max_frames` (of an
    animation, or pages): more is refused, from the header where it tells. `cpu_s`: processor time of the worker;
    `wall_s`: time until it is killed. `memory_bytes`: address space beyond an idle worker's.
    `accept_damaged`: as `pictures.decode` takes it.
    """

    max_megapixels: float = 16.0
    max_side_px: int = 16_384
    max_scans: int = 100
    max_frames: int = 1
    cpu_s: float = 10.0
    wall_s: float = 30.0
    memory_bytes: int = 2 << 30
    accept_damaged: bool = False

    @classmethod
    def of_own_pictures(cls, max_megapixels: float, *, accept_damaged: bool = False) -> Self:
        """Return limits for somebody's own pictures of up to `max_megapixels`: time and memory for the largest."""
        cpu_s = max(cls.cpu_s, 0.3 * max_megapixels)  # AVIF on a slow core, with a margin of three
        return cls(
            max_megapixels=max_megapixels,
            max_side_px=1 << 18,
            max_frames=100_000,
            cpu_s=cpu_s,
            wall_s=3 * cpu_s,
            # Sixteen bits in four channels are 8 bytes a pixel, and a decoder holds up to four copies.
            memory_bytes=max(cls.memory_bytes, int(32e6 * max_megapixels)),
            accept_damaged=accept_damaged,
        )

    @classmethod
    def of_encoding(cls, megapixels: float, memory_bytes: int) -> Self:
        """Return limits for the encoding of so many pixels in all frames, which is known to take `memory_bytes`.

        Only what has gone astray meets them.
        """
        cpu_s = max(60.0, 60 * megapixels)  # AVIF takes a second or two for a megapixel of noise
        # Of addresses, heap and threads' stacks set aside more than is ever used.
        return cls(cpu_s=cpu_s, wall_s=3 * cpu_s, memory_bytes=(1 << 29) + memory_bytes * 3 // 2)


@dataclass(frozen=True)
class Header:
    """What a file promises. `ordinary`: nothing in it asks for care. `truncated`: it cannot hold its pixels.

    `scans`: of a JPEG. `frames`: of an animation, or pages; `read_header` does not count them.
    """

    width: int
    height: int
    ordinary: bool = True
    truncated: bool = False
    scans: int = 1
    frames: int = 1


def read_header(file: BinaryIO, *, max_scans: int) -> Header | None:
    """Return what a JPEG, PNG or WebP file says of itself, or None for other files and for odd ones.

    `max_scans`: counting the passes of a progressive JPEG ends behind that. Raises OSError as the file does.
    """
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(12)
    try:
        if start.startswith(b"\xff\xd8\xff"):
            return _jpeg(file, size_bytes, max_scans)
        if start.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(file, size_bytes)
        if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
            return _webp(file, size_bytes)
    except struct.error:
        pass  # cut short: the decoder will say so
    return None


def refuse(header: Header, name: str, limits: Limits) -> None:
    """Raise PictureTooLargeError or PictureError if `header` promises more than `limits`, or the impossible."""
    size = f"{header.width}x{header.height} pixels"
    if header.frames > 1:
        size += f" in {header.frames} frames"
    if header.width * header.height * header.frames > limits.max_megapixels * 1e6:
        excess = f"{size} are more than the limit of {limits.max_megapixels:g} megapixels; crop or reduce it first"
    elif max(header.width, header.height) > limits.max_side_px:
        excess = f"{size} are more than the limit of {limits.max_side_px} pixels a side; crop or reduce it first"
    elif header.frames > limits.max_frames:
        excess = f"{header.frames} frames are more than the limit of {limits.max_frames}; save one as a picture"
    elif header.scans > limits.max_scans:
        excess = f"a JPEG of more than {limits.max_scans} scans takes too long; save it again with another program"
    elif header.truncated and not limits.accept_damaged:
        raise PictureError(f"{name}: is damaged or incomplete: too short for {size}")
    else:
        return
    raise PictureTooLargeError(f"{name}: {excess}")


def _jpeg(file: BinaryIO, size_bytes: int, max_scans: int) -> Header | None:
    file.seek(2)
    kind = height = width = components = exif_blocks = 0
    for _ in range(_ORDINARY_SEGMENTS):
        prefix, marker, length = _read(file, ">BBH")
        if prefix != 0xFF or marker in _WITHOUT_LENGTH or length < 2:
            return None
        body = file.read(length - 2)
        if marker in _FRAMES_OF_JPEG:
            if kind:
                return None
            kind, (height, width, components) = marker, struct.unpack_from(">HHB", body, 1)
        exif_blocks += marker == _APP1 and body.startswith(b"Exif")
        if marker == _SOS:
            break
    else:
        return None
    if not (kind and width and height and body):
        return None
    # Whoever has all components in its first scan, and is not progressive, is read to the end of that scan.
    scans = 1 if kind != _PROGRESSIVE and body[0] == components else _scans(file, max_scans)
    if scans is None:
        return None
    pixels = width * height
    huffman = kind in (_BASELINE, _EXTENDED, _PROGRESSIVE)
    usual = scans * pixels <= _ORDINARY_SCAN_MEGAPIXELS * 1e6 and _is_usual_ratio(pixels, size_bytes)
    truncated = huffman and pixels > _JPEG_MOST_PX_PER_BYTE * size_bytes
    # Four components are CMYK, whose profile is carried out and not only carried along.
    return Header(width, height, huffman and components <= 3 and exif_blocks <= 1 and usual, truncated, scans)


def _scans(file: BinaryIO, max_scans: int) -> int | None:
    """Return the number of scans from the coded data at hand on, or `max_scans` + 1 if there are more.

    None if there are too many markers to look at them all: that is for who has a limit on its time.
    """
    scans, markers = 1, 0
    rest = b""
    while scans <= max_scans and (piece := file.read(_PIECE_BYTES)):
        coded = rest + piece
        position = 0
        while scans <= max_scans and (match := _MARKER.search(coded, position)):
            marker = coded[match.end() - 1]
            if marker == _EOI:
                return scans
            markers += 1
            if markers > _ORDINARY_MARKERS:
                return None
            scans += marker == _SOS
            position = match.end()
            if marker not in _WITHOUT_LENGTH:
                coded += file.read(2) if len(coded) < position + 2 else b""
                position += int.from_bytes(coded[position : position + 2])
        rest = b"\xff" if coded.endswith(b"\xff") and position < len(coded) else b""
        file.seek(max(position - len(coded), 0), io.SEEK_CUR)
    return scans


def _png(file: BinaryIO, size_bytes: int) -> Header | None:
    file.seek(8)
    length, kind, width, height, bits, colour = _read(file, ">L4sLLBB")
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if kind != b"IHDR" or length != 13 or channels is None or not (width and height):
        return None
    raw_bytes = (-(-width * bits * channels // 8) + 1) * height
    return Header(
        width,
        height,
        ordinary=_is_usual_ratio(width * height, size_bytes) and _has_usual_chunks(file),
        truncated=raw_bytes > _DEFLATE_BEST_RATIO * size_bytes + _DEFLATE_FRAME_BYTES,
    )


def _has_usual_chunks(file: BinaryIO) -> bool:
    """Return whether a PNG file is a still picture with little metadata."""
    position, metadata_bytes, metadata_chunks = 8, 0, 0
    for _ in range(_ORDINARY_CHUNKS):
        file.seek(position)
        length, kind = _read(file, ">L4s")
        if kind == b"IEND":
            return metadata_bytes <= _ORDINARY_METADATA_BYTES and metadata_chunks <= _ORDINARY_METADATA_CHUNKS
        if kind == b"acTL" or (kind == b"eXIf" and length > _ORDINARY_EXIF_BYTES):
            return False
        if kind != b"IDAT":
            metadata_bytes += length
            metadata_chunks += 1
        position += 12 + length
    return False


def _webp(file: BinaryIO, size_bytes: int) -> Header | None:
    position, still = 12, True
    size: tuple[int, int] | None = None
    for _ in range(_ORDINARY_METADATA_CHUNKS):
        if position + 8 >= size_bytes:
            break
        file.seek(position)
        kind, length = _read(file, "<4sL")
        match kind:
            case b"VP8X":
                flags, *sides = _read(file, "<B3xHBHB")
                size = sides[0] + (sides[1] << 16) + 1, sides[2] + (sides[3] << 16) + 1
                still = not flags & 0x02
            case b"VP8 " if size is None:
                width, height = _read(file, "<6xHH")
                size = width & 0x3FFF, height & 0x3FFF
            case b"VP8L" if size is None:
                (packed,) = _read(file, "<xL")
                size = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
            case b"EXIF" if length > _ORDINARY_EXIF_BYTES:
                still = False
        position += 8 + length + length % 2
    else:
        still = False
    return Header(*size, still and _is_usual_ratio(size[0] * size[1], size_bytes)) if size else None


def _read(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    """Return the next values in the file; raises struct.error where it ends."""
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _is_usual_ratio(pixels: int, size_bytes: int) -> bool:
    return pixels <= max(_ORDINARY_RATIO_FROM_PX, _ORDINARY_PX_PER_BYTE * size_bytes)
