"""What AV1 and HEVC streams say of their colours, for files whose boxes say nothing.

Read bit by bit, as the standards lay it out: AV1's sequence header (AV1 bitstream specification, 5.5) and HEVC's
sequence parameter set (ITU-T H.265, 7.3.2.2 and E.2.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from srgan.pictures.formats import boxes

_SEQUENCE_HEADER, _TEMPORAL_DELIMITER = 1, 2  # kinds of AV1's units
_PARAMETER_SET = 33  # a kind of HEVC's
_HEAD_BYTES = 200  # of a stream, in which its header is
_LAST_PRIMARIES, _LAST_TRANSFER = 22, 18  # that ITU-T H.273 defines; others are read wrong

# Primaries and transfer by ITU-T H.273, and whether there is luma alone, as in a stream of transparency.
_Colours = tuple[int, int, bool]


def colours(content: bytes) -> tuple[int, int] | None:
    """Return primaries and transfer that the streams in an AVIF or HEIC file tell, of colours before of grey."""
    defined = (
        colours for colours in _told(content) if colours[0] <= _LAST_PRIMARIES and colours[1] <= _LAST_TRANSFER
    )
    told = sorted(defined, key=lambda colours: colours[2])
    return told[0][:2] if told else None


def _told(content: bytes) -> Iterator[_Colours]:
    for start, end in boxes.of_kind(content, b"av1C"):
        yield from _of_units(content[start + 4 : end])
    for kind, start, _ in boxes.items(content):
        if kind == b"av01":
            yield from _of_units(content[start : start + _HEAD_BYTES])
    for start, end in boxes.of_kind(content, b"hvcC"):
        yield from _of_configuration(content[start:end])


def _of_units(stream: bytes) -> Iterator[_Colours]:
    """Yield what the sequence header among the first units of an AV1 stream tells."""
    place = 0
    while place < len(stream):
        kind, has_extension, has_size = stream[place] >> 3 & 15, stream[place] & 4, stream[place] & 2
        if kind not in (_SEQUENCE_HEADER, _TEMPORAL_DELIMITER) or stream[place] & 0x81 or not has_size:
            return
        place += 2 if has_extension else 1
        size = shift = 0
        while place < len(stream) and shift < 35:
            size |= (stream[place] & 127) << shift
            shift, place = shift + 7, place + 1
            if not stream[place - 1] & 128:
                break
        if kind == _SEQUENCE_HEADER:
            try:
                colours = _of_sequence(_Bits(stream[place : place + size]))
            except EOFError:
                return
            if colours:
                yield colours
            return
        place += size


def _of_sequence(bits: _Bits) -> _Colours | None:
    profile = bits.number(3)
    bits.skip(1)
    is_reduced = bits.number(1)
    if is_reduced:
        bits.skip(5)
    else:
        _skip_operating_points(bits)
    across, down = bits.number(4) + 1, bits.number(4) + 1
    bits.skip(across + down)
    if not is_reduced and bits.number(1):  # numbers of frames
        bits.skip(7)
    bits.skip(3)
    if not is_reduced:
        bits.skip(4)
        has_order = bits.number(1)
        bits.skip(2 * has_order)
        screen_content = 1 if bits.number(1) else bits.number(1)
        if screen_content and not bits.number(1):
            bits.skip(1)
        bits.skip(3 * has_order)
    bits.skip(3)
    if bits.number(1) and profile == 2:
        bits.skip(1)
    is_grey = profile != 1 and bits.number(1) == 1
    return (bits.number(8), bits.number(8), is_grey) if bits.number(1) else None


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.number(1):  # timing
        bits.skip(64)
        if bits.number(1):
            bits.exponential()
        if bits.number(1):  # a model of the decoder
            delay_bits = bits.number(5) + 1
            bits.skip(42)
    has_display_delay = bits.number(1)
    for _ in range(bits.number(5) + 1):
        bits.skip(12)
        if bits.number(5) > 7:
            bits.skip(1)
        if delay_bits and bits.number(1):
            bits.skip(2 * delay_bits + 1)
        if has_display_delay and bits.number(1):
            bits.skip(4)


def _of_configuration(record: bytes) -> Iterator[_Colours]:
    """Yield what the sequence parameter sets in an HEVC decoder configuration record tell."""
    try:
        place = 23
        for _ in range(record[22]):
            kind, count = struct.unpack_from(">BH", record, place)
            place += 3
            for _ in range(count):
                (size,) = struct.unpack_from(">H", record, place)
                unit = record[place + 2 : place + 2 + size]
                place += 2 + size
                if kind & 63 == _PARAMETER_SET:
                    # A byte 3 stands behind zeros wherever they could be taken for the start of a unit.
                    colours = _of_parameter_set(_Bits(unit[2:].replace(b"\0\0\3", b"\0\0")))
                    if colours:
                        yield colours
    except (EOFError, IndexError, struct.error):
        return


def _of_parameter_set(bits: _Bits) -> _Colours | None:
    bits.skip(4)
    further = bits.number(3)
    bits.skip(1 + 96)
    layers = [(bits.number(1), bits.number(1)) for _ in range(8 if further else 0)][:further]
    bits.skip(sum(88 * has_profile + 8 * has_level for has_profile, has_level in layers))
    bits.exponential()
    chroma = bits.exponential()
    bits.skip(chroma == 3)
    bits.exponentials(2)
    if bits.number(1):
        bits.exponentials(4)
    bits.exponentials(2)
    order_bits = bits.exponential() + 4
    bits.exponentials(3 * (further + 1 if bits.number(1) else 1))
    bits.exponentials(6)
    if bits.number(1) and bits.number(1):
        _skip_scaling_lists(bits)
    bits.skip(2)
    if bits.number(1):  # samples as they are
        bits.skip(8)
        bits.exponentials(2)
        bits.skip(1)
    _skip_references(bits)
    if bits.number(1):
        bits.skip(bits.exponential() * (order_bits + 1))
    bits.skip(2)
    if not bits.number(1):
        return None
    if bits.number(1) and bits.number(8) == 255:  # the shape of pixels
        bits.skip(32)
    if bits.number(1):
        bits.skip(1)
    if not bits.number(1):
        return None
    bits.skip(4)
    return (bits.number(8), bits.number(8), chroma == 0) if bits.number(1) else None


def _skip_scaling_lists(bits: _Bits) -> None:
    for size in range(4):
        for _ in range(2 if size == 3 else 6):
            if bits.number(1):
                bits.exponentials(min(64, 16 << 2 * size) + (size > 1))
            else:
                bits.exponential()


def _skip_references(bits: _Bits) -> None:
    """Skip the sets of pictures that others refer to, of which one may be told by the one before."""
    count = 0
    for index in range(min(64, bits.exponential())):
        if index and bits.number(1):
            bits.skip(1)
            bits.exponential()
            count = sum(bits.number(1) or bits.number(1) for _ in range(count + 1))
        else:
            count = min(32, bits.exponential() + bits.exponential())
            for _ in range(count):
                bits.exponential()
                bits.skip(1)


class _Bits:
    """Numbers bit by bit, the highest first; raises EOFError where the bytes end."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 0

    def number(self, bits: int) -> int:
        """Return the next number of so many bits."""
        start, self._place = self._place, self._place + bits
        if self._place > 8 * len(self._content):
            raise EOFError
        end = -(-self._place // 8)
        return int.from_bytes(self._content[start // 8 : end]) >> 8 * end - self._place & (1 << bits) - 1

    def skip(self, bits: int) -> None:
        """Pass over so many bits."""
        self._place += bits

    def exponential(self) -> int:
        """Return the next number in Exp-Golomb's code, which is AV1's of variable length, too."""
        zeros = 0
        while not self.number(1):
            zeros += 1
        return (1 << zeros) - 1 + self.number(zeros)

    def exponentials(self, count: int) -> None:
        """Pass over so many numbers in that code, with a sign or without."""
        for _ in range(count):
            self.exponential()
