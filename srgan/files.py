"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# A name that ends so is a write in progress, or what a killed process left of one.
TEMPORARY_SUFFIX = ".srgan-part"


def write_atomically(path: Path, data: bytes) -> None:
    """Make `path` hold exactly `data`; whoever looks sees the old file or the new one, never a part.

    The bytes go to a temporary name in the same folder, are flushed to the disk and renamed over `path`; a
    symbolic link at `path` is replaced, not written through. Whatever goes wrong, the temporary is removed.
    Raises OSError as the operating system gives it.
    """
    with written_whole(path) as file:
        file.write(data)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to fill that becomes `path` at the end of the block, as by `write_atomically`.

    What is no file (/dev/null, a named pipe) is written into, since to replace it would take it from everybody.
    """
    if is_special(path):
        with path.open("wb") as file:
            yield file
        return
    temporary = temporary_beside(path)
    with removed_on_error(temporary):
        with open_new(temporary) as file:
            yield file
        put_in_place(temporary, path)


def is_special(path: Path) -> bool:
    """Return whether `path` is a device, a pipe or a socket, which must not be replaced by a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def temporary_beside(path: Path, run: str = "") -> Path:
    """Return a name for what will become `path`; `run`: whose it is, for who has to clean up after it."""
    # Short and random: the name fits wherever `path` does, and two processes never share one.
    return path.parent / f".{run}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"


@contextlib.contextmanager
def open_new(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file for writing, whose contents are on the disk when the block is left."""
    # Not tempfile: its files are private (0600), and a result should get what the user's umask says.
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Remove `path` if the block raises anything."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename `temporary` over `path`, and make that survive a power cut."""
    temporary.replace(path)
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
