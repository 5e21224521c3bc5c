"""PNG files whose checksums or lengths are wrong: refused, or as much of them as there is.

Pillow passes over the checksums of pixels, and over what is missing behind the last row that it needs. So the file
is looked through first: every chunk's checksum, and whether each frame's stream holds all of its rows.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from PIL import PngImagePlugin

from srgan.pictures.formats.damage import CUT_SHORT, NO_END, DamageError, fewer_frames, partly_whole
from srgan.pictures.formats.png import SIGNATURE, chunk, deflated, inflated

_PIECE_BYTES = 1 << 16
_CAREFUL_PIECE_BYTES = 64  # a decompressor gives nothing of the piece in which it fails

_MOST_CHUNK_BYTES = 2**31 - 1

# Chunks that can be left out when they are damaged, and what is told of it; of others nothing is read.
_METADATA = {
    b"iCCP": "its colour profile is damaged or too long and was not kept",
    **dict.fromkeys(
        (b"cICP", b"mDCV", b"cLLI", b"gAMA", b"cHRM", b"sRGB"),
        "its description of its colours is damaged and was not kept",
    ),
    b"eXIf": "its EXIF data is damaged and was not kept",
    b"pHYs": "its resolution is damaged and was not kept",
    b"tRNS": "its transparency is damaged and was not kept",
    **dict.fromkeys((b"acTL", b"fcTL", b"fdAT"), "its animation is damaged and was not kept"),
    **dict.fromkeys((b"tEXt", b"zTXt", b"iTXt"), "its texts are damaged or too long and were not kept"),
}
_LENGTHS = {b"cICP": 4, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}

# Chunks whose loss is seen, beside those whose names begin with a capital letter.
_SEEN = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})
_OF_ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # samples of a pixel by colour type

_WRONG_CHECKSUMS = "its checksums are wrong, though all of its picture seems to be there"

# Of the seven passes of an interlaced picture: first column and row, and the steps across and down.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True)
class _Chunk:
    """`start` and `length` of what there is of its body. `is_cut`: the file ends within it."""

    name: bytes
    start: int
    length: int
    is_right: bool
    is_cut: bool

    @property
    def is_seen(self) -> bool:
        return self.name[:1].isupper() or self.name in _SEEN

    @property
    def is_wrong(self) -> bool:
        """Whether other bytes stand here than its writer wrote; of one that is cut nobody knows."""
        return not self.is_right and not self.is_cut


@dataclass
class _Frame:
    """A picture in the file. `parts`: its chunks of pixels, with the bytes before those in each."""

    width: int
    height: int
    control: _Chunk | None = None
    parts: list[tuple[_Chunk, int]] = field(default_factory=list)


@dataclass(frozen=True)
class _Layout:
    """What there is: the header's bits, colour type and whether it is interlaced, all chunks, and all frames.

    `promised`: the number of frames that there should be. `is_animated`: whether that was told.
    """

    bits: int
    colour_type: int
    is_interlaced: bool
    chunks: list[_Chunk]
    frames: list[_Frame]
    promised: int
    is_animated: bool

    @property
    def is_ended(self) -> bool:
        return self.chunks[-1].name == b"IEND"

    def passes(self, frame: _Frame) -> Iterator[tuple[int, int, int]]:
        """Yield of each pass the number of rows, the bytes of one with that for the filter, and its pixels."""
        for left, top, across, down in _PASSES if self.is_interlaced else ((0, 0, 1, 1),):
            columns, rows = -(-(frame.width - left) // across), -(-(frame.height - top) // down)
            if columns > 0 and rows > 0:
                yield rows, 1 + -(-columns * self.bits * _CHANNELS[self.colour_type] // 8), columns

    def bytes_of(self, frame: _Frame) -> int:
        return sum(rows * stride for rows, stride, _ in self.passes(frame))


def sound(
    file: BinaryIO, check: Callable[[int, int, int], None], *, accept_damaged: bool
) -> tuple[BinaryIO, list[str]]:
    """Return a PNG file that Pillow can take at its word, the same where nothing is wrong, and warnings.

    `check` is called with width, height and number of frames before anything is unpacked. Metadata that is damaged
    is left out, and a missing end mark is told. Raises DamageError if of the pixels anything is missing or wrong,
    unless `accept_damaged`, and if none is there.
    """
    layout = _layout(file)
    check(layout.frames[0].width, layout.frames[0].height, len(layout.frames))
    dropped = {part for part in layout.chunks if _can_go(part, layout, file, accept_damaged=accept_damaged)}
    warnings = [_METADATA[part.name] for part in layout.chunks if part in dropped and part.name in _METADATA]
    layout = replace(layout, chunks=[part for part in layout.chunks if part not in dropped])
    try:
        _refuse_damage(layout, file)
    except DamageError:
        if not accept_damaged:
            raise
        mended, further = _mended(layout, file)
        return io.BytesIO(mended), [*warnings, *further]
    if not layout.is_ended:
        warnings.append(NO_END)
    if dropped or not layout.is_ended:
        return io.BytesIO(_put_together(layout.chunks, file, {})), warnings
    file.seek(0)
    return file, warnings


def _layout(file: BinaryIO) -> _Layout:
    chunks = list(_chunks(file))
    if not chunks or chunks[0].name != b"IHDR" or chunks[0].length != 13:
        raise DamageError("its header is missing")
    width, height, bits, colour_type, _, _, interlace = struct.unpack(">LLBBBBB", _body(chunks[0], file))
    if not (width and height) or colour_type not in _CHANNELS or bits not in (1, 2, 4, 8, 16):
        raise DamageError("its header is damaged")
    frames = [_Frame(width, height)]
    count: _Chunk | None = None
    promised, sequence, is_in_turn = 1, 0, True
    for part in chunks:
        if part.name == b"IDAT":
            frames[0].parts.append((part, 0))
        elif part.name == b"acTL" and part.length == 8 and not frames[0].parts:
            count = part
            (promised,) = struct.unpack_from(">L", _body(part, file))
        elif count and part.name in (b"fcTL", b"fdAT"):  # in order, or what comes now is not what came then
            is_in_turn = is_in_turn and _takes_its_turn(part, sequence, frames, file)
            sequence += 1
    if count and not count.is_right:
        promised = len(frames)
    elif count and not frames[0].control:
        promised += 1  # its first picture is for programs without animation, and counted by nobody
    return _Layout(bits, colour_type, interlace == 1, chunks, frames, promised, count is not None)


def _takes_its_turn(part: _Chunk, sequence: int, frames: list[_Frame], file: BinaryIO) -> bool:
    """Add a chunk of an animation to its frames, if it is the next one."""
    head = _body(part, file, 12)
    if len(head) < 4 or int.from_bytes(head[:4]) != sequence:
        return False
    if part.name == b"fdAT" and len(frames) > 1:
        frames[-1].parts.append((part, 4))
        return True
    if part.length != 26:
        return False
    if not frames[0].parts:
        frames[0].control = part
        return True
    width, height = struct.unpack_from(">LL", head, 4)
    if not (0 < width <= frames[0].width and 0 < height <= frames[0].height):
        return False
    frames.append(_Frame(width, height, part))
    return True


def _chunks(file: BinaryIO) -> Iterator[_Chunk]:
    """Yield the chunks up to the last, or to where the file is no longer one."""
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">L4s", head)
        if length > _MOST_CHUNK_BYTES:
            return
        start = file.tell()
        checksum, left = zlib.crc32(name), length
        while left and (piece := file.read(min(left, _PIECE_BYTES))):
            checksum, left = zlib.crc32(piece, checksum), left - len(piece)
        there = file.read(4)
        is_right, is_cut = there == struct.pack(">L", checksum), bool(left) or len(there) < 4
        if not is_right and not name.isalpha():
            return
        yield _Chunk(name, start, length - left, is_right, is_cut)
        if is_cut or name == b"IEND":
            return


def _body(part: _Chunk, file: BinaryIO, most_bytes: int = _MOST_CHUNK_BYTES) -> bytes:
    file.seek(part.start)
    return file.read(min(part.length, most_bytes))


def _can_go(part: _Chunk, layout: _Layout, file: BinaryIO, *, accept_damaged: bool) -> bool:
    """Return whether a chunk is to be left out because of damage that leaves the pixels alone."""
    if part.name in _OF_ANIMATION:
        return not layout.is_animated
    if part.name == b"tRNS":
        length = {0: 2, 2: 6}.get(layout.colour_type, part.length)
        return accept_damaged if part.is_wrong else part.length != length
    return not part.is_seen and not (part.name.isalpha() and _is_sound(part, file))


def _is_sound(part: _Chunk, file: BinaryIO) -> bool:
    """Return whether a chunk of metadata is as its writer wrote it, and Pillow reads it."""
    if not part.is_right or part.length != _LENGTHS.get(part.name, part.length):
        return False
    name, _, rest = _body(part, file).partition(b"\0") if part.name in _METADATA else (b"", b"", b"")
    packed = rest[1:]
    if part.name == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]  # behind the language and the keyword in that
    elif part.name not in (b"iCCP", b"zTXt"):
        return True
    unpacked_bytes = 0
    try:
        for piece in inflated([packed], to_its_end=True):
            unpacked_bytes += len(piece)
            if unpacked_bytes > PngImagePlugin.MAX_TEXT_CHUNK:
                return False
    except DamageError:
        return False
    return bool(name)


def _refuse_damage(layout: _Layout, file: BinaryIO) -> None:
    for part in layout.chunks:
        if part.is_seen and part.is_wrong and part.name != b"IEND":
            raise DamageError(f"the checksum of its {part.name.decode()} data is wrong")
        if part.is_seen and part.is_cut and not part.length and part.name != b"IEND":
            raise DamageError(CUT_SHORT)
    if len(layout.frames) < layout.promised:
        if not layout.is_ended:
            raise DamageError(CUT_SHORT)
        raise DamageError(f"it holds {len(layout.frames)} of its {layout.promised} frames")
    for frame in layout.frames[: max(1, layout.promised)]:
        left = layout.bytes_of(frame)
        for rows in inflated(_pieces(frame, file, _PIECE_BYTES)):
            left -= len(rows)
            if left < -_PIECE_BYTES:  # what more may come is seen by nobody
                break
        if left > 0:
            raise DamageError("a part of its pixels is missing" if layout.is_ended else CUT_SHORT)


def _pieces(frame: _Frame, file: BinaryIO, piece_bytes: int) -> Iterator[bytes]:
    for part, before in frame.parts:
        for place in range(before, part.length, piece_bytes):
            file.seek(part.start + place)
            yield file.read(min(piece_bytes, part.length - place))


def _mended(layout: _Layout, file: BinaryIO) -> tuple[bytes, list[str]]:
    """Return a file of those frames that are whole, or of what there is of the first, and the warnings for it."""
    frames: list[_Frame] = []
    for frame in layout.frames[: layout.promised]:
        is_told_right = frame.control is None or frame.control.is_right
        if not is_told_right or _unpacked(layout, frame, file)[0] < 1:
            break
        frames.append(frame)
    hidden = int(layout.frames[0].control is None)
    whole, promised = len(frames) - hidden, layout.promised - hidden
    if whole > 1:
        there = {part for frame in frames for part in (frame.control, *dict(frame.parts))}
        kept = [part for part in layout.chunks if part.name not in (b"fcTL", b"fdAT") or part in there]
        (count,) = (part for part in kept if part.name == b"acTL")
        content = _put_together(kept, file, {b"acTL": struct.pack(">L", whole) + _body(count, file)[4:]})
        return content, [fewer_frames(whole, promised) if whole < promised else _WRONG_CHECKSUMS]
    share, read, raw = _unpacked(layout, layout.frames[0], file)
    if not read:
        raise DamageError(CUT_SHORT)
    still = [part for part in layout.chunks if part.name not in _OF_ANIMATION]
    content = _put_together(still, file, {b"IDAT": deflated(raw)})
    warnings = [fewer_frames(max(0, whole), promised)] if layout.is_animated else []
    if share < 1:
        warnings.insert(0, partly_whole(share, read))
    return content, warnings or [_WRONG_CHECKSUMS]


def _unpacked(layout: _Layout, frame: _Frame, file: BinaryIO) -> tuple[float, float, bytearray]:
    """Return the share of pixels that are right, that of those which could be read, and the bytes of all rows.

    Rows that are missing are zeros. Behind a wrong checksum, or if data is missing in the midst, what is read may
    be wrong, unless the checksum of the whole stream is right.
    """
    total = layout.bytes_of(frame)
    raw, sure_bytes = bytearray(), None
    doubtful_from = next((part.start for part, _ in frame.parts if part.is_wrong), None)
    is_cut = not layout.is_ended and frame is layout.frames[-1]

    def pieces() -> Iterator[bytes]:
        nonlocal sure_bytes
        for piece in _pieces(frame, file, _CAREFUL_PIECE_BYTES):
            if sure_bytes is None and doubtful_from is not None and file.tell() > doubtful_from:
                sure_bytes = len(raw)
            if sure_bytes is not None and not any(piece):  # what stands in the place of something lost
                return
            yield piece

    try:
        for part in inflated(pieces(), to_its_end=True):
            raw += part
            if len(raw) > total:
                break
        if len(raw) == total:
            sure_bytes = total
    except DamageError:
        pass
    if sure_bytes is None:
        sure_bytes = len(raw) if is_cut or len(raw) >= total else 0
    end = sure = read = 0
    pixels = sum(rows * columns for rows, _, columns in layout.passes(frame))
    for rows, stride, columns in layout.passes(frame):
        for _ in range(rows):
            if end + stride > len(raw) or raw[end] > 4:  # there are five filters
                return sure / pixels, read / pixels, raw[:end] + bytes(total - end)
            end, read = end + stride, read + columns
            sure += columns if end <= sure_bytes else 0
    return sure / pixels, read / pixels, raw[:total]


def _put_together(chunks: list[_Chunk], file: BinaryIO, bodies: dict[bytes, bytes]) -> bytes:
    """Return a file of these chunks with right checksums; each of the names in `bodies` once, with that body."""
    parts = [SIGNATURE]
    left = dict(bodies)
    for part in chunks:
        if part.name not in bodies:
            parts.append(chunk(part.name, _body(part, file)))
        elif part.name in left:
            parts.append(chunk(part.name, left.pop(part.name)))
    if chunks[-1].name != b"IEND":
        parts.append(chunk(b"IEND", b""))
    return b"".join(parts)
