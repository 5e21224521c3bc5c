"""A service somewhere, from Python: `Client` and `AsyncClient`. They need httpx (the extra `client`).

from srgan import Client

with Client("http://127.0.0.1:8000") as client:
    client.upscale("photo.jpg", scale=2).save("photo_x2.jpg")
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

from srgan.errors import SrganError, UsageError
from srgan.files import write_atomically, written_whole
from srgan.installed import remedy

try:
    import httpx
except ModuleNotFoundError as error:
    raise UsageError(f"a client needs httpx, which is not installed: {remedy('client')}") from error

# Bytes of a file, or where one lies.
Source: TypeAlias = str | Path | bytes

_LOOK_EVERY_S = 0.5  # as often as a service's own events come
_ENDED = ("completed", "failed", "cancelled")


class ServiceError(SrganError):
    """A service refused or failed.

    `code`: of its problem document, stable ("queue-full", "damaged-picture"), "unreachable" if no answer came, or
    "http-502" of something in between. `status`: of HTTP, 0 if none came. `retry_after_s`: when to come again, if
    that may help.
    """

    def __init__(
        self, message: str, code: str, status: int = 0, retry_after_s: float | None = None, request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s
        self.request_id = request_id


@dataclass(frozen=True)
class Upscaled:
    """A result: the bytes of a file. `warnings`: what of the upload is not as it was."""

    content: bytes = field(repr=False)
    media_type: str
    model: str
    warnings: str = ""

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all, and return its path. Raises OSError."""
        write_atomically(Path(path), self.content)
        return Path(path)


@dataclass(frozen=True)
class RemoteJob:
    """A job. `status`: pending, processing, completed, failed or cancelled. `progress`: 0..1.

    `files`: what became of each picture, in the order in which they were sent; `error`: its "code" and "detail".
    """

    id: str
    status: str
    progress: float
    files: tuple[Mapping[str, Any], ...]
    error: Mapping[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will change."""
        return self.status in _ENDED


class Client:
    """A service at `url`; `key`: an API key, if it asks for one. Any thread may call; close it, or use `with`.

    Parameters by name are those of `srgan upscale`: scale, long_side, width, height, model, balance, strength,
    format, quality, metadata. `timeout_s`: for an answer. Everything raises ServiceError.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 120) -> None:
        self._http = httpx.Client(**_settings(url, key, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """Return the models that can be asked for."""
        models: list[dict[str, Any]] = self._asked("GET", "/v1/models").json()["models"]
        return models

    def upscale(self, picture: Source, **parameters: Any) -> Upscaled:
        """Return a picture larger, in one request."""
        return _upscaled(self._asked("POST", "/v1/upscale", **_one(picture, parameters)))

    def submit(self, pictures: Sequence[Source], **parameters: Any) -> RemoteJob:
        """Leave pictures to be upscaled in their order, whatever happens to the service or to this program."""
        return _job(self._asked("POST", "/v1/jobs", **_many(pictures, parameters)))

    def job(self, id: str) -> RemoteJob:
        """Return how far a job is."""
        return _job(self._asked("GET", f"/v1/jobs/{id}"))

    def wait(self, id: str, progress: Callable[[float], object] | None = None) -> RemoteJob:
        """Return a job when it is completed, or raise ServiceError; `progress` is called with 0..1."""
        while True:
            job = self.job(id)
            if progress is not None:
                progress(job.progress)
            if job.has_ended:
                return _good(job)
            time.sleep(_LOOK_EVERY_S)

    def fetch(self, id: str, path: str | Path) -> Path:
        """Write the result of a job to a file: a picture, or a zip archive of several. Raises OSError, too."""
        with _reached(), self._http.stream("GET", f"/v1/jobs/{id}/result") as answer:
            if answer.is_error:
                answer.read()
                raise _problem(answer)
            with written_whole(Path(path)) as file:
                for piece in answer.iter_bytes():
                    file.write(piece)
        return Path(path)

    def cancel(self, id: str) -> None:
        """Stop a job, or remove one that has ended."""
        self._asked("DELETE", f"/v1/jobs/{id}")

    def _asked(self, method: str, path: str, **request: Any) -> httpx.Response:
        with _reached():
            return _checked(self._http.request(method, path, **request))


class AsyncClient:
    """What `Client` is, for asyncio: each of its methods is awaited."""

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 120) -> None:
        self._http = httpx.AsyncClient(**_settings(url, key, timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """As `Client.models`."""
        models: list[dict[str, Any]] = (await self._asked("GET", "/v1/models")).json()["models"]
        return models

    async def upscale(self, picture: Source, **parameters: Any) -> Upscaled:
        """As `Client.upscale`."""
        return _upscaled(await self._asked("POST", "/v1/upscale", **_one(picture, parameters)))

    async def submit(self, pictures: Sequence[Source], **parameters: Any) -> RemoteJob:
        """As `Client.submit`."""
        return _job(await self._asked("POST", "/v1/jobs", **_many(pictures, parameters)))

    async def job(self, id: str) -> RemoteJob:
        """As `Client.job`."""
        return _job(await self._asked("GET", f"/v1/jobs/{id}"))

    async def wait(self, id: str, progress: Callable[[float], object] | None = None) -> RemoteJob:
        """As `Client.wait`."""
        while True:
            job = await self.job(id)
            if progress is not None:
                progress(job.progress)
            if job.has_ended:
                return _good(job)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def fetch(self, id: str, path: str | Path) -> Path:
        """As `Client.fetch`."""
        with _reached():
            async with self._http.stream("GET", f"/v1/jobs/{id}/result") as answer:
                if answer.is_error:
                    await answer.aread()
                    raise _problem(answer)
                with written_whole(Path(path)) as file:
                    async for piece in answer.aiter_bytes():
                        file.write(piece)
        return Path(path)

    async def cancel(self, id: str) -> None:
        """As `Client.cancel`."""
        await self._asked("DELETE", f"/v1/jobs/{id}")

    async def _asked(self, method: str, path: str, **request: Any) -> httpx.Response:
        with _reached():
            return _checked(await self._http.request(method, path, **request))


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Turn httpx's errors of the way to a service into a ServiceError."""
    try:
        yield
    except httpx.HTTPError as error:
        raise ServiceError(f"no answer came: {error or type(error).__name__}", "unreachable") from error


def _settings(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {"X-API-Key": key} if key else {}
    # A proxy of the environment is for what is elsewhere; it could not find this machine by its own name.
    is_here = httpx.URL(url).host in ("localhost", "127.0.0.1", "::1")
    timeout = httpx.Timeout(timeout_s, connect=10)
    return {"base_url": url, "headers": headers, "timeout": timeout, "trust_env": not is_here}


def _content(picture: Source) -> bytes:
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()


def _one(picture: Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/octet-stream"}
    return {"content": _content(picture), "params": dict(parameters), "headers": headers}


def _many(pictures: Sequence[Source], parameters: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(pictures, str | Path | bytes):
        raise UsageError("give a list of pictures")
    names = ["picture" if isinstance(picture, bytes) else Path(picture).name for picture in pictures]
    files = [("image", (name, _content(picture))) for name, picture in zip(names, pictures, strict=True)]
    return {"files": files, "params": dict(parameters)}


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    raise _problem(answer)


def _problem(answer: httpx.Response) -> ServiceError:
    try:
        document = answer.json()
        title, detail, code = (str(document[key]) for key in ("title", "detail", "code"))
    except (ValueError, KeyError, TypeError):  # not by the service, but by what stands before it
        title, detail, code = (
            f"the answer was {answer.status_code}",
            answer.reason_phrase,
            f"http-{answer.status_code}",
        )
    retry = answer.headers.get("retry-after", "")
    return ServiceError(
        f"{title}: {detail}",
        code,
        answer.status_code,
        float(retry) if retry.isdecimal() else None,
        answer.headers.get("x-request-id", ""),
    )


def _upscaled(answer: httpx.Response) -> Upscaled:
    headers = answer.headers
    return Upscaled(
        answer.content, headers["content-type"], headers.get("x-model", ""), headers.get("x-warnings", "")
    )


def _job(answer: httpx.Response) -> RemoteJob:
    state = answer.json()
    return RemoteJob(state["id"], state["status"], state["progress"], tuple(state["files"]), state["error"])


def _good(job: RemoteJob) -> RemoteJob:
    if job.status == "completed":
        return job
    error = job.error or {"code": job.status, "detail": f"the job is {job.status}"}
    raise ServiceError(f"job {job.id}: {error['detail']}", str(error["code"]))
