"""Gain maps: what makes the picture for HDR screens of one for ordinary screens, and how files say it.

A map holds for each place how much brighter an HDR screen shows it (Adobe's specification 1.0; ISO 21496-1):

    stops = log2_min + (log2_max - log2_min) * level ** (1 / gamma)
    HDR = (SDR + offset_sdr) * 2 ** (weight * stops) - offset_hdr

in linear light of 0..1, with `level` of the map in 0..1, and a `weight` of 0..1 by how much brighter than white
the screen can be, from `headroom_min` to `headroom_max`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np

from srgan.pictures import xmp

_SPACE = b"http://ns.adobe.com/hdr-gain-map/1.0/"

# The names of XMP and what is meant where one is missing, None for those that must be there.
_NAMES: dict[str, tuple[bytes, float | None]] = {
    "log2_min": (b"GainMapMin", 0.0),
    "log2_max": (b"GainMapMax", None),
    "gamma": (b"Gamma", 1.0),
    "offset_sdr": (b"OffsetSDR", 1 / 64),
    "offset_hdr": (b"OffsetHDR", 1 / 64),
    "headroom_min": (b"HDRCapacityMin", 0.0),
    "headroom_max": (b"HDRCapacityMax", None),
}
_OF_CHANNELS = ("log2_min", "log2_max", "gamma", "offset_sdr", "offset_hdr")

# The order of ISO 21496-1, and which of its fractions have a sign.
_SIGNED = {"log2_min": True, "log2_max": True, "gamma": False, "offset_sdr": True, "offset_hdr": True}
_VERSIONS, _FLAGS = struct.Struct(">HH"), struct.Struct(">B")
_THREE_CHANNELS, _IN_BASE_COLOURS, _ONE_DENOMINATOR, _BACKWARD = 0x80, 0x40, 0x08, 0x04

# No screen and no format reaches 2 ** 32 times white; a gamma beyond makes steps of the map.
_MOST_STOPS, _MOST_GAMMA, _MOST_OFFSET = 32.0, 64.0, 64.0
_DENOMINATOR = 1_000_000  # at most, so that what is allowed fits into 32 bits


@dataclass(frozen=True, eq=False)
class GainMap:
    """`levels`: (H,W) or (H,W,3) uint8, of any size: it lies over the whole picture. The rest: see the module.

    What a channel has of its own is one number for all or three. `in_base_colours`: whether it is applied in the
    colours of the picture and not in those of `icc`, its own profile. Raises ValueError for what makes no sense.
    """

    levels: np.ndarray
    log2_max: tuple[float, ...]
    headroom_max: float
    log2_min: tuple[float, ...] = (0.0,)
    gamma: tuple[float, ...] = (1.0,)
    offset_sdr: tuple[float, ...] = (1 / 64,)
    offset_hdr: tuple[float, ...] = (1 / 64,)
    headroom_min: float = 0.0
    in_base_colours: bool = True
    icc: bytes | None = None

    def __post_init__(self) -> None:
        """Refuse what no file should say; also what is not finite, which fails any comparison."""
        for name in _OF_CHANNELS:
            if len(getattr(self, name)) not in (1, 3):
                raise ValueError(f"{name} of {len(getattr(self, name))} channels")
        stops = (*self.log2_min, *self.log2_max)
        if not all(-_MOST_STOPS <= value <= _MOST_STOPS for value in stops):
            raise ValueError("a gain beyond any screen")
        ranges = zip(self._three(self.log2_min), self._three(self.log2_max), strict=True)
        if not all(low <= high for low, high in ranges):
            raise ValueError("a least gain above the greatest")
        if not all(1 / _MOST_GAMMA <= value <= _MOST_GAMMA for value in self.gamma):
            raise ValueError("a gamma that is none")
        if not all(-_MOST_OFFSET <= value <= _MOST_OFFSET for value in (*self.offset_sdr, *self.offset_hdr)):
            raise ValueError("an offset beyond white")
        if not 0 <= self.headroom_min < self.headroom_max <= _MOST_STOPS:
            raise ValueError("a headroom that is none")

    @classmethod
    def of_xmp(cls, levels: np.ndarray, packet: bytes, icc: bytes | None = None) -> Self:
        """Return what the XMP packet of a map's own file says; raises ValueError if it says nothing sensible."""
        if [value.strip().lower() for value in xmp.values(packet, _SPACE, b"BaseRenditionIsHDR")] == [b"true"]:
            raise ValueError("the picture itself is for HDR screens")
        values: dict[str, Any] = {}
        for name, (spelt, otherwise) in _NAMES.items():
            texts = xmp.values(packet, _SPACE, spelt)
            if not texts and otherwise is None:
                raise ValueError(f"{name} is missing")
            values[name] = tuple(map(float, texts)) or (float(otherwise or 0),)
        low, high = values.pop("headroom_min"), values.pop("headroom_max")
        return cls(levels, headroom_min=low[0], headroom_max=high[0], icc=icc, **values)

    @classmethod
    def of_iso(cls, levels: np.ndarray, body: bytes, icc: bytes | None = None) -> Self:
        """Return what the metadata of ISO 21496-1 says; raises ValueError if it says nothing sensible."""
        try:
            return cls._of_iso(levels, body, icc)
        except (struct.error, ZeroDivisionError) as error:
            raise ValueError(str(error)) from error

    @classmethod
    def _of_iso(cls, levels: np.ndarray, body: bytes, icc: bytes | None) -> Self:
        least_version, _ = _VERSIONS.unpack_from(body)
        (flags,) = _FLAGS.unpack_from(body, 4)
        if least_version or flags & _BACKWARD:
            raise ValueError("a later version of the standard, or a picture for HDR screens")
        place, shared = 5, 0
        if flags & _ONE_DENOMINATOR:
            place, (shared,) = 9, struct.unpack_from(">L", body, 5)

        def fraction(*, signed: bool = False) -> float:
            nonlocal place
            kind = (">l" if signed else ">L") + "L" * (not shared)
            numerator, denominator = (*struct.unpack_from(kind, body, place), shared)[:2]
            place += struct.calcsize(kind)
            return float(Fraction(numerator, denominator))

        low, high = fraction(), fraction()
        channels = [
            {name: fraction(signed=signed) for name, signed in _SIGNED.items()}
            for _ in range(3 if flags & _THREE_CHANNELS else 1)
        ]
        values: dict[str, Any] = {name: tuple(channel[name] for channel in channels) for name in _SIGNED}
        in_base = bool(flags & _IN_BASE_COLOURS)
        return cls(levels, headroom_min=low, headroom_max=high, in_base_colours=in_base, icc=icc, **values)

    def to_xmp(self) -> bytes:
        """Return the XMP packet for the map's own file."""
        simple, lists = [b'hdrgm:Version="1.0"', b'hdrgm:BaseRenditionIsHDR="False"'], []
        for name, (spelt, _) in _NAMES.items():
            value = getattr(self, name)
            texts = [f"{number:.9g}".encode() for number in (value if isinstance(value, tuple) else (value,))]
            if len(texts) == 1:
                simple.append(b'hdrgm:%s="%s"' % (spelt, texts[0]))
            else:
                items = b"".join(b"<rdf:li>%s</rdf:li>" % text for text in texts)
                lists.append(b"<hdrgm:%s><rdf:Seq>%s</rdf:Seq></hdrgm:%s>" % (spelt, items, spelt))
        declared = b'xmlns:hdrgm="%s" ' % _SPACE + b" ".join(simple)
        return xmp.packet(declared, b"".join(lists))

    def to_iso(self) -> bytes:
        """Return the metadata of ISO 21496-1 for the map's own file."""
        is_wide = any(len(getattr(self, name)) == 3 for name in _OF_CHANNELS)
        flags = _THREE_CHANNELS * is_wide | _IN_BASE_COLOURS * self.in_base_colours
        body = _VERSIONS.pack(0, 0) + _FLAGS.pack(flags)
        body += _fraction(self.headroom_min) + _fraction(self.headroom_max)
        for channel in range(3 if is_wide else 1):
            for name, signed in _SIGNED.items():
                body += _fraction(self._three(getattr(self, name))[channel], signed=signed)
        return body

    @staticmethod
    def _three(values: tuple[float, ...]) -> tuple[float, ...]:
        return values if len(values) == 3 else 3 * values


def _fraction(value: float, *, signed: bool = False) -> bytes:
    fraction = Fraction(value).limit_denominator(_DENOMINATOR)
    return struct.pack(">lL" if signed else ">LL", fraction.numerator, fraction.denominator)
