"""Jobs: pictures that take longer than a request. What was accepted is done, whatever happens to the process.

A job is a DBOS workflow, one step for each picture: what a step returned is in the database, so that after a crash
another process, or this one anew, goes on with the first picture that is not done. Pictures lie in a `Storage`,
never in the database.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from srgan.errors import UsageError
from srgan_service.http.parameters import Wish
from srgan_service.http.problems import Problem
from srgan_service.jobs.files import JobFiles
from srgan_service.jobs.keeper import Keeper
from srgan_service.jobs.quota import Quota, over_bytes
from srgan_service.jobs.records import (
    Job,
    JobError,
    JobFile,
    JobSpec,
    PictureOutcome,
    PictureSpec,
    Upload,
)
from srgan_service.jobs.storage import PRIVATE_FILE, Storage
from srgan_service.jobs.work import JobWork
from srgan_service.jobs.workflows import Steps, StoredJob, Workflows
from srgan_service.metrics import Metrics
from srgan_service.settings import Settings
from srgan_service.work.upscaling import Works

_ID = re.compile(r"[A-Za-z0-9_-]{20,64}")


class Jobs:
    """Accepts, does, shows and forgets jobs. One in a process. All methods block: call them from threads.

    Raises UsageError if several machines could share the pictures but not the database.
    """

    def __init__(self, settings: Settings, works: Works, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._storage = Storage(settings.data_dir)
        self._files = JobFiles(self._storage)
        executor = secrets.token_hex(8)
        self._workflows = Workflows(
            self._database_url(), executor, at_once=settings.jobs_at_once, poll_s=settings.job_poll_s
        )
        self._quota = Quota(settings, self._workflows, self._files)
        self._work = JobWork(works, self._files, self._quota, metrics)
        self._turns: dict[str, threading.Lock] = {}  # of owners, to bring jobs
        self._keeper = Keeper(settings, executor, self._workflows, self._storage, metrics)
        self._database_file: tuple[Path, tuple[int, int]] | None = (
            None  # of SQLite, once open: its device and inode
        )

    def prepare(self) -> None:
        """Make the folder of the pictures if it is local. Raises UsageError if nothing can be written there."""
        try:
            self._storage.prepare()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full disk is cleared by somebody
                raise UsageError(
                    f"data_dir {self._settings.data_dir}: {error.strerror}; give a folder that can be written "
                    "with --data-dir (SRGAN_DATA_DIR), or leave jobs out with SRGAN_JOBS=false"
                ) from error

    def start(self) -> None:
        """Open the database and begin to work on jobs. Raises what the database raises."""
        self._storage.prepare()
        self._keeper.beat()  # before this process can have a job
        path = self._sqlite_path()
        if path is not None:
            _make_private(path)
        self._workflows.start(Steps(self._work.picture, self._work.pack, self._work.ended))
        if path is not None:
            self._database_file = path, _identity(path)
        self._keeper.start()

    def not_ready(self) -> str | None:
        """Return why no jobs are taken though they have been started, in a word, or None if they are."""
        if self._database_file is not None:
            path, identity = self._database_file
            try:
                if _identity(path) != identity:
                    return "storage"
            except OSError:
                return "storage"
        return "storage" if self._keeper.is_failing else None

    def stop(self) -> None:
        """Stop between two tiles and hand the jobs back."""
        self._keeper.stop()
        self._work.stop()
        self._workflows.stop()
        self._keeper.leave()

    def submit(
        self, owner: str, share: float, uploads: list[Upload], wish: Wish, idempotency_key: str | None
    ) -> tuple[Job, bool]:
        """Accept a job: it is on the disk and in the database when this returns. Return it and whether it is new.

        `share`: what `owner` may have of the jobs in work. `idempotency_key`: the same key and content give the
        same job; another content raises Problem. Raises Problem if there are too many jobs, OSError if the
        pictures cannot be written.
        """
        with self._turns.setdefault(owner, threading.Lock()):  # what comes at the same time counts, too
            return self._submitted(owner, share, uploads, wish, idempotency_key)

    def _submitted(
        self, owner: str, share: float, uploads: list[Upload], wish: Wish, idempotency_key: str | None
    ) -> tuple[Job, bool]:
        id, token = secrets.token_urlsafe(24), secrets.token_hex(8)
        if idempotency_key is not None:
            id = "i" + hashlib.sha256(f"{owner}\0{idempotency_key}".encode()).hexdigest()[:40]
            if known := self._find(owner, id):
                return self._same(known, _spec(uploads, wish, token, lambda index, content: None)), False
        room_bytes = self._quota.room_bytes(owner, share)

        def take(index: int, content: bytes) -> None:
            nonlocal room_bytes
            room_bytes -= len(content)
            if room_bytes < 0:
                raise over_bytes()
            self._files.write_picture(id, token, index, content)

        try:
            spec = _spec(uploads, wish, token, take)
            is_new = self._workflows.add(id, owner, spec)
        except BaseException:
            self._sweep_refused(id, token, len(uploads))
            raise
        if not is_new:  # the same key at the same time
            self._files.remove_pictures(id, token, len(uploads))
            if (known := self._find(owner, id)) is None:
                raise Problem("conflict", "this Idempotency-Key was of a job that has been removed")
            return self._same(known, spec), False
        return self.get(owner, id), True

    def get(self, owner: str, id: str) -> Job:
        """Return a job of `owner`. Raises Problem if there is none of that id."""
        if (stored := self._find(owner, id)) is None:
            raise Problem("not-found", "there is no such job, or it has expired")
        return self._job(stored)

    def page(self, owner: str, limit: int, offset: int) -> list[Job]:
        """Return jobs of `owner`, the newest first."""
        return [self._job(stored) for stored in self._workflows.page(owner, limit, offset)]

    def remove(self, owner: str, id: str) -> Job | None:
        """Cancel a job of `owner` and return it, or remove one that has ended; the files go in either case.

        Raises Problem if there is none of that id.
        """
        job = self.get(owner, id)
        try:
            return self._removed(owner, job)
        except SQLAlchemyError:  # a full disk has no room even for this: the job's files go first
            self._work.cancel(id, job.progress, job.started)
            return self._removed(owner, job)

    def read(self, job: Job, start: int, stop: int) -> bytes:
        """Return a part of a completed job's result. Raises OSError."""
        assert job.result is not None  # noqa: S101  # only of completed jobs
        return self._storage.read(job.result["path"], start, stop)

    def _database_url(self) -> str:
        if self._settings.database_url is not None:
            return self._settings.database_url
        if self._storage.local is None:
            raise UsageError("data_dir is remote: name the PostgreSQL of the jobs in SRGAN_DATABASE_URL")
        return f"sqlite:///{self._sqlite_path()}"

    def _sqlite_path(self) -> Path | None:
        local = None if self._settings.database_url is not None else self._storage.local
        return None if local is None else local.absolute() / "jobs.sqlite"

    def _removed(self, owner: str, job: Job) -> Job | None:
        if job.status in ("pending", "processing"):
            self._workflows.cancel(job.id)
            now = self.get(owner, job.id)
            if now.status == "cancelled":  # and has not come to its end in the same moment
                self._work.cancel(job.id, job.progress, job.started)
                self._metrics.jobs_ended.labels("cancelled").inc()
                return self.get(owner, job.id)
            job = now
        self._workflows.delete([job.id])
        if job.status != "cancelled":  # of such a one, what is left tells other processes
            self._files.remove(job.id)
        return None

    def _find(self, owner: str, id: str) -> StoredJob | None:
        stored = self._workflows.find(id) if _ID.fullmatch(id) else None
        return stored if stored is not None and stored.owner == owner else None

    def _same(self, stored: StoredJob, spec: JobSpec) -> Job:
        if stored.spec["fingerprint"] != spec["fingerprint"]:
            raise Problem("conflict", "this Idempotency-Key was used for other pictures or parameters")
        return self._job(stored)

    def _job(self, stored: StoredJob) -> Job:
        outcomes = stored.outcome["files"] if stored.outcome is not None else []
        job = Job(
            id=stored.id,
            status="pending",
            progress=0.0,
            created=stored.created,
            started=stored.started,
            finished=stored.finished,
            files=[_file(*pair) for pair in itertools.zip_longest(stored.spec["files"], outcomes)],
            parameters=stored.spec["parameters"],
        )
        match stored.state:
            case "ENQUEUED" | "PENDING":
                job.progress = self._work.progress(job.id)
                job.status = "processing" if stored.state == "PENDING" else "pending"
            case "SUCCESS":
                job.progress, job.result = 1.0, stored.outcome["result"] if stored.outcome is not None else None
                job.status = "completed" if job.result else "failed"
                if job.status == "failed":
                    job.error = job.files[0].error
            case "CANCELLED":
                job.status = "cancelled"
                job.progress, job.started = self._files.before_cancelling(job.id)
            case _:
                job.status = "failed"
                job.error = JobError(code="storage-failed", detail="the job could not be carried out")
        return job

    def _sweep_refused(self, id: str, token: str, count: int) -> None:
        """Remove the pictures of a job that was not accepted, unless a database that failed has it after all."""
        with contextlib.suppress(OSError, SQLAlchemyError):  # the keeper finds them in an hour
            known = self._workflows.find(id)
            if known is None or known.spec["token"] != token:
                self._files.remove_pictures(id, token, count)


def _make_private(database: Path) -> None:
    """Make a file for SQLite, and what it keeps beside it, for this user alone."""
    database.touch(PRIVATE_FILE)
    for path in database.parent.glob(f"{database.name}*"):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            path.chmod(PRIVATE_FILE)


def _identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from another one that has taken its name."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _spec(uploads: list[Upload], wish: Wish, token: str, take: Callable[[int, bytes], None]) -> JobSpec:
    """Return what a job is to do; `take` gets each picture's index and bytes once."""
    files: list[PictureSpec] = []
    for index, upload in enumerate(uploads):
        content = upload.read()
        take(index, content)
        sha256 = hashlib.sha256(content).hexdigest()
        files.append({"name": upload.name, "bytes": len(content), "sha256": sha256})
    parameters = wish.model_dump(exclude_unset=True)
    told = json.dumps([files, parameters], sort_keys=True).encode()
    fingerprint = hashlib.sha256(told).hexdigest()[:16]
    return {"files": files, "parameters": parameters, "token": token, "fingerprint": fingerprint}


def _file(picture: PictureSpec, outcome: PictureOutcome | None) -> JobFile:
    file = JobFile(name=picture["name"], bytes=picture["bytes"])
    if outcome is None:
        return file
    if "path" in outcome:
        file.width, file.height, file.warnings = outcome["width"], outcome["height"], outcome["warnings"]
    else:
        file.error = JobError(code=outcome["code"], detail=outcome["detail"])
    return file
