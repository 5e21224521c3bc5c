"""WebP chunk by chunk: whether it is lossy, and all of a file is there; libwebp takes zeros for pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from srgan.pictures.faults import DECODER_ERRORS
from srgan.pictures.formats import filling
from srgan.pictures.formats.damage import CUT_SHORT, OTHER_DATA, DamageError, fewer_frames

_CODED = (b"VP8 ", b"VP8L")
_BEHIND = (b"EXIF", b"XMP ")
_FRAME_HEAD_BYTES = 16

BEHIND_CUT = "it is cut short behind its picture, which is whole; metadata there was not kept"

# Encoders end within three bytes of what a decoder reads, and take a byte for 300 pixels of a row of one colour.
_SPARE_BYTES, _ONE_COLOUR_PX, _ONE_COLOUR_LEVELS = 4, 160, 8


@dataclass(frozen=True)
class _Chunk:
    """`start`, `end`: of its body in the file; `is_whole`: whether that is there."""

    kind: bytes
    start: int
    end: int
    is_whole: bool


def sound(file: BinaryIO, check: filling.Check, *, accept_damaged: bool) -> tuple[BinaryIO, list[str]]:
    """Return the file, or if it is damaged and `accept_damaged` one that is not, and warnings.

    Of an animation the frames are kept that are whole. Raises DamageError for a damaged file, and for one of which
    nothing can be taken.
    """
    content = file.read()
    file.seek(0)
    promised_bytes = 8 + int.from_bytes(content[4:8], "little")
    chunks = list(_chunks(content, 12, promised_bytes))
    if chunks and chunks[-1].is_whole and not _is_padded(content, chunks[-1]):
        return file, []
    whole = [chunk for chunk in chunks if chunk.is_whole and not _is_padded(content, chunk)]
    if chunks and (chunks[-1].kind in _BEHIND or any(chunk.kind in _CODED for chunk in whole)):
        return io.BytesIO(_riff([(chunk.kind, content[chunk.start : chunk.end]) for chunk in whole])), [BEHIND_CUT]
    if not accept_damaged:
        raise DamageError(OTHER_DATA if chunks and chunks[-1].end <= len(content) else CUT_SHORT)
    there = len(content.rstrip(b"\0")) / max(promised_bytes, len(content))
    if any(chunk.kind == b"ANIM" for chunk in whole):
        return _whole_frames(content, whole, there)
    coded = next((chunk for chunk in chunks if chunk.kind in _CODED), None)
    if coded is None:
        raise DamageError(filling.refusal(there))

    def build(fill: int) -> bytes:
        body = content[coded.start : coded.end].rstrip(b"\0")
        # Twice what may be missing: the decoder must not come to an end.
        body += bytes([fill]) * min(2 * (coded.end - coded.start - len(body)) + (1 << 16), filling.MOST_BYTES)
        ahead = [(chunk.kind, content[chunk.start : chunk.end]) for chunk in whole if chunk.end <= coded.start]
        return _riff([*ahead, (coded.kind, body)])

    return filling.filled(build, (0, 0x55, 0xFF), filling.by_pillow("WEBP", check), there)


def is_lossy(content: bytes) -> bool:
    """Return whether the picture, or the first frame, was compressed with loss (RFC 9649)."""
    for chunk in _chunks(content, 12, len(content)):
        inner = [chunk]
        if chunk.kind == b"ANMF":
            inner = list(_chunks(content, chunk.start + _FRAME_HEAD_BYTES, chunk.end))
        for coded in inner:
            if coded.kind in _CODED:
                return coded.kind == b"VP8 "
    return False


def has_chunk(content: bytes, kind: bytes) -> bool:
    """Return whether a file holds a chunk of that kind, beside those of frames."""
    return any(chunk.kind == kind for chunk in _chunks(content, 12, len(content)))


def _whole_frames(content: bytes, chunks: list[_Chunk], there: float) -> tuple[BinaryIO, list[str]]:
    frames = sum(chunk.kind == b"ANMF" for chunk in chunks)
    if not frames:
        raise DamageError(filling.refusal(there))
    bodies = [(chunk.kind, content[chunk.start : chunk.end]) for chunk in chunks]
    return io.BytesIO(_riff(bodies)), [fewer_frames(frames, 0)]


def _is_padded(content: bytes, chunk: _Chunk) -> bool:
    """Return whether zeros stand in the place of some of the coded picture in the last chunk of a file.

    They do if the decoder comes to the end of the picture without having read them. Some are an encoder's own,
    thousands of them where a large picture is of one colour: then it misses them, and the last row is of that.
    """
    if not chunk.kind.strip(b"\0"):
        return True
    if chunk.kind == b"ANMF":
        inner = list(_chunks(content, chunk.start + _FRAME_HEAD_BYTES, chunk.end))
        return not inner or not inner[-1].is_whole or _is_padded(content, inner[-1])
    body = content[chunk.start : chunk.end]
    zeros = len(body) - len(body.rstrip(b"\0"))
    if chunk.kind not in _CODED or zeros < 2 * _SPARE_BYTES:
        return False
    decode = filling.by_pillow("WEBP", lambda *_: None)
    try:
        last_row = decode(_riff([(chunk.kind, body)]))[-1].astype(int)
    except DECODER_ERRORS:
        return True
    if len(last_row) < _ONE_COLOUR_PX * zeros and np.ptp(last_row, axis=0).max() > _ONE_COLOUR_LEVELS:
        return True
    try:
        decode(_riff([(chunk.kind, body[:-_SPARE_BYTES])]))
    except DECODER_ERRORS:
        return False
    return True


def _chunks(content: bytes, start: int, end: int) -> Iterator[_Chunk]:
    """Yield the chunks between, up to the first that is not whole."""
    while start < end:
        head = content[start : start + 8].ljust(8, b"\0")
        kind, length = struct.unpack("<4sL", head)
        chunk_end = start + 8 + length
        is_whole = bool(kind.strip(b"\0")) and chunk_end <= min(end, len(content))
        yield _Chunk(kind, min(start + 8, len(content)), chunk_end, is_whole)
        if not is_whole:
            return
        start = chunk_end + length % 2


def _riff(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<L", len(chunk)) + chunk + bytes(len(chunk) % 2) for kind, chunk in chunks
    )
    return b"RIFF" + struct.pack("<L", len(body)) + body
