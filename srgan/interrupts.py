"""Ctrl-C and the termination signal, taken in one place: who works decides what each of them does."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# What a signal did before: a function, or one of `signal.SIG_DFL` and `SIG_IGN`.
Handler = Callable[[int, FrameType | None], Any] | int | None


@contextlib.contextmanager
def handlers_kept() -> Iterator[dict[int, Handler]]:
    """Within the block, whatever takes the signals gives them back at its end; yields what took them before."""
    before: dict[int, Handler] = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield before
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that was not set from Python cannot be set from it
                signal.signal(number, handler)


@contextlib.contextmanager
def signals_taken(take: Callable[[int], None]) -> Iterator[dict[int, Handler]]:
    """Within the block, call `take` with the number of each signal; yields what took them before.

    To be used in the main thread, which is the one that gets signals.
    """
    with handlers_kept() as before:
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: take(number))
        yield before


class Interrupt:
    """Whether a signal came. `stop` is set by the first one; `exit_code` is what a shell expects then, or None."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.exit_code: int | None = None

    def take(self, number: int) -> None:
        """Take the first signal as a request to stop; raise KeyboardInterrupt on the second."""
        self.exit_code = 128 + number
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.stop.set()


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Within the block, take the first signal as a request to stop, and raise KeyboardInterrupt on the second.

    After one, the process is expected to end, and no further one disturbs that.
    """
    interrupt = Interrupt()
    with signals_taken(interrupt.take) as before:
        try:
            yield interrupt
        finally:
            if interrupt.exit_code is not None:
                before.update(dict.fromkeys(SIGNALS, signal.SIG_IGN))
