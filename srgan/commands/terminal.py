"""What a person sees: lines that no file name can break, and a bar where a terminal can draw it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from srgan.errors import OutputError
from srgan.texts import duration, one_line

# Exit codes beside 0: something failed, the request made no sense, Ctrl-C.
FAILED, USAGE, INTERRUPTED = 1, 2, 130

if TYPE_CHECKING:
    from srgan.folder.reporting import FileReport


@dataclass(frozen=True)
class Voice:
    """How much is told of a run over files, and whether results go to standard error, like all else.

    `quiet`: warnings and errors alone. `verbose`: what is decided, and what is skipped, too.
    """

    to_stderr: bool = False
    quiet: bool = False
    verbose: bool = False

    def tell(self, report: FileReport) -> None:
        """Print what became of a file."""
        for warning in report.warnings:
            say("warning", f"{report.source}: {warning}")
        if report.error is not None:
            say("error", report.error)
        if report.status == "skipped":
            self.note(f"{report.source}: finished before as {report.target}")
        if report.size is not None and report.source_size is not None:
            before, after = ("x".join(map(str, size)) for size in (report.source_size, report.size))
            speed = report.size[0] * report.size[1] / 1e6 / report.seconds
            names = f"{report.source} -> {report.target}"
            line = f"{names}  {before} -> {after}  {report.seconds:.2f} s  {speed:.2f} MP/s"
            if report.model:
                line += f"  {report.model}"
            if report.invented_levels is not None:
                line += f"  invented: {report.invented_levels:.1f} levels rms"
            self.line(line)

    def line(self, text: str) -> None:
        """Print one line of what was asked for; raises OutputError if it is not taken."""
        if not self.quiet:
            # Looked up now: while a bar is drawn, rich stands in for both, so that lines go above it.
            put(text, sys.stderr if self.to_stderr else sys.stdout)

    def note(self, text: str) -> None:
        """Print one line for who wants to know more."""
        if self.verbose:
            say("note", text)

    @contextlib.contextmanager
    def bar(self, total: int | None) -> Iterator[Bar]:
        """Yield a bar for `total` files, drawn on standard error if that is a terminal and there is an end."""
        if self.quiet or total is None or not sys.stderr.isatty():
            yield Bar()
            return
        with _drawn_bar(total) as bar:
            yield bar


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
def _drawn_bar(total: int) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn
    from rich.text import Text

    class InWords(ProgressColumn):
        finished = 0

        def render(self, task: Task) -> Text:
            """Return "7 of 30 done, about 3 min left"."""
            return Text(progress_in_words(self.finished, total, task.time_remaining))

    words = InWords()
    # Lines go above the bar as they are: a long name is for the terminal to break, so that it can be copied whole.
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False)
    # A line printed to a file or a pipe must stay in it.
    on_terminal = sys.stdout.isatty()
    with Progress(
        BarColumn(), TaskProgressColumn(), words, console=console, transient=True, redirect_stdout=on_terminal
    ) as progress:
        task = progress.add_task("", total=total)

        class Drawn(Bar):
            def within_file(self, fraction: float) -> None:
                # Files that are through with inference are still to be written, so this may be behind by some.
                shown = progress.tasks[0].completed
                progress.update(task, completed=max(shown, words.finished + fraction))

            def file_done(self) -> None:
                words.finished += 1
                progress.update(task, completed=words.finished)

        yield Drawn()


def progress_in_words(finished: int, total: int, left_s: float | None) -> str:
    """Return how far a run over `total` files is; `left_s`: the time that it still needs, if known."""
    counted = [f"{finished} of {total} done"] if total > 1 else []
    left = [f"about {duration(left_s)} left"] if left_s else []
    return ", ".join([*counted, *left])
