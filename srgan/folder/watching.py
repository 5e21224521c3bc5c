"""A folder that is watched: pictures that appear or change in it are upscaled once they are whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import watchfiles

from srgan.folder.planning import Job, Plan, Tree
from srgan.folder.reporting import FileReport

# A file whose size and time stay as they are for so long is taken to be whole.
SETTLE_S = 1.0

# Network file systems tell nothing, and the queue of changes may overflow, so all is looked at now and then.
_RESCAN_S = 300.0

# So often where the system's word is lost, because of a name in it that is no text.
_BLIND_RESCAN_S = 2.0

_TICK_MS = 200

_State = tuple[int, int]  # size, time of modification


def run(
    tree: Tree,
    start: Callable[[Plan], Iterator[FileReport]],
    stop: threading.Event,
    *,
    settle_s: float = SETTLE_S,
    rescan_s: float = _RESCAN_S,
) -> Generator[FileReport]:
    """Upscale what lies in the tree, and then what appears there, until `stop` is set; yield what became of each.

    `start` carries out a plan. What is finished is not spoken of after the first look; what failed is tried again
    when it changes. A file is begun `settle_s` after it was last seen to change.
    """
    waiting = _Waiting(tree, settle_s)
    next_scan = 0.0
    first = True
    # The watch begins before the first look, so nothing falls between them.
    for changes in _changes(tree.folder, stop):
        if changes is None:
            rescan_s = min(rescan_s, _BLIND_RESCAN_S)
            next_scan = min(next_scan, time.monotonic() + rescan_s)
        for _, path in changes or ():
            waiting.look_below(tree.spelt(Path(path)))
        if time.monotonic() >= next_scan:
            waiting.look_below(tree.folder)
            next_scan = time.monotonic() + rescan_s
        plan = _plan(waiting.settled())
        for report in start(plan) if plan.total else ():
            if report.status == "failed":
                waiting.remember_failure(report.source)
            if report.status != "skipped" or first:
                yield report
        first = False


def _changes(folder: Path, stop: threading.Event) -> Iterator[set[tuple[watchfiles.Change, str]] | None]:
    """Yield, several times a second, what has changed in a folder, or None where it cannot be told."""
    while not stop.is_set():
        try:
            yield from watchfiles.watch(
                folder,
                watch_filter=None,
                debounce=_TICK_MS,
                rust_timeout=_TICK_MS,
                yield_on_timeout=True,
                stop_event=stop,
            )
        except RuntimeError:  # a name that is no text; what else was told is lost with it
            yield None
            stop.wait(_TICK_MS / 1000)


class _Waiting:
    """Files that have been seen and may still be growing."""

    def __init__(self, tree: Tree, settle_s: float) -> None:
        self._tree, self._settle_s = tree, settle_s
        self._seen: dict[Path, tuple[Job, _State, float]] = {}
        self._failed: dict[Path, _State] = {}

    def look_below(self, path: Path) -> None:
        """Take note of a file, or of all files in a folder: one that is moved here is told of as one thing."""
        for job in self._tree.jobs_at(path):
            state = _state(job.source)
            if state is not None and self._failed.get(job.source) != state:
                known = self._seen.get(job.source)
                if known is None or known[1] != state:
                    # The age of a file that was there before counts, unless the clocks do not agree.
                    age = min(max(0.0, time.time() - state[1] / 1e9), self._settle_s)
                    self._seen[job.source] = job, state, time.monotonic() - age

    def settled(self) -> list[Job]:
        """Return, and forget, the jobs whose files have not changed for long enough."""
        jobs = []
        for source, (job, state, since) in list(self._seen.items()):
            now = _state(source)
            if now is None:
                del self._seen[source]
            elif now != state:
                self._seen[source] = job, now, time.monotonic()
            elif time.monotonic() - since >= self._settle_s:
                del self._seen[source]
                jobs.append(job)
        return jobs

    def remember_failure(self, source: Path) -> None:
        """Do not try it again as it is now."""
        state = _state(source)
        if state is not None:
            self._failed[source] = state


def _plan(jobs: list[Job]) -> Plan:
    plan = Plan()
    for job in jobs:
        plan.add(0, job)
    return plan


def _state(path: Path) -> _State | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
