"""Runs the application under uvicorn, with deadlines, a graceful end and no open doors."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Iterator
from typing import Any

import structlog
import uvicorn
from pydantic import ValidationError

from srgan.errors import UsageError
from srgan.interrupts import signals_taken
from srgan_service import logs
from srgan_service.app import create_app
from srgan_service.http import protocol
from srgan_service.http.keys import Keys, is_loopback
from srgan_service.settings import Settings

_BACKLOG = 2048
_log = structlog.stdlib.get_logger("srgan_service")


def serve_command(given: dict[str, Any]) -> None:
    """Carry out `srgan serve`: what is not `given` (None) comes from the environment.

    Raises UsageError for settings that make no sense, and what `serve` raises.
    """
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UsageError(f"setting {name} (SRGAN_{name.upper()}): {first['msg']}") from error
    serve(settings)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, and return when what was in work is done or its grace time over.

    Raises UsageError if other machines could come in without a key, if the address cannot be listened on or the
    folder of jobs cannot be used, and what `create_app` raises.
    """
    refuse_open_door(settings)
    logs.configure(settings.log_level)
    app = create_app(settings)
    if app.state.jobs is not None:
        app.state.jobs.prepare()
    with _listening(settings.host, settings.port) as sockets:
        server = uvicorn.Server(config(settings, app))
        # uvicorn raises the signal again when all is done; then it has been obeyed.
        with signals_taken(lambda number: None):
            _raise_file_limit(settings.connections)
            urls = [_url(entry) for entry in sockets]
            _log.info("listening", urls=urls)
            if sys.stderr.isatty():
                print(f"\nOpen {urls[0]}  (Ctrl-C ends it)\n", file=sys.stderr)
            server.run(sockets)


def config(settings: Settings, app: Any) -> uvicorn.Config:
    """Return how uvicorn is to run `app`."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol.configured(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=max(1, int(settings.header_timeout_s)),
        timeout_graceful_shutdown=int(settings.grace_s + 5),
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Yield sockets that listen on every address of `host`, before anything is said to have started.

    Raises UsageError if they cannot.
    """
    with contextlib.ExitStack() as opened:
        sockets, absent = [], None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, number, _, address in dict.fromkeys(found):
                try:
                    entry = opened.enter_context(socket.socket(family, kind, number))
                    if sys.platform != "win32":  # elsewhere it would let two servers share a port
                        entry.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        entry.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    entry.bind(address)
                    entry.listen(_BACKLOG)
                    sockets.append(entry)
                except OSError as error:  # a name may have an address of IPv6 where there is no IPv6
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
                    absent = error
            if absent is not None and not sockets:
                raise absent
        except OSError as error:
            raise UsageError(_no_listening(host, port, error)) from error
        yield sockets


def _no_listening(host: str, port: int, error: OSError) -> str:
    """Return why nothing can be listened on there, and what to do."""
    if error.errno != errno.EADDRINUSE:
        return f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port"
    for free in range(port + 1, min(port + 20, 65536)):
        with contextlib.suppress(UsageError), _listening(host, free):
            return f"port {port} of {host} is in use by another program: end that, or take --port {free}"
    return f"port {port} of {host} is in use by another program: end that, or choose another --port"


def refuse_open_door(settings: Settings) -> None:
    """Raise UsageError if `settings` would let other machines in without a key."""
    if is_loopback(settings.host):
        return
    if not Keys(settings) and not settings.insecure:
        raise UsageError(
            f"{settings.host} lets other machines in: set SRGAN_KEYS or SRGAN_KEYS_FILE, or say --insecure"
        )


def _raise_file_limit(connections: int) -> None:
    """Allow as many open files as there may be connections, as far as the system lets us."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + 256
    if soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
