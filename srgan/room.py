"""Memory that several threads share."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

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
