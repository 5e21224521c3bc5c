"""The directories of TIFF files, entry by entry: what says how the samples lie, apart from all else.

Neither libtiff nor Pillow is told of more than they need for the samples, so that odd metadata costs no picture.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

from PIL import TiffTags

from srgan.pictures.formats.damage import CUT_SHORT, DamageError

# Types of values as `struct` knows them; rational ones are two numbers. Those of 64 bits belong to the big kind.
_TYPES = {
    1: "B",
    2: "B",
    3: "H",
    4: "L",
    5: "LL",
    6: "b",
    7: "B",
    8: "h",
    9: "l",
    10: "ll",
    11: "f",
    12: "d",
    13: "L",
}
_TYPES |= {16: "Q", 17: "q", 18: "Q"}

# How the samples lie and are coded, and what their values mean: TIFF 6, its supplements, and codecs of libtiff.
_OF_SAMPLES = frozenset(
    {
        *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
        *(332, 334, 336, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 50674),
    }
)
_ICC, _UNDEFINED = 34675, 7

# Those that have one value: Pillow warns of more.
_SINGLE = {tag for tag in _OF_SAMPLES if TiffTags.lookup(tag).length == 1} - {347}  # the tables of JPEG are bytes


@dataclass(frozen=True)
class Form:
    """How a file is written: its byte order, and whether it is of the big kind."""

    order: str
    is_big: bool

    @classmethod
    def of(cls, content: bytes) -> Form:
        """Return the form of a file by its first bytes."""
        return cls("<" if content[:2] == b"II" else ">", content[2:4] in (b"+\0", b"\0+"))

    @property
    def word(self) -> str:
        """The kind of numbers that count bytes and places."""
        return self.order + ("Q" if self.is_big else "L")

    @property
    def count(self) -> str:
        """The kind of number that counts entries."""
        return self.order + ("Q" if self.is_big else "H")

    @property
    def link(self) -> int:
        """Where the place of the first directory stands."""
        return 8 if self.is_big else 4


@dataclass(frozen=True)
class Entry:
    """An entry of a directory. `field`: its value, or the place of that in the file."""

    tag: int
    kind: int
    count: int
    field: bytes

    def is_sound(self, form: Form, size: int) -> bool:
        """Return whether its type is known, and its value lies within a file of so many bytes."""
        if self.length <= len(self.field):
            return self.length > 0
        (place,) = struct.unpack(form.word, self.field)
        return bool(place + self.length <= size)

    @property
    def length(self) -> int:
        """Bytes of its value."""
        return struct.calcsize(f"<{_TYPES.get(self.kind, '')}") * self.count

    def value(self, content: bytes, form: Form) -> bytes:
        """Return the bytes of a value that is sound."""
        if self.length <= len(self.field):
            return self.field[: self.length]
        (place,) = struct.unpack(form.word, self.field)
        return content[place : place + self.length]

    def number(self, content: bytes, form: Form) -> float | None:
        """Return the first number of a value that is sound; None if that is divided by zero."""
        first = struct.unpack_from(form.order + _TYPES[self.kind], self.value(content, form))
        if len(first) == 1:
            return float(first[0])
        return first[0] / first[1] if first[1] else None

    def with_one(self, content: bytes, form: Form) -> Entry:
        """Return the entry with the first value alone, which is no rational one."""
        first = self.value(content, form)[: struct.calcsize(f"<{_TYPES[self.kind]}")]
        return Entry(self.tag, self.kind, 1, first.ljust(len(self.field), b"\0"))

    @property
    def is_of_samples(self) -> bool:
        """Whether the samples cannot be read, or not be understood, without it."""
        return self.tag in _OF_SAMPLES or (self.tag == _ICC and self.kind in (1, _UNDEFINED))


@dataclass(frozen=True)
class Entries:
    """The entries of a directory: those of the samples, the others, and the tags of others that cannot be read.

    `following`: where the next directory is, 0 if there is none, None if the file ends before it says so.
    """

    samples: tuple[Entry, ...]
    others: tuple[Entry, ...]
    unread: frozenset[int]
    following: int | None

    @classmethod
    def at(cls, place: int, content: bytes, form: Form) -> Entries:
        """Read the directory at `place`; raises DamageError if an entry that matters cannot be read."""
        try:
            (count,) = struct.unpack_from(form.count, content, place)
        except struct.error as error:
            raise DamageError(CUT_SHORT) from error
        entry = struct.Struct(f"{form.order}HH{form.word[1:]}{8 if form.is_big else 4}s")
        start = place + struct.calcsize(form.count)
        end = start + count * entry.size
        if end > len(content):
            raise DamageError(CUT_SHORT)
        entries = [Entry(*values) for values in entry.iter_unpack(content[start:end])]
        following = None
        if end + struct.calcsize(form.word) <= len(content):
            (following,) = struct.unpack_from(form.word, content, end)
        of_samples = {item.tag: item for item in reversed(entries) if item.is_of_samples}
        others = {item.tag: item for item in reversed(entries) if item.tag not in of_samples}
        unread = {item.tag for item in entries if not item.is_sound(form, len(content))}
        for tag in unread & set(of_samples) - {_ICC}:
            raise DamageError(f"its tag {tag} cannot be read")
        return cls(
            _sorted(
                item.with_one(content, form) if item.count > 1 and tag in _SINGLE else item
                for tag, item in of_samples.items()
                if tag not in unread
            ),
            _sorted(item for tag, item in others.items() if tag not in unread),
            frozenset(item.tag for item in entries if item.tag in unread and item.count),
            following,
        )

    def replaced(self, entries: Iterable[Entry]) -> Entries:
        """Return them with these in place of those of the samples that have their tags."""
        by_tag = {item.tag: item for item in self.samples} | {item.tag: item for item in entries}
        return replace(self, samples=_sorted(by_tag.values()))


def _sorted(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda item: item.tag))


def listed(content: bytes, form: Form, values: dict[int, tuple[int, ...]]) -> tuple[bytes, tuple[Entry, ...]]:
    """Return entries of whole numbers, and the file with those that an entry has no room for behind its end."""
    entries, lists = [], b""
    for tag, numbers in values.items():
        body = struct.pack(f"{form.order}{len(numbers)}{form.word[1:]}", *numbers)
        if len(numbers) > 1:
            lists, body = lists + body, struct.pack(form.word, len(content) + len(lists))
        if numbers:
            entries.append(Entry(tag, 16 if form.is_big else 4, len(numbers), body))
    return content + lists, _sorted(entries)


def appended(content: bytes, form: Form, *directories: tuple[Entry, ...]) -> tuple[bytes, list[int]]:
    """Return a file with these directories behind its end, the first of them its only page, and their places."""
    file, places = io.BytesIO(content), []
    file.seek(0, io.SEEK_END)
    file.write(bytes(-len(content) % 8))
    for entries in directories:
        body = struct.pack(form.count, len(entries))
        for item in entries:
            body += struct.pack(f"{form.order}HH{form.word[1:]}", item.tag, item.kind, item.count) + item.field
        body += struct.pack(form.word, 0)
        places.append(file.tell())
        file.write(body + bytes(-len(body) % 8))
    file.seek(form.link)
    file.write(struct.pack(form.word, places[0]))
    return file.getvalue(), places
