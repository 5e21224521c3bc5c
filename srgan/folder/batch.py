"""A folder on this machine: its plan is carried out, one file after the other as it looks, several at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from srgan.errors import OutputError, SrganError
from srgan.folder.desk import Desk, Options, failure, hopeless, write_result
from srgan.folder.making import decide, make
from srgan.folder.planning import Job, Plan
from srgan.folder.reporting import FileReport
from srgan.room import Room
from srgan.upscale import Upscaler

# Decode and encode this many files beside the one in inference.
DEFAULT_WORKERS = 2


def run(
    plan: Plan,
    upscaler: Upscaler,
    options: Options | None = None,
    *,
    workers: int = DEFAULT_WORKERS,
    progress: Callable[[float], None] | None = None,
    stop: threading.Event | None = None,
) -> Generator[FileReport]:
    """Carry out `plan` and yield a report of each file, in its order; one that fails does not stop the others.

    Finished files of an earlier run are skipped: results of the same source, model and settings that nobody has
    touched since. Files are written whole or not at all. `workers`: how many files are decoded or encoded beside
    the one in inference. `progress` is called with the finished fraction of that one. Once `stop` is set, files in
    work are finished and no other is begun. Raises OutputError, after reports of what was finished, if nothing
    more can be written.
    """
    failed = hopeless(plan)
    yield from failed
    options = options or Options()
    if failed and options.fail_fast:
        return
    desk = Desk(plan, options, upscaler)
    bench = _Bench(desk, upscaler, progress, stop or threading.Event())
    pool = ThreadPoolExecutor(workers + 1, thread_name_prefix="srgan")
    in_work: deque[Future[FileReport | None]] = deque()
    try:
        for job in plan:
            if bench.is_stopping():
                break
            in_work.append(pool.submit(bench.work, job))
            if len(in_work) > 2 * workers:
                yield from _reported(in_work.popleft())
        while in_work:
            yield from _reported(in_work.popleft())
    except BaseException:
        bench.abandoned = True
        pool.shutdown(wait=False, cancel_futures=True)
        desk.close(abandoned=True)
        raise
    pool.shutdown()
    desk.close()
    if bench.over is not None:
        raise bench.over


class _Bench:
    """Where threads work on files: each on one from its beginning to its end, and one at a time in inference."""

    def __init__(
        self, desk: Desk, upscaler: Upscaler, progress: Callable[[float], None] | None, stop: threading.Event
    ) -> None:
        self.abandoned = self.failed_fast = False
        self.over: OutputError | None = None
        self._desk, self._upscaler, self._progress, self._stop = desk, upscaler, progress, stop
        self._inference = threading.Lock()
        self._room = None if upscaler.memory_bytes is None else Room(upscaler.memory_bytes)

    def is_stopping(self) -> bool:
        """Return whether no further file is to be begun."""
        return self._stop.is_set() or self.abandoned or self.failed_fast or self.over is not None

    def work(self, job: Job) -> FileReport | None:
        """Return what became of `job`, or None if it was left because the run is to stop."""
        if self.is_stopping():
            return None
        stopwatch = _Stopwatch()
        try:
            report = self._made(job, stopwatch)
        except _LeftError:
            return None
        except OutputError as error:
            self.over = self.over or error
            return None
        except (SrganError, MemoryError) as error:
            report = failure(job, error)
            self.failed_fast = self._desk.options.fail_fast
        finally:
            self._desk.end(job)
        return replace(report, seconds=stopwatch.seconds())

    def _made(self, job: Job, stopwatch: _Stopwatch) -> FileReport:
        begun = self._desk.begin(job)
        if isinstance(begun, FileReport):
            return begun
        options = self._desk.options
        decision = decide(options.decode(job.source), options.order_of(job), self._upscaler)
        decision, target = decision.named(job.target)
        temporary = self._desk.place(job, target, begun)
        need = decision.memory
        with self._room.taken(need.held + need.working) if self._room else contextlib.nullcontext():
            made = make(decision, self._upscaler, self._tell, self._turn(stopwatch))
            options.write_map(made, target)
            write_result(temporary, target, made.content)
            self._desk.put(temporary, target, job, begun)
            return options.report(job, target, decision, made)

    @contextlib.contextmanager
    def _turn(self, stopwatch: _Stopwatch) -> Iterator[None]:
        """Wait for the inference of others."""
        with stopwatch.waiting_for(self._inference):
            if self.is_stopping():
                raise _LeftError
            yield

    def _tell(self, fraction: float) -> None:
        if self.abandoned:
            raise _AbandonedError
        if self._progress is not None:
            self._progress(fraction)


class _LeftError(Exception):
    """The run is to stop, so a file is left before its inference."""


class _AbandonedError(Exception):
    """Nobody waits for the result any more."""


class _Stopwatch:
    """Time since it was made, without that of waiting for others."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @contextlib.contextmanager
    def waiting_for(self, lock: threading.Lock) -> Iterator[None]:
        began = time.perf_counter()
        with lock:
            self._started += time.perf_counter() - began
            yield


def _reported(future: Future[FileReport | None]) -> Iterator[FileReport]:
    report = future.result()
    if report is not None:
        yield report
