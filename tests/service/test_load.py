"""Many at once, seen from outside: a server in a process of its own, whose memory and files are counted."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.serving import answer_on, free_port, head, png, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SERVER = """
import json, sys
from srgan_service import server
from srgan_service.settings import Settings
server.serve(Settings(**json.loads(sys.argv[1])))
"""


def text_of(place: Path) -> str:
    """Return what stands there of a process or thread, nothing if it has ended."""
    try:
        return place.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Outside:
    """A server in a process of its own. `client`: an HTTP client for it."""

    def __init__(self, model: Path, folder: Path, **changes: Any) -> None:
        self.port = free_port()
        settings = {"port": self.port, "model": str(model), "data_dir": str(folder), "jobs": False, **changes}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps({"log_level": "WARNING", **settings})],
            cwd=Path(__file__).parents[2],
            env={"TMPDIR": str(folder)},
        )
        self.folder = folder
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False)

    def is_ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(sent)
        return connection

    def metric(self, name: str) -> float:
        match = re.search(rf"^{name} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        assert match
        return float(match[1])

    def resident_mib(self) -> float:
        """Of the server and of its decoders."""
        sizes = [text_of(place / "statm").split() for place in self._processes()]
        return sum(int(size[1]) for size in sizes if size) * resource.getpagesize() / 2**20

    def held(self) -> dict[str, int]:
        """Return how many there are of what must not grow; the client's connection is among the files."""
        self.client.get("/healthz")
        server, *children = self._processes()
        return {
            "decoders": len(children),
            "files of its own": len(list((server / "fd").iterdir())),
            "temporary files": sum(1 for _ in self.folder.rglob("*")),
        }

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def _processes(self) -> list[Path]:
        server = Path(f"/proc/{self.process.pid}")
        children = [child for task in server.glob("task/*/children") for child in text_of(task).split()]
        return [server, *(Path("/proc", child) for child in children)]


@contextlib.contextmanager
def outside(model: Path, folder: Path, **changes: Any) -> Iterator[Outside]:
    server = Outside(model, folder, **changes)
    try:
        until(server.is_ready, 60)
        while server.held()["decoders"] < 2:
            assert {status for status, _ in asyncio.run(all_at_once(server, 16))} == {200}
        yield server
        server.client.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with outside(tiny_model, tmp_path_factory.mktemp("data"), queue_requests=32, header_timeout_s=5) as running:
        yield running


@contextlib.contextmanager
def watched(server: Outside, growth_mib: float) -> Iterator[None]:
    """Ask for /healthz meanwhile, see that memory does not grow by more, and that all is as before at the end."""
    before, resident, highest, over = server.held(), server.resident_mib(), [0.0], threading.Event()
    statuses: collections.Counter[int] = collections.Counter()

    def look() -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=10, trust_env=False) as client:
            while not over.wait(0.05):
                statuses[client.get("/healthz").status_code] += 1
                highest[0] = max(highest[0], server.resident_mib())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert set(statuses) == {200}
    assert highest[0] < resident + growth_mib
    until(lambda: server.metric("srgan_requests_inside") == 0)
    until(lambda: all(count <= before[name] for name, count in server.held().items()))
    assert server.metric("srgan_queue_bytes") == server.metric("srgan_queue_pixels") == 0


async def asked(server: Outside, content: bytes) -> tuple[int, dict[str, str]]:
    """Post a picture on a connection of its own; return status and headers of a whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head(content_length=len(content), connection="close") + content)
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert len(await reader.read(-1)) == int(headers["content-length"])
    writer.close()
    return int(first.split()[1]), headers


async def all_at_once(server: Outside, count: int) -> list[tuple[int, dict[str, str]]]:
    return await asyncio.gather(*(asked(server, png(16, 16, seed % 10)) for seed in range(count)))


def test_a_thousand_uploads_at_once_are_all_answered(server: Outside) -> None:
    """Each with a picture or with when to come again; no connection is reset, and none waits for ever."""
    with watched(server, growth_mib=100):
        answers = asyncio.run(all_at_once(server, 1000))
    statuses = [status for status, _ in answers]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 32
    assert all(int(headers["retry-after"]) >= 1 for status, headers in answers if status == 503)


def test_uploads_that_do_not_end_take_no_more_memory_than_there_is_room_for(server: Outside) -> None:
    """Three hundred megabytes are on their way; what is not let in is not kept."""
    with watched(server, growth_mib=100):
        pending = [server.connect(head(content_length=1_000_000)) for _ in range(300)]
        for connection in pending:
            with contextlib.suppress(OSError):  # refused, and gone
                connection.sendall(bytes(900_000))
        until(lambda: server.metric("srgan_requests_inside") == 32)
        assert server.client.get("/readyz").status_code == 200
        for connection in pending:
            connection.close()


@pytest.mark.slow
def test_two_thousand_slow_connections_are_in_nobodys_way(server: Outside) -> None:
    """Heads, bodies and idle connections that never come to the point are closed; meanwhile all is as ever."""
    kinds = (b"", b"POST /v1/upscale HTTP/1.1\r\nx: y", head("GET", "/healthz") + b"GET /")
    with watched(server, growth_mib=150):
        slow = [server.connect(kinds[number % 3]) for number in range(2000)]
        for seed in range(20):
            assert server.client.post("/v1/upscale", content=png(16, 16, seed)).status_code == 200
        for number, connection in enumerate(slow):
            received = answer_on(connection)[0] if number % 3 == 2 else connection.recv(100)
            assert received == (200 if number % 3 == 2 else b"")
            connection.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_grows_with_the_number_of_requests(server: Outside) -> None:
    """Ten thousand requests: less than a kilobyte each after the first fifth, and nothing else is left."""
    pictures = [png(16, 16 + 4 * (seed % 2), seed) for seed in range(16)]

    async def ask(share: int) -> None:
        for seed in range(share):
            status, _ = await asked(server, pictures[seed % 16])
            assert status == 200

    async def everybody(requests: int) -> None:
        await asyncio.gather(*(ask(requests // 16) for _ in range(16)))

    asyncio.run(everybody(2000))
    resident, threads = server.resident_mib(), server.threads()
    with watched(server, growth_mib=50):
        asyncio.run(everybody(8000))
    assert (server.resident_mib() - resident) * 1024 / 8000 < 1
    assert server.threads() < threads + 4  # pools are filled when they are needed
