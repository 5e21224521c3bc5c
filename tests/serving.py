"""A real server on a loopback port, and sockets that behave badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import uvicorn

from service.app import create_app
from service.parts import Service
from service.server import config
from service.settings import Settings
from srgan.pictures import Picture, encode
from srgan.upscale import Upscaler
from srgan.weights import ModelMetadata

METADATA = ModelMetadata(name="nearest-x4", scale=4, halo_lr_px=0, architecture={})


class NearestEngine:
    """Repeats every pixel 4x4, as slowly and as often as the test says."""

    def __init__(self, before: Callable[[], None] | None = None) -> None:
        self.metadata = METADATA
        self.before = before
        self.calls: list[tuple[int, ...]] = []

    def run(self, lr: np.ndarray) -> np.ndarray:
        self.calls.append(lr.shape)
        if self.before is not None:
            self.before()
        return lr.repeat(4, axis=2).repeat(4, axis=3)


class Blocked:
    """Something that an engine waits for until it is let go; `entered` counts who came."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()

    def __call__(self) -> None:
        self.entered.release()
        assert self._open.wait(60)

    def let_go(self) -> None:
        self._open.set()


def settings_of(**changes: Any) -> Settings:
    return Settings(**{"port": 0, "log_level": "WARNING", **changes})


class Running:
    """A server that runs. `client`: an HTTP client for it."""

    def __init__(self, port: int, service: Service, client: httpx.Client, loop: asyncio.AbstractEventLoop) -> None:
        self.port, self.service, self.client = port, service, client
        self._loop = loop

    def loop_call(self, function: Callable[[], object]) -> None:
        """Call something in the server's own thread, and wait for it."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(10)

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(sent)
        return connection

    def talk(self, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send raw bytes; return status, headers and body of the answer, read until the server closes."""
        with self.connect(sent) as connection:
            return answer_on(connection)

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def answer_on(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    received = b""
    while piece := connection.recv(65536):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]) if first else 0, headers, body


@contextlib.contextmanager
def serving(
    settings: Settings | None = None, *, before: Callable[[], None] | None = None, **changes: Any
) -> Iterator[Running]:
    """Run a server whose engine is a `NearestEngine`, or the model that `settings` names."""
    settings = settings or settings_of(**changes)
    app = create_app(settings)
    service: Service = app.state.service
    if settings.model is None:
        engine = service.device.share(NearestEngine(before))
        upscaler = Upscaler(
            engine=engine,
            tile_lr_px=settings.tile_lr_px,
            max_output_megapixels=settings.limit_output_megapixels,
        )
        service.models.serve_only(upscaler)
    server = uvicorn.Server(config(settings, app))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            if before is None:
                until(lambda: service.models.ready)
            else:
                service.models.ready = True
            yield Running(port, service, client, server.servers[0].get_loop())
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(60)
        assert not thread.is_alive()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became so"
        time.sleep(0.01)


def levels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(height: int = 6, width: int = 5, seed: int = 0) -> bytes:
    return encode(Picture(levels(height, width, seed)), "png")


def head(method: str = "POST", path: str = "/v1/upscale", **headers: Any) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: test"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def problem(answer: httpx.Response | tuple[int, dict[str, str], bytes], status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a problem document, and return it."""
    if isinstance(answer, httpx.Response):
        answer = answer.status_code, dict(answer.headers), answer.content
    got, headers, body = answer
    assert got == status, body
    assert headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(body)
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"]
    assert document["detail"]
    if status in (429, 503):
        assert int(headers["retry-after"]) >= 1
    return document
