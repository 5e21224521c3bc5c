"""What became of each file: one record for the screen, and all of them as one JSON file."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from srgan.errors import OutputError, UsageError
from srgan.files import is_special, removed_on_error, temporary_beside, written_whole

Status = Literal["written", "skipped", "failed"]
_BEGINNING = b'{"model": '  # of every report: the first of the facts
STATUSES: tuple[Status, ...] = ("written", "skipped", "failed")


@dataclass(frozen=True)
class FileReport:
    """What became of one file.

    `status`: "skipped" if the result was there already. `model`: the name of the one that made it. `source_size`
    and `size`: (width, height) in pixels, before and after. `seconds`: of work on it, without waiting for others.
    `lr_psnr_db`, `colour_shift_levels`: as `consistency` measures them, None if it was not asked to.
    `invented_levels`: as `Invention` has it, None without a map.
    """

    source: Path
    target: Path | None
    status: Status
    error: str | None = None
    warnings: tuple[str, ...] = ()
    model: str | None = None
    source_size: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    seconds: float = 0.0
    lr_psnr_db: float | None = None
    colour_shift_levels: float | None = None
    invented_levels: float | None = None


class JsonReport:
    """The reports of a run as a JSON file at `path`, or on standard output for "-"; nowhere for None.

    Files go to a nameless file as they come, so a run of any length takes no memory and leaves no litter, and to
    their place, whole, on `close`. `facts`: what is true for all files. Names that are not text have their odd
    bytes as lone surrogates, as `os.fsdecode` gives them.
    Raises UsageError if there is no place for the report.
    """

    def __init__(self, path: Path | None, facts: Mapping[str, object]) -> None:
        self._path = path
        self._started = time.time()
        self.counts: Counter[Status] = Counter(dict.fromkeys(STATUSES, 0))
        if path is not None:
            _refuse_hopeless(path)
            self._spool = tempfile.TemporaryFile("w+b")  # noqa: SIM115  # closed by `close`
            self._write(json.dumps(facts)[:-1] + ', "files": [')

    def add(self, report: FileReport) -> None:
        """Take the record of one file."""
        if self._path is not None:
            fields = vars(report) | {
                "source": str(report.source),
                "target": report.target and str(report.target),
            }
            if report.lr_psnr_db == math.inf:
                fields["lr_psnr_db"] = None  # no number of JSON's
            self._write((",\n" if self.counts.total() else "\n") + json.dumps(fields))
        self.counts[report.status] += 1

    def close(self, *, left: int, passed_over: Mapping[str, object], error: str | None = None) -> None:
        """Put the report in its place.

        `left`: files not tried; `passed_over`: those that are no pictures; `error`: what ended the run before its
        end.

        Raises OutputError if it cannot be written.
        """
        if self._path is None:
            return
        counts: dict[str, int] = {status: self.counts[status] for status in STATUSES}
        counts["left"] = left
        end = {
            "counts": counts,
            "passed_over": passed_over,
            "error": error,
            "seconds": round(time.time() - self._started, 3),
        }
        self._write("\n], " + json.dumps(end)[1:] + "\n")
        self._spool.seek(0)
        place = "standard output" if str(self._path) == "-" else self._path
        on_stdout = contextlib.nullcontext(sys.stdout.buffer)
        try:
            with self._spool, on_stdout if str(self._path) == "-" else written_whole(self._path) as file:
                shutil.copyfileobj(self._spool, file)
                file.flush()
        except OSError as problem:
            raise OutputError(f"{place}: the report cannot be written: {problem.strerror}") from problem

    def _write(self, text: str) -> None:
        self._spool.write(text.encode())


def _refuse_hopeless(path: Path) -> None:
    """Find out now, and not after the work, that there is no place for the report, or one that is taken."""
    if str(path) == "-" or is_special(path):
        return
    probe = temporary_beside(path)
    try:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; give --json the name of a file")
        if path.exists() and not _is_report(path):
            raise UsageError(f"{path}: exists and is no report of this program; give --json another name")
        with removed_on_error(probe):
            probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{path}: the report cannot be written: {error.strerror}") from error


def _is_report(path: Path) -> bool:
    """Return whether a file is what `JsonReport` writes, or empty; one that cannot be read is not."""
    try:
        with path.open("rb") as file:
            return file.read(len(_BEGINNING)) in (_BEGINNING, b"")
    except OSError:
        return False
