"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

# A name that ends so is a write in progress, or what a killed process left of one.
TEMPORARY_SUFFIX = ".srgan-part"


def write_atomically(path: Path, data: bytes) -> None:
    """Make `path` hold exactly `data`; whoever looks sees the old file or the new one, never a part.

    The bytes go to a temporary name in the same folder, are flushed to the disk and renamed over `path`; a
    symbolic link at `path` is replaced, not written through. Whatever goes wrong, the temporary is removed.
    Raises OSError as the operating system gives it.
    """
    # Short and random: the name fits wherever `path` does, and two processes never share one.
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        # Not tempfile: its files are private (0600), and a result should get what the user's umask says.
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can do that."""
    if os.name == "nt":
        return  # Windows has no handle on a folder to flush
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
