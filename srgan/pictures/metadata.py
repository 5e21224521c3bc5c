"""EXIF and XMP: their orientation, sizes and resolution made true to the pixels, all else left as it is."""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections.abc import Iterator
from fractions import Fraction

from PIL import ExifTags, Image

from srgan.pictures import descriptions, xmp

_HEADER = b"Exif\0\0"
_BASE = ExifTags.Base

# What Pillow raises on damaged blocks.
_PARSER_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    UserWarning,
    ValueError,
    struct.error,
)

_THUMBNAILS_END = b"</xmp:Thumbnails>"

# Pixels per unit of length on the sensor.
_FOCAL_PLANE_X, _FOCAL_PLANE_Y = _BASE.FocalPlaneXResolution, _BASE.FocalPlaneYResolution

# Where the subject is, in pixels (SubjectArea, SubjectLocation).
_PLACES = (0x9214, 0xA214)

# EXIF's types of values.
_ASCII, _SHORT, _LONG, _RATIONAL = 2, 3, 4, 5


def upright_exif(block: bytes) -> bytes:
    """Return an EXIF block whose orientation tags, wherever it has one, say 1; see `_Block`."""
    edited = _Block(block)
    orientation = edited.integer(_BASE.Orientation) or 1
    edited.set_integers({_BASE.Orientation: 1})
    if orientation != 1:  # places are told as before the turn
        edited.drop(*_PLACES)
    if orientation >= 5:
        edited = _Block(edited.tobytes())
        across, down = edited.rational(_FOCAL_PLANE_X), edited.rational(_FOCAL_PLANE_Y)
        if across is not None and down is not None:
            edited.set_rationals({_FOCAL_PLANE_X: down, _FOCAL_PLANE_Y: across})
    return edited.tobytes()


def fitted_exif(
    block: bytes,
    height: int,
    width: int,
    dpi: tuple[float, float] | None,
    scale: tuple[float, float] = (1, 1),
) -> bytes:
    """Return an EXIF block that is upright, of this size and resolution where it told one, without thumbnail.

    `scale`: how many times longer (across, down) the picture is than the one that the block was read with.
    """
    edited = _Block(_scaled(block, scale))
    edited.set_integers(
        {
            _BASE.Orientation: 1,  # Pillow's encoder of AVIF sequences crashes on any other
            _BASE.ImageWidth: width,
            _BASE.ImageLength: height,
            _BASE.ExifImageWidth: width,
            _BASE.ExifImageHeight: height,
        }
    )
    if dpi is not None:
        edited.set_rationals({_BASE.XResolution: dpi[0], _BASE.YResolution: dpi[1]})
        edited.set_integers({_BASE.ResolutionUnit: 2})  # inches
    edited.drop_thumbnail()
    return edited.tobytes()


def hide_exif(jpeg: bytes) -> bytes:
    """Return a JPEG file whose EXIF block goes by a name that nobody knows."""
    return re.sub(rb"(\xff\xe1..)Exif\0", rb"\1none\0", jpeg, flags=re.DOTALL)


def exif_dpi(block: bytes) -> tuple[float, float] | None:
    """Return the resolution that an EXIF block tells, in pixels per inch, or None."""
    edited = _Block(block)
    sides = [edited.rational(tag) for tag in (_BASE.XResolution, _BASE.YResolution)]
    per_inch = {2: 1.0, 3: 2.54}.get(edited.integer(_BASE.ResolutionUnit) or 2)
    if per_inch is None or sides[0] is None or sides[1] is None:
        return None
    return valid_dpi((sides[0] * per_inch, sides[1] * per_inch))


def valid_dpi(dpi: tuple[float, float]) -> tuple[float, float] | None:
    """Return `dpi` as floats if both sides are resolutions that a file can hold, else None."""
    across, down = float(dpi[0]), float(dpi[1])
    sensible = all(math.isfinite(side) and 0.01 < side < 1e6 for side in (across, down))
    return (across, down) if sensible else None


def fitted_xmp(
    packet: bytes,
    height: int,
    width: int,
    dpi: tuple[float, float] | None,
    scale: tuple[float, float] = (1, 1),
) -> bytes:
    """Return an XMP packet that is upright, of this size and resolution where it told them, without thumbnails.

    Nor does it tell of what lies behind a picture in its file. `scale`: as for `fitted_exif`.
    """
    packet = xmp.resized(xmp.without_absent(packet), height, width, scale)
    values = {
        b"tiff:Orientation": b"1",
        b"tiff:ImageWidth": b"%d" % width,
        b"tiff:ImageLength": b"%d" % height,
        b"exif:PixelXDimension": b"%d" % width,
        b"exif:PixelYDimension": b"%d" % height,
    }
    if dpi is not None:
        values[b"tiff:XResolution"] = b"%d/10000" % round(dpi[0] * 10000)
        values[b"tiff:YResolution"] = b"%d/10000" % round(dpi[1] * 10000)
        values[b"tiff:ResolutionUnit"] = b"2"

    def fitted(match: re.Match[bytes]) -> bytes:
        return match[1] + values.get(match[2], match[4]) if match[4] else match[0]

    # As an attribute (tiff:Orientation="6") and as an element (<tiff:Orientation>6</tiff:Orientation>).
    packet = re.sub(rb"(\b((?:tiff|exif):[A-Za-z]+)(\s*=\s*[\"']|>))([^\"'<>]*)", fitted, packet)
    # Up to the last end tag, or every start tag without an end would be followed to the end of the packet.
    end = packet.rfind(_THUMBNAILS_END) + len(_THUMBNAILS_END) if _THUMBNAILS_END in packet else 0
    return re.sub(rb"<xmp:Thumbnails\b.*?</xmp:Thumbnails>", b"", packet[:end], flags=re.DOTALL) + packet[end:]


def _scaled(block: bytes, scale: tuple[float, float]) -> bytes:
    """Return an EXIF block whose places and densities in pixels have followed the size."""
    if scale == (1, 1):
        return block
    edited = _Block(block)
    for tag, factor in ((_FOCAL_PLANE_X, scale[0]), (_FOCAL_PLANE_Y, scale[1])):
        if (density := edited.rational(tag)) is not None:
            edited.set_rationals({tag: density * factor})
    if edited.integer(_BASE.ResolutionUnit) == 1:  # pixels per what is told elsewhere, as by ImageJ
        for tag, factor in ((_BASE.XResolution, scale[0]), (_BASE.YResolution, scale[1])):
            if (density := edited.rational(tag)) is not None:
                edited.set_rationals({tag: density * factor})
    edited.scale_description(scale)
    edited.scale_places(_PLACES, scale)
    return edited.tobytes()


def is_rewritable(block: bytes) -> bool:
    """Return whether Pillow can take an EXIF block apart and put it together, as it does for TIFF and AVIF."""
    parsed = Image.Exif()
    try:
        parsed.load(block)
        parsed.tobytes()
    except _PARSER_ERRORS:
        return False
    return True


class _Block:
    """An EXIF block that is edited in place.

    Written anew, it would lose what only its camera understands: such notes point to places in the block.
    Raises ValueError or struct.error if the block is not one.
    """

    def __init__(self, block: bytes) -> None:
        self._tiff = bytearray(block.removeprefix(_HEADER))
        order = {b"II": "<", b"MM": ">"}.get(bytes(self._tiff[:2]))
        if order is None:
            raise ValueError("no byte order mark")
        self._order = order
        if self._read("H", 2) != (42,):
            raise ValueError("no TIFF structure")
        (self._first,) = self._read("L", 4)
        # Each tag's entries in the first directory and in that of EXIF: a tag may stand in both, and twice in one.
        self._places: dict[int, list[int]] = {}
        self._list(self._first)
        links = self._places.get(_BASE.ExifOffset, [])
        for link in {*links[:1], *links[-1:]}:  # readers differ in which they follow; hostile files hold thousands
            self._list(self._read("L", link + 8)[0])

    def tobytes(self) -> bytes:
        """Return the block as it is now."""
        return _HEADER + bytes(self._tiff)

    def integer(self, tag: int) -> int | None:
        """Return the value of a SHORT or LONG tag."""
        place = self._place(tag, (_SHORT, _LONG))
        return None if place is None else int(self._read(self._kind(place), place + 8)[0])

    def rational(self, tag: int) -> float | None:
        """Return the value of a RATIONAL tag."""
        place = self._place(tag, (_RATIONAL,))
        if place is None:
            return None
        numerator, denominator = self._read("LL", self._read("L", place + 8)[0])
        return numerator / denominator if denominator else None

    def set_integers(self, values: dict[int, int]) -> None:
        """Write the values of those tags that are there, whatever type they had."""
        for tag, value in values.items():
            for place in self._places.get(tag, ()):
                if value < 2**16:
                    self._write("HLHH", place + 2, _SHORT, 1, value, 0)
                else:
                    self._write("HLL", place + 2, _LONG, 1, value)

    def set_rationals(self, values: dict[int, float]) -> None:
        """Write the values of those RATIONAL tags that are there."""
        for tag, value in values.items():
            fraction = Fraction(value).limit_denominator(1000)
            for place in self._of_kind(tag, (_RATIONAL,)):
                (start,) = self._read("L", place + 8)
                self._refuse_tags_at(start, 8)
                self._write("LL", start, fraction.numerator, fraction.denominator)

    def scale_places(self, tags: tuple[int, ...], scale: tuple[float, float]) -> None:
        """Multiply lists of SHORT (x, y, then a diameter, or a width and height); those that overflow are dropped.

        Only at the end of all edits: dropping moves the entries behind.
        """
        for start in self._directories():
            for tag, place in reversed(list(self._entries(start))):
                if tag not in tags:
                    continue
                kind, count = self._read("HL", place + 2)
                at = place + 8 if count <= 2 else self._read("L", place + 8)[0]
                if kind == _SHORT and 2 <= count <= 4:
                    values = self._read(f"{count}H", at)
                    scaled = [round(value * scale[index % 2]) for index, value in enumerate(values)]
                    if max(scaled) < 2**16:
                        if count > 2:
                            self._refuse_tags_at(at, 2 * count)
                        self._write(f"{count}H", at, *scaled)
                        continue
                self._drop(start, place)

    def scale_description(self, scale: tuple[float, float]) -> None:
        """Let the description follow the size; it is written behind all else if it changes."""
        for tag, place in self._entries(self._first):
            kind, count, at = self._read("HLL", place + 2)
            if tag != _BASE.ImageDescription or kind != _ASCII or count <= 4:
                continue
            before = bytes(self._tiff[at : at + count])
            after = descriptions.scaled(before, scale)
            if after != before:
                self._tiff += bytes(len(self._tiff) % 2)
                self._write("LL", place + 4, len(after), len(self._tiff))
                self._tiff += after

    def drop(self, *tags: int) -> None:
        """Take tags out; only at the end of all edits, since it moves the entries behind."""
        for start in self._directories():
            for tag, place in reversed(list(self._entries(start))):
                if tag in tags:
                    self._drop(start, place)

    def _drop(self, start: int, place: int) -> None:
        """Take an entry out of the directory at `start`: those behind it and the link move up."""
        end = self._end(start) + 4
        behind = bytes(self._tiff[place + 12 : end])
        self._tiff[place : place + len(behind)] = behind
        self._write("H", start, self._read("H", start)[0] - 1)

    def _directories(self) -> list[int]:
        links = [place for tag, place in self._entries(self._first) if tag == _BASE.ExifOffset]
        return [self._first, *(self._read("L", link + 8)[0] for link in links)]

    def drop_thumbnail(self) -> None:
        """Cut the link to the small picture that cameras put behind the tags, and the picture itself."""
        link = self._end(self._first)
        (second,) = self._read("L", link)
        if not second:
            return
        places = dict(self._entries(second))
        self._write("L", link, 0)
        offset, length = (places.get(tag) for tag in (_BASE.JpegIFOffset, _BASE.JpegIFByteCount))
        if offset is None or length is None:
            return
        start, size = self._read("L", offset + 8)[0], self._read("L", length + 8)[0]
        self._refuse_tags_at(start, size, second, *places.values())
        if start + size >= len(self._tiff):
            del self._tiff[start:]
        else:
            self._tiff[start : start + size] = bytes(size)

    def _list(self, start: int) -> None:
        for tag, place in self._entries(start):
            self._places.setdefault(tag, []).append(place)

    def _of_kind(self, tag: int, kinds: tuple[int, ...]) -> list[int]:
        return [place for place in self._places.get(tag, ()) if self._read("H", place + 2)[0] in kinds]

    def _place(self, tag: int, kinds: tuple[int, ...]) -> int | None:
        """Return the entry that readers take: the last, and that of EXIF's own directory before others."""
        places = self._of_kind(tag, kinds)
        return places[-1] if places else None

    def _refuse_tags_at(self, start: int, size: int, *further: int) -> None:
        """Raise ValueError if the header or a tag, also one at the places `further`, lies within these bytes."""
        taken = (self._first, *itertools.chain(*self._places.values()), *further)
        if start < 8 or any(start < place + 12 and place < start + size for place in taken):
            raise ValueError("tags lie where values do")

    def _kind(self, place: int) -> str:
        return "H" if self._read("H", place + 2)[0] == _SHORT else "L"

    def _entries(self, start: int) -> Iterator[tuple[int, int]]:
        """Yield each tag of a directory and where its entry is: tag, type, count, value or its place."""
        (count,) = self._read("H", start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            yield self._read("H", place)[0], place

    def _end(self, start: int) -> int:
        return int(start + 2 + 12 * self._read("H", start)[0])

    def _read(self, kinds: str, place: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + kinds, self._tiff, place)

    def _write(self, kinds: str, place: int, *values: int) -> None:
        struct.pack_into(self._order + kinds, self._tiff, place, *values)
