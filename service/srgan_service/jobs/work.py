"""How a job is carried out: one picture after another, and many results into one archive.

A step is deterministic and writes its result under a fixed name, so doing it twice changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable
from datetime import datetime

from srgan_service.http.parameters import Wish
from srgan_service.http.problems import Problem
from srgan_service.http.uploads import check_kind
from srgan_service.jobs.files import JobFiles
from srgan_service.jobs.quota import Quota
from srgan_service.jobs.records import JobOutcome, JobSpec, PictureDone, PictureOutcome, ResultFile
from srgan_service.metrics import Metrics
from srgan_service.work import names
from srgan_service.work.admission import Ticket
from srgan_service.work.fair import Stopped
from srgan_service.work.upscaling import MEDIA_TYPES, Works

_PROGRESS_EVERY_S = 1.0

# A picture that was in work so often when its process ended without a word is not tried again.
_MOST_ENDS = 2
_KILLER = (
    "the service ended twice while it worked on this picture, so it is not tried again; "
    "choose another format or a smaller picture"
)
_STOP_WITHIN_S = 30.0  # a tile takes about a second


class _HandedBack(BaseException):
    """Ends a workflow's thread without an outcome: the job stays where it is, for another process to go on."""


class JobWork:
    """Works on jobs, each in the thread that asks. How far they are is known at once here, elsewhere by a file."""

    def __init__(self, works: Works, files: JobFiles, quota: Quota, metrics: Metrics) -> None:
        self._works = works
        self._files = files
        self._quota = quota
        self._metrics = metrics
        self._stopping = threading.Event()
        self._tickets: dict[str, Ticket] = {}
        self._progress: dict[str, float] = {}

    def picture(self, id: str, spec: JobSpec, index: int) -> PictureOutcome:
        """Do one picture of a job and return what became of it. Raises OSError, or hands the job back."""
        if self._stopping.is_set() or self._files.is_cancelled(id):
            raise _HandedBack
        ends = self._files.unfinished_starts(id, index)
        if ends >= _MOST_ENDS:
            return {"code": "internal-error", "detail": _KILLER}
        ticket = self._tickets[id] = Ticket("job", 1.0)
        self._files.write_unfinished_starts(id, index, ends + 1)
        try:
            content = check_kind(self._files.read_picture(id, spec["token"], index))
            report = self._reporter(id, index, len(spec["files"]))
            wish = Wish.model_validate(spec["parameters"])
            answer = self._works.work_on_job(ticket, content, wish, report)
            ending = names.ending(spec["files"][index]["name"], wish, answer)
            self._quota.refuse_result(id, len(answer.content))
            path = self._files.write_result(id, index, ending, answer.content)
            if self._files.is_cancelled(id):  # in the same moment
                raise Stopped
        except Problem as problem:
            return {"code": problem.code, "detail": problem.detail}
        except (Stopped, FileNotFoundError) as error:
            if self._files.is_cancelled(id):
                self._files.remove_content(id)
            elif isinstance(error, FileNotFoundError):
                raise
            raise _HandedBack from None
        finally:
            del self._tickets[id]
            with contextlib.suppress(OSError):  # whatever came of it, the process is there to tell
                self._files.write_unfinished_starts(id, index, ends)
        return {
            "path": path,
            "format": answer.format,
            "width": answer.width,
            "height": answer.height,
            "bytes": len(answer.content),
            "warnings": list(answer.warnings),
            "sha256": hashlib.sha256(answer.content).hexdigest(),
        }

    def pack(self, id: str, spec: JobSpec, files: list[PictureOutcome]) -> ResultFile | None:
        """Return where the result of a job is, None if there is none; many pictures are put into one archive."""
        done = [(index, file) for index, file in enumerate(files) if "path" in file]
        if not done:
            return None
        called = [names.stem(spec["files"][at]["name"]) + self._files.ending(file["path"]) for at, file in done]
        if len(files) == 1:
            return _single(called[0], done[0][1])
        entries = zip(names.unique(called), (file["path"] for _, file in done), strict=True)
        path, size = self._files.archive_results(id, entries)
        etag = hashlib.sha256("".join(file["sha256"] for _, file in done).encode()).hexdigest()[:32]
        return {"path": path, "bytes": size, "media_type": "application/zip", "etag": etag, "name": "upscaled.zip"}

    def ended(self, id: str, outcome: JobOutcome) -> None:
        """Count a job that is done, and keep of it what somebody may still ask for."""
        result = outcome["result"]
        with contextlib.suppress(OSError):  # then it goes when the job expires
            self._files.keep_result_alone(id, result["path"] if result is not None else None)
        self._progress.pop(id, None)
        self._metrics.jobs_ended.labels("completed" if result else "failed").inc()

    def progress(self, id: str) -> float:
        """Return how far a job is, from 0 to 1."""
        return self._progress[id] if id in self._progress else self._files.progress(id)

    def cancel(self, id: str, progress: float, started: datetime | None) -> None:
        """Stop a job after the tile at hand, and remove its files; how far it was stays known."""
        if ticket := self._tickets.get(id):
            ticket.flow.stopped = True
        self._files.cancel(id, progress, started)
        self._progress.pop(id, None)

    def stop(self) -> None:
        """Stop all jobs between two tiles and wait until they are handed back, or long enough."""
        self._stopping.set()
        for ticket in list(self._tickets.values()):
            ticket.flow.stopped = True
        end = time.monotonic() + _STOP_WITHIN_S
        while self._tickets and time.monotonic() < end:
            time.sleep(0.02)

    def _reporter(self, id: str, index: int, count: int) -> Callable[[float], None]:
        written = time.monotonic()

        def report(fraction: float) -> None:
            nonlocal written
            self._progress[id] = (index + fraction) / count
            if time.monotonic() - written < _PROGRESS_EVERY_S:
                return
            written = time.monotonic()
            if self._files.is_cancelled(id):  # by another process
                raise Stopped
            self._files.write_progress(id, self._progress[id])

        return report


def _single(name: str, file: PictureDone) -> ResultFile:
    return {
        "path": file["path"],
        "bytes": file["bytes"],
        "media_type": MEDIA_TYPES[file["format"]],
        "etag": file["sha256"][:32],
        "name": name,
    }
