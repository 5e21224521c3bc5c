"""Work goes on only as long as somebody waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from srgan_service.http.problems import Problem, draining

T = TypeVar("T")

_CHUNK_BYTES = 64 * 1024


class Cancellation:
    """Runs requests' work until it is done, its deadline is over, its client is gone or the service must end."""

    def __init__(self) -> None:
        self._draining = asyncio.Event()
        self._ending = asyncio.Event()

    def drain(self) -> None:
        """Wait for no more uploads."""
        self._draining.set()

    def end(self) -> None:
        """Stop all work: the grace time is over."""
        self._draining.set()
        self._ending.set()

    async def upload(self, reading: Coroutine[object, object, T]) -> T:
        """Return what `reading` a body gives. Raises Problem if the service is about to end before it is read."""
        task = await _first(reading, self._draining.wait())
        if task.cancelled():
            raise draining()
        return task.result()

    async def run(self, request: Request, work: Coroutine[object, object, T], deadline_s: float) -> T:
        """Return what `work` does. Its request's body must have been read.

        `deadline_s`: counted from the request's head. Raises Problem, or ClientDisconnect.
        """
        left = request.state.started + deadline_s - time.monotonic()
        gone = asyncio.Event()
        task = await _first(work, _disconnected(request, gone), self._ending.wait(), timeout_s=max(0.0, left))
        if not task.cancelled():
            return task.result()
        if gone.is_set():
            raise ClientDisconnect
        if self._ending.is_set():
            raise draining()
        raise Problem("deadline", f"this took more than {deadline_s:g} s; send it to /v1/jobs")


async def _first(
    work: Coroutine[object, object, T], *ends: Coroutine[object, object, object], timeout_s: float | None = None
) -> asyncio.Task[T]:
    """Return the task of `work` when it is done; it is cancelled once one of `ends` returns or time is over."""
    task = asyncio.ensure_future(work)
    others = [asyncio.ensure_future(end) for end in ends]
    try:
        await asyncio.wait([task, *others], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for other in others:
            other.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    return task


async def _disconnected(request: Request, gone: asyncio.Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()


class WatchedResponse(Response):
    """An answer in memory that is sent piece by piece, so that a client that does not take it is left.

    `timeout_s`: for the whole, beside what its bytes earn it at `bytes_per_s`.
    """

    def __init__(
        self,
        content: bytes,
        media_type: str,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        bytes_per_s: int,
    ) -> None:
        super().__init__(content, media_type=media_type, headers=dict(headers))
        self._timeout_s = timeout_s + len(content) / bytes_per_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer. Raises ClientDisconnect if the client does not take it in time."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(bytes(self.body))
        try:
            async with asyncio.timeout(self._timeout_s):
                for start in range(0, max(1, len(body)), _CHUNK_BYTES):
                    more = start + _CHUNK_BYTES < len(body)
                    piece = bytes(body[start : start + _CHUNK_BYTES])
                    await send({"type": "http.response.body", "body": piece, "more_body": more})
        except TimeoutError:
            raise ClientDisconnect from None
