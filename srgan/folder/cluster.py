"""The folder job on a Ray cluster whose machines share a file system: the same plan, resume, report and atomicity.

Actors decode, upscale and write temporary files, each with a model of its own that is loaded once. Whether a file
is finished, may be written and gets its name is decided on the machine of the caller alone, so a file counts once
however often a machine was lost while it was in work.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import ray
import ray.data

from srgan.errors import OutputError, SrganError, UsageError
from srgan.files import removed_on_error
from srgan.folder.desk import Desk, Options, failure, hopeless, write_result
from srgan.folder.making import decide, make
from srgan.folder.manifest import Origin
from srgan.folder.planning import Job, Plan
from srgan.folder.reporting import FileReport
from srgan.interrupts import handlers_kept
from srgan.room import MachineRoom
from srgan.texts import first_line
from srgan.upscale import Upscaler

# Files that are handed to Ray at once: enough that the end of one lot, where actors idle, hardly shows, and few
# enough that a plan of any length takes no memory.
_LOT = 1000

_Row = dict[str, Any]


def run(
    plan: Plan,
    make_upscaler: Callable[[], Upscaler],
    upscaler: Upscaler,
    options: Options,
    *,
    address: str | None = None,
    stop: threading.Event | None = None,
) -> Generator[FileReport]:
    """Carry out `plan` as `batch.run` does, but in the order in which files are finished.

    `make_upscaler`: called once by each actor; its model must be found on every machine. `upscaler`: the same for
    this one, which is asked about the model only. `address`: of a running cluster ("auto": the one that this
    machine belongs to); None starts one on this machine for the time of the run.
    """
    failed = hopeless(plan)
    yield from failed
    if failed and options.fail_fast:
        return
    stop = stop or threading.Event()
    desk = Desk(plan, options, upscaler)
    ours = _connected(address)
    try:
        jobs = iter(plan)
        while not stop.is_set() and (lot := list(itertools.islice(jobs, _LOT))):
            for report in _lot(lot, desk, make_upscaler, stop):
                yield report
                if report.status == "failed" and options.fail_fast:
                    stop.set()
    except BaseException:
        desk.close(abandoned=True)
        raise
    finally:
        if ours:
            ray.shutdown()
    desk.close(abandoned=stop.is_set())  # actors may have been in the middle of a file


def _lot(
    lot: list[Job], desk: Desk, make_upscaler: Callable[[], Upscaler], stop: threading.Event
) -> Iterator[FileReport]:
    """Carry out some jobs: those that are still to be done go to the actors, all others are answered here."""
    waiting: dict[int, tuple[Job, Origin]] = {}
    rows: list[_Row] = []
    try:
        for number, job in enumerate(lot):
            try:
                begun = desk.begin(job)
                if isinstance(begun, FileReport):
                    yield begun
                    continue
                temporary = desk.place(job, job.target, begun)
            except (SrganError, MemoryError) as error:
                if isinstance(error, OutputError):
                    raise
                yield failure(job, error)
                continue
            waiting[number] = job, begun
            rows.append(
                {
                    "number": number,
                    "source": os.fsencode(job.source.absolute()),
                    "target": os.fsencode(job.target.absolute()),
                    "temporary": os.fsencode(temporary.absolute()),
                    "format": job.format,
                }
            )
        for row in _made(rows, make_upscaler, desk.options) if rows else ():
            if row["number"] not in waiting:
                continue  # made twice, because a machine was lost after it had finished
            job, origin = waiting.pop(row["number"])
            yield _put(row, job, origin, desk)
            if stop.is_set():
                return
    finally:
        for job in lot:
            desk.end(job)


def _made(rows: list[_Row], make_upscaler: Callable[[], Upscaler], options: Options) -> Iterator[_Row]:
    cores = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast("Any", _Worker),  # a class is one callable per actor, which its annotation leaves out
        fn_constructor_args=(make_upscaler, options),
        compute=ray.data.ActorPoolStrategy(size=max(1, min(int(cores), len(rows)))),
        num_cpus=1,
    )
    yield from results.iter_rows()


class _Worker:
    """An actor of Ray's: one model and as many files as come."""

    def __init__(self, make_upscaler: Callable[[], Upscaler], options: Options) -> None:
        self._upscaler, self._options = make_upscaler(), options
        memory_bytes = self._upscaler.memory_bytes
        self._room = None if memory_bytes is None else MachineRoom(memory_bytes)

    def __call__(self, row: _Row) -> _Row:
        started = time.perf_counter()
        source, target, temporary = (Path(os.fsdecode(row[key])) for key in ("source", "target", "temporary"))
        job = Job(source, target, row["format"], target.parent)
        # A name of its own: another actor may still be at the same file if this one was thought lost.
        temporary = temporary.with_name(f"{temporary.stem}{os.getpid():x}{temporary.suffix}")
        is_over = False
        try:
            report = self._made(job, temporary)
        except OutputError as error:
            report, is_over = failure(job, error), True
        except (SrganError, MemoryError) as error:
            report = failure(job, error)
        facts = asdict(replace(report, seconds=time.perf_counter() - started))
        del facts["source"], facts["target"]
        return {
            "number": row["number"],
            "name": os.fsencode((report.target or target).name),
            "temporary": os.fsencode(temporary.name),
            "facts": json.dumps(facts),
            "is_over": is_over,
        }

    def _made(self, job: Job, temporary: Path) -> FileReport:
        options = self._options
        decision = decide(options.decode(job.source), options.order_of(job), self._upscaler)
        decision, target = decision.named(job.target)
        with self._room.taken(decision.memory.held + decision.memory.working) if self._room else nullcontext():
            made = make(decision, self._upscaler)
            write_result(temporary, target, made.content)
            return options.report(job, target, decision, made)


def _put(row: _Row, job: Job, origin: Origin, desk: Desk) -> FileReport:
    """Give the result of an actor its name."""
    facts = json.loads(row["facts"])
    report = FileReport(job.source, None, **(facts | {"warnings": tuple(facts["warnings"])}))
    if row["is_over"]:
        raise OutputError(facts["error"])
    if report.status == "failed":
        return report
    # The actor may have been told of the folder by another name, but keeps to it.
    target = job.target.with_name(os.fsdecode(row["name"]))
    temporary = target.with_name(os.fsdecode(row["temporary"]))
    try:
        with removed_on_error(temporary):
            if target != job.target:
                desk.place(job, target, origin)
            desk.put(temporary, target, job, origin)
    except OutputError:
        raise
    except SrganError as error:
        return failure(job, error)
    return replace(report, target=target)


def _connected(address: str | None) -> bool:
    """Connect to a cluster; return whether it is one of our own, to be ended with the run."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if ray.is_initialized():
        return False
    # Neither figures for its makers nor a web page that anybody on the network could use.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # What its core prints past `logging`, about what its own ray.data does; failures come as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    dashboard = None if address else False  # of another's cluster, that is for others to say
    try:
        with handlers_kept(), _unheard():  # it takes the one for SIGTERM, and prints the level of its log
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard
            )
    except Exception as error:  # Ray raises no other kind when what it starts does not answer in time
        place = "can be started on this machine" if address is None else f"at {address}"
        raise UsageError(f"no Ray cluster {place}: {first_line(error)}") from error
    return True


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Drop what native code prints on standard error."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
