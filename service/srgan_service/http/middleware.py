"""What happens around every request: an id, a log line, a count, security headers, an answer to what fails."""

from __future__ import annotations

import asyncio
import re
import time
import uuid

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srgan_service.http.origins import Origins
from srgan_service.http.problems import Problem, draining, too_long
from srgan_service.metrics import Metrics

_log = structlog.stdlib.get_logger("srgan_service")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # The page and its own files, pictures that it makes itself, and nothing from anywhere else.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; font-src 'self'; manifest-src 'self'; "
    "worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class RequestMiddleware:
    """The outermost ASGI application: everything that goes in or comes out passes here."""

    def __init__(self, app: ASGIApp, metrics: Metrics, limit_header_bytes: int, origins: Origins) -> None:
        self._app = app
        self._origins = origins
        self._metrics = metrics
        self._limit_header_bytes = limit_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = _smuggled(scope) or _too_long(scope, self._limit_header_bytes) or self._origins.refusal(scope)
        await _Exchange(self._app, self._metrics, scope, receive, send).run(problem)


class _Exchange:
    def __init__(self, app: ASGIApp, metrics: Metrics, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._metrics, self._scope = app, metrics, scope
        # HEAD is GET without its body (RFC 9110, section 9.3.2), which the server leaves out by its own scope.
        self._inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        self._send = send
        self._receive = self._counted(receive)
        self._body_is_read = not {b"content-length", b"transfer-encoding"} & {name for name, _ in scope["headers"]}
        self._status = 0
        self._body_bytes = 0
        self.request_id = _request_id(scope)
        scope["state"]["request_id"] = self.request_id
        scope["state"]["started"] = self._started = time.monotonic()

    async def run(self, problem: Problem | None) -> None:
        """Answer with `problem`, or with what the application says."""
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        try:
            if problem is not None:
                await self._answer(problem)
            else:
                is_head = self._inner is not self._scope
                await self._app(self._inner, self._receive, self._head_alone if is_head else self._out)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # the server's grace time is over
            await self._answer(draining())
        except Problem as problem:
            await self._answer(problem)
        except Exception:  # noqa: BLE001  # logged, and answered as our own fault
            _log.exception("internal error")
            await self._answer(Problem("internal-error", "an error of the service itself; its log knows more"))
        finally:
            self._tell()

    def _counted(self, receive: Receive) -> Receive:
        async def counted() -> Message:
            message = await receive()
            if not message.get("more_body", False):
                self._body_is_read = True
            return message

        return counted

    async def _answer(self, problem: Problem) -> None:
        if not self._status:
            self._scope["state"]["problem"] = problem.code
            await problem.response(self.request_id)(self._scope, self._receive, self._out)

    async def _head_alone(self, message: Message) -> None:
        """Pass the head of an answer on and end there: a stream's body would only keep the connection waiting."""
        await self._out(message)
        if message["type"] == "http.response.start":
            await self._out({"type": "http.response.body"})
            raise ClientDisconnect  # the client takes no more of it

    async def _out(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.request_id
            if not self._body_is_read:  # what is left of it would be taken for the next request
                headers["Connection"] = "close"
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if self._scope["path"].startswith("/v1/"):
                headers.setdefault("Cache-Control", "no-store")
        elif message["type"] == "http.response.body":
            self._body_bytes += len(message.get("body", b""))
        await self._send(message)

    def _tell(self) -> None:
        state, seconds = self._scope["state"], time.monotonic() - self._started
        route = getattr(self._inner.get("route"), "path", "other")
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        status = self._status or 499
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.latency.labels(route).observe(seconds)
        if code := state.get("problem"):
            self._metrics.rejections.labels(code).inc()
        if not self._status:
            self._metrics.cancelled.inc()
        _log.info(
            "request",
            method=self._scope["method"],
            path=self._scope["path"],
            status=status,
            seconds=round(seconds, 4),
            bytes=self._body_bytes,
            **{name: state[name] for name in ("key", "problem") if state.get(name)},
        )


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def _request_id(scope: Scope) -> str:
    """Return the client's own id, if it is a plain word, or a fresh one."""
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0].decode("latin-1")):
        return str(given[0], "latin-1")
    return uuid.uuid4().hex


def _too_long(scope: Scope, limit_bytes: int) -> Problem | None:
    """Return the refusal of a head above the limit; the protocol finds only those that come in pieces."""
    size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope.get("raw_path", b""))
    if size + len(scope["query_string"]) <= limit_bytes:
        return None
    return too_long(limit_bytes)


def _smuggled(scope: Scope) -> Problem | None:
    """Return the refusal of a request with two lengths, which a proxy in front may have read otherwise."""
    names = [name for name, _ in scope["headers"]]
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
        return Problem("malformed-request", "two lengths of one body")
    return None
