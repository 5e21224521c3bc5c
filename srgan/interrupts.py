"""Ctrl-C and the termination signal: the first one asks to stop, the second one stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether a signal came. `stop` is set by the first one; `exit_code` is what a shell expects then, or None."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.exit_code: int | None = None


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Within the block, take the first signal as a request to stop, and raise KeyboardInterrupt on the second.

    After one, the process is expected to end, and no further one disturbs that. To be called by the main thread,
    which is the one that gets signals.
    """
    interrupt = Interrupt()

    def take(number: int, frame: FrameType | None) -> None:
        interrupt.exit_code = 128 + number
        if interrupt.stop.is_set():
            raise KeyboardInterrupt
        interrupt.stop.set()

    before = {number: signal.signal(number, take) for number in _SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if interrupt.exit_code is None else signal.SIG_IGN)
