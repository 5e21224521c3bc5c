"""JPEG files whose end is missing: whether their picture is whole all the same, and as much of it as there is.

Every decoder fills what is missing in silence. Here coded data that is no part of the file is put behind its own,
in several versions: a picture that does not depend on it is whole.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin

from srgan.pictures.formats.damage import NO_END, OTHER_DATA, partly_whole
from srgan.pictures.formats.jpeg_parts import Layout, layout

_EOI = b"\xff\xd9"

# They differ from the first bit on, and none is what encoders fill the last byte with (ones).
_REST = bytes(np.random.default_rng(0).integers(0, 255, 512, np.uint8))
_STARTS = (b"\x00", b"\x55", b"\xaa", b"\x7e")

_DRI = 0xDD
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


@dataclass(frozen=True)
class Mended:
    """A file that can be decoded: `content`, and the `warning` that is to go with it."""

    content: bytes
    warning: str


def mended(content: bytes, *, accept_damaged: bool) -> Mended | None:
    """Return a JPEG file that has failed with an end put to it, or None if its picture is not whole.

    `accept_damaged`: return it in any case in which anything of the picture is there. Raises what Pillow does.
    """
    parts = layout(content)
    coded = content[: parts.whole_end]
    if not parts.is_ended:
        # What was lost is often zeros. A flat last block may end in some, too, but not in more than these.
        coded = coded[: len(coded.rstrip(b"\0")) + 2].removesuffix(b"\xff")
    closed = coded + _EOI
    if not list(parts.scans):
        return None
    share = _whole_share(
        closed, coded, has_restarts=any(kind == _DRI and any(body) for kind, body in parts.segments)
    )
    scans_are_all = _has_all_scans(parts)
    if share == 1 and scans_are_all and not parts.is_ended:
        return Mended(closed, NO_END)
    if not accept_damaged:
        return None
    return Mended(closed, _what_is_there(parts, share))


def _what_is_there(parts: Layout, share: float) -> str:
    """Return the warning for a picture of whose last scan `share` is whole."""
    scans = list(parts.scans)
    before = scans if share == 1 else scans[:-1]
    coarse = {component for scan in before for component in _coded(scan) if 0 in _coded(scan)[component]}
    components = _components(parts)
    if not components or not components <= coarse:
        return partly_whole(share)
    # All there is of the picture was coded before; the last scan makes it finer.
    if _has_all_scans(parts) and 0 < share < 1:
        percent = math.floor(100 * share)
        return f"it is damaged or cut short: {percent}% of its picture is whole, the rest lacks its finer details"
    return "it is damaged or cut short: finer details of its picture are missing"


def _whole_share(closed: bytes, coded: bytes, *, has_restarts: bool) -> float:
    """Return the share of the rows, from the top, that do not depend on what might have followed."""
    reference = _pixels(closed)
    whole = len(reference)
    # Where there are restarts, a decoder goes on at the next one, by its number, or not at all.
    restarts = _RESTART.findall(coded, coded.rindex(b"\xff\xda"))
    following = restarts[-1][1] - 0xD0 + 1 if restarts else 0
    numbers = [b"\xff" + bytes([0xD0 + (following + step) % 8]) for step in range(3)]
    for start in _STARTS:
        pieces = [start + _REST + number for number in numbers] if has_restarts else []
        continued = b"".join([*pieces, start, _REST])
        differs = _pixels(coded + continued + _EOI)[:whole] != reference[:whole]
        rows = differs.any(axis=tuple(range(1, differs.ndim)))
        whole = int(rows.argmax()) if rows.any() else whole
    return whole / len(reference)


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        image.load()
        return np.asarray(image)


def _components(parts: Layout) -> set[int]:
    """Return the numbers of the colour components, none if that is not clear."""
    frames = [
        body for marker, body in parts.segments if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
    ]
    return set(frames[0][6 : 6 + 3 * frames[0][5] : 3]) if len(frames) == 1 and len(frames[0]) >= 6 else set()


def _coded(scan: bytes, *, to_the_last_bit: bool = False) -> dict[int, range]:
    """Return which coefficients of each component a scan's header announces; none if it is damaged."""
    count = scan[0] if scan else 0
    if len(scan) < 4 + 2 * count:
        return {}
    first, last, approximation = scan[1 + 2 * count : 4 + 2 * count]
    if to_the_last_bit and approximation & 15:
        return {}
    return dict.fromkeys(scan[1 : 1 + 2 * count : 2], range(first, last + 1))


def _has_all_scans(parts: Layout) -> bool:
    """Return whether every coefficient of every component was coded to its last bit."""
    left = {component: set(range(64)) for component in _components(parts)}
    for scan in parts.scans:
        for component, coefficients in _coded(scan, to_the_last_bit=True).items():
            left.get(component, set()).difference_update(coefficients)
    return bool(left) and not any(left.values())


def loaded(
    opened: JpegImagePlugin.JpegImageFile, content: bytes, *, accept_damaged: bool
) -> tuple[JpegImagePlugin.JpegImageFile, list[str]]:
    """Load a JPEG file, or what can be had of it: the loaded image, and warnings; raises what Pillow does."""
    try:
        opened.load()
        if layout(content).is_ended:
            return opened, []
        # Zeros, and much else, pass for coded data.
        damage = OSError(OTHER_DATA)
    except OSError as error:
        damage = error
    fixed = mended(content, accept_damaged=accept_damaged)
    if fixed is None:
        raise damage
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(fixed.content))
    image.load()
    return image, [fixed.warning]
