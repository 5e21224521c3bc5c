"""uvicorn's HTTP/1.1 protocol with an end to everything: heads, idle connections, answers nobody takes.

uvicorn alone never closes a connection whose head comes in byte by byte, or whose client does not read. The time
limits of uploads are the application's (`srgan_service.http.uploads`); what is here happens before and after them.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from srgan_service.http.problems import MEDIA_TYPE, Problem, too_long
from srgan_service.settings import Settings

# After an answer that did not wait for the whole request, so long is the rest taken in and thrown away: closed at
# once, the connection would be reset, and the client would never see the answer.
_LINGER_S = 5.0
_SHORT_LINGER_S = 1.0  # where there are too many connections as it is
_LINGER_BYTES = 64 * 2**20


def configured(settings: Settings) -> type[H11Protocol]:
    """Return the protocol class with the limits of `settings`."""

    class Configured(Protocol):
        limits = settings

    return Configured


class Protocol(H11Protocol):
    """One connection. Its limits are those of the environment, or of `configured`."""

    limits: Settings | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cls = type(self)
        if cls.limits is None:
            cls.limits = Settings()
        self._limits = cls.limits
        self.conn = h11.Connection(h11.SERVER, self._limits.limit_header_bytes)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._lingering_bytes: int | None = None
        self._real: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: the head must come soon."""
        self._real = transport
        super().connection_made(cast(asyncio.Transport, _GentleTransport(self, transport)))
        if len(self.connections) > self._limits.connections:
            problem = Problem("too-many-connections", "too many connections are open; try again")
            self._refuse(problem, _SHORT_LINGER_S)
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: nothing is left to watch."""
        for timer in (self._head_timer, self._write_timer, self._end_timer, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came in, or throw it away if the answer has been given."""
        if self._lingering_bytes is not None:
            self._lingering_bytes += len(data)
            if self._lingering_bytes > _LINGER_BYTES:
                self._abort()
            return
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Wait for the next request; its head must come soon."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # an answer that did not wait for the whole request
            self.transport.close()
        self._watch_head()

    def pause_writing(self) -> None:
        """Notice that the client does not take its answer, for now."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self._abort)

    def resume_writing(self) -> None:
        """Notice that it does again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and close."""
        trailing = self.conn.trailing_data[0]
        if self.conn.their_state is h11.ERROR and len(trailing) >= self._limits.limit_header_bytes:
            self._refuse(too_long(self._limits.limit_header_bytes))
        else:
            self._refuse(Problem("malformed-request", "this is not HTTP/1.1"))

    def close_gently(self, linger_s: float | None = None) -> None:
        """Close for writing; for a while take in what the client still sends, so that it reads its answer.

        `linger_s`: how long; None for nothing if the whole request has come in, else as long as usual.
        """
        real = self._real
        if real is None or self._lingering_bytes is not None or real.is_closing():
            return
        self._end_timer = self.loop.call_later(self._limits.write_timeout_s, self._abort)
        if linger_s is None and self.conn.their_state in (h11.SEND_BODY, h11.ERROR):
            linger_s = _LINGER_S
        if linger_s is None or not real.can_write_eof():
            real.close()
            return
        self._lingering_bytes = 0
        self._end_timer.cancel()
        self._end_timer = self.loop.call_later(linger_s, self._abort)
        real.write_eof()
        self.flow.resume_reading()

    @property
    def is_closing(self) -> bool:
        """Whether nothing more is to be written."""
        return self._lingering_bytes is not None or self._real is None or self._real.is_closing()

    def _watch_head(self) -> None:
        """Start the clock when a head is waited for, and stop it when one is there."""
        waits = self.conn.their_state is h11.IDLE and not self.is_closing
        if waits and self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.header_timeout_s, self._abort)
        elif not waits and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, problem: Problem, linger_s: float = _LINGER_S) -> None:
        if self.conn.our_state is h11.SEND_BODY:  # inside another answer, this one would be a part of it
            self._abort()
            return
        body = json.dumps(problem.document(uuid.uuid4().hex)).encode()
        reason = problem.title.encode()
        lines = [b"HTTP/1.1 %d %b" % (problem.status, reason), b"content-type: " + MEDIA_TYPE.encode()]
        headers = {**problem.headers, "Content-Length": str(len(body)), "Connection": "close"}
        lines += [f"{name}: {value}".encode() for name, value in headers.items()]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.close_gently(linger_s)

    def _abort(self) -> None:
        if self._real is not None:
            self._real.abort()


class _GentleTransport:
    """A transport whose `close` gives the client time to read its answer."""

    def __init__(self, protocol: Protocol, real: asyncio.Transport) -> None:
        self._protocol = protocol
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def write(self, data: bytes) -> None:
        if not self._protocol.is_closing:  # else the request has been refused while it was answered
            self._real.write(data)

    def close(self) -> None:
        self._protocol.close_gently()

    def is_closing(self) -> bool:
        return self._protocol.is_closing
