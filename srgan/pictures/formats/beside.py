"""What a file holds beside its picture that is not read: data of other programs, and whatever lies behind it.

JPEG and TIFF files are looked at where they are read, and so are gain maps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from srgan.pictures.formats import boxes, png

FURTHER = "only the first picture of the file was read; others behind it are not kept"
FILM = "the film of its motion photo was not kept"
CREDENTIALS = "its content credentials (C2PA) were not kept, since they vouch for the original alone"

# Chunks that are read, and such as say how the pixels were stored or may be shown; the time of the last change.
_PNG_READ = frozenset(
    b"IHDR PLTE IDAT IEND tRNS cHRM gAMA iCCP sRGB cICP mDCV cLLI eXIf iTXt tEXt zTXt pHYs acTL fcTL fdAT "
    b"sBIT hIST sPLT bKGD tIME iDOT caBX".split()
)
_PNG_WORDS = {
    b"oFFs": "its place on a page was not kept",
    b"sCAL": "its physical scale was not kept",
    b"pCAL": "the calibration of its values was not kept",
    b"sTER": "its mark for a stereo pair was not kept",
}

_WEBP_READ = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "})

# The boxes of a file itself, and pictures beside that are its transparency (ISO/IEC 23008-12 and 23000-22).
_BOXES_READ = frozenset({b"ftyp", b"meta", b"mdat", b"idat", b"moov", b"free", b"skip", b"wide"})
_TRANSPARENCY = (b"alpha", b":auxid:1")
_DEPTH = (b"depth", b":auxid:2")
_CREDENTIALS_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")

_NAMES_TOLD = 4


def unkept(content: bytes) -> list[str]:
    """Return it for a PNG, WebP, AVIF or HEIC file, in a few words each; nothing for others."""
    if content.startswith(png.SIGNATURE):
        return _of_png(content)
    if content.startswith(b"RIFF"):
        return _of_webp(content)
    return _of_boxes(content) if content[4:8] == b"ftyp" else []


def of_others(names: Iterable[bytes]) -> list[str]:
    """Return what is told of data that go by these names, if there are any."""
    named = dict.fromkeys(name.decode("latin-1").strip("\0 ") for name in names)
    others = [name for name in named if not name.startswith("C2PA")][:_NAMES_TOLD]
    told = [CREDENTIALS] if any(name.startswith("C2PA") for name in named) else []
    return [*told, f"its data of other programs ({', '.join(others)}) was not kept"] if others else told


def behind(content: bytes) -> list[str]:
    """Return what is told of bytes behind a picture, unless they are padding."""
    rest = content.strip(b"\0\r\n\t ")
    return [f"{len(rest)} bytes behind the picture in its file were not kept"] if rest else []


def _of_png(content: bytes) -> list[str]:
    place, names = len(png.SIGNATURE), []
    while place + 8 <= len(content):
        length, name = struct.unpack_from(">L4s", content, place)
        place += 12 + length
        if name == b"IEND":
            break
        if name not in _PNG_READ:
            names.append(name)
    told = [_PNG_WORDS[name] for name in names if name in _PNG_WORDS]
    return [*told, *of_others(name for name in names if name not in _PNG_WORDS), *behind(content[place:])]


def _of_webp(content: bytes) -> list[str]:
    end = 8 + int.from_bytes(content[4:8], "little")
    place, names = 12, []
    while place + 8 <= min(end, len(content)):
        name, length = struct.unpack_from("<4sL", content, place)
        place += 8 + length + length % 2
        if name not in _WEBP_READ:
            names.append(name)
    return [*of_others(names), *behind(content[end:])]


def _of_boxes(content: bytes) -> list[str]:
    place, names = 0, []
    while place + 8 <= len(content):
        size, name = struct.unpack_from(">L4s", content, place)
        if size == 1:
            size = int.from_bytes(content[place + 8 : place + 16])
        if size == 0:  # to the end of the file
            size = len(content) - place
        if not 8 <= size <= len(content) - place or name == bytes(4):  # no box, but padding or foreign
            break
        if name == b"uuid":
            name = b"C2PA" if content[place + 8 : place + 24] == _CREDENTIALS_BOX else name
        if name not in _BOXES_READ:
            names.append(name)
        place += size
    told = [FILM] if b"mpvd" in names else []
    return [
        *told,
        *_pictures_beside(content),
        *of_others(name for name in names if name != b"mpvd"),
        *behind(content[place:]),
    ]


def _pictures_beside(content: bytes) -> list[str]:
    """Return what is told of auxiliary pictures, by the names of their kinds."""
    kinds = {content[start + 4 : end].split(b"\0")[0] for start, end in boxes.of_kind(content, b"auxC")}
    kinds = {kind for kind in kinds if not kind.endswith(_TRANSPARENCY) and not kind.endswith(b"hdrgainmap")}
    told = ["its depth map was not kept"] if any(kind.endswith(_DEPTH) for kind in kinds) else []
    masks = sorted(kind.rsplit(b":")[-1] for kind in kinds if not kind.endswith(_DEPTH))
    if masks:
        names = ", ".join(name.decode("latin-1") for name in masks[:_NAMES_TOLD])
        told.append(f"the pictures beside it for editing ({names}) were not kept")
    return told
