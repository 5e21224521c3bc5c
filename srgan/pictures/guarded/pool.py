"""Which worker takes the next file, and when there is to be another."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

from srgan.errors import GuardError
from srgan.pictures import Picture, Quality
from srgan.pictures.guarded.headers import Limits
from srgan.pictures.guarded.process import Check, Worker


class Pool:
    """At most `size` workers, each used by one thread at a time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.crashes = 0
        self._closed = False
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._slots = threading.BoundedSemaphore(self._size)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()

    @property
    def worker_pids(self) -> list[int]:
        """The processes at work or waiting for work."""
        with self._lock:
            return [worker.pid for worker in self._all]

    def decode(self, source: Path | bytes, name: str, limits: Limits) -> Picture:
        """Have a worker decode a file, as soon as there is one; raises what `Worker.decode` raises."""
        with self._worker() as worker:
            return worker.decode(source, name, limits)

    def encode(
        self, picture: Picture, format: str, quality: Quality, limits: Limits, check: Check | None = None
    ) -> bytes:
        """Have a worker encode a picture, as soon as there is one; raises what `Worker.encode` raises."""
        with self._worker() as worker:
            return worker.encode(picture, format, quality, limits, check)

    def close(self) -> None:
        """End the workers, those at work after their file."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            self._all.difference_update(idle)
        for worker in idle:
            worker.end()

    def forget(self) -> None:
        """Part from the workers in a forked process: they are the parent's, and so are their answers."""
        for worker in self._all:
            worker.disown()
        self._begin()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Worker]:
        with self._slots:
            worker = self._take()
            try:
                yield worker
            finally:
                self._give_back(worker)

    def _take(self) -> Worker:
        with self._lock:
            if self._closed:
                raise GuardError("the decoder is closed; make a new one")
            while self._idle:
                worker = self._idle.pop()
                if worker.is_running():
                    return worker
                worker.end()
                self._all.discard(worker)
        worker = Worker()
        with self._lock:
            self._all.add(worker)
        return worker

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            self.crashes += worker.state == "lost" and not worker.was_stopped
            if worker.state == "fit" and not self._closed:
                self._idle.append(worker)
                return
            self._all.discard(worker)
        worker.end()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_workers() -> None:
    for pool in _pools:
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
