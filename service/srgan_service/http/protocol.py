"""uvicorn's HTTP/1.1 protocol with an end to everything: heads, idle connections, answers nobody takes.

uvicorn alone never closes a connection whose head comes in byte by byte, or whose client does not read, and takes
apart whatever came in before anybody else has a turn. The time limits of uploads are the application's
(`srgan_service.http.uploads`); what is here happens before and after them.
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

# What one connection may have taken apart before others have their turn. h11 takes 5 to 15 microseconds for a
# chunk, however small, and 4 for a header; pieces of a body of known length cost nothing.
_EVENTS_A_TURN = 64
_BYTES_A_TURN = 16 * 1024
_MOST_HEADERS = 100  # as Apache and Python's own client have it
# Of a body: an upload of 32 MiB may cost 34,000 chunks, a third of a second. Clients send 4 KiB and more.
_FREE_CHUNKS = 1000
_LEAST_CHUNK_BYTES = 1024
_MOST_TRAILER_BYTES = 8 * 1024  # of a chunk's head, too
# Packets: each small one wakes the application, so after a few of them the next are waited for together.
_SMALL_PACKET_BYTES, _FREE_SMALL_PACKETS, _WAIT_S = 512, 32, 0.02


def configured(settings: Settings) -> type[H11Protocol]:
    """Return the protocol class with the limits of `settings`."""

    class Configured(Protocol):
        limits = settings

    return Configured


class _MeteredConnection(h11.Connection):
    """Tells of at most `left` events; whether there are more is found out in another turn of the loop.

    `has_length`: the body that comes in has one. `is_in_crumbs`: its chunks are too small to be taken apart.
    """

    left = 0
    has_length = False
    is_in_crumbs = False
    _chunks = _body_bytes = 0

    def next_event(self) -> Any:
        """Return the next event. Raises what h11 does, RemoteProtocolError for a body in crumbs."""
        if self.left <= 0:
            return h11.NEED_DATA
        event = super().next_event()
        self.left -= 1
        if isinstance(event, h11.Request):
            self._chunks = self._body_bytes = 0
            self.has_length = b"content-length" in dict(event.headers)
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            self.is_in_crumbs = self._chunks > _FREE_CHUNKS + self._body_bytes // _LEAST_CHUNK_BYTES
            if self.is_in_crumbs:
                raise h11.RemoteProtocolError("a body in crumbs", error_status_hint=413)
        return event


class Protocol(H11Protocol):
    """One connection. Its limits are those of the environment, or of `configured`."""

    limits: Settings | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cls = type(self)
        if cls.limits is None:
            cls.limits = Settings()
        self._limits = cls.limits
        self.conn = self._metered = _MeteredConnection(h11.SERVER, self._limits.limit_header_bytes)
        self._not_taken_apart = bytearray()
        self._small_packets = 0
        self._next_turn: asyncio.Handle | None = None
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
        timers = (self._head_timer, self._write_timer, self._end_timer, self.timeout_keep_alive_task)
        for timer in (*timers, self._next_turn):
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
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        self._not_taken_apart += data
        self._small_packets += len(data) < _SMALL_PACKET_BYTES
        if self._next_turn is not None:
            return
        if self._small_packets > _FREE_SMALL_PACKETS and len(data) < _SMALL_PACKET_BYTES:
            self._next_turn = self.loop.call_later(_WAIT_S, self._take_turn)
            self.transport.pause_reading()
        else:
            self._take_turn()

    def _take_turn(self) -> None:
        """Take apart a part of what has come in; the rest, before more is read, in another turn of the loop."""
        self._next_turn = None
        if self.is_closing:
            return
        is_cheap = self.conn.their_state is h11.SEND_BODY and self._metered.has_length
        piece = self._not_taken_apart[: None if is_cheap else _BYTES_A_TURN]
        del self._not_taken_apart[: len(piece)]
        if piece:
            self.conn.receive_data(bytes(piece))
        self.handle_events()
        self._watch_head()
        if not self.flow.read_paused:
            self.transport.resume_reading()

    def handle_events(self) -> None:
        """Act on what h11 finds in what it was given, as far as this turn goes."""
        conn = self._metered
        if conn.their_state is h11.IDLE and _has_too_many_headers(conn.trailing_data[0]):
            self._refuse(Problem("headers-too-large", f"a request may have {_MOST_HEADERS} headers"))
            return
        conn.left = _EVENTS_A_TURN
        super().handle_events()
        if self.is_closing:
            return
        if conn.left <= 0 or self._not_taken_apart:
            self._next_turn = self._next_turn or self.loop.call_soon(self._take_turn)
            self.transport.pause_reading()
        elif conn.their_state is h11.SEND_BODY and len(conn.trailing_data[0]) > _MOST_TRAILER_BYTES:
            self._refuse(too_long(_MOST_TRAILER_BYTES))

    @property
    def may_read(self) -> bool:
        """Whether more may come in: not while there is something to take apart."""
        return self._next_turn is None

    def on_response_complete(self) -> None:
        """Wait for the next request; its head must come soon."""
        self._small_packets = 0
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
        if self._metered.is_in_crumbs:
            detail = f"chunks of less than {_LEAST_CHUNK_BYTES} bytes; send larger ones, or a Content-Length"
            self._refuse(Problem("chunks-too-small", detail))
        elif self.conn.their_state is h11.ERROR and len(trailing) >= self._limits.limit_header_bytes:
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
        if self._next_turn is not None:  # what is left of the request is of no interest
            self._next_turn.cancel()
            self._next_turn = None
        real.resume_reading()

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
        if (
            self.cycle is not None and not self.cycle.response_complete
        ):  # the application need not wait for the rest
            self.cycle.disconnected = True
            self.cycle.message_event.set()

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

    def resume_reading(self) -> None:
        if self._protocol.may_read:
            self._real.resume_reading()

    def is_closing(self) -> bool:
        return self._protocol.is_closing


def _has_too_many_headers(received: bytes) -> bool:
    """Return whether the head at the start of `received`, whole or not, is more than h11 should see."""
    ends = [end for end in (received.find(b"\n\r\n"), received.find(b"\n\n")) if end >= 0]
    return received.count(b"\n", 0, min(ends, default=len(received))) > _MOST_HEADERS
