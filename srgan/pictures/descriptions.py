"""Descriptions of pictures that programs write for themselves: those of ImageJ, OME, Aperio and tifffile."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

_OME = re.compile(rb"<(?:\w+:)?OME\b")
_OME_LENGTH = re.compile(
    rb'(\s(Size|PhysicalSize)([XY])\s*=\s*")(\d{1,12}(?:\.\d{1,20})?(?:[eE][+-]?\d{1,2})?)(?=")'
)
_IMAGEJ_ORIGIN = re.compile(rb"(?m)^([xy])origin=(-?\d{1,12}(?:\.\d{1,20})?)(?=\s|$)")
_APERIO_PIXEL = re.compile(rb"(\|\s*MPP\s*=\s*)(\d{1,12}(?:\.\d{1,20})?)")


def scaled(description: bytes, scale: tuple[float, float]) -> bytes:
    """Return a description of a picture that has become so many times longer (across, down).

    What it tells in pixels follows, and what a pixel measures gets smaller; all else is left as it is.
    """
    across, down = scale
    if description.startswith(b"ImageJ="):
        factors = {b"x": across, b"y": down}
        return _IMAGEJ_ORIGIN.sub(
            lambda match: match[1] + b"origin=" + _number(float(match[2]) * factors[match[1]]), description
        )
    if _OME.search(description[:2000]):
        return _OME_LENGTH.sub(_ome_length(across, down), description)
    if description.startswith(b"Aperio"):
        return _APERIO_PIXEL.sub(lambda match: match[1] + _number(float(match[2]) / across), description)
    return description


def _ome_length(across: float, down: float) -> Callable[[re.Match[bytes]], bytes]:
    def length(match: re.Match[bytes]) -> bytes:
        factor = across if match[3] == b"X" else down
        if match[2] == b"Size":
            return match[1] + b"%d" % round(float(match[4]) * factor)
        return match[1] + _number(float(match[4]) / factor)

    return length


def as_read(description: str, *, is_signed: bool) -> str:
    """Return a description without what it says of how the samples lay in the file.

    `is_signed`: the samples were, and are no longer.
    """
    if description.startswith('{"shape":'):
        try:
            told = json.loads(description.rstrip("\0"))
        except ValueError:
            return description
        told.pop("shape")
        return json.dumps(told) if told else ""
    if is_signed and "<OME" in description[:2000]:
        return re.sub(r'(<(?:\w+:)?Pixels\b[^<>]*\sType=")int(8|16)"', r'\1uint\2"', description)
    return description


def imagej_pictures(description: str) -> int:
    """Return how many pictures the description of a file by ImageJ tells of, 0 for another."""
    match = re.match(r"ImageJ=[^\n]*\nimages=(\d{1,9})\s", description)
    return int(match[1]) if match else 0


def _number(value: float) -> bytes:
    return f"{value:.12g}".encode()
