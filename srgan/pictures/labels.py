"""What a result says of how it was made: in XMP, or as a text where the format holds no XMP or texts beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version

from srgan.errors import UsageError
from srgan.pictures import xmp
from srgan.pictures.picture import FORMATS, MAX_JPEG_XMP_BYTES, Picture

# IPTC's words for where a picture comes from (cv.iptc.org/newscodes/digitalsourcetype): edited with generative AI,
# which enhancement counts as; altered by an algorithm; and made by generative AI from the start.
_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
BY_MODEL, BY_ALGORITHM = f"{_TYPES}compositeWithTrainedAlgorithmicMedia", f"{_TYPES}algorithmicallyEnhanced"
_GENERATED = f"{_TYPES}trainedAlgorithmicMedia"

# What the lengths and places in a packet may grow by when they are fitted to the picture.
_SPARE_BYTES = 1024


@dataclass(frozen=True)
class Label:
    """How a result was made. `model`, `sha256`: of its weights, "" where nothing is known. `size`: x4 or 2000px.

    `strength`: 1 is all of the model. `is_generated`: whether a model took part in it. `day`: YYYY-MM-DD, in UTC.
    """

    model: str
    sha256: str
    size: str
    strength: float
    is_generated: bool
    day: str

    @property
    def program(self) -> str:
        """The name of this program and its version."""
        return f"srgan {version('srgan')}"

    @property
    def parameters(self) -> str:
        """What decided on the result, in a line."""
        parts = {"model": self.model, "sha256": self.sha256, "size": self.size, "strength": f"{self.strength:g}"}
        if not self.is_generated:
            parts["model"] = parts["sha256"] = ""
        return "; ".join(f"{name} {value}" for name, value in parts.items() if value)


def day() -> str:
    """Return the day in UTC, or that of `SOURCE_DATE_EPOCH` (reproducible-builds.org), in which seconds are given.

    No hour: so a file made twice on a day is the same file. Raises UsageError for a variable that is no number.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        return datetime.now(UTC).strftime("%Y-%m-%d")
    try:
        return datetime.fromtimestamp(int(given), UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"SOURCE_DATE_EPOCH is {given[:40]!r}: give seconds since 1970, or unset it") from error


def labelled(picture: Picture, label: Label, format: str) -> Picture:
    """Return `picture` with `label` in its XMP and texts, as far as a file of `format` holds them.

    What it said of itself stays, but where it came from, unless that was generative AI; earlier entries of its
    history stay before this one. Each page of a document gets it.
    """
    holds = FORMATS[format].holds
    result = picture
    if "xmp" in holds:
        result = _with_xmp(result, label, format)
    keyword = "Software" if "texts" in holds else "Comment" if "xmp" not in holds and "comment" in holds else None
    if keyword is not None:
        texts = dict(result.texts)
        lines = [*filter(None, [texts.get(keyword)]), f"{label.program}: {label.parameters}; {label.day}"]
        result = replace(result, texts=tuple({**texts, keyword: "\n".join(lines)}.items()))
    if not picture.is_animated:
        result = replace(result, further=tuple(_with_xmp(page, label, format) for page in picture.further))
    return result


def _with_xmp(picture: Picture, label: Label, format: str) -> Picture:
    facts = xmp.Event(label.program, label.parameters, label.day)
    packet = xmp.with_event(picture.xmp, facts, lambda before: _type(before, label))
    if packet is None:
        told = "its XMP data is damaged and was not kept"
    elif format == "jpg" and len(packet) > MAX_JPEG_XMP_BYTES - _SPARE_BYTES:
        told = "JPEG holds 64 KB of XMP data, so this was not kept"
    else:
        return replace(picture, xmp=packet)
    packet = xmp.with_event(b"", facts, lambda before: _type(before, label)) or b""
    return replace(picture, xmp=packet, warnings=(*picture.warnings, told))


def _type(before: str, label: Label) -> str:
    """Return where a result comes from, of a picture that said `before` of that, or "" for nothing."""
    if label.is_generated:
        return before if before == _GENERATED else BY_MODEL
    return before or BY_ALGORITHM
