"""One key does what it can to stop a live server; another key's small pictures, and /healthz, notice nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from support.hostile import photo, saved
from support.serving import Process, head, png, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ALICE, BOB = "alice-alice-alice-alice-1", "bob-bob-bob-bob-bob-bob-2"
SECONDS = 8.0  # of each attack
HEALTH_S, PICTURE_S = 0.2, 2.0  # on a machine that does nothing else
BUSY_FACTOR = 15  # on one that does

# Another process, or it would wait for this one's interpreter. Its answer: the longest times, and all statuses.
OBSERVER = """
import json, sys, threading, time, httpx
url, key = sys.argv[1:3]
picture = sys.stdin.buffer.read(int(sys.argv[3]))
is_over, seen, statuses = threading.Event(), {"/healthz": 0.0, "/v1/upscale": 0.0}, {}
def look(path, pause):
    with httpx.Client(base_url=url, timeout=120, trust_env=False, headers={"X-API-Key": key}) as client:
        while not is_over.wait(pause):
            started = time.perf_counter()
            answer = client.get(path) if path == "/healthz" else client.post(path, content=picture)
            seen[path] = max(seen[path], time.perf_counter() - started)
            statuses.setdefault(path, []).append(answer.status_code)
threads = [threading.Thread(target=look, args=each) for each in (("/healthz", 0.03), ("/v1/upscale", 0.2))]
[thread.start() for thread in threads]
sys.stdin.read()
is_over.set()
[thread.join() for thread in threads]
print(json.dumps([seen, statuses]))
"""


@pytest.fixture(scope="module")
def factor() -> float:
    """How much longer than on an idle machine it may take; asked before anything of ours runs."""
    return 1 if os.getloadavg()[0] < 0.3 * (os.cpu_count() or 1) else BUSY_FACTOR


@pytest.fixture(scope="module")
def server(factor: float, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Process]:
    environment = {"SRGAN_KEYS": f"alice:{ALICE},bob:{BOB}", "SRGAN_KEY_JOBS": "400"}
    folder = tmp_path_factory.mktemp("data")
    started = Process(tiny_model, folder, environment=environment, headers={"X-API-Key": BOB})
    try:
        started.wait()
        assert started.client.post("/v1/upscale", content=png(20, 20)).status_code == 200
        yield started
    finally:
        started.close()


def connection_to(server: Process) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def sent(server: Process, *pieces: bytes) -> bytes:
    """Send as much as the server takes, and return the beginning of its answer."""
    with contextlib.suppress(OSError), connection_to(server) as connection:
        with contextlib.suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
        return connection.recv(65536)
    return b""


def posted(server: Process, content: bytes, path: str = "/v1/upscale", **headers: str) -> bytes:
    lines = head(path=path, content_length=len(content), x_api_key=ALICE, connection="close", **headers)
    return sent(server, lines, content)


def crumbs(server: Process) -> None:
    sent(server, head(transfer_encoding="chunked", x_api_key=ALICE), b"1\r\nx\r\n" * (7 * 2**20 // 6))


def crumbs_without_a_key(server: Process) -> None:
    sent(server, head(transfer_encoding="chunked"), b"1;x=y\r\nx\r\n" * 100_000)


def headers(server: Process) -> None:
    sent(server, head("GET", "/healthz") * 20 + head("GET", "/healthz")[:-2] + b"a:b\r\n" * 50_000)


def trailers(server: Process) -> None:
    sent(server, head(transfer_encoding="chunked"), b"0\r\n" + b"a:b\r\n" * 50_000)


def false_boundaries(server: Process) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    posted(server, part + b"\r\n--bx" * 4_000_000, content_type="multipart/form-data; boundary=b")


def drips(server: Process) -> None:
    """Many bodies, a byte at a time, each in a packet of its own."""
    with contextlib.ExitStack() as opened:
        held = [opened.enter_context(connection_to(server)) for _ in range(20)]
        for connection in held:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(head(content_length=10_000, x_api_key=ALICE))
        end = time.monotonic() + SECONDS
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                for connection in held:
                    connection.sendall(b"x")


def comments() -> bytes:
    whole = saved(photo(), "JPEG", progressive=True)
    scan = whole.index(b"\xff\xda") + 20
    return whole[:scan] + b"\xff\xfe\x00\x02" * (31 * 2**18) + whole[scan:]


def chunks() -> bytes:
    whole = saved(photo(), "PNG")
    return whole[:33] + b"\0\0\0\0teSt\x86\xa8\x3c\xd8" * (30 * 2**20 // 12) + whole[33:]


def directories() -> bytes:
    """A TIFF file whose pages are empty, each after the other."""
    pages = b"".join(struct.pack("<HI", 0, 8 + 6 * number) for number in range(1, 5 * 2**20))
    return b"II*\0" + struct.pack("<I", 8) + pages


def blocks() -> bytes:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    return file.getvalue()[:-1] + b"!\xfe\x01x\0" * (6 * 2**20)


def boxes() -> bytes:
    return b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0\0\0\x08free" * (3 * 2**20)


def odd_files(server: Process) -> None:
    for make in (comments, chunks, directories, blocks, boxes):
        posted(server, make())


def many_comments(server: Process) -> None:
    posted(server, comments())


def jobs_of_comments(server: Process) -> None:
    posted(server, comments(), "/v1/jobs")


def garbage_jobs(server: Process) -> None:
    posted(server, png()[:60], "/v1/jobs")


def load(server: Process) -> None:
    posted(server, png(300, 300))


def watchers(server: Process) -> None:
    with httpx.Client(headers={"X-API-Key": ALICE}, trust_env=False) as client:
        answer = client.post(f"http://127.0.0.1:{server.port}/v1/jobs", content=png())
        location = answer.raise_for_status().headers["location"]
    with contextlib.ExitStack() as opened:
        for _ in range(300):
            connection = opened.enter_context(connection_to(server))
            connection.sendall(head("GET", f"{location}/events", x_api_key=ALICE))
        time.sleep(SECONDS)


def answers_not_taken(server: Process) -> None:
    with connection_to(server) as connection:
        content = png(200, 200)
        connection.sendall(
            head(path="/v1/upscale?format=bmp", content_length=len(content), x_api_key=ALICE) + content
        )
        time.sleep(SECONDS / 2)


# What is done over and over again, and by how many at once.
ATTACKS: list[tuple[Callable[[Process], None], int]] = [
    (watchers, 1),  # first: of a job that the garbage of others would leave no room for
    *((crumbs, 8), (crumbs_without_a_key, 8), (headers, 8), (trailers, 8), (false_boundaries, 2), (drips, 2)),
    *((many_comments, 3), (jobs_of_comments, 2), (odd_files, 2), (garbage_jobs, 4), (load, 8)),
    (answers_not_taken, 20),
]


@pytest.mark.parametrize(("attack", "at_once"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS])
def test_an_attack_keeps_nobody_waiting(
    server: Process, factor: float, attack: Callable[[Process], None], at_once: int
) -> None:
    end = time.monotonic() + SECONDS

    def repeat() -> None:
        while time.monotonic() < end:
            attack(server)

    picture = png(20, 20)
    command = [sys.executable, "-c", OBSERVER, f"http://127.0.0.1:{server.port}", BOB, str(len(picture))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as observer:
        assert observer.stdin is not None
        observer.stdin.write(picture)
        observer.stdin.flush()
        attackers = [threading.Thread(target=repeat) for _ in range(at_once)]
        for attacker in attackers:
            attacker.start()
        for attacker in attackers:
            attacker.join()
        longest, statuses = json.loads(observer.communicate()[0])
    print(f"{attack.__name__}: {longest}")
    assert {status for each in statuses.values() for status in each} == {200}
    assert longest["/healthz"] < HEALTH_S * factor, longest
    assert longest["/v1/upscale"] < PICTURE_S * factor, longest
    with httpx.Client(headers={"X-API-Key": BOB}, trust_env=False) as client:
        metrics = f"http://127.0.0.1:{server.port}/metrics"
        until(lambda: "srgan_requests_inside 0.0" in client.get(metrics).text, 60)
