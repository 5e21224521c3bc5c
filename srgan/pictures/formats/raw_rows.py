"""BMP and PPM files: whether all of the rows are there that the header promises."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import BinaryIO

from PIL import Image, ImageFile

from srgan.pictures.faults import DECODER_ERRORS
from srgan.pictures.formats import filling
from srgan.pictures.formats.beside import FURTHER, behind
from srgan.pictures.formats.damage import CUT_SHORT, OTHER_DATA, DamageError

# Of a pixel in a PPM file of 8 bits, by Pillow's mode.
_PPM_BYTES = {"L": 1, "I": 1, "RGB": 3, "F": 4}

# So many zeros at the end of a run-length encoded BMP file, without the mark for its end, were no encoder's.
_PADDING_BYTES = 8


def sound(
    file: BinaryIO, format: str, check: filling.Check, *, accept_damaged: bool
) -> tuple[BinaryIO, list[str]]:
    """Return the file, or if it is cut and `accept_damaged` one that is not, and warnings.

    `format`: Pillow's name. Raises DamageError for a file that is cut, and what Pillow raises.
    """
    with Image.open(file, formats=(format,)) as opened:
        assert isinstance(opened, ImageFile.ImageFile)  # noqa: S101
        check(opened.width, opened.height, 1)
        (codec, _, start, arguments), mode, (width, height) = opened.tile[0], opened.mode, opened.size
    file.seek(0)
    content = file.read()
    file.seek(0)
    decode = filling.by_pillow(format, check)
    damage, length = CUT_SHORT, len(content)
    if codec == "bmp_rle":
        length = len(content.rstrip(b"\0"))
        is_ended, is_padded = content[:length].endswith(b"\0\1"), len(content) - length >= _PADDING_BYTES
        missing = 0 if is_ended or (not is_padded and _is_read(content, decode)) else 1
        damage = OTHER_DATA if is_padded else CUT_SHORT
    elif codec == "ppm_plain":
        if not accept_damaged or _is_read(content, decode):  # Pillow finds out
            return file, []
        missing, length = _missing_words(content, start, (3 if mode == "RGB" else 1) * width * height)
    else:
        missing = start + _row_bytes(codec, arguments, mode, width) * height - length
    if missing <= 0:
        return file, _told_of(content[length + missing :]) if format == "PPM" else []
    if not accept_damaged:
        raise DamageError(damage)

    def build(fill: int) -> bytes:
        return content[:length] + (b" %d" % fill if codec == "ppm_plain" else bytes([fill])) * missing

    if codec == "bmp_rle":  # what is behind the last run that is whole is at no place of its own
        raise DamageError(filling.refusal(length / max(len(content), int.from_bytes(content[2:6], "little"))))
    fills = (0, 0x3F if mode == "F" else 1)  # the smallest floating-point numbers would not be told from none
    return filling.filled(build, fills, decode, length / (length + missing))


def _told_of(rest: bytes) -> list[str]:
    """Return what is told of bytes behind a picture; files of this kind may be put one behind the other."""
    return [FURTHER] if re.match(rb"P[1-6]\s", rest.lstrip()) else behind(rest)


def _is_read(content: bytes, decode: Callable[[bytes], object]) -> bool:
    try:
        decode(content)
    except DECODER_ERRORS:
        return False
    return True


def _missing_words(content: bytes, start: int, count: int) -> tuple[int, int]:
    """Return how many numbers are missing behind `start`, and how much of the file holds those that are whole."""
    if content[:2] == b"P1":  # they need no space between them
        return count - len(re.findall(rb"[01]", re.sub(rb"#[^\r\n]*", b"", content[start:]))), len(content)
    length = max(start, *(content.rfind(space) + 1 for space in (b" ", b"\n", b"\t", b"\r")))
    return count - len(re.sub(rb"#[^\r\n]*", b"", content[start:length]).split()), length


def _row_bytes(codec: str, arguments: object, mode: str, width: int) -> int:
    if isinstance(arguments, tuple) and codec == "raw" and arguments[1]:
        return int(arguments[1])  # BMP
    if mode == "1":
        return -(-width // 8)
    is_wide = arguments == "I;16B" or (codec == "ppm" and isinstance(arguments, tuple) and int(arguments[1]) > 255)
    return width * _PPM_BYTES[mode] * (2 if is_wide else 1)
