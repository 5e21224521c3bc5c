"""Texts for a person: lines that no name can break, and times in words."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def one_line(text: str) -> str:
    """Return `text` with what could break the line or drive the terminal written as escapes.

    File names may hold anything but a slash and a zero byte.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that says anything, for errors of one line."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def duration(seconds: float) -> str:
    """Return a time in words: "0.4 s", "12 s", "5 min", "2 h 05 min", "3.0 days"; "" if it is not known."""
    if not math.isfinite(seconds):
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s" if 0 < seconds < 1 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes / 60 / 24:.1f} days"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return "; did you mean 'fp16'?" for the one of `choices` that `word` comes close to, "" if none does."""
    near = difflib.get_close_matches(word.lower(), choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
