"""AVIF and HEIC files: whether all of the coded picture is there; decoders take zeros for pixels."""

from __future__ import annotations

from typing import BinaryIO

from srgan.pictures.formats import boxes, filling
from srgan.pictures.formats.damage import CUT_SHORT, OTHER_DATA, DamageError

_CODED = (b"av01", b"hvc1")
_TABLES = {b"meta", b"moov"}

# Neither kind of stream ends in zeros: AV1's last byte that counts has a bit set, and so has HEVC's.
_PADDING_BYTES = 8


def sound(file: BinaryIO, decode: filling.Decode, *, accept_damaged: bool) -> tuple[BinaryIO, list[str]]:
    """Return the file, or if it is damaged and `accept_damaged` one that is not, and warnings.

    `decode`: returns the rows of a file. Raises DamageError for a damaged file, and for one of which nothing can
    be taken, as of animations.
    """
    content = file.read()
    file.seek(0)
    kinds, promised_bytes = _layout(content)
    end = max((end for kind, _, end in boxes.items(content) if kind in _CODED), default=0)
    is_cut = promised_bytes > len(content)
    is_padded = b"\0\0\0\0" in kinds or content[:end].endswith(bytes(_PADDING_BYTES))
    if b"moov" in kinds:  # its frames are no items
        is_padded |= content[:promised_bytes].endswith(bytes(4 * _PADDING_BYTES))
    if not is_cut and not is_padded:
        return file, []
    if not accept_damaged:
        raise DamageError(CUT_SHORT if is_cut else OTHER_DATA)
    there = content[: end or None].rstrip(b"\0")
    share = len(content.rstrip(b"\0")) / max(1, promised_bytes)
    if not end or b"moov" in kinds or end > promised_bytes:
        raise DamageError(filling.refusal(share))

    def build(fill: int) -> bytes:
        return there + bytes([fill]) * (end - len(there)) + content[end:].ljust(promised_bytes - end, b"\0")

    if end - len(there) > filling.MOST_BYTES:
        raise DamageError(filling.refusal(share))
    return filling.filled(build, (0, 0x55, 0xFF), decode, share)


def _layout(content: bytes) -> tuple[list[bytes], int]:
    """Return the kinds of the outermost boxes, and where the last that matters ends or should."""
    kinds: list[bytes] = []
    place = 0
    while place + 8 <= len(content):
        size, kind = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        if size == 1:
            size = int.from_bytes(content[place + 8 : place + 16])
        if size and size < 8:
            break
        if b"mdat" in kinds and set(kinds) & _TABLES and kind not in (b"mdat", *_TABLES):
            break  # what others have put behind
        kinds.append(kind)
        place = place + size if size else len(content)
    return kinds, place
