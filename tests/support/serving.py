"""A real server on a loopback port, and sockets that behave badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from srgan_service import logs
from srgan_service.app import create_app
from srgan_service.server import config
from srgan_service.settings import Settings
from srgan_service.work.models import ServedModel
from srgan_service.work.service import Service
from srgan_service.work.upscaling import Decode

from srgan.folder.making import Order, decide, make
from srgan.pictures import Picture, decode, encode
from srgan.upscale import Upscaler
from srgan.weights import ModelMetadata
from support import engines

logs.use_logging()  # unconfigured, structlog draws its lines

METADATA = ModelMetadata(name="nearest-x4", scale=4, halo_lr_px=0, architecture={})


class NearestEngine(engines.NearestEngine):
    """As slow as the test says: `before` is called, and waited for, with every tile."""

    def __init__(self, before: Callable[[], None] | None = None) -> None:
        super().__init__(METADATA)
        self.before = before

    def run(self, lr: np.ndarray) -> np.ndarray:
        sr = super().run(lr)
        if self.before is not None:
            self.before()
        return sr


class Blocked:
    """Something that an engine waits for until it is let go; `entered` counts who came."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        self._passes = threading.Semaphore(0)

    def __call__(self) -> None:
        self.entered.release()
        if not self._open.is_set():
            assert self._passes.acquire(timeout=60)

    def let_go_once(self) -> None:
        self._passes.release()

    def let_go(self) -> None:
        self._open.set()
        self._passes.release(1000)  # whoever waits


def settings_of(**changes: Any) -> Settings:
    return Settings(**{"port": 0, "log_level": "WARNING", "jobs": False, **changes})


@dataclass
class Running:
    """A server that runs. `client`: an HTTP client for it. `loop`: of the server's thread."""

    port: int
    service: Service
    client: httpx.Client
    loop: asyncio.AbstractEventLoop
    engine: NearestEngine
    app: FastAPI

    def loop_call(self, function: Callable[[], object]) -> None:
        """Call something in the server's own thread, and wait for it."""
        done: Future[object] = Future()
        self.loop.call_soon_threadsafe(lambda: done.set_result(function()))
        done.result(30)

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
    settings: Settings | None = None,
    *,
    before: Callable[[], None] | None = None,
    is_ready: bool = True,
    decoder: Decode | None = None,
    **changes: Any,
) -> Iterator[Running]:
    """Run a server whose engine is a `NearestEngine`, or the model that `settings` names.

    `before`: what the engine does before each tile, once the server is ready; from the start if not `is_ready`.
    `decoder`: reads the uploads, instead of the service's own.
    """
    settings = settings or settings_of(**changes)
    app = create_app(settings, decode=decoder)
    service: Service = app.state.service
    engine = NearestEngine(None if is_ready else before)
    if settings.model is None:
        upscaler = Upscaler(
            engine=service.device.share(engine),
            tile_lr_px=settings.tile_lr_px or "auto",
            max_output_megapixels=settings.limit_output_megapixels,
        )
        model = ServedModel(METADATA.name, "", METADATA.scale, is_default=True)
        service.models.serve_only({model: upscaler})
    server = uvicorn.Server(config(settings, app))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        hooks = {"response": [only_documented(app)]}
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=30, trust_env=False, event_hooks=hooks) as client:
            if is_ready:
                until(lambda: service.models.ready)
                engine.before = before
                engine.calls.clear()
                if settings.jobs:
                    until(lambda: app.state.desk)
            yield Running(port, service, client, server.servers[0].get_loop(), engine, app)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(60)
        assert not thread.is_alive()


def only_documented(app: FastAPI) -> Callable[[httpx.Response], None]:
    """What fails for an answer whose status its operation's documentation does not name."""

    def check(answer: httpx.Response) -> None:
        if (operation := operation_at(app, answer.request.method, answer.request.url.path)) is not None:
            assert str(answer.status_code) in operation["responses"], (
                operation["operationId"],
                answer.status_code,
            )

    return check


def operation_at(app: FastAPI, method: str, path: str) -> dict[str, Any] | None:
    """What OpenAPI says of an address, or None for an address or a method that is not there."""
    for template, operations in app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            operation: dict[str, Any] | None = operations.get(method.lower())
            return operation
    return None


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
    lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
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


# Jobs

QUICK: dict[str, Any] = {"jobs": True, "job_poll_s": 0.05, "lease_s": 0.6}


def ended(server: Running, location: str, **headers: str) -> dict[str, Any]:
    """Wait for a job to end and return it."""
    last: dict[str, Any] = {}

    def look() -> bool:
        last.update(server.client.get(location, headers=headers).json())
        return last["status"] not in ("pending", "processing")

    until(look)
    return last


def left(server: Running, **options: Any) -> str:
    answer = server.client.post("/v1/jobs", **{"content": png(), **options})
    assert answer.status_code == 202, answer.text
    location: str = answer.headers["location"]
    assert location == f"/v1/jobs/{answer.json()['id']}"
    return location


def events_of(client: httpx.Client, location: str) -> list[dict[str, Any]]:
    with client.stream("GET", f"{location}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


# Servers that may be killed


def free_port() -> int:
    """A port below those of outgoing connections, where a client that tries a closed one may meet itself."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


SERVER = """
import sys
from srgan_service import server
from srgan_service.settings import Settings
server.serve(Settings(
    port=int(sys.argv[1]), model=sys.argv[2], data_dir=sys.argv[3], database_url=sys.argv[4] or None,
    tile_lr_px=16, lease_s=0.6, job_poll_s=0.05, grace_s=1,
))
"""


class Process:
    """A server in a process of its own, which can be killed and started again."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        database_url: str = "",
        *,
        within: Sequence[str] = (),
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`within`: a command that runs the command behind it. `log`: a file for what the server says.

        `environment`: further settings. `headers`: of the client.
        """
        self.port = free_port()
        self._environment = {**os.environ, **(environment or {})}
        self._within, self._log = within, log
        self._arguments = [str(self.port), str(model), str(folder), database_url]
        url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=url, timeout=30, trust_env=False, headers=headers)
        self.start()

    def start(self) -> None:
        with (self._log or Path(os.devnull)).open("ab") as log:
            self._process = subprocess.Popen(
                [*self._within, sys.executable, "-c", SERVER, *self._arguments],
                cwd=Path(__file__).parents[2],
                env=self._environment,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        until(lambda: self._answers(), 100)

    def kill(self, number: int = signal.SIGKILL) -> int:
        self._process.send_signal(number)
        return self._process.wait(30)

    def close(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            return self.client.get("/v1/jobs").status_code == 200
        except httpx.TransportError:
            return False


def expected(model: Path, contents: list[bytes]) -> list[bytes]:
    upscaler, order = Upscaler(model, tile_lr_px=16), Order(format="png", metadata="strip")
    return [make(decide(decode(content), order, upscaler), upscaler).content for content in contents]


def results(client: httpx.Client, ids: list[str]) -> list[bytes]:
    contents = []
    for id in ids:
        until(lambda id=id: client.get(f"/v1/jobs/{id}").json().get("status") == "completed", 200)  # type: ignore[misc]
        contents.append(client.get(f"/v1/jobs/{id}/result").content)
    return contents


def accepted(server: Process, contents: list[bytes]) -> list[str]:
    return [server.client.post("/v1/jobs", content=content).json()["id"] for content in contents]
