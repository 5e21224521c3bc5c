"""Another Python for a part of the work: it imports what this one would, and nothing from the folder at hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGES = str(Path(__file__).parents[1])  # where this package lies

# Of the environment, what finding libraries and naming files needs; keys and passwords are no affair of a child.
_ENVIRONMENT = (
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SYSTEMROOT",
    "TMPDIR",
    "PATH",
)


def command(call: str, *arguments: str) -> list[str]:
    """Return the command for a process that runs `call`, a line of Python; its `sys.argv` is `arguments`."""
    places = [place for place in sys.path if place and not _is_only_at_hand(place)]
    if _PACKAGES not in places:
        places.insert(0, _PACKAGES)
    start = f"import sys; sys.path[:] = sys.argv[1:{len(places) + 1}]; del sys.argv[:{len(places) + 1}]; {call}"
    return [sys.executable, "-I", "-W", "ignore", "-c", start, *places, *arguments]


def environment() -> dict[str, str]:
    """Return the environment for it."""
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


def leave_folder_at_hand() -> None:
    """Import nothing from the folder at hand, where `python -m` looks first, here and in what is started.

    A file `numpy.py` beside somebody's pictures is not to be run. Where this package itself was found there, it
    stays.
    """
    if not sys.flags.safe_path and sys.path and _is_only_at_hand(sys.path[0]):
        del sys.path[0]
    if not _is_at_hand(_PACKAGES):
        os.environ["PYTHONSAFEPATH"] = "1"  # for processes that libraries start


def _is_only_at_hand(place: str) -> bool:
    """Return whether an entry of `sys.path` is the folder at hand, and this package lies elsewhere."""
    return _is_at_hand(place) and not _is_at_hand(_PACKAGES)


def _is_at_hand(place: str) -> bool:
    try:
        return Path(place).samefile(Path.cwd())
    except OSError:  # one of them is not there
        return False
