"""The routes for pictures that take longer than a request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import UploadFile
from starlette.responses import Response, StreamingResponse

from srgan.errors import SrganError
from srgan_service.http import openapi
from srgan_service.http.keys import Holder
from srgan_service.http.parameters import Wish, is_picture_field, text_fields, with_form
from srgan_service.http.problems import Problem, documented, problem_of
from srgan_service.http.routes import AHolder, AWish
from srgan_service.http.uploads import Body, BodyLimits, announced_bytes, check_kind, is_form, too_large
from srgan_service.jobs.jobs import Jobs
from srgan_service.jobs.quota import ANYBODY
from srgan_service.jobs.records import Job, JobError, JobFile, JobStatus, Upload
from srgan_service.work.admission import Gate
from srgan_service.work.names import UNNAMED, disposition
from srgan_service.work.service import Service

T = TypeVar("T")

_log = structlog.stdlib.get_logger("srgan_service")
_CHUNK_BYTES = 256 * 1024
_EVENTS_EVERY_S = 0.5
_LOOKS_PER_S = 25  # of all watchers of one key: a look at the database takes two milliseconds
_ALIVE_EVERY_S = 15.0
_LAST_ID = "ended"  # of the last event of a job
_ETAG = re.compile(r'"[^"]*"')  # a W/ before it is no matter where weak ones are equal, too
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")

JOB_PROBLEMS = ("unauthorized", "not-found", "invalid-parameter", "storage-failed", "not-ready")

router = APIRouter(tags=["jobs"])


class JobResult(BaseModel):
    """Where the result of a job is."""

    href: str
    media_type: str
    bytes: int


_EXAMPLE: JsonDict = {
    "id": "Gv9eLx00_ikbx5UFpPhuuSyNmci0RXmI",
    "status": "completed",
    "progress": 1.0,
    "created_at": "2026-11-21T11:00:00Z",
    "started_at": "2026-11-21T11:00:01Z",
    "finished_at": "2026-11-21T11:00:21Z",
    "expires_at": "2026-11-22T11:00:21Z",
    "files": [{"name": "photo.jpg", "bytes": 20033, "width": 1024, "height": 684, "warnings": [], "error": None}],
    "parameters": {"scale": 4.0},
    "error": None,
    "result": {
        "href": "/v1/jobs/Gv9eLx00_ikbx5UFpPhuuSyNmci0RXmI/result",
        "media_type": "image/jpeg",
        "bytes": 191877,
    },
}


class JobState(BaseModel):
    """A job."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str
    status: JobStatus
    progress: float = Field(ge=0, le=1)
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="After it has ended: when it and its files will be removed.")
    files: list[JobFile]
    parameters: dict[str, Any]
    error: JobError | None
    result: JobResult | None


class JobPage(BaseModel):
    """Some of one's jobs, the newest first."""

    jobs: list[JobState]
    next_offset: int | None = Field(description="To be given as `offset` for more; null at the end.")


class JobDesk:
    """What the routes need of jobs: the jobs themselves, threads to wait in, a gate for uploads."""

    def __init__(self, service: Service, jobs: Jobs) -> None:
        self.service = service
        self._jobs = jobs
        self._settings = service.settings
        self._threads = ThreadPoolExecutor(8, "srgan-database")
        uploads_at_once = 8
        self.gate = Gate(requests=uploads_at_once, bytes=2 * self._settings.job_bytes, px=2**62)
        self._watchers: Counter[str] = Counter()

    async def call(self, work: Callable[[Jobs], T], timeout_s: float | None = None) -> T:
        """Return what `work` does with the jobs, in a thread. Raises Problem if the database or the disk fails."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, self._jobs)
        try:
            return await asyncio.wait_for(asyncio.shield(future), timeout_s or self._settings.database_timeout_s)
        except TimeoutError:
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise Problem("storage-failed", "the database does not answer; try again", retry_after_s=5) from None
        except (SQLAlchemyError, OSError) as error:
            _log.error("storage or database", error=repr(error))
            raise Problem("storage-failed", "the jobs' storage cannot be used now", retry_after_s=5) from error

    @contextlib.contextmanager
    def watching(self, holder: Holder) -> Iterator[None]:
        """Count a client that watches, or raise the Problem that refuses it: first its key's part, then all."""
        most = self._settings.job_watchers
        told = "jobs are being watched; ask from time to time instead"
        if self._watchers[holder.name] + 1 > max(1, holder.share * most):
            raise Problem("key-over-share", f"too many of this API key's {told}", retry_after_s=10)
        if self._watchers.total() >= most:
            raise Problem("queue-full", f"too many {told}", retry_after_s=10)
        self._watchers[holder.name] += 1
        try:
            yield
        finally:
            self._watchers[holder.name] -= 1

    def pause_s(self, holder: Holder) -> float:
        """Return how long one of this key's watchers is to wait before it looks again."""
        return max(_EVENTS_EVERY_S, self._watchers[holder.name] / _LOOKS_PER_S)

    def state(self, job: Job) -> JobState:
        """Return what a client sees of a job."""
        result = None
        if job.result is not None:
            result = JobResult(
                href=f"/v1/jobs/{job.id}/result",
                media_type=job.result["media_type"],
                bytes=job.result["bytes"],
            )
        expiry = timedelta(seconds=self._settings.job_expiry_s)
        return JobState(
            id=job.id,
            status=job.status,
            progress=min(1.0, max(0.0, job.progress)),
            created_at=job.created,
            started_at=job.started,
            finished_at=job.finished,
            expires_at=None if job.finished is None else job.finished + expiry,
            files=job.files,
            parameters=job.parameters,
            error=job.error,
            result=result,
        )

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def desk_of(request: Request) -> JobDesk:
    """Return the application's desk, or raise the Problem that it has none open."""
    desk: JobDesk | None = request.app.state.desk
    if desk is None:
        raise Problem("not-ready", "the jobs' database is not open yet", retry_after_s=2)
    return desk


ADesk = Annotated[JobDesk, Depends(desk_of)]
AnId = Annotated[str, Path(alias="id", max_length=100, description="As `POST /v1/jobs` answered.")]


async def watcher_of(holder: AHolder, desk: ADesk) -> AsyncIterator[None]:
    """Count a client that watches a job until its answer is sent."""
    with desk.watching(holder):
        yield


def _owner(holder: Holder) -> str:
    return f"key:{holder.name}" if holder.name else ANYBODY


@router.post(
    "/v1/jobs",
    status_code=202,
    summary="Leave pictures to be upscaled",
    operation_id="create_job",
    openapi_extra=openapi.jobs_body(),
    responses={
        202: {
            "description": "Accepted: it will be done, whatever happens to the service.",
            "headers": {"Location": {"description": "The job.", "schema": {"type": "string"}}},
        },
        **documented(
            *("no-picture", "unauthorized", "upload-too-slow", "conflict", "too-many-bytes"),
            "chunks-too-small",
            *("unsupported-format", "invalid-parameter", "key-over-share"),
            *("queue-full", "draining", "not-ready", "storage-failed"),
        ),
    },
)
async def create(
    request: Request,
    response: Response,
    holder: AHolder,
    desk: ADesk,
    wish: AWish,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="The same key and content give the same job, once."),
    ] = None,
) -> JobState:
    """Accept one picture (raw or in a form) or many (a form with `image` or `file` as often as needed)."""
    service = desk.service
    announced = announced_bytes(request.headers)
    limit = service.settings.job_bytes if is_form(request.headers) else service.settings.limit_bytes
    if announced > limit:
        raise too_large(limit)
    service.refuse_if_not_ready(for_jobs=True)
    ticket = desk.gate.enter(holder.name, holder.share, announced)
    try:
        limits = BodyLimits(limit, service.settings.body_timeout_s, service.settings.body_bytes_per_s)
        body = Body(request, limits, lambda count: desk.gate.add_bytes(ticket, count))
        async with contextlib.AsyncExitStack() as held:
            uploads, wish = await service.cancellation.upload(_uploads(body, request, wish, service, held))
            _refuse_nonsense(wish, service)
            job, is_new = await desk.call(
                lambda jobs: jobs.submit(_owner(holder), holder.share, uploads, wish, idempotency_key),
                timeout_s=service.settings.deadline_s,
            )
    finally:
        desk.gate.leave(ticket)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return desk.state(job)


async def _uploads(
    body: Body, request: Request, wish: Wish, service: Service, held: contextlib.AsyncExitStack
) -> tuple[list[Upload], Wish]:
    """Return the pictures of a body, which stay readable as long as `held`, and the wish with the form's part."""
    if not is_form(request.headers):
        content = check_kind(await body.raw())
        return [Upload(UNNAMED, lambda: content)], wish
    form = body.form(max_files=service.settings.job_files, spool_bytes=2**20)
    items = await held.enter_async_context(form)
    wish = with_form(wish, text_fields(items))
    files = [value for name, value in items if isinstance(value, UploadFile) and is_picture_field(name)]
    if not files:
        raise Problem("no-picture", "the form has no file in a field named image or file")
    if any((file.size or 0) > service.settings.limit_bytes for file in files):
        raise too_large(service.settings.limit_bytes)
    if len(files) == 1:  # of several, one that is no picture fails alone
        check_kind(files[0].file.read(64))
    return [Upload((file.filename or UNNAMED)[:255], _reader(file)) for file in files], wish


def _reader(file: UploadFile) -> Callable[[], bytes]:
    def read() -> bytes:
        file.file.seek(0)
        return file.file.read()

    return read


def _refuse_nonsense(wish: Wish, service: Service) -> None:
    try:
        wish.order()
        service.models.check(wish.model, wish.balance)
    except SrganError as error:
        raise problem_of(error) from error


@router.get(
    "/v1/jobs",
    summary="List one's jobs",
    operation_id="list_jobs",
    responses=documented("unauthorized", "invalid-parameter", "storage-failed", "not-ready"),
)
async def list_jobs(
    holder: AHolder,
    desk: ADesk,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> JobPage:
    """Answer with the jobs of this API key, the newest first."""
    page = await desk.call(lambda jobs: jobs.page(_owner(holder), limit + 1, offset))
    return JobPage(
        jobs=[desk.state(job) for job in page[:limit]],
        next_offset=offset + limit if len(page) > limit else None,
    )


@router.get("/v1/jobs/{id}", summary="Look at a job", operation_id="get_job", responses=documented(*JOB_PROBLEMS))
async def get_job(id: AnId, holder: AHolder, desk: ADesk) -> JobState:
    """Answer with how far a job is."""
    return desk.state(await desk.call(lambda jobs: jobs.get(_owner(holder), id)))


@router.delete(
    "/v1/jobs/{id}",
    status_code=202,
    summary="Cancel a job, or remove one that has ended",
    operation_id="delete_job",
    response_model=JobState,
    responses={
        202: {
            "description": "It was waiting or in work and is `cancelled` now: it stays visible until it expires."
        },
        204: {"description": "It had ended, and is gone."},
        **documented(*JOB_PROBLEMS),
    },
)
async def delete_job(id: AnId, holder: AHolder, desk: ADesk) -> JobState | Response:
    """Stop a job after the tile at hand and remove its files; what has ended already is removed altogether."""
    cancelled = await desk.call(lambda jobs: jobs.remove(_owner(holder), id))
    return Response(status_code=204) if cancelled is None else desk.state(cancelled)


@router.get(
    "/v1/jobs/{id}/result",
    summary="Fetch the result of a job",
    operation_id="get_result",
    response_class=Response,
    responses={
        200: {
            "description": "The picture, or an archive of them.",
            "content": openapi.binary("application/zip"),
            "headers": {"ETag": {"schema": {"type": "string"}}, "Accept-Ranges": {"schema": {"type": "string"}}},
        },
        206: {"description": "The part that Range asks for.", "content": openapi.binary("application/zip")},
        304: {"description": "What If-None-Match names is still right."},
        **documented(*JOB_PROBLEMS, "conflict", "range-not-satisfiable"),
    },
)
async def get_result(request: Request, id: AnId, holder: AHolder, desk: ADesk) -> Response:
    """Answer with the result, whole or, with Range, in part; 409 as long as there is none."""
    job = await desk.call(lambda jobs: jobs.get(_owner(holder), id))
    if job.result is None:
        raise Problem("conflict", f"the job is {job.status}, so there is no result")
    size, etag = job.result["bytes"], f'"{job.result["etag"]}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": disposition("attachment", job.result["name"]),
    }
    if _is_known(request.headers.getlist("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    start, stop = 0, size
    asked = request.headers.get("range") if request.headers.get("if-range", etag) == etag else None
    if (part := _part_of(asked, size)) is not None:
        start, stop = part
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    status = 200 if part is None else 206
    return StreamingResponse(
        _pieces(desk, job, start, stop), status, headers=headers, media_type=job.result["media_type"]
    )


async def _pieces(desk: JobDesk, job: Job, start: int, stop: int) -> AsyncIterator[bytes]:
    for position in range(start, stop, _CHUNK_BYTES):
        end = min(position + _CHUNK_BYTES, stop)
        yield await desk.call(lambda jobs, position=position, end=end: jobs.read(job, position, end))  # type: ignore[misc]


def _is_known(headers: Sequence[str], etag: str) -> bool:
    """Return whether If-None-Match names what is there, by the weak comparison of RFC 9110, 13.1.2."""
    return any(header.strip() == "*" or etag in _ETAG.findall(header) for header in headers)


def _part_of(asked: str | None, size: int) -> tuple[int, int] | None:
    """Return start and stop of the one range that is asked for (RFC 9110, 14.2), or None for the whole.

    Raises Problem if there is nothing in it.
    """
    match = _RANGE.fullmatch(asked or "")
    if match is None or not any(match.groups()) or len(match[0]) > 50:
        return None
    first, last = match.groups()
    if first:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
    else:
        start, stop = max(0, size - int(last)), size
    if first and last and int(last) < int(first):
        return None
    if start >= stop:
        raise Problem(
            "range-not-satisfiable", f"the result has {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, stop


@router.get(
    "/v1/jobs/{id}/events",
    summary="Watch a job",
    operation_id="watch_job",
    response_class=Response,
    responses={
        200: {
            "description": "Server-sent events: `status` with the job whenever it changes, until it has ended.",
            "content": {"text/event-stream": {"schema": openapi.EVENT}},
        },
        204: {"description": "The last event has come already: there is nothing more to watch."},
        **documented(*JOB_PROBLEMS, "key-over-share", "queue-full"),
    },
    dependencies=[Depends(watcher_of)],
)
async def watch(
    id: AnId,
    holder: AHolder,
    desk: ADesk,
    last_event_id: Annotated[
        str | None, Header(max_length=255, description="Of the last event that came, as browsers send it.")
    ] = None,
) -> Response:
    """Answer with an event whenever the job changes; the last one says how it ended."""
    job = await desk.call(lambda jobs: jobs.get(_owner(holder), id))
    if last_event_id == _LAST_ID and _has_ended(job):
        return Response(status_code=204)  # browsers ask again after the end of a stream, until they get this
    return StreamingResponse(_events(desk, holder, job), media_type="text/event-stream")


def _has_ended(job: Job) -> bool:
    return job.status not in ("pending", "processing")


async def _events(desk: JobDesk, holder: Holder, job: Job) -> AsyncIterator[str]:
    def look(jobs: Jobs) -> Job:
        return jobs.get(_owner(holder), job.id)

    told, quiet_s = "", 0.0
    while True:
        text = desk.state(job).model_dump_json()
        if text != told:
            told, quiet_s = text, 0.0
            event_id = _LAST_ID if _has_ended(job) else hashlib.sha256(text.encode()).hexdigest()[:16]
            yield f"event: status\nid: {event_id}\ndata: {text}\n\n"
        elif quiet_s >= _ALIVE_EVERY_S:
            quiet_s = 0.0
            yield ": still there\n\n"
        if _has_ended(job) or desk.service.gate.draining:
            return
        pause_s = desk.pause_s(holder)
        await asyncio.sleep(pause_s)
        quiet_s += pause_s
        try:
            job = await desk.call(look)
        except Problem as problem:
            if problem.code == "not-found":  # cancelled and removed since
                job.status = "cancelled"
