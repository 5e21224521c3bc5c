"""What is said of pictures that are damaged, in the same words for every format."""

from __future__ import annotations

import math

NO_END = "it ends without the mark for its end; all of its picture is there"

CUT_SHORT = "it is cut short"
OTHER_DATA = "it is cut short, and other data stands in the place of the rest"


class DamageError(ValueError):
    """Something is wrong with the bytes of a picture; its message is fit to be shown to a user."""


def partly_whole(share: float, read: float | None = None) -> str:
    """Return the warning for a picture: `share` (0..1) of it is whole, `read` could be read but may be wrong."""
    if read is None or read == share:
        return f"it is damaged or cut short: {_percent(share)} of its picture is whole, the rest was made up"
    doubt = f"from {_percent(share)} on" if share else "all of it"
    return f"it is damaged: {_percent(read)} of its picture could be read, but {doubt} may be wrong"


def fewer_frames(whole: int, promised: int, kind: str = "frame") -> str:
    """Return the warning for an animation, or another `kind` of a series, of which not all is whole."""
    if not whole:
        return f"it is damaged or cut short: no {kind} is whole; the others were not kept"
    if promised <= whole:  # nothing says how many there were
        frames = f"{whole} {kind}s are" if whole > 1 else f"{kind} is"
        return f"it is damaged or cut short: only its first {frames} whole; what followed was not kept"
    return f"it is damaged or cut short: {whole} of its {promised} {kind}s are whole; the others were not kept"


def _percent(share: float) -> str:
    return f"{math.floor(100 * share)}%"  # what is not whole is not 100%
