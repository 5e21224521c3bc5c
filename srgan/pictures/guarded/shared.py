"""Arrays that another process of this user can map: pixels go to an encoder without a second copy of them.

On Linux, by files that lie in memory alone (memfd_create). Elsewhere arrays are ordinary ones and are sent.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

# Below this a copy costs nothing, and a file would be one more open.
_LEAST_BYTES = 1 << 22

_files: dict[int, int] = {}  # where an array begins, and its file


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array, one that can be mapped if it is large; raises MemoryError as numpy does."""
    size_bytes = dtype.itemsize * math.prod(shape)
    if size_bytes < _LEAST_BYTES or not hasattr(os, "memfd_create"):
        return np.empty(shape, dtype)
    try:
        file = os.memfd_create("srgan-picture")
    except OSError:  # too many open files
        return np.empty(shape, dtype)
    try:
        os.ftruncate(file, size_bytes)
        mapping = mmap.mmap(file, size_bytes)
    except OSError as error:
        os.close(file)
        raise MemoryError(f"{size_bytes} bytes") from error
    array = np.frombuffer(mapping, dtype).reshape(shape)
    place = array.ctypes.data
    _files[place] = file
    weakref.finalize(mapping, _close, place)
    return array


def path_of(array: np.ndarray) -> str | None:
    """Return by what name another process can map an array of `empty`, None if it is another or a part of one."""
    file = _files.get(array.ctypes.data) if array.flags.c_contiguous else None
    if file is None or os.fstat(file).st_size != array.nbytes:
        return None
    return f"/proc/{os.getpid()}/fd/{file}"


def mapped(path: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the array of another process that is there, to be read only; raises OSError or ValueError."""
    with Path(path).open("rb") as file:
        content = mmap.mmap(file.fileno(), dtype.itemsize * math.prod(shape), access=mmap.ACCESS_READ)
    return np.frombuffer(content, dtype).reshape(shape)


def _close(place: int) -> None:
    os.close(_files.pop(place))
