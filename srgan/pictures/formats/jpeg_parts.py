"""What a JPEG file holds beside its picture: segments before it, and whatever lies behind it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from srgan.pictures.formats import beside

_EOI, _SOS, _APP0, _APP1, _APP2, _APP11, _APP13, _APP14 = 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEB, 0xED, 0xEE

# In coded data 0xFF is followed by zero, by a restart number or by more of itself; all else is a marker.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

# What may stand between two scans: tables, numbers of lines, restart intervals, comments, data of programs.
_BETWEEN_SCANS = frozenset({0xC4, 0xCC, _SOS, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})

# What phones put behind the picture: a named block (Samsung: two zeros, kind, length of the name, name), a film.
_TRAILER = re.compile(rb"\0\0[\x00-\xff]{2}[\x04-\x40]\0\0\0[A-Z][A-Za-z]{2}[A-Za-z_]|\0\0\0[\x08-\x80]ftyp")

# Segments that are read, or that say only how the file was coded: marker and beginning.
_READ = (
    (_APP0, b"JFIF\0"),
    (_APP0, b"JFXX\0"),  # a thumbnail
    (_APP1, b"Exif\0"),
    (_APP1, b"none\0"),  # EXIF that was hidden
    (_APP1, b"http://ns.adobe.com/xap/1.0/\0"),
    (_APP2, b"ICC_PROFILE\0"),
    (_APP2, b"MPF\0"),
    (_APP13, b"Photoshop 3.0\0"),  # told where its content is read
    (_APP14, b"Adobe"),
    (0xEC, b"Ducky"),
)

_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1"
_GAIN_MAP = re.compile(
    rb"http://ns\.adobe\.com/hdr-gain-map/|http://ns\.apple\.com/HDRGainMap/|aux:hdrgainmap|" + ISO_GAIN_MAP
)
_GAIN_MAP_PROPERTY = re.compile(rb"""hdrgm:Version\b|HDRGainMapVersion\b|Semantic\s*=\s*["']GainMap\b""")
_FILM = re.compile(rb"[\x08-\xff]ftyp|MotionPhoto_Data")


@dataclass(frozen=True)
class Layout:
    """Where the parts of a JPEG file are. `segments`: (marker, body) of each up to the last scan's header.

    `end`: where the coded data of the picture ends. `is_ended`: whether the mark for the end stands there.
    `whole_end`: the same, before a segment that the file ends in.
    """

    segments: tuple[tuple[int, bytes], ...]
    end: int
    is_ended: bool
    whole_end: int

    @property
    def scans(self) -> Iterator[bytes]:
        """The headers of the scans."""
        return (body for marker, body in self.segments if marker == _SOS)

    def behind(self, content: bytes) -> bytes:
        """Return what lies behind the picture in the file, without padding."""
        rest = content[self.end + 2 * self.is_ended :]
        return rest.strip(b"\0") if self.is_ended or len(rest) > 3 else b""  # a marker that is cut


def layout(content: bytes) -> Layout:
    """Return the layout of a JPEG file, as far as it is one."""
    segments: list[tuple[int, bytes]] = []
    cut_from: int | None = None
    place, is_ended, coded_from = 2, False, len(content)
    while True:
        while content[place : place + 2] == b"\xff\xff":
            place += 1
        marker = content[place + 1] if content[place : place + 1] == b"\xff" and place + 1 < len(content) else None
        if marker is None or marker == _EOI:
            is_ended = marker == _EOI
            break
        length = int.from_bytes(content[place + 2 : place + 4])
        if place + 2 + max(2, length) > len(content):
            cut_from, place = place, len(content)
            break
        segments.append((marker, content[place + 4 : place + 2 + length]))
        place += 2 + max(2, length)
        if marker == _SOS:
            coded_from = min(coded_from, place)
            match = _MARKER.search(content, place)
            place = match.start() if match else len(content)
            if not match or not _is_marker(content, place):
                break
    end = min(place, len(content))
    if trailer := _TRAILER.search(content, coded_from, end):
        end, is_ended = trailer.start(), False
    return Layout(tuple(segments), end, is_ended, end if cut_from is None else cut_from)


def _is_marker(content: bytes, place: int) -> bool:
    """Return whether what looks like a marker behind a scan is one, and not a byte of what phones append."""
    marker = content[place + 1]
    if marker == _EOI:
        return True
    following = place + 2 + int.from_bytes(content[place + 2 : place + 4])
    return marker in _BETWEEN_SCANS and (following >= len(content) or marker == _SOS or content[following] == 0xFF)


def claims_gain_map(content: bytes, parts: Layout) -> bool:
    """Return whether a JPEG file says that there is a gain map behind its picture, and anything is there."""
    behind = parts.behind(content)
    xmp = b"".join(body for marker, body in parts.segments if marker == _APP1 and body.startswith(b"http:"))
    return bool(behind) and (
        bool(_GAIN_MAP.search(behind) or _GAIN_MAP_PROPERTY.search(xmp))
        or any(marker == _APP2 and body.startswith(ISO_GAIN_MAP) for marker, body in parts.segments)
    )


def unkept(content: bytes, *, keeps_gain_map: bool) -> list[str]:
    """Return what a JPEG file carries beside picture, gain map and metadata that is not kept, in a few words."""
    parts = layout(content)
    behind = parts.behind(content)
    told = []
    xmp = b"".join(body for marker, body in parts.segments if marker == _APP1 and body.startswith(b"http:"))
    has_gain_map = claims_gain_map(content, parts)
    if has_film := bool(_FILM.search(behind)):
        told.append(beside.FILM)
    pictures = max(_listed_pictures(parts) - 1, int(behind.startswith(b"\xff\xd8\xff")))
    if pictures > has_gain_map:
        read = "picture and its gain map were" if keeps_gain_map else "picture of the file was"
        told.append(f"only the first {read} read; others behind it are not kept")
    if _EXTENDED_XMP in xmp:
        told.append("its extended XMP data was not kept")
    told += _unknown_segments(parts)
    if b"SEFT" in behind[-8:]:
        told.append("what its phone wrote behind the picture was not kept")
    elif behind and not (has_film or pictures):
        told.append(f"{len(behind)} bytes behind the picture in its file were not kept")
    return told


def _unknown_segments(parts: Layout) -> list[str]:
    told = []
    names = []
    for marker, body in parts.segments:
        if not _APP0 <= marker <= 0xEF or any(marker == kind and body.startswith(start) for kind, start in _READ):
            continue
        if body.startswith((_EXTENDED_XMP, ISO_GAIN_MAP)):
            continue
        if marker == _APP11 and body.startswith(b"JP"):
            if b"c2pa" in body:
                told.append(beside.CREDENTIALS)
            elif b"jumb" in body:
                told.append("its JUMBF data was not kept")
            continue
        if name := re.match(rb"[A-Za-z][A-Za-z0-9_. /:-]{2,23}", body):
            names.append(f"{name[0].decode()} in APP{marker - _APP0}")
        else:
            names.append(f"APP{marker - _APP0}")
    if names:
        told.append(f"its data of other programs ({', '.join(list(dict.fromkeys(names))[:4])}) was not kept")
    return told


def _listed_pictures(parts: Layout) -> int:
    """Return how many pictures the index of a file of several names (CIPA DC-007), 0 if there is none."""
    for marker, body in parts.segments:
        if marker != _APP2 or not body.startswith(b"MPF\0"):
            continue
        tiff = body[4:]
        order = "<" if tiff.startswith(b"II") else ">"
        try:
            (first,) = struct.unpack_from(order + "L", tiff, 4)
            (count,) = struct.unpack_from(order + "H", tiff, first)
            for entry in range(first + 2, first + 2 + 12 * count, 12):
                tag, _, _, value = struct.unpack_from(order + "HHLL", tiff, entry)
                if tag == 0xB001:
                    return int(value)
        except struct.error:
            return 0
    return 0
