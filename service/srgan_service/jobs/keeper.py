"""A thread that shows that this process lives, takes over from others that do not, and forgets what has expired.

Who does which job is decided by the database. A process shows that it lives by a changing file; the jobs of one
whose file has not changed for a while are given to others.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from srgan_service.jobs.files import JobFiles
from srgan_service.jobs.storage import Storage
from srgan_service.jobs.workflows import State, Workflows
from srgan_service.metrics import Metrics
from srgan_service.settings import Settings

_log = structlog.stdlib.get_logger("srgan_service.jobs")
_NO_WRITE_TAKES_S = 3600.0  # so what is half-written for so long was left by a process that was killed
_FORGET_EVERY_S = 60.0
_MOST_FORGOTTEN = 1000  # at once, so that a sign of life is not kept waiting

_STATES: dict[str, State] = {"pending": "ENQUEUED", "processing": "PENDING"}


class Keeper:
    """Looks after the jobs of all processes, in the name of `executor`, which is this one's."""

    def __init__(
        self, settings: Settings, executor: str, workflows: Workflows, storage: Storage, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._workflows = workflows
        self._storage = storage
        self._files = JobFiles(storage)
        self._signs: dict[str, tuple[bytes, float]] = {}  # of other processes: the last one, and since when
        self._orphans: dict[str, float] = {}  # ids of files that may be no job's, and since when they are known
        self._lost: set[str] = set()  # ids of jobs that could not be carried out, and have no files any more
        self._counts = dict.fromkeys(_STATES, 0)
        for status in _STATES:
            metrics.gauge(
                f"srgan_jobs_{status}", f"Jobs that are {status}, of all processes.", self._count(status)
            )
        self.is_failing = False  # whether the last look at the storage or the database failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="srgan-jobs", daemon=True)

    def start(self) -> None:
        """Begin. Before, `beat` must have been called."""
        self._thread.start()

    def stop(self) -> None:
        """End; the sign of life stays for as long as the others leave it."""
        self._stop.set()
        self._thread.join(timeout=5)

    def leave(self) -> None:
        """Remove the sign of life: whatever this process has begun and not ended is now for others."""
        with contextlib.suppress(OSError):
            self._storage.remove(f"executors/{self._executor}")

    def beat(self) -> None:
        """Show that this process lives. Raises OSError."""
        self._storage.write(f"executors/{self._executor}", repr(time.time()).encode())

    def _keep(self) -> None:
        forgot = 0.0
        while not self._stop.wait(self._settings.lease_s / 3):
            try:
                self.beat()
                self._take_over()
                for status, state in _STATES.items():
                    self._counts[status] = self._workflows.count([state])
                if time.monotonic() - forgot > min(_FORGET_EVERY_S, self._settings.job_expiry_s / 4):
                    forgot = time.monotonic()
                    self._forget()
                self.is_failing = False
            except Exception:  # noqa: BLE001  # a database or disk that is gone may come back
                self.is_failing = True
                _log.exception("looking after jobs failed")

    def _count(self, status: str) -> Callable[[], float]:
        return lambda: self._counts[status]

    def _take_over(self) -> None:
        now = time.monotonic()
        for executor in self._workflows.other_executors():
            try:
                sign = self._storage.read(f"executors/{executor}")
            except FileNotFoundError:
                sign = b""
            last, since = self._signs.setdefault(executor, (sign, now))
            if sign != last:
                self._signs[executor] = (sign, now)
            elif not sign or now - since > self._settings.lease_s:
                _log.warning("taking over the jobs of a process that is gone", executor=executor)
                self._workflows.take_over(executor)
                self._storage.remove(f"executors/{executor}")
                self._signs.pop(executor)

    def _forget(self) -> None:
        expiry = timedelta(seconds=self._settings.job_expiry_s)
        ids = self._workflows.ended_before(datetime.now(UTC) - expiry, _MOST_FORGOTTEN)
        for id in ids:
            self._files.remove(id)
        if ids:
            self._workflows.delete(ids)
        lost = set(self._workflows.lost())
        for id in lost - self._lost:  # nobody can do anything with their uploads
            self._files.remove_content(id)
        self._lost = lost
        self._forget_orphans()
        self._storage.sweep(_NO_WRITE_TAKES_S)

    def _forget_orphans(self) -> None:
        """Remove the files of uploads that never became jobs: seen twice, an hour apart, and known to nobody."""
        now, ids = time.monotonic(), self._files.ids()
        self._orphans = {id: self._orphans.get(id, now) for id in ids}
        for id, since in self._orphans.items():
            if (
                now - since > min(_NO_WRITE_TAKES_S, self._settings.job_expiry_s)
                and self._workflows.find(id) is None
            ):
                self._files.remove(id)
