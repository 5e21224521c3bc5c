"""What results are called: as the command line would call them, after the upload, by names that harm no disk."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from urllib.parse import quote

from srgan.folder.making import AUTO
from srgan.pictures import FORMATS, PICTURE_SUFFIXES
from srgan_service.http.parameters import Wish
from srgan_service.work.upscaling import Answer

UNNAMED = "picture"  # an upload that says no name

_MOST_BYTES = 200  # of a stem; file systems take 255 for the whole name
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\s*\.", re.IGNORECASE)  # by Windows, whatever comes behind


def result_name(upload: str, wish: Wish, answer: Answer) -> str:
    """Return the name of a result's file: one.jpg becomes one_x4.jpg."""
    return stem(upload) + ending(upload, wish, answer)


def stem(upload: str) -> str:
    """Return what results keep of an upload's name: no folder, no control or direction mark, 1 to 200 bytes."""
    path = PurePosixPath(_last_part(upload))
    kept = path.stem if path.suffix.lower() in PICTURE_SUFFIXES else path.name
    kept = "".join(
        "_" if _is_harmful(character) else character for character in unicodedata.normalize("NFC", kept)
    )
    kept = kept.encode()[:_MOST_BYTES].decode(errors="ignore").strip(" .")
    return f"_{kept}" if _RESERVED.match(f"{kept}.") and "." in kept else kept or UNNAMED


def ending(upload: str, wish: Wish, answer: Answer) -> str:
    """Return what stands behind the stem: the size, and the upload's suffix where it is one of the format."""
    suffix, possible = PurePosixPath(_last_part(upload)).suffix.lower(), FORMATS[answer.format].suffixes
    return f"_{answer.label}{suffix if wish.format == AUTO and suffix in possible else possible[0]}"


def unique(names: Iterable[str]) -> Iterator[str]:
    """Yield the names, those that come again with a number, since an archive may hold each once."""
    taken: set[str] = set()
    for name in names:
        path, other = PurePosixPath(name), name
        number = 2
        while other.casefold() in taken:  # some disks do not tell capitals apart
            other = f"{path.stem}-{number}{path.suffix}"
            number += 1
        taken.add(other.casefold())
        yield other


def disposition(kind: str, name: str) -> str:
    """Return Content-Disposition (RFC 6266) for a file: `kind` is inline or attachment."""
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    exact = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'{kind}; filename="{plain}"{exact}'


def _last_part(upload: str) -> str:
    return upload.replace("\\", "/").rpartition("/")[2]


def _is_harmful(character: str) -> bool:
    return unicodedata.category(character)[0] == "C" or character in '\u2028\u2029<>:"|?*'
