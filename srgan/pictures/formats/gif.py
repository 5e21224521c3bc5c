"""GIF block by block: how large the pictures are, before Pillow makes room for them, and what is seen of each."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile

from srgan.pictures.formats.beside import behind, of_others
from srgan.pictures.formats.damage import CUT_SHORT, NO_END, OTHER_DATA, DamageError, fewer_frames, partly_whole
from srgan.pictures.planes import Planes

_EXTENSION, _IMAGE, _END = b"!", b",", b";"
_CONTROL, _APPLICATION, _COMMENT, _PLAIN_TEXT = b"\xf9", b"\xff", b"\xfe", b"\x01"
_REPEATING = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
_TO_CLEAR, _TO_BEFORE = 2, 3


# ImageMagick writes the curve that its greys have anyhow.
_PASSED_OVER = (*_REPEATING, b"ImageMagick")
_XMP, _PROFILE = b"XMP DataXMP", b"ICCRGBG1012"
_XMP_END = b"\x01\xff\xfe\xfd"  # of a packet: a row of bytes for programs that read on as if it were blocks


@dataclass(frozen=True)
class Beside:
    """What a file holds beside its frames: the comments, an XMP packet, and what is told of the rest."""

    comment: str
    xmp: bytes
    unkept: list[str]


@dataclass(frozen=True)
class _Frame:
    """A frame as it is stored. `box`: left, top, width, height. `file`: a GIF file of it alone.

    `data_at`: where its codes begin in that. `end`: where it ends in the whole file. `is_whole`: whether its codes
    end by themselves.
    """

    box: tuple[int, int, int, int]
    disposal: int
    duration_ms: float
    file: bytes
    data_at: int
    end: int
    is_whole: bool


def sound(
    file: BinaryIO, check: Callable[[int, int, int], None], *, accept_damaged: bool
) -> tuple[BinaryIO, list[str]]:
    """Return a GIF file all of whose frames are whole, the same where nothing is wrong, and warnings.

    `check` is called with width and height that hold the screen and every frame, and their number, before anything
    is unpacked. Raises DamageError if the file ends in the midst of a frame, or without its mark for the end where
    nothing tells whether further frames are missing, unless `accept_damaged`, and if none is there.
    """
    blocks = _Blocks(file)
    width, height = blocks.screen
    ends = [0]
    last: _Frame | None = None
    for frame in blocks:
        left, top, across, down = frame.box
        width, height = max(width, left + across), max(height, top + down)
        last = frame
        if frame.is_whole:
            ends.append(frame.end)
    check(width, height, max(1, len(ends) - 1))
    file.seek(0)
    if last is None:
        raise DamageError("it holds no picture" if blocks.is_ended else CUT_SHORT)
    if blocks.is_ended and last.is_whole:
        return file, []
    share = _share_there(last)
    if share == 1 and len(ends) == 2 and not blocks.is_animation and not blocks.is_stray:
        return io.BytesIO(file.read(ends[1]) + _END), [NO_END]
    if not accept_damaged:
        raise DamageError(OTHER_DATA if blocks.is_stray else CUT_SHORT)
    if last.is_whole and share < 1:  # zeros end a frame, too
        ends.pop()
    if len(ends) > 1:
        return io.BytesIO(file.read(ends[-1]) + _END), [fewer_frames(len(ends) - 1, 0)]
    if not share:
        raise DamageError(CUT_SHORT)
    return _filled(last), [partly_whole(share)]


def _filled(frame: _Frame) -> BinaryIO:
    """Return a GIF file of a frame that is cut, with the first colour in place of the rest."""
    parser = ImageFile.Parser()
    parser.feed(frame.file)  # the header,
    parser.feed(b"")  # and all that there is of the pixels
    if parser.image is None:
        raise DamageError(CUT_SHORT)
    buffer = io.BytesIO()
    parser.image.save(buffer, "GIF", optimize=False)
    buffer.seek(0)
    return buffer


def _share_there(frame: _Frame) -> float:
    """Return for what share of its pixels a frame has codes."""
    place = frame.data_at
    least = frame.file[place]
    codes, place = bytearray(), place + 1
    while place < len(frame.file) and (length := frame.file[place]):
        codes += frame.file[place + 1 : place + 1 + length]
        place += 1 + length
    clear, bits, at = 1 << least, least + 1, 0
    fresh = [1] * clear + [0, 0]
    lengths, before, pixels = list(fresh), 0, 0
    while at + bits <= 8 * len(codes):
        code = int.from_bytes(codes[at // 8 : at // 8 + 3], "little") >> at % 8 & (1 << bits) - 1
        at += bits
        if code == clear:
            lengths, bits, before = list(fresh), least + 1, 0
            continue
        if code == clear + 1 or code >= len(lengths) + bool(before):
            break
        if before and len(lengths) < 4096:
            lengths.append(before + 1)
        before = lengths[code]
        pixels += before
        bits = min(12, max(bits, len(lengths).bit_length()))
    return min(1, pixels / max(1, frame.box[2] * frame.box[3]))


def pixel_shape(file: BinaryIO) -> tuple[int, int]:
    """Return how wide and how high a pixel is, in proportion: a file tells it in 64ths, from 16 on."""
    file.seek(12)
    (told,) = file.read(1)
    return (told + 15, 64) if told else (1, 1)


def beside(file: BinaryIO) -> Beside:
    """Return what a `sound` file holds beside its frames."""
    blocks = _Blocks(file)
    for _ in blocks:
        pass
    comments = [_joined(body) for name, body in blocks.extensions if name == _COMMENT]
    programs = {body[1:12]: body[12:] for name, body in blocks.extensions if name == _APPLICATION}
    packet = programs.pop(_XMP, b"")
    told = []
    if programs.pop(_PROFILE, b""):
        told.append("its colour profile was not kept")
    if any(name == _PLAIN_TEXT for name, _ in blocks.extensions):
        told.append("the text that programs are to draw upon it was not kept")
    told += of_others(name for name in programs if name not in _PASSED_OVER)
    return Beside(
        comment="\n".join(dict.fromkeys(text_of(comment) for comment in comments if comment.strip(b"\0 \n"))),
        xmp=packet[: packet.rfind(_XMP_END)] if _XMP_END in packet else b"",
        unkept=[*told, *behind(file.read())],
    )


def text_of(comment: bytes) -> str:
    """Return a comment, which is in UTF-8 or Latin-1."""
    try:
        return comment.decode()
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def _joined(body: bytes) -> bytes:
    """Return blocks without their lengths."""
    parts, place = [], 0
    while place < len(body):
        parts.append(body[place + 1 : place + 1 + body[place]])
        place += 1 + body[place]
    return b"".join(parts)


def seen_frames(file: BinaryIO) -> Iterator[tuple[Planes, float]]:
    """Yield each frame of an animation as it is seen, whole, and how long, in milliseconds.

    What no frame covers and what one has cleared behind it is transparent, as in browsers and ImageMagick; Pillow
    takes the background colour there. The file is `sound`. Raises what Pillow does.
    """
    blocks = _Blocks(file)
    width, height = blocks.screen
    for frame in blocks:
        left, top, across, down = frame.box
        width, height = max(width, left + across), max(height, top + down)
    pixels, alpha = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    for frame in _Blocks(file):
        left, top, across, down = frame.box
        place = slice(top, top + down), slice(left, left + across)
        before = pixels[place].copy(), alpha[place].copy()
        with Image.open(io.BytesIO(frame.file), formats=("GIF",)) as image:
            image.load()
            planes = Planes.of_image(image, [])
        colours = planes.pixels if planes.pixels.ndim == 3 else np.repeat(planes.pixels[..., None], 3, axis=2)
        opaque = np.ones((down, across), bool) if planes.alpha is None else planes.alpha > 0
        pixels[place][opaque], alpha[place][opaque] = colours[opaque], 255
        yield Planes(pixels.copy(), alpha.copy()), frame.duration_ms
        if frame.disposal == _TO_CLEAR:
            pixels[place], alpha[place] = 0, 0
        elif frame.disposal == _TO_BEFORE:
            pixels[place], alpha[place] = before


class _Blocks:
    """The frames of a file, read as they are asked for; the rest is known behind the last of them.

    `is_ended`: whether the mark for the end stands there. `is_stray`: whether something does that is no block.
    `is_animation`: whether the file speaks of time or of repetition. `extensions`: their names and blocks.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.seek(6)
        *self.screen, self._flags = struct.unpack("<HHB2x", file.read(7))
        self._palette = file.read(_palette_bytes(self._flags))
        self.is_ended = self.is_stray = self.is_animation = False
        self.extensions: list[tuple[bytes, bytes]] = []

    def __iter__(self) -> Iterator[_Frame]:
        control = bytes(6)
        while kind := self._file.read(1):
            self.is_ended, self.is_stray = kind == _END, kind not in (_EXTENSION, _IMAGE, _END)
            if self.is_ended:
                return
            if kind == _EXTENSION:
                name = self._file.read(1)
                body, _ = _sub_blocks(self._file)
                self.extensions.append((name, body))
                self.is_animation |= name == _APPLICATION and body[1:12] in _REPEATING
                if name == _CONTROL and len(body) >= 6:
                    control = body[:6]  # the length, flags, duration in hundredths, the clear colour, and an end
                    self.is_animation |= any(control[2:4])
            elif kind == _IMAGE:
                frame = self._frame(control)
                if frame is None:
                    return
                yield frame
                control = bytes(6)

    def _frame(self, control: bytes) -> _Frame | None:
        """Return the frame at hand, None if the file ends before its codes."""
        head = self._file.read(9)
        if len(head) < 9:
            return None
        *box, flags = struct.unpack("<HHHHB", head)
        palette, least = self._file.read(_palette_bytes(flags)), self._file.read(1)
        if not least:
            return None
        body, is_whole = _sub_blocks(self._file)
        alone = b"GIF89a" + struct.pack("<HHBBB", *box[2:], self._flags, 0, 0) + self._palette
        alone += b"!\xf9\x04" + bytes([control[1] & 1]) + control[2:5] + b"\0"
        alone += b"," + struct.pack("<HHHHB", 0, 0, *box[2:], flags) + palette
        return _Frame(
            box=(box[0], box[1], box[2], box[3]),
            disposal=control[1] >> 2 & 7,
            duration_ms=10.0 * int.from_bytes(control[2:4], "little"),
            file=alone + least + body + _END,
            data_at=len(alone),
            end=self._file.tell(),
            is_whole=is_whole,
        )


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _sub_blocks(file: BinaryIO) -> tuple[bytes, bool]:
    """Return the blocks that follow with their lengths and the empty one behind them; whether that is there."""
    parts = []
    while length := file.read(1):
        part = file.read(length[0])
        parts += [bytes([len(part)]), part]  # decoders take nothing of a block that promises more
        if length == b"\0":
            return b"".join(parts), True
    return b"".join(parts), False
