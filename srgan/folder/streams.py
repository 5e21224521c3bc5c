"""One picture from standard input, or to standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from srgan.engines.inference import Progress
from srgan.errors import OutputError, PictureError, SrganError, UsageError
from srgan.files import write_atomically
from srgan.folder.desk import MAX_SOURCE_BYTES, Options, failure
from srgan.folder.making import decide, format_of_name, make
from srgan.folder.manifest import explained
from srgan.folder.planning import Job, refuse_impossible
from srgan.folder.reporting import FileReport
from srgan.upscale import Upscaler

STREAM = Path("-")


def is_asked_for(inputs: list[Path], out: Path | None) -> bool:
    """Return whether an input or the output is a stream."""
    return STREAM in inputs or out == STREAM


def run(
    inputs: list[Path],
    out: Path | None,
    upscaler: Upscaler,
    options: Options,
    progress: Progress | None = None,
) -> Generator[FileReport]:
    """Upscale the one picture of `inputs` to `out`, by default to standard output, and yield what became of it.

    Nothing is known of streams afterwards, so nothing is skipped; a file that exists is not replaced unless the
    options say so. Raises UsageError before any work if the request makes no sense, OutputError if standard output
    takes no more.
    """
    job = _job(inputs, out, options.order.format)
    started = time.perf_counter()
    try:
        _refuse_existing(job.target, options)
        report, data = _made(job, upscaler, options, progress)
        if job.target == STREAM:
            _send(data)
        else:
            _refuse_existing(job.target, options)  # it may have appeared during the inference
            with explained(job.target):
                write_atomically(job.target, data)
    except OutputError:
        raise
    except (SrganError, MemoryError) as error:
        report = failure(job, error)
    yield replace(report, seconds=time.perf_counter() - started)


def _refuse_existing(target: Path, options: Options) -> None:
    if target != STREAM and target.exists() and not options.overwrite:
        raise PictureError(f"{target}: exists; choose another name, or --overwrite to replace it")


def _job(inputs: list[Path], out: Path | None, format: str) -> Job:
    out = out or STREAM
    if len(inputs) != 1 or inputs[0].is_dir():
        raise UsageError("- stands for one picture: give one input and one output")
    if out != STREAM:
        refuse_impossible(out)
        if out.is_dir():
            raise UsageError(f"{out}: is a folder; give the name of a file for the picture from standard input")
        format = format_of_name(out, format)
    elif sys.stdout.isatty():
        raise UsageError(
            "the picture would go to the terminal; give a file with -o, or send standard output to one"
        )
    if inputs[0] == STREAM and sys.stdin.isatty():
        raise UsageError("no picture comes from the terminal; send one to standard input")
    return Job(inputs[0], out, format, out.parent)


def _made(job: Job, upscaler: Upscaler, options: Options, progress: Progress | None) -> tuple[FileReport, bytes]:
    picture = options.decode(_received() if job.source == STREAM else job.source)
    decision = decide(picture, options.order_of(job), upscaler)
    made = make(decision, upscaler, progress)
    options.write_map(made, job.target)
    return options.report(job, job.target, decision, made), made.content


def _received() -> bytes:
    data = sys.stdin.buffer.read(MAX_SOURCE_BYTES + 1)
    if not data:
        raise PictureError("standard input: is empty; send a picture")
    if len(data) > MAX_SOURCE_BYTES:
        raise PictureError("standard input: more bytes than a picture of a size that is read can have")
    return data


def _send(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror}; the picture is not whole") from error
