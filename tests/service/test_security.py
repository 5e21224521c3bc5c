"""Keys, logs, and what the service never does."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import logging
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import srgan_service
from hypothesis import given
from hypothesis import strategies as st
from srgan_service import logs
from srgan_service.http.keys import Keys, new_key
from srgan_service.http.problems import Problem
from srgan_service.server import refuse_open_door
from starlette.requests import Request
from support.serving import QUICK, Process, Running, answer_on, head, png, problem, serving, settings_of, until

from srgan.errors import UsageError

ALICE, BOB = "alice-alice-alice-alice-1", "bob-bob-bob-bob-bob-bob-2"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    hashed = hashlib.sha256(BOB.encode()).hexdigest()
    with serving(keys=f"alice:{ALICE}, bob:sha256:{hashed}", queue_requests=4) as server:
        yield server


# Keys


@pytest.mark.parametrize("headers", [{"X-API-Key": ALICE}, {"Authorization": f"Bearer {BOB}"}])
def test_a_key_lets_in(running: Running, headers: dict[str, str]) -> None:
    assert running.client.post("/v1/upscale", content=png(), headers=headers).status_code == 200
    assert running.client.get("/v1/models", headers=headers).status_code == 200


ODD_KEYS = {
    "none": b"",
    "wrong": b"x-api-key: nonsense\r\n",
    "the beginning of one": f"x-api-key: {ALICE[:-1]}\r\n".encode(),
    "other case": f"x-api-key: {ALICE.upper()}\r\n".encode(),
    "empty": b"x-api-key:\r\n",
    "not ASCII": b"x-api-key: \xe9\xff\x80\r\n",
    "60 KB": b"x-api-key: " + b"k" * 60_000 + b"\r\n",
    "twice": f"x-api-key: {ALICE}\r\nx-api-key: {ALICE}\r\n".encode(),
    "both ways": f"x-api-key: {ALICE}\r\nauthorization: Bearer {BOB}\r\n".encode(),
    "another scheme": f"authorization: Basic {ALICE}\r\n".encode(),
    "its hash": f"x-api-key: {hashlib.sha256(ALICE.encode()).hexdigest()}\r\n".encode(),
}


def test_every_odd_key_gets_the_same_answer(running: Running) -> None:
    answers = set()
    for odd in ODD_KEYS.values():
        answer = running.talk(head(connection="close", content_length=0)[:-2] + odd + b"\r\n")
        document = problem(answer, 401, "unauthorized")
        assert answer[1]["www-authenticate"] == "Bearer"
        answers.add(document["detail"])
    assert len(answers) == 1


def test_without_a_key_nothing_of_the_body_is_read(running: Running) -> None:
    problem(running.talk(head(content_length=1_000_000)), 401, "unauthorized")
    assert running.service.gate.inside == 0
    for path in ("/healthz", "/readyz"):
        assert running.client.get(path).status_code == 200
    problem(running.client.get("/metrics"), 401, "unauthorized")


def test_keys_are_compared_in_constant_time() -> None:
    """All digests, by hmac.compare_digest, without an early end."""
    tree = ast.parse((Path(srgan_service.__file__).parent / "http" / "keys.py").read_text())
    holder = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "holder")
    loop = next(node for node in ast.walk(holder) if isinstance(node, ast.For))
    called = {ast.unparse(node.func) for node in ast.walk(loop) if isinstance(node, ast.Call)}
    assert called == {"hmac.compare_digest"}
    assert not [node for node in ast.walk(loop) if isinstance(node, ast.Break | ast.Return | ast.Compare)]


def test_only_hashes_are_kept() -> None:
    given_keys = settings_of(keys=f"alice:{ALICE}")
    assert ALICE not in repr(given_keys)
    assert ALICE not in repr(vars(Keys(given_keys)))


def test_a_file_of_keys(tmp_path: Path) -> None:
    key, sha256 = new_key()
    assert len(key) >= 43
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.alice]\nsha256 = "{sha256}"\nshare = 0.1\n')
    keys = Keys(settings_of(keys_file=path))
    request = Request({"type": "http", "headers": [(b"x-api-key", key.encode())]})
    holder = keys.holder(request)
    assert (holder.name, holder.share) == ("alice", 0.1)
    for content in ("nonsense", "[keys.a]\nsha256 = 'short'", "[others]", "keys = 3", "[keys.'a b']"):
        path.write_text(content)
        with pytest.raises(UsageError):
            Keys(settings_of(keys_file=path))


@pytest.mark.parametrize(
    "keys", ["a:short", "noname", ":aaaaaaaaaaaaaaaaaaaaaaaaaaaaa", f"a b:{ALICE}", f"a:{ALICE},a:{BOB}"]
)
def test_keys_that_are_none(keys: str) -> None:
    with pytest.raises(UsageError):
        Keys(settings_of(keys=keys))


@pytest.mark.parametrize(
    "entry", [ALICE, f"{ALICE}:alice", f"{ALICE}:", f"alice:{BOB},{ALICE}", f"a b{ALICE}:{BOB}"]
)
def test_a_key_without_a_name_is_not_printed(entry: str) -> None:
    with pytest.raises(UsageError, match=r"SRGAN_KEYS, entry [12]: ") as refused:
        Keys(settings_of(keys=entry))
    assert ALICE not in str(refused.value)


def test_no_secret_is_in_what_settings_print() -> None:
    secret = settings_of(keys=f"alice:{ALICE}", database_url=f"postgresql://srgan:{BOB}@db/srgan")
    assert ALICE not in repr(secret)
    assert BOB not in repr(secret)


def test_the_door_is_shut_without_keys() -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "", "some.name"):
        with pytest.raises(UsageError, match="--insecure"):
            refuse_open_door(settings_of(host=host))
        refuse_open_door(settings_of(host=host, insecure=True))
        refuse_open_door(settings_of(host=host, keys=f"alice:{ALICE}"))
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        refuse_open_door(settings_of(host=host))


def test_without_keys_only_this_machine_is_served() -> None:
    """However it was started: uvicorn's own command line knows nothing of `refuse_open_door`."""
    keys = Keys(settings_of())
    inside = {"type": "http", "headers": [], "server": ("127.0.0.1", 8000)}
    assert keys.holder(Request(inside)).name == ""
    with pytest.raises(Problem):
        keys.holder(Request({**inside, "server": ("192.0.2.1", 8000)}))
    assert Keys(settings_of(insecure=True)).holder(Request({**inside, "server": ("192.0.2.1", 8000)}))


# Logs


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Lines that a logger wrote as the service does."""
    written: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(self.format(record))

    handler = Handler()
    handler.setFormatter(logs.formatter())
    logger = logging.getLogger("hostile")
    logger.addHandler(handler)
    logger.propagate = False
    yield written
    logger.removeHandler(handler)


@given(text=st.text(st.characters(codec="utf-8"), max_size=50))
def test_a_log_line_is_one_json_object_whatever_a_client_sends(text: str) -> None:
    record = logging.LogRecord(
        "hostile", logging.INFO, "", 0, "path %s", (text + "\r\n\x1b[2J\u2028\u202e",), None
    )
    line = logs.formatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["event"].startswith(f"path {text}")


def test_log_lines_are_short(lines: list[str]) -> None:
    try:
        raise ValueError("x" * 100_000)
    except ValueError:
        logging.getLogger("hostile").exception("y" * 100_000)
    assert len(lines) == 1
    assert len(lines[0]) < 4096
    assert json.loads(lines[0])["level"] == "error"


def test_a_key_is_in_no_log_metric_or_answer(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    headers = {"X-API-Key": ALICE}
    seen = running.client.get("/metrics", headers=headers).text
    seen += running.client.get("/nothing", headers=headers).text
    seen += running.client.post("/v1/upscale", content=b"x", headers=headers).text

    def logged() -> str:
        return "".join(record.getMessage() for record in caplog.records if record.name.startswith("srgan_service"))

    until(lambda: "'path': '/v1/upscale'" in logged())
    seen += logged()
    assert ALICE not in seen
    assert hashlib.sha256(ALICE.encode()).hexdigest() not in seen


# What it never does


def test_nothing_is_fetched_run_or_unpickled() -> None:
    forbidden = {
        "pickle",
        "subprocess",
        "requests",
        "urllib.request",
        "httpx",
        "aiohttp",
        "marshal",
        "shelve",
        "os",
    }
    for path in Path(srgan_service.__file__).parent.rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
        assert not names & forbidden, path


@pytest.mark.slow
def test_no_program_is_run_and_nothing_is_called_during_requests(
    shared: Path, tmp_path: Path, tiny_model: Path
) -> None:
    """As the kernel sees it: the one program is our own decoder, and nobody is connected to."""
    if shutil.which("strace") is None:
        pytest.skip("NOT WATCHED: no strace; apt-get install strace")
    odd = [*(shared / "corpora").rglob("*.eps"), *(shared / "corpora").rglob("*.gif")][:25]
    assert odd
    contents = [png(), b"<svg/>", b"%PDF-1.7", *(path.read_bytes() for path in odd)]
    calls = tmp_path / "calls"
    server = Process(tiny_model, tmp_path / "data")
    try:
        server.wait()
        watch = ["strace", "-f", "-qq", "-s", "200", "-e", "trace=execve,connect", "-o", str(calls)]
        with subprocess.Popen([*watch, "-p", str(server.pid)]) as watching:
            try:
                until(lambda: "TracerPid:\t0\n" not in Path(f"/proc/{server.pid}/status").read_text())
                for content in contents:
                    answer = server.client.post(
                        "/v1/upscale?scale=1", content=content, timeout=120
                    )  # under strace
                    assert answer.status_code < 500
                assert server.client.post("/v1/jobs", content=png(), timeout=120).status_code == 202
            finally:
                watching.terminate()
    finally:
        server.close()
    seen = calls.read_text()
    programs = re.findall(r'execve\("([^"]*)", \[(.*)\]', seen)
    assert programs  # the decoder's process at least
    assert all(
        Path(name).name.startswith("python") and "srgan.pictures.guarded" in arguments
        for name, arguments in programs
    )
    assert "AF_INET" not in seen


@pytest.mark.slow
def test_what_a_running_server_logs_is_one_object_a_line(tmp_path: Path, tiny_model: Path) -> None:
    hostile = "\r\n\x1b[2J\u2028\u202e{injected}"
    server = Process(tiny_model, tmp_path / "data", log=tmp_path / "log")
    try:
        server.wait()
        quoted = quote(hostile)
        assert server.client.get(f"/{quoted}?{quoted}").status_code == 404
        assert server.client.post("/v1/jobs", files={"image": (hostile, png())}).status_code == 202
        odd = [(b"X-Request-Id", b"a\x1b[2J{injected}"), (b"User-Agent", b"\xe2\x80\xae{injected}")]
        assert server.client.get("/healthz", headers=odd).status_code in (200, 400)
        server.client.post(f"/v1/upscale?model={quoted}", content=b"x", headers={"X-API-Key": ALICE})
        large = server.client.post("/v1/jobs", content=png(400, 400)).headers["location"]
        until(lambda: server.client.get(large).json()["status"] == "processing")
        assert server.client.delete(large).status_code == 202
        folder = tmp_path / "data" / large.removeprefix("/v1/")
        until(lambda: [path.name for path in folder.iterdir()] == ["cancelled"])
        assert server.kill(signal.SIGTERM) == 0
    finally:
        server.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len([line for line in lines if json.loads(line)["event"] == "request"]) >= 4
    assert not [line for line in lines if json.loads(line)["level"] in ("error", "critical")]
    assert all(line.isascii() and line.isprintable() and len(line) < 4096 for line in lines)
    assert ALICE not in "".join(lines)


MULTIPART = (
    b'--b\r\nContent-Disposition: form-data; name="scale"\r\n\r\n2\r\n'
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="../x.png"\r\nContent-Type: image/png\r\n\r\n'
    + png()
    + b"\r\n--b--\r\n"
)


def spoiled(random: np.random.Generator) -> bytes:
    """A good request with some of its bytes lost, doubled or changed."""
    where = random.choice(["/v1/upscale", "/v1/jobs", "/v1/models", "/healthz", "/docs", "/static/app.js"])
    length = {"content_length": len(MULTIPART)} if random.random() < 0.5 else {"transfer_encoding": "chunked"}
    kind = {"content_type": "multipart/form-data; boundary=b", "connection": "close"}
    sent = head(path=str(where), **kind, **length) + MULTIPART
    for _ in range(random.integers(1, 5)):
        start = int(random.integers(0, len(sent)))
        stop = start + int(random.integers(0, 40))
        other = random.bytes(int(random.integers(0, 20))) if random.random() < 0.7 else sent[start:stop] * 2
        sent = sent[:start] + other + sent[stop:]
    return sent


@pytest.mark.slow
def test_spoiled_requests_are_answered_or_closed_and_hurt_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quick: dict[str, Any] = {"header_timeout_s": 0.2, "body_timeout_s": 0.2, "body_bytes_per_s": 10**9}
    with serving(data_dir=str(tmp_path), **quick, **QUICK) as server:
        random = np.random.default_rng(0)
        for _ in range(300):
            with contextlib.suppress(ConnectionError), server.connect(spoiled(random)) as connection:
                status, headers, body = answer_on(connection)
                assert status < 500, (status, body)
                assert status < 400 or headers["content-type"] == "application/problem+json"
        assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert server.client.post("/v1/upscale", content=png()).status_code == 200
        until(lambda: server.service.gate.inside == 0)


def test_cross_origin_requests_get_no_permission(running: Running) -> None:
    answer = running.client.options(
        "/v1/upscale", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_one_key_cannot_take_everything(running: Running) -> None:
    mine = {"x_api_key": ALICE}
    with running.connect(head(content_length=10, **mine)), running.connect(head(content_length=10, **mine)):
        until(lambda: running.service.gate.inside == 2)
        problem(running.talk(head(content_length=10, **mine)), 429, "key-over-share")
        answer = running.client.post("/v1/upscale", content=png(), headers={"X-API-Key": BOB})
        assert answer.status_code == 200
