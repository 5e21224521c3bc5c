"""Gain maps in JPEG files: a second JPEG file behind the picture (Ultra HDR; ISO 21496-1, and CIPA DC-007).

What a file says of where its map lies is not needed to read it, and often wrong: the map is the first JPEG file
behind the picture that says in its own segments how its levels are meant.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image, JpegImagePlugin

from srgan.pictures.faults import DECODER_ERRORS
from srgan.pictures.formats import jpeg_parts
from srgan.pictures.formats.jpeg_parts import ISO_GAIN_MAP, Layout, layout
from srgan.pictures.gain_map import GainMap
from srgan.pictures.picture import A_GAIN_MAP

_APP0, _APP1, _APP2, _APP15, _COM, _SOI = 0xE0, 0xE1, 0xE2, 0xEF, 0xFE, b"\xff\xd8\xff"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ISO = ISO_GAIN_MAP + b"\0"

# Pictures behind the picture that are looked at, and where in them their own metadata is.
_MOST_PICTURES, _HEAD_BYTES = 32, 1 << 18
_METADATA = re.compile(rb"hdr-gain-map/1\.0/|" + re.escape(ISO_GAIN_MAP))

# A photograph that is sent bit by bit has about ten; each costs a pass over the pixels.
_MOST_SCANS = 20

# One of 256 levels of a map that spans four stops is 1 % of light, so it is written well whatever the picture's
# quality; at quarter size that costs a fiftieth of the file.
_QUALITY = 98

# CIPA DC-007, 5.2.3.3: the main picture, and one of a kind that the standard does not define.
_MAIN, _OTHER = 0x030000, 0


class _UnusableError(Exception):
    """Says what is wrong with a gain map."""


def read(content: bytes, size: tuple[int, int]) -> tuple[GainMap | None, list[str]]:
    """Return the gain map of a JPEG file, not yet turned, and what is told of one that is not kept.

    `size`: (width, height) of its picture. Whatever is wrong with a map costs that alone.
    """
    parts = layout(content)
    if not jpeg_parts.claims_gain_map(content, parts):
        return None, []
    try:
        for file, of_map in _candidates(content, parts):
            if any(_metadata(of_map)):
                return _decoded(file, of_map, size), []
        reason = " says nothing of how it is meant and "
    except _UnusableError as error:
        reason = f" {error} and "
    except DECODER_ERRORS:
        reason = " is damaged and "
    return None, [f"{A_GAIN_MAP}{reason}was not kept"]


def coded(gain_map: GainMap, quality: int | None) -> bytes:
    """Return the file that lies behind the picture; `quality`: 1..100, of the picture."""
    buffer = io.BytesIO()
    options = {"icc_profile": gain_map.icc} if gain_map.icc and not gain_map.in_base_colours else {}
    quality = max(quality or _QUALITY, _QUALITY)
    image = Image.fromarray(np.ascontiguousarray(gain_map.levels))
    image.save(buffer, "JPEG", quality=quality, subsampling=0, xmp=gain_map.to_xmp(), **options)
    content = buffer.getvalue()
    place = _end_of_front(content)
    return content[:place] + _segment(_APP2, _ISO + gain_map.to_iso()) + content[place:]


def joined(content: bytes, behind: bytes) -> bytes:
    """Return a JPEG file with a gain map `behind` it, which its XMP packet tells already."""
    place = _end_of_front(content)
    iso = _segment(_APP2, _ISO + bytes(4))  # its version alone: the rest is said by the map
    length = len(content) + len(iso) + len(_index(0, 0, 0))
    places_from = place + len(iso) + 8  # the byte order mark of the index, from which it counts
    index = _index(length, len(behind), length - places_from)
    return b"".join([content[:place], iso, index, content[place:], behind])


def _candidates(content: bytes, parts: Layout) -> Iterator[tuple[bytes, Layout]]:
    """Yield the files behind the picture that may be its gain map, with their layouts."""
    starts = (match.start() for match in re.compile(_SOI).finditer(content, parts.end))
    for _, start in zip(range(_MOST_PICTURES), starts, strict=False):
        if _METADATA.search(content, start, start + _HEAD_BYTES):
            file = content[start:]
            yield file, layout(file)


def _metadata(parts: Layout) -> tuple[bytes, bytes]:
    """Return what a map's own file says by ISO 21496-1 and by XMP, empty where it says nothing."""
    isos = [body[len(_ISO) :] for marker, body in parts.segments if marker == _APP2 and body.startswith(_ISO)]
    packets = [body[len(_XMP) :] for marker, body in parts.segments if marker == _APP1 and body.startswith(_XMP)]
    # A picture that has a map itself says its version alone, by either.
    iso = next((body for body in isos if len(body) > 4), b"")
    return iso, next((packet for packet in packets if b"GainMapMax" in packet), b"")


def _decoded(file: bytes, parts: Layout, size: tuple[int, int]) -> GainMap:
    if not parts.is_ended:
        raise _UnusableError("is cut short")
    if sum(1 for _ in parts.scans) > _MOST_SCANS:
        raise _UnusableError("takes too long to read")
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(file[: parts.end + 2]))
    if image.width > size[0] or image.height > size[1]:
        raise _UnusableError("is larger than the picture")
    if image.mode not in ("L", "RGB"):
        raise _UnusableError("has other colours than red, green and blue")
    image.load()
    levels, icc = np.asarray(image), image.info.get("icc_profile")
    iso, packet = _metadata(parts)
    for make, said in ((GainMap.of_iso, iso), (GainMap.of_xmp, packet)):
        try:
            if said:
                return make(levels, said, icc)
        except ValueError:
            continue
    raise _UnusableError("does not say how it is meant")


def _end_of_front(content: bytes) -> int:
    """Return where the segments of programs at the beginning of a JPEG file end."""
    place = 2
    while content[place] == 0xFF and (_APP0 <= content[place + 1] <= _APP15 or content[place + 1] == _COM):
        place += 2 + int.from_bytes(content[place + 2 : place + 4])
    return place


def _index(length: int, behind: int, offset: int) -> bytes:
    """Return the segment that lists two pictures: of `length`, and of `behind` bytes at `offset`."""
    entries = struct.pack(">LLLHH", _MAIN, length, 0, 0, 0) + struct.pack(">LLLHH", _OTHER, behind, offset, 0, 0)
    head = struct.pack(">2sHLH", b"MM", 42, 8, 3)
    head += struct.pack(">HHL4s", 0xB000, 7, 4, b"0100") + struct.pack(">HHLL", 0xB001, 4, 1, 2)
    head += struct.pack(">HHLLL", 0xB002, 7, len(entries), len(head) + 16, 0)
    return _segment(_APP2, b"MPF\0" + head + entries)


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
