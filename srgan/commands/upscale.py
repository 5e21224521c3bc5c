"""`srgan upscale` behind its options: where the pictures come from, who makes them, and what is said of it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from srgan.commands.terminal import Bar, progress_bar, say, tell
from srgan.engines.inference import Progress
from srgan.errors import OutputError, UsageError
from srgan.folder import batch, planning, streams
from srgan.folder.reporting import FileReport, JsonReport
from srgan.interrupts import interruptible
from srgan.upscale import Upscaler

FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True)
class Work:
    """What to upscale and where to; the fields are the options of the command."""

    inputs: list[Path]
    out: Path | None
    format: str = planning.AUTO
    follow_links: bool = False
    workers: int = batch.DEFAULT_WORKERS
    watch: bool = False
    json_path: Path | None = None
    engine: str = "local"
    address: str | None = None


# Begins the work: takes what is to be told of progress, and what says that it is to stop.
_Start = Callable[[Progress, threading.Event], Generator[FileReport]]


def upscale(work: Work, make_upscaler: Callable[[], Upscaler], options: batch.Options) -> int:
    """Do all the work, say what becomes of each file, and return the exit code.

    Raises UsageError before any work if the request makes no sense.
    """
    one = streams.is_asked_for(work.inputs, work.out)
    picture_to_stdout = one and work.out in (None, streams.STREAM)
    _refuse_contradictions(work, one, picture_to_stdout)
    upscaler = make_upscaler()
    if one:
        start, total = _stream(work, upscaler, options), 1
    elif work.watch:
        start, total = _watch(work, make_upscaler, upscaler, options), None
    else:
        plan = batch.plan(
            work.inputs,
            work.out,
            scale=options.request.label(upscaler.scale),
            format=work.format,
            follow_links=work.follow_links,
        )
        if plan.links_left:
            say("note", f"{plan.links_left} symbolic links lead out and were left; --follow-links follows them")
        start, total = _folder(work, make_upscaler, upscaler, options, plan), plan.total
    facts = {"model": upscaler.metadata.name, "model_sha256": upscaler.model_sha256}
    log = JsonReport(work.json_path, {**facts, "settings": options.settings(work.format)})
    to_stderr = picture_to_stdout or work.json_path == streams.STREAM
    return _carried_out(start, total, log, sys.stderr if to_stderr else sys.stdout)


def _refuse_contradictions(work: Work, one: bool, picture_to_stdout: bool) -> None:
    if work.workers < 1:
        raise UsageError(f"{work.workers} workers are none: give -j 1 or more")
    if picture_to_stdout and work.json_path == streams.STREAM:
        raise UsageError("the picture and the report cannot both go to standard output; give --json a file")
    if one and (work.watch or work.engine != "local"):
        raise UsageError("- is one picture: leave --watch and --engine away")
    if work.engine not in ("local", "ray"):
        raise UsageError(f"unknown engine {work.engine!r}: choose local or ray")
    if work.address is not None and work.engine != "ray":
        raise UsageError("--address is that of a cluster: add --engine ray")


def _stream(work: Work, upscaler: Upscaler, options: batch.Options) -> _Start:
    def start(progress: Progress, stop: threading.Event) -> Generator[FileReport]:
        return streams.run(work.inputs, work.out, upscaler, options, format=work.format, progress=progress)

    return start


def _folder(
    work: Work,
    make_upscaler: Callable[[], Upscaler],
    upscaler: Upscaler,
    options: batch.Options,
    plan: planning.Plan,
) -> _Start:
    def start(progress: Progress, stop: threading.Event) -> Generator[FileReport]:
        if work.engine == "ray":
            from srgan.folder import cluster

            return cluster.run(plan, make_upscaler, upscaler, options, address=work.address, stop=stop)
        return batch.run(plan, upscaler, options, workers=work.workers, progress=progress, stop=stop)

    return start


def _watch(
    work: Work, make_upscaler: Callable[[], Upscaler], upscaler: Upscaler, options: batch.Options
) -> _Start:
    from srgan.folder import watching

    label = options.request.label(upscaler.scale)
    tree = planning.tree(work.inputs, work.out, scale=label, format=work.format, follow_links=work.follow_links)

    def start(progress: Progress, stop: threading.Event) -> Generator[FileReport]:
        def carry_out(plan: planning.Plan) -> Generator[FileReport]:
            return _folder(work, make_upscaler, upscaler, options, plan)(progress, stop)

        return watching.run(tree, carry_out, stop)

    return start


def _carried_out(start: _Start, total: int | None, log: JsonReport, lines: TextIO) -> int:
    """Tell of each file as it is finished, close the log whatever the end is, and return the exit code.

    `total`: None if there is no end but an interrupt, which is then as good as any.
    """
    error, abandoned = None, False
    with interruptible() as interrupt:
        try:
            # Closed at once, not some time later: it holds threads and folders.
            with (
                progress_bar(total) if total is not None else contextlib.nullcontext(Bar()) as bar,
                contextlib.closing(start(bar.within_file, interrupt.stop)) as reports,
            ):
                for report in reports:
                    log.add(report)
                    bar.file_done()
                    tell(report, lines)
        except OutputError as problem:
            error = str(problem)
            say("error", error)
        except KeyboardInterrupt:
            if interrupt.exit_code is None:
                raise
            abandoned = True
        left = (total or 0) - log.counts.total() if total is not None else 0
        if total != 1 or log.counts["skipped"]:
            counted = ", ".join(f"{count} {status}" for status, count in log.counts.items())
            print(counted + f", {left} left" * bool(left), file=lines, flush=True)
        if interrupt.exit_code is not None and (total is not None or abandoned):
            error = error or "interrupted"
            say("interrupted", f"{left} of {total} not done; the same command goes on" if total else "in its work")
        log.close(left=left, error=error)
    if abandoned:
        os._exit(interrupt.exit_code or INTERRUPTED)  # threads that are still at work would hold up the usual way
    if interrupt.exit_code is not None and total is not None:
        return interrupt.exit_code
    return FAILED if left or error or log.counts["failed"] else 0
