"""What a person sees: lines that no file name can break, and a bar where a terminal can draw it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from srgan.errors import OutputError
from srgan.texts import one_line

# Exit codes beside 0: something failed, the request made no sense, Ctrl-C.
FAILED, USAGE, INTERRUPTED = 1, 2, 130

if TYPE_CHECKING:
    from srgan.folder.reporting import FileReport


def tell(report: FileReport, stream: TextIO) -> None:
    """Print what became of a file: a result on `stream`, warnings and errors on standard error."""
    for warning in report.warnings:
        say("warning", f"{report.source}: {warning}")
    if report.error is not None:
        say("error", report.error)
    if report.size is not None and report.source_size is not None:
        before, after = ("x".join(map(str, size)) for size in (report.source_size, report.size))
        speed = report.size[0] * report.size[1] / 1e6 / report.seconds
        line = f"{report.source} -> {report.target}  {before} -> {after}  {report.seconds:.2f} s  {speed:.2f} MP/s"
        if report.model:
            line += f"  {report.model}"
        if report.invented_levels is not None:
            line += f"  invented: {report.invented_levels:.1f} levels rms"
        put(line, stream)


def put(line: str, stream: TextIO) -> None:
    """Print one line; raises OutputError if `stream` takes no more."""
    with taken(stream):
        print(one_line(line), file=stream, flush=True)


@contextlib.contextmanager
def taken(stream: TextIO) -> Iterator[None]:
    """Turn an OSError of writing to `stream` into an OutputError; what is left in it is dropped."""
    try:
        yield
    except OSError as error:
        name = "standard error" if stream is sys.stderr else "standard output"
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise OutputError(f"{name}: {error.strerror}") from error


def say(kind: str, message: str) -> None:
    """Print one line on standard error; where it takes no more, there is nobody to tell."""
    with contextlib.suppress(OutputError):
        put(f"srgan: {kind}: {message}", sys.stderr)


class Bar:
    """Progress over all files: does nothing here, and draws where a terminal can show it."""

    def within_file(self, fraction: float) -> None:
        """Take the finished fraction of the file in inference."""

    def file_done(self) -> None:
        """Count a file."""


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Bar]:
    """Yield a bar for `total` files; it is drawn on standard error."""
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # a line printed to a file or a pipe must stay in it
    ) as progress:
        task = progress.add_task("", total=total)

        class Drawn(Bar):
            finished = 0

            def within_file(self, fraction: float) -> None:
                # Files that are through with inference are still to be written, so this may be behind by some.
                shown = progress.tasks[0].completed
                progress.update(task, completed=max(shown, self.finished + fraction))

            def file_done(self) -> None:
                self.finished += 1
                progress.update(task, completed=self.finished)

        yield Drawn()
