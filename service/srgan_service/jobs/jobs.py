"""Jobs: pictures that take longer than a request. What was accepted is done, whatever happens to the process.

A job is a DBOS workflow, one step for each picture: what a step returned is in the database, so that after a crash
another process, or this one anew, goes on with the first picture that is not done. A step is deterministic and
writes its result under a fixed name, so doing it twice changes nothing. Pictures lie in a `Storage`, never in the
database.

Who does which job is decided by the database. A process shows that it lives by a changing file; the jobs of one
whose file has not changed for a while are given to others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import structlog
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer
from dbos import error as dbos_error
from sqlalchemy.exc import SQLAlchemyError

from srgan.errors import UsageError
from srgan_service.http.parameters import Wish
from srgan_service.http.problems import Problem
from srgan_service.http.uploads import check_kind
from srgan_service.jobs.storage import Storage
from srgan_service.metrics import Metrics
from srgan_service.settings import Settings
from srgan_service.work.admission import Ticket
from srgan_service.work.fair import Stopped
from srgan_service.work.upscaling import MEDIA_TYPES, Works

_log = structlog.stdlib.get_logger("srgan_service.jobs")
# That a job was cancelled is no error of ours; DBOS tells it with a trace.
logging.getLogger("dbos").addFilter(lambda record: not _is_of_a_cancelled_job(record))

Word = Literal["pending", "processing", "completed", "failed", "cancelled"]

_QUEUE = "srgan-jobs"
_WORKFLOW = "srgan-job"
_VERSION = "1"  # of the workflow's steps: a job begun by one version is not continued by another
_ACTIVE = ["ENQUEUED", "PENDING"]
_ENDED = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_PROGRESS_EVERY_S = 1.0
_NO_WRITE_TAKES_S = 3600.0  # so what is half-written for so long was left by a process that was killed
_MOST_STARTS = 20  # of one job: what kills its process so often will always do so


class _HandedBack(BaseException):
    """Ends a workflow's thread without an outcome: the job stays where it is, for another process to go on."""


@dataclass(frozen=True)
class Upload:
    """A picture of a new job. `name`: what the client calls it; shown, and used for nothing else.

    `read`: returns its bytes; it is called once or twice, and one picture's bytes are held at a time.
    """

    name: str
    read: Callable[[], bytes]


@dataclass
class Job:
    """A job as its owner sees it."""

    id: str
    status: Word
    progress: float
    created: datetime
    started: datetime | None
    finished: datetime | None
    files: list[dict[str, Any]]
    parameters: dict[str, Any]
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = field(default=None, repr=False)


class Jobs:
    """Accepts, does, shows and forgets jobs. One in a process. All methods block: call them from threads.

    Raises UsageError if several machines could share the pictures but not the database.
    """

    def __init__(self, settings: Settings, works: Works, metrics: Metrics) -> None:
        self._settings = settings
        self._works = works
        self._metrics = metrics
        self._storage = Storage(settings.data_dir)
        if settings.database_url is None and self._storage.local is None:
            raise UsageError("data_dir is remote: name the PostgreSQL of the jobs in SRGAN_DATABASE_URL")
        self._executor = secrets.token_hex(8)
        self._stop = threading.Event()
        self._tickets: dict[str, Ticket] = {}
        self._progress: dict[str, float] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._keeper = threading.Thread(target=self._keep, name="srgan-jobs", daemon=True)
        self._counts = {"pending": 0, "processing": 0}
        for word in self._counts:
            metrics.gauge(f"srgan_jobs_{word}", f"Jobs that are {word}, of all processes.", self._count_of(word))

    # Life

    def start(self) -> None:
        """Open the database and begin to work on jobs. Raises what the database raises."""
        global _running
        url = self._settings.database_url
        if url is None:
            assert self._storage.local is not None  # noqa: S101  # checked in __init__
            self._storage.local.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{self._storage.local.absolute()}/jobs.sqlite"
        config: DBOSConfig = {
            "name": "srgan",
            "system_database_url": url,
            "application_version": _VERSION,
            "executor_id": self._executor,
            "serializer": DBOSPortableJSONSerializer(),  # by default it would be pickle
            "log_level": "ERROR",
            "run_migrations": True,
        }
        if _running is not None:
            raise RuntimeError("one process has one DBOS, so it serves jobs for one application")
        _running = self
        try:
            self._launch(config)
        except BaseException:
            DBOS.destroy()
            _running = None
            raise
        self._keeper.start()

    def _launch(self, config: DBOSConfig) -> None:
        DBOS(config=config)
        self._beat()
        DBOS.launch()
        DBOS.register_queue(
            _QUEUE,
            worker_concurrency=self._settings.jobs_at_once,
            polling_interval_sec=self._settings.job_poll_s,
            on_conflict="always_update",
        )

    def stop(self) -> None:
        """Stop between two tiles and hand the jobs back."""
        global _running
        self._stop.set()
        for ticket in list(self._tickets.values()):
            ticket.flow.stopped = True
        end = time.monotonic() + 30
        while self._tickets and time.monotonic() < end:
            time.sleep(0.02)
        DBOS.destroy()
        _running = None
        with contextlib.suppress(OSError):
            self._storage.remove(f"executors/{self._executor}")

    # For owners

    def submit(
        self, owner: str, uploads: list[Upload], wish: Wish, idempotency_key: str | None
    ) -> tuple[Job, bool]:
        """Accept a job: it is on the disk and in the database when this returns. Return it and whether it is new.

        `idempotency_key`: the same key and content give the same job; another content raises Problem. Raises
        Problem if there are too many jobs, OSError if the pictures cannot be written.
        """
        id = secrets.token_urlsafe(24)
        if idempotency_key is not None:
            id = "i" + hashlib.sha256(f"{owner}\0{idempotency_key}".encode()).hexdigest()[:40]
            if known := self._find(owner, id):
                return self._same(known, _spec(uploads, wish, lambda index, content: None)), False
        self._refuse_if_full(owner)
        token = secrets.token_hex(8)  # two requests with one key at the same time do not meet
        spec = _spec(uploads, wish, lambda index, content: self._storage.write(_input(id, token, index), content))
        spec["token"] = token
        try:
            DBOS.enqueue_workflow_with_options(
                {
                    "workflow_name": _WORKFLOW,
                    "queue_name": _QUEUE,
                    "workflow_id": id,
                    "workflow_id_reuse_policy": "reject",
                    "authenticated_user": owner,
                    "app_version": _VERSION,
                },
                id,
                spec,
            )
        except dbos_error.DBOSWorkflowIDInUseError:  # the same key at the same time
            for index in range(len(uploads)):
                self._storage.remove(_input(id, token, index))
            if (known := self._find(owner, id)) is None:
                raise Problem("conflict", "this Idempotency-Key was of a job that has been removed") from None
            return self._same(known, spec), False
        job = self.get(owner, id)
        return job, True

    def get(self, owner: str, id: str) -> Job:
        """Return a job of `owner`. Raises Problem if there is none of that id."""
        if (status := self._find(owner, id)) is None:
            raise Problem("not-found", "there is no such job, or it has expired")
        return self._job(status)

    def page(self, owner: str, limit: int, offset: int) -> list[Job]:
        """Return jobs of `owner`, the newest first."""
        found = DBOS.list_workflows(
            user=owner,
            name=_WORKFLOW,
            limit=limit,
            offset=offset,
            sort_desc=True,
            status=[*_ACTIVE, *_ENDED],
        )
        return [self._job(status) for status in found]

    def remove(self, owner: str, id: str) -> Job | None:
        """Cancel a job of `owner` and return it, or remove one that has ended; the files go in either case.

        Raises Problem if there is none of that id.
        """
        job = self.get(owner, id)
        try:
            return self._removed(owner, job)
        except SQLAlchemyError:  # a full disk has no room even for this: the job's files go first
            self._stop_work(id)
            return self._removed(owner, job)

    def _removed(self, owner: str, job: Job) -> Job | None:
        id = job.id
        if job.status in ("pending", "processing"):
            DBOS.cancel_workflow(id)
            job = self.get(owner, id)
            if job.status == "cancelled":  # and has not come to its end in the same moment
                self._stop_work(id)
                self._metrics.jobs_ended.labels("cancelled").inc()
                return job
        DBOS.delete_workflows([id])
        if job.status != "cancelled":  # of such a one, what is left tells other processes
            self._storage.remove(f"jobs/{id}")
        return None

    def _stop_work(self, id: str) -> None:
        if ticket := self._tickets.get(id):
            ticket.flow.stopped = True
        with contextlib.suppress(OSError):  # no room for a word to other processes; they notice after the picture
            self._storage.write(_cancelled(id), b"")
        self._progress.pop(id, None)
        for part in ("in", "out", "progress.json"):
            self._storage.remove(f"jobs/{id}/{part}")

    def read(self, job: Job, start: int, stop: int) -> bytes:
        """Return a part of a completed job's result. Raises OSError."""
        assert job.result is not None  # noqa: S101  # only of completed jobs
        return self._storage.read(job.result["path"], start, stop)

    # For the workflow

    def work(self, id: str, spec: dict[str, Any], index: int) -> dict[str, Any]:
        """Do one picture of a job and return what became of it. Raises OSError, or _HandedBack."""
        if self._stop.is_set() or self._is_cancelled(id):
            raise _HandedBack
        ticket = self._tickets[id] = Ticket("job", 1.0)
        try:
            content = self._storage.read(_input(id, spec["token"], index))
            report = self._reporter(id, index, len(spec["files"]))
            answer = self._works.work_on_job(ticket, check_kind(content), Wish(**spec["wish"]), report)
            path = f"jobs/{id}/out/{index:04}{answer.suffix}"
            self._storage.write(path, answer.content)
        except Problem as problem:
            return {"code": problem.code, "detail": problem.detail}
        except (Stopped, FileNotFoundError) as error:
            if self._is_cancelled(id):
                self._storage.remove(f"jobs/{id}")
            elif isinstance(error, FileNotFoundError):
                raise
            raise _HandedBack from None
        finally:
            del self._tickets[id]
        return {
            "path": path,
            "format": answer.format,
            "width": answer.width,
            "height": answer.height,
            "bytes": len(answer.content),
            "warnings": list(answer.warnings),
            "sha256": hashlib.sha256(answer.content).hexdigest(),
        }

    def pack(self, id: str, spec: dict[str, Any], files: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Return where the result of a job is, None if there is none; many pictures are put into one archive."""
        done = [(index, file) for index, file in enumerate(files) if "path" in file]
        if not done:
            return None
        if len(files) == 1:
            file = files[0]
            result = {"path": file["path"], "bytes": file["bytes"], "media_type": MEDIA_TYPES[file["format"]]}
            return {**result, "etag": file["sha256"][:32], "name": "upscaled" + _suffix(file["path"])}
        path = f"jobs/{id}/result.zip"
        names = [
            f"{index + 1:04}-{_plain(spec['files'][index]['name'])}{_suffix(file['path'])}" for index, file in done
        ]
        size = self._storage.archive(path, zip(names, (file["path"] for _, file in done), strict=True))
        etag = hashlib.sha256("".join(file["sha256"] for _, file in done).encode()).hexdigest()[:32]
        return {"path": path, "bytes": size, "media_type": "application/zip", "etag": etag, "name": "upscaled.zip"}

    def ended(self, id: str, files: list[dict[str, Any]]) -> None:
        """Count a job that is done."""
        self._progress.pop(id, None)
        state = "completed" if any("path" in file for file in files) else "failed"
        self._metrics.jobs_ended.labels(state).inc()

    # Inside

    def _find(self, owner: str, id: str) -> Any:
        if not _ID.fullmatch(id):
            return None
        status = DBOS.get_workflow_status(id)
        is_there = status is not None and status.name == _WORKFLOW
        return status if is_there and status is not None and status.authenticated_user == owner else None

    def _same(self, status: Any, spec: dict[str, Any]) -> Job:
        if _spec_of(status)["fingerprint"] != spec["fingerprint"]:
            raise Problem("conflict", "this Idempotency-Key was used for other pictures or parameters")
        return self._job(status)

    def _job(self, status: Any) -> Job:
        spec = _spec_of(status)
        output = status.output or {}
        job = Job(
            id=status.workflow_id,
            status="pending",
            progress=0.0,
            created=_time(status.created_at) or datetime.now(UTC),
            started=_time(status.dequeued_at),
            finished=_time(status.completed_at),
            files=[
                _file(listed, done) for listed, done in zip(spec["files"], output.get("files") or [], strict=False)
            ]
            or [_file(listed, None) for listed in spec["files"]],
            parameters=spec["wish"],
        )
        match status.status:
            case "ENQUEUED" | "PENDING":
                job.progress = self._progress_of(job.id)
                job.status = "processing" if status.status == "PENDING" else "pending"
            case "SUCCESS":
                job.progress, job.result = 1.0, output.get("result")
                job.status = "completed" if job.result else "failed"
                if job.status == "failed":
                    job.error = job.files[0]["error"]
            case "CANCELLED":
                job.status = "cancelled"
            case _:
                job.status = "failed"
                job.error = {"code": "storage-failed", "detail": "the job could not be carried out"}
        return job

    def _progress_of(self, id: str) -> float:
        if id in self._progress:
            return self._progress[id]
        try:
            return float(json.loads(self._storage.read(f"jobs/{id}/progress.json")))
        except (OSError, ValueError):
            return 0.0

    def _reporter(self, id: str, index: int, count: int) -> Callable[[float], None]:
        written = time.monotonic()

        def report(fraction: float) -> None:
            nonlocal written
            self._progress[id] = (index + fraction) / count
            if time.monotonic() - written < _PROGRESS_EVERY_S:
                return
            written = time.monotonic()
            if self._is_cancelled(id):  # by another process
                raise Stopped
            self._storage.write(f"jobs/{id}/progress.json", json.dumps(self._progress[id]).encode())

        return report

    def _is_cancelled(self, id: str) -> bool:
        return self._storage.exists(_cancelled(id))

    def _refuse_if_full(self, owner: str) -> None:
        def active(**of: Any) -> int:
            return len(
                DBOS.list_workflows(status=_ACTIVE, name=_WORKFLOW, load_input=False, load_output=False, **of)
            )

        most = self._settings.job_queue
        if active() >= most:
            raise Problem("queue-full", "there are too many jobs; try again later", retry_after_s=30)
        if owner != ANYBODY and active(user=owner) >= max(1, self._settings.key_share * most):
            raise Problem("key-over-share", "this API key has too many jobs in work", retry_after_s=30)

    # The keeper: a thread that shows we live, takes over from who does not, and forgets what has expired

    def _keep(self) -> None:
        forgot = 0.0
        while not self._stop.wait(self._settings.lease_s / 3):
            try:
                self._beat()
                self._take_over()
                self._count()
                if time.monotonic() - forgot > min(60.0, self._settings.job_expiry_s / 4):
                    forgot = time.monotonic()
                    self._forget()
            except Exception:  # noqa: BLE001  # a database or disk that is gone may come back
                _log.exception("looking after jobs failed")

    def _beat(self) -> None:
        self._storage.write(f"executors/{self._executor}", repr(time.time()).encode())

    def _take_over(self) -> None:
        pending = DBOS.list_workflows(status="PENDING", name=_WORKFLOW, load_input=False, load_output=False)
        now = time.monotonic()
        for executor in {status.executor_id for status in pending if status.executor_id} - {self._executor}:
            try:
                beat = self._storage.read(f"executors/{executor}")
            except FileNotFoundError:
                beat = b""
            seen, since = self._seen.setdefault(executor, (beat, now))
            if beat != seen:
                self._seen[executor] = (beat, now)
            elif not beat or now - since > self._settings.lease_s:
                _log.warning("taking over the jobs of a process that is gone", executor=executor)
                DBOS._recover_pending_workflows([executor])
                self._storage.remove(f"executors/{executor}")
                self._seen.pop(executor)

    def _count_of(self, word: str) -> Callable[[], float]:
        return lambda: self._counts[word]

    def _count(self) -> None:
        for word, status in (("pending", "ENQUEUED"), ("processing", "PENDING")):
            found = DBOS.list_workflows(status=status, name=_WORKFLOW, load_input=False, load_output=False)
            self._counts[word] = len(found)

    def _forget(self) -> None:
        before = datetime.fromtimestamp(time.time() - self._settings.job_expiry_s, UTC).isoformat()
        ended = DBOS.list_workflows(
            status=_ENDED, name=_WORKFLOW, completed_before=before, limit=1000, load_input=False, load_output=False
        )
        for status in ended:
            self._storage.remove(f"jobs/{status.workflow_id}")
        if ended:
            DBOS.delete_workflows([status.workflow_id for status in ended])
        self._forget_orphans()
        self._storage.sweep(_NO_WRITE_TAKES_S)

    def _forget_orphans(self) -> None:
        """Remove the files of uploads that never became jobs: seen twice, an expiry apart, and known to nobody."""
        for id in self._storage.names("jobs"):
            _, since = self._seen.setdefault(f"jobs/{id}", (b"", time.monotonic()))
            if time.monotonic() - since > self._settings.job_expiry_s and DBOS.get_workflow_status(id) is None:
                self._storage.remove(f"jobs/{id}")
                self._seen.pop(f"jobs/{id}")


ANYBODY = "-"  # the owner of jobs without keys; no key can have this name alone
_ID = re.compile(r"[A-Za-z0-9_-]{20,64}")
_running: Jobs | None = None


def _jobs() -> Jobs:
    if _running is None:
        raise _HandedBack
    return _running


@DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=_MOST_STARTS)
def _workflow(id: str, spec: dict[str, Any]) -> dict[str, Any]:
    files = [_work(id, spec, index) for index in range(len(spec["files"]))]
    result = _pack(id, spec, files)
    _jobs().ended(id, files)
    return {"files": files, "result": result}


def _is_of_the_disk(error: BaseException) -> bool:
    return isinstance(error, OSError)


@DBOS.step(name="work", retries_allowed=True, max_attempts=5, should_retry=_is_of_the_disk)
def _work(id: str, spec: dict[str, Any], index: int) -> dict[str, Any]:
    return _jobs().work(id, spec, index)


@DBOS.step(name="pack", retries_allowed=True, max_attempts=5, should_retry=_is_of_the_disk)
def _pack(id: str, spec: dict[str, Any], files: list[dict[str, Any]]) -> dict[str, Any] | None:
    return _jobs().pack(id, spec, files)


def _is_of_a_cancelled_job(record: logging.LogRecord) -> bool:
    kinds = dbos_error.DBOSAwaitedWorkflowCancelledError, dbos_error.DBOSWorkflowCancelledError
    return record.exc_info is not None and isinstance(record.exc_info[1], kinds)


def _spec(uploads: list[Upload], wish: Wish, take: Callable[[int, bytes], None]) -> dict[str, Any]:
    """Return what a job is to do; `take` gets each picture's index and bytes once."""
    files = []
    for index, upload in enumerate(uploads):
        content = upload.read()
        take(index, content)
        sha256 = hashlib.sha256(content).hexdigest()
        files.append({"name": upload.name, "bytes": len(content), "sha256": sha256})
    spec: dict[str, Any] = {"files": files, "wish": wish.model_dump(exclude_unset=True)}
    spec["fingerprint"] = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
    return spec


def _spec_of(status: Any) -> dict[str, Any]:
    spec: dict[str, Any] = status.input["args"][1]
    return spec


def _input(id: str, token: str, index: int) -> str:
    return f"jobs/{id}/in/{token}-{index:04}"


def _cancelled(id: str) -> str:
    return f"jobs/{id}/cancelled"


def _file(listed: dict[str, Any], done: dict[str, Any] | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": listed["name"], "bytes": listed["bytes"], "error": None}
    if done is None:
        return shown
    if "path" in done:
        return {**shown, "width": done["width"], "height": done["height"], "warnings": done.get("warnings", [])}
    return {**shown, "error": {"code": done["code"], "detail": done["detail"]}}


def _time(epoch_ms: int | None) -> datetime | None:
    return None if epoch_ms is None else datetime.fromtimestamp(epoch_ms / 1000, UTC)


def _plain(name: str) -> str:
    """Return what of a client's name can do no harm in an archive."""
    stem = name.replace("\\", "/").rpartition("/")[2]
    stem = stem.rpartition(".")[0] or stem
    return re.sub(r"[^\w-]+", "_", stem, flags=re.ASCII)[:80].strip("_") or "picture"


def _suffix(path: str) -> str:
    return "." + path.rpartition(".")[2]
