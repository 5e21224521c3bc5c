"""Whose pages may use a service that asks for no key: a browser lends this machine's name to pages from elsewhere.

A page that its own name server has moved to 127.0.0.1 (DNS rebinding) still says its own name as `Host`; a page
that posts to another site is named as `Origin`. With keys neither matters: such a page has none.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from srgan_service.http.keys import Keys, is_loopback
from srgan_service.http.problems import Problem
from srgan_service.settings import Settings

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_FOR_WATCHERS = ("/healthz", "/readyz")


class Origins:
    """Refuses what comes by a foreign name or from a foreign page, if there are no `keys`."""

    def __init__(self, settings: Settings, keys: Keys) -> None:
        self._hosts = frozenset(filter(None, (name.strip().lower() for name in settings.allowed_hosts.split(","))))
        self._is_open = bool(keys)
        self._pages = settings.origins
        self._takes_any_host = settings.insecure and not self._hosts

    def refusal(self, scope: Scope) -> Problem | None:
        """Return why a request is not served, or None if it is. `scope`: of ASGI."""
        if self._is_open or scope["path"] in _FOR_WATCHERS:
            return None
        hosts, origins = (_values(scope, name) for name in (b"host", b"origin"))
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._takes_any_host and not self._is_ours(host):
            return Problem(
                "foreign-origin",
                "without API keys this machine alone is served, as localhost or 127.0.0.1; "
                "SRGAN_ALLOWED_HOSTS names others",
            )
        if any(not self._is_page_of(host, origin) for origin in origins if origin not in self._pages):
            return Problem(
                "foreign-origin",
                "without API keys the service's own pages alone may use it; SRGAN_CORS_ORIGINS names others",
            )
        return None

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        return name in self._hosts or name.endswith(".localhost") or is_loopback(name)

    def _is_page_of(self, host: str, origin: str) -> bool:
        try:
            place = urlsplit(origin).netloc
        except ValueError:
            return False
        if not place or place == host or _name(place) in self._hosts:
            return bool(place)
        # This server by another of its names.
        return is_loopback(_name(place)) and is_loopback(_name(host)) and _port(place) == _port(host)


class Cors(CORSMiddleware):
    """Lets the pages of `origins` use the service from a browser; for all others nothing changes."""

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        super().__init__(
            app,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=[
                "X-API-Key",
                "Authorization",
                "Idempotency-Key",
                "X-Request-Id",
                "Range",
                "If-None-Match",
            ],
            expose_headers=[
                *("X-Model", "X-Warnings", "X-Request-Id", "Location", "Retry-After"),
                *("Content-Disposition", "Content-Range", "ETag", "Idempotency-Replayed"),
            ],
        )
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the question of a browser before its request, and allow the answer to be read."""
        is_asked = scope["type"] == "http" and bool(self._origins.intersection(_values(scope, b"origin")))
        await (super().__call__ if is_asked else self.app)(scope, receive, send)


def _values(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for name, value in scope["headers"] if name == wanted]


def _name(host: str) -> str:
    """Return a host without its port and brackets, "" for what is none."""
    match = _HOST.fullmatch(host)
    return match[1].strip("[]").rstrip(".") if match else ""


def _port(host: str) -> str:
    match = _HOST.fullmatch(host)
    return (match[2] or "") if match else ""
