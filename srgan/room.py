"""Memory that several threads, or several processes of a machine, share."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from srgan.errors import UsageError

# How often who waits is asked whether it still does.
_CHECK_EVERY_S = 0.1


class Room:
    """So many bytes for the work of all threads together; who finds too few left waits, in the order of coming."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, count_bytes: int, check: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Have so many bytes, once they are free, for as long as the context lasts.

        More than there are means all of them. `check` is called while this waits; what it raises ends the waiting.
        """
        count_bytes = min(count_bytes, self.limit_bytes)
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                while self._waiting[0] is not turn or self._taken_bytes + count_bytes > self.limit_bytes:
                    check()
                    self._changed.wait(_CHECK_EVERY_S)
                self._taken_bytes += count_bytes
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken_bytes -= count_bytes
                self._changed.notify_all()


class MachineRoom:
    """So many bytes for the work of all processes of this user and machine that name the same limit.

    They are locks of files, each for a part of the whole, so what a killed process had is free again. `folder`:
    where those lie, by default one among the temporary files. Raises UsageError if that is another user's.
    """

    _PARTS = 128

    def __init__(self, limit_bytes: int, folder: Path | None = None) -> None:
        self.limit_bytes = limit_bytes
        user = os.getuid() if sys.platform != "win32" else os.environ.get("USERNAME", "")
        self._folder = folder or Path(tempfile.gettempdir()) / f"srgan-{user}-{limit_bytes}"
        self._folder.mkdir(0o700, exist_ok=True)
        if sys.platform != "win32" and self._folder.lstat().st_uid != user:
            raise UsageError(f"{self._folder} is another user's; set TMPDIR to a folder of your own")

    @contextlib.contextmanager
    def taken(self, count_bytes: int) -> Iterator[None]:
        """Have so many bytes, once they are free, for as long as the context lasts; of too many, all."""
        parts = min(self._PARTS, math.ceil(count_bytes / self.limit_bytes * self._PARTS))
        with contextlib.ExitStack() as held:
            with FileLock(self._folder / "turn"):  # who needs much waits for it alone, and is not overtaken
                locks = (FileLock(self._folder / str(number)) for number in itertools.cycle(range(self._PARTS)))
                while parts:
                    try:
                        held.enter_context(next(locks).acquire(timeout=0))
                        parts -= 1
                    except Timeout:
                        time.sleep(_CHECK_EVERY_S / self._PARTS)
            yield
