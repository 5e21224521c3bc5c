"""Connections that behave badly, and the end of the server."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from srgan_service.http.protocol import configured
from srgan_service.logs import formatter
from srgan_service.settings import Settings
from support.serving import Blocked, Running, answer_on, free_port, head, png, problem, serving, until


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(header_timeout_s=0.5, write_timeout_s=0.5, limit_bytes=20_000_000) as server:
        yield server


def closed(connection: socket.socket) -> bytes:
    """Return what comes until the server closes or resets."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


# Connections that never come to the point


def test_an_idle_connection_is_closed(running: Running) -> None:
    with running.connect() as connection:
        assert closed(connection) == b""


def test_a_dripping_head_is_closed(running: Running) -> None:
    with running.connect(b"GET /healthz HTTP/1.1\r\n") as connection:
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        assert closed(connection) == b""
        stop.set()
        thread.join()


def test_a_dripping_second_head_is_closed(running: Running) -> None:
    with running.connect(head("GET", "/healthz") + b"GET /heal") as connection:
        assert closed(connection).endswith(b'{"status":"ok"}')


def test_each_head_on_a_connection_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(header_timeout_s=1234.5) as server:
        timers: list[asyncio.TimerHandle] = []
        call_later = server.loop.call_later

        def recorded(delay: float, callback: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
            timer = call_later(delay, callback, *arguments)
            if delay == 1234.5:
                timers.append(timer)
            return timer

        monkeypatch.setattr(server.loop, "call_later", recorded)
        with server.connect() as connection:
            for _ in range(3):
                connection.sendall(head("GET", "/healthz"))
                received = b""
                while not received.endswith(b"}"):
                    received += connection.recv(65536)
            until(lambda: [timer.cancelled() for timer in timers] == [True, True, True, False])


def test_a_body_nobody_asked_for_is_not_waited_for(running: Running) -> None:
    with running.connect(head("GET", "/healthz", content_length=10**9)) as connection:
        assert closed(connection).endswith(b'{"status":"ok"}')


def test_an_answer_that_nobody_takes_is_given_up() -> None:
    with serving(write_timeout_s=0.5, limit_output_megapixels=64) as server:
        content = png(700, 700)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        with connection:
            wish = head(path="/v1/upscale?format=bmp", content_length=len(content))
            connection.sendall(wish + content)
            until(lambda: server.service.gate.inside == 1)
            until(lambda: server.service.gate.inside == 0)
            until(lambda: server.metric("srgan_requests_inside") == 0)


def test_the_answer_to_a_refused_upload_arrives(running: Running) -> None:
    """Closed while the client still sends, a connection is reset, and the answer lost."""
    for _ in range(5):
        with running.connect(head(content_length=30_000_000)) as connection:
            is_under_way = threading.Event()

            def send(to: socket.socket = connection, is_under_way: threading.Event = is_under_way) -> None:
                try:
                    for number in range(300):
                        to.sendall(bytes(100_000))
                        if number == 50:
                            is_under_way.set()
                except OSError:
                    pass
                is_under_way.set()

            thread = threading.Thread(target=send)
            thread.start()
            assert is_under_way.wait(30)
            problem(answer_on(connection), 413, "too-many-bytes")
            thread.join()


def test_connections_are_counted() -> None:
    with serving(connections=5, header_timeout_s=30) as server:
        server.client.close()
        until(lambda: not server.service.gate.inside)
        held = [server.connect() for _ in range(5)]  # accepted in this order
        with server.connect() as more:
            problem(answer_on(more), 503, "too-many-connections")
        for connection in held:
            connection.close()


def test_slow_connections_are_in_nobodys_way(running: Running) -> None:
    slow = [running.connect(b"POST /v1/upscale HTTP/1.1\r\n") for _ in range(300)]
    assert running.client.post("/v1/upscale", content=png()).status_code == 200
    for connection in slow:
        assert closed(connection) == b""
        connection.close()


# What is not HTTP

MALFORMED = {
    "not HTTP": b"\x16\x03\x01\x02\x00hello\r\n\r\n",
    "two lengths": head(content_length=5)[:-2] + b"content-length: 6\r\n\r\nhello",
    "length and chunks": head(content_length=5, transfer_encoding="chunked") + b"0\r\n\r\n",
    "negative length": head(content_length=-5),
    "length that is no number": head(content_length="5e3"),
    "odd transfer encoding": head(transfer_encoding="gzip"),
    "bad chunk": head(transfer_encoding="chunked") + b"zz\r\nhello\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "zero in a header": head(x="a\0b"),
    "space before the colon": head()[:-2] + b"x : 1\r\n\r\n",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_requests(running: Running, case: str) -> None:
    problem(running.talk(MALFORMED[case]), 400, "malformed-request")
    assert running.client.get("/healthz").status_code == 200


def test_what_turns_out_malformed_while_it_is_answered_breaks_neither_answer_nor_server(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    for method, path in (("POST", "/v1/models"), ("GET", "/healthz"), ("POST", "/v1/upscale")):
        chunks = b"5\r\nhello\r\nno length\r\n"
        with running.connect(head(method, path, transfer_encoding="chunked") + chunks) as connection:
            received = closed(connection)
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1 ") == 1
    assert running.client.get("/healthz").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_headers_have_a_limit(running: Running) -> None:
    problem(running.talk(head("GET", "/healthz", x="y" * 70_000)), 431, "headers-too-large")
    many = b"".join(b"x%d: y\r\n" % number for number in range(9000))
    problem(running.talk(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + many), 431, "headers-too-large")
    assert running.client.get("/healthz", headers={"x": "y" * 50_000}).status_code == 200


def test_a_head_has_a_hundred_headers_at_most(running: Running) -> None:
    fields = {f"x{number}": "y" for number in range(99)}  # and its host
    sent = head("GET", "/healthz", **fields)
    for spelt in (sent, sent.replace(b"\r\n", b"\n")):
        with running.connect(spelt + head("GET", "/healthz", connection="close")) as connection:
            assert closed(connection).count(b'{"status":"ok"}') == 2
        problem(running.talk(spelt.replace(b"x0:", b"x: y\nx0:")), 431, "headers-too-large")
    # A second head, and what stands behind a body in chunks.
    many = b"a:b\r\n" * 13_000
    with running.connect(head("GET", "/healthz") + b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + many) as busy:
        assert b"headers-too-large" in closed(busy)
    problem(running.talk(head(transfer_encoding="chunked") + b"0\r\n" + many), 431, "headers-too-large")


# Bodies in crumbs


def test_a_body_in_crumbs_is_refused_and_holds_nothing(running: Running) -> None:
    problem(running.talk(head(transfer_encoding="chunked") + b"1\r\nx\r\n" * 5000), 413, "chunks-too-small")
    until(lambda: running.service.gate.inside == 0)


def test_a_body_in_small_chunks_is_taken(running: Running) -> None:
    chunks = b"400\r\n" + bytes(1024) + b"\r\n"
    sent = head(transfer_encoding="chunked", connection="close") + chunks * 1500 + b"0\r\n\r\n"
    problem(running.talk(sent), 415, "unsupported-format")


class Transport(asyncio.Transport):
    """Of a client that sends as long as it may."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.is_lost = False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return self.is_lost


Look = Callable[[], tuple[int, bool]]


def seen(act: Callable[[asyncio.Protocol, Look], Awaitable[list[tuple[int, bool]]]]) -> list[tuple[int, bool]]:
    """What `act` notes of a connection: how much of a body is known, and whether more is read."""

    async def listening(scope: object, receive: object, send: object) -> None:
        await asyncio.Event().wait()

    async def run() -> list[tuple[int, bool]]:
        settings = uvicorn.Config(listening, lifespan="off", log_config=None)
        settings.load()
        transport, state = Transport(), uvicorn.server.ServerState()
        protocol = configured(Settings())(config=settings, server_state=state, app_state={})
        protocol.connection_made(transport)
        noted = await act(protocol, lambda: (len(protocol.cycle.body), transport.reads))
        transport.is_lost = True
        protocol.connection_lost(None)
        for task in state.tasks:
            task.cancel()
        return noted

    return asyncio.run(run())


def test_what_comes_in_small_chunks_is_taken_apart_by_turns() -> None:
    """A few in each turn of the loop, and nothing more is read meanwhile."""

    async def chunks(protocol: asyncio.Protocol, look: Look) -> list[tuple[int, bool]]:
        protocol.data_received(head(transfer_encoding="chunked") + b"1\r\nx\r\n" * 500)
        noted = []
        for _ in range(20):
            noted.append(look())
            await asyncio.sleep(0)
        return noted

    noted = seen(chunks)
    assert noted[-1] == (500, True)
    steps = [after[0] - before[0] for before, after in itertools.pairwise(noted)]
    assert 0 < noted[0][0] < 100
    assert max(steps) < 100
    assert not [reads for count, reads in noted if count < 500 and reads]


def test_of_small_packets_a_few_are_taken_at_once() -> None:
    """The next are left to gather: the application is not woken for each."""

    async def packets(protocol: asyncio.Protocol, look: Look) -> list[tuple[int, bool]]:
        protocol.data_received(head(content_length=1000))
        noted = []
        for _ in range(200):
            if look()[1]:
                protocol.data_received(b"x")
            noted.append(look())
        return noted

    noted = seen(packets)
    assert noted[0] == (1, True)
    assert 10 < noted[-1][0] < 50
    assert not noted[-1][1]


def test_paths_with_odd_bytes(running: Running) -> None:
    for path in ("/%00", "/..%2f..%2fetc/passwd", "/%ff%fe", "//healthz", "/v1/jobs/%0d%0aX:1"):
        status, headers, _ = running.talk(head("GET", path, connection="close"))
        assert status in (404, 405, 422)
        assert "x" not in headers


# The end

SERVER = """
import sys
from srgan_service import server
from srgan_service.settings import Settings
server.serve(Settings(port=int(sys.argv[1]), grace_s=30, model=sys.argv[2], tile_lr_px=16, jobs=False))
"""


@pytest.fixture
def process(tmp_path: Path, tiny_model: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    environment = {**os.environ, "SRGAN_DATA_DIR": str(tmp_path / "data")}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port), str(tiny_model)],
        env=environment,
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
    ) as started:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/readyz") == 200)
            yield started, port
        finally:
            started.kill()


def answers(url: str) -> int:
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return 0


def test_sigterm_ends_in_good_order(process: tuple[subprocess.Popen[bytes], int]) -> None:
    """What is in work is finished, a stalled upload refused, and the exit code says that all is well."""
    started, port = process
    content = png(150, 150)
    with (
        socket.create_connection(("127.0.0.1", port)) as working,
        socket.create_connection(("127.0.0.1", port)) as stalled,
    ):
        stalled.sendall(head(content_length=1000) + b"abc")
        working.sendall(head(content_length=len(content)) + content)
        metrics = f"http://127.0.0.1:{port}/metrics"
        until(lambda: "srgan_small_working 1.0" in httpx.get(metrics, trust_env=False).text)
        started.send_signal(signal.SIGTERM)
        problem(answer_on(stalled), 503, "draining")
        status, _, body = answer_on(working)
        assert status == 200
        assert body.startswith(b"\x89PNG")
    assert started.wait(20) == 0
    assert started.stderr is not None
    assert b"Traceback" not in started.stderr.read()


def test_sigterm_during_long_work_ends_after_the_grace_time() -> None:
    blocked = Blocked()
    with serving(before=blocked, grace_s=0.3, tile_lr_px=16) as server:
        content = png(64, 64)
        with server.connect(head(content_length=len(content), connection="close") + content) as connection:
            assert blocked.entered.acquire(timeout=30)
            server.loop_call(server.service.drain)
            problem(server.client.get("/readyz"), 503, "not-ready")
            problem(server.client.post("/v1/upscale", content=png()), 503, "draining")
            (ticket,) = server.service.works.lanes["small"].working
            until(lambda: ticket.flow.stopped)
            blocked.let_go()
            problem(answer_on(connection), 503, "draining")


# The command


def test_a_folder_with_a_package_called_service_changes_nothing(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__init__.py").write_text('raise RuntimeError("somebody else\'s")')
    port = free_port()
    arguments = ["--port", str(port), "--model", str(tiny_model), "--data-dir", "data"]
    with subprocess.Popen([sys.executable, "-m", "srgan", "serve", *arguments], cwd=tmp_path) as started:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/healthz") == 200)
            started.send_signal(signal.SIGTERM)
            assert started.wait(30) == 0
        finally:
            started.kill()


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--host", "0.0.0.0"], {}, "SRGAN_KEYS"),
        (["--host", "example.org"], {}, "SRGAN_KEYS"),
        (["--host", "::"], {}, "SRGAN_KEYS"),
        (["--port", "99999"], {}, "SRGAN_PORT"),
        (["--model", "nonsense"], {}, "no model 'nonsense'"),
        ([], {"SRGAN_LIMIT_BYTES": "many"}, "SRGAN_LIMIT_BYTES"),
        ([], {"SRGAN_KEYS": "me:short"}, "shorter than 22 characters"),
        (["--keys-file", "/nowhere.toml"], {}, "cannot be read"),
        ([], {"SRGAN_LIMIT_BITES": "1"}, "SRGAN_LIMIT_BITES is no setting: did you mean SRGAN_LIMIT_BYTES?"),
        ([], {"SRGAN_ZZZ": "1"}, "SRGAN_ZZZ is no setting"),
        (["--data-dir", "/dev/null"], {}, "--data-dir"),
        (["--data-dir", "/dev/null/data"], {}, "data_dir /dev/null/data: Not a directory"),
    ],
)
def test_serving_nonsense_is_refused(
    arguments: list[str],
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from srgan.commands import cli

    monkeypatch.setattr(sys, "argv", ["srgan", "serve", *arguments])
    monkeypatch.setattr("srgan_service.logs.configure", lambda level: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    threads = set(threading.enumerate())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert set(threading.enumerate()) <= threads
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path, tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "srgan", "serve", "--port", str(port), "--model", str(tiny_model)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    told = f"srgan: error: port {port} of 127.0.0.1 is in use by another program: end that, or take --port "
    assert done.stderr.startswith(told)
    assert int(done.stderr.removeprefix(told)) > port


def test_a_person_at_a_terminal_is_told_what_to_open(tmp_path: Path, tiny_model: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "srgan", "serve", "--port", str(port), "--model", str(tiny_model)]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=theirs) as server:
        os.close(theirs)
        try:
            told = ""
            with open(ours, encoding="utf-8") as terminal:  # noqa: PTH123  # a descriptor
                while "Ctrl-C" not in told:
                    told += terminal.readline()
        finally:
            server.kill()
    assert f"Open http://127.0.0.1:{port}  (Ctrl-C ends it)" in told
    assert "{" not in told


def test_lines_for_a_person_cannot_be_forged() -> None:
    record = logging.LogRecord("any", logging.WARNING, "", 0, "odd\nforged \x1b[31m", None, None)
    line = formatter(for_person=True).format(record)
    assert line.splitlines() == [line]
    assert "\x1b" not in line
    assert "warning odd\\nforged" in line
