"""What the OpenAPI document promises: every answer that it names can be had, and tells what it should."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from srgan_service.http import problems
from srgan_service.http.keys import Holder
from srgan_service.http.problems import Problem
from srgan_service.jobs.jobs import Jobs
from srgan_service.work.admission import Gate
from support.serving import QUICK, Blocked, Running, ended, head, left, png, problem, serving

from srgan.errors import EngineError

ALICE = "alice-alice-alice-alice-1"
KEY = {"X-API-Key": ALICE}
NO_SUCH_JOB = "a" * 32

# Operation: its method and address, and what a request needs that succeeds.
REQUESTS: dict[str, tuple[str, str]] = {
    "upscale": ("POST", "/v1/upscale"),
    "list_limits": ("GET", "/v1/limits"),
    "list_models": ("GET", "/v1/models"),
    "create_job": ("POST", "/v1/jobs"),
    "list_jobs": ("GET", "/v1/jobs"),
    "get_job": ("GET", "/v1/jobs/{id}"),
    "delete_job": ("DELETE", "/v1/jobs/{id}"),
    "get_result": ("GET", "/v1/jobs/{id}/result"),
    "watch_job": ("GET", "/v1/jobs/{id}/events"),
    "health": ("GET", "/healthz"),
    "ready": ("GET", "/readyz"),
    "metrics": ("GET", "/metrics"),
}


class Caller:
    """Makes requests of one operation to a server, whose parts `patch` may spoil for the moment."""

    def __init__(self, server: Running, operation: str, job: str, patch: pytest.MonkeyPatch) -> None:
        self.server, self.operation, self.patch = server, operation, patch
        self.method, self.template = REQUESTS[operation]
        self.job = job
        self.undo = contextlib.ExitStack()

    @property
    def path(self) -> str:
        return self.template.format(id=self.job)

    def ask(
        self, query: str = "", content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        body = (png() if content is None else content) if self.method == "POST" else None
        return self.server.client.request(
            self.method, self.path + query, content=body, headers={**KEY, **(headers or {})}
        )

    def talk(self, body: bytes = b"", **headers: Any) -> tuple[int, dict[str, str], bytes]:
        sent = head(self.method, self.path, connection="close", x_api_key=ALICE, **headers)
        return self.server.talk(sent + body)

    def set(self, name: str, value: object) -> None:
        """Change a setting."""
        self.patch.setitem(self.server.service.settings.__dict__, name, value)

    def spoil(self, owner: object, name: str, value: object) -> None:
        self.patch.setattr(owner, name, value)

    def crowd(self, key: str, share: float) -> None:
        """Let so many requests of one key in, wherever pictures come in, that there is no room for more."""
        for gate in (self.server.service.gate, self.server.app.state.desk.gate):
            self.server.loop_call(lambda gate=gate: self._crowd(gate, key, share))  # type: ignore[misc]

    def _crowd(self, gate: Gate, key: str, share: float) -> None:
        with contextlib.suppress(Problem):
            while True:
                ticket = gate.enter(key, share, 0)
                self.undo.callback(self.server.loop_call, lambda ticket=ticket: gate.leave(ticket))  # type: ignore[misc]


def anonymous(caller: Caller) -> Any:
    return caller.server.client.request(caller.method, caller.path)


def no_connections(caller: Caller) -> Any:
    caller.set("connections", -1)
    return caller.talk()


def full(caller: Caller) -> Any:
    caller.crowd("somebody", 1.0)
    caller.set("job_watchers", 0)
    return caller.ask()


def over_share(caller: Caller) -> Any:
    caller.crowd("alice", 0.5)
    caller.set("job_watchers", 2)
    watching = caller.server.app.state.desk.watching(Holder("alice", 0.5))
    caller.server.loop_call(watching.__enter__)
    caller.undo.callback(caller.server.loop_call, lambda: watching.__exit__(None, None, None))
    return caller.ask()


def draining(caller: Caller) -> Any:
    caller.spoil(caller.server.service.gate, "draining", True)
    return caller.ask()


def not_ready(caller: Caller) -> Any:
    caller.spoil(caller.server.service.models, "ready", False)
    state = caller.server.app.state
    caller.undo.callback(setattr, state, "desk", state.desk)
    state.desk = None
    return caller.ask()


def broken_storage(caller: Caller) -> Any:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("get", "page", "submit", "remove"):
        caller.spoil(Jobs, name, fail)
    return caller.ask()


def missing(caller: Caller) -> Any:
    caller.job = NO_SUCH_JOB
    return caller.ask()


def wrong_parameter(caller: Caller) -> Any:
    if "{id}" not in caller.template:
        return caller.ask("?limit=none&model=none")
    caller.job = "a" * 101
    return caller.ask()


def slow(caller: Caller) -> Any:
    caller.set("body_timeout_s", 0.05)
    return caller.talk(content_length=1000)


def too_slow_an_engine(caller: Caller) -> Any:
    caller.spoil(caller.server.service.device, "best_lr_px_per_s", 0.001)
    return caller.ask()


def no_time(caller: Caller) -> Any:
    caller.set("deadline_s", 0)
    return caller.ask()


def broken_engine(caller: Caller) -> Any:
    def fail() -> None:
        raise EngineError("poisoned")

    caller.spoil(caller.server.engine, "before", fail)
    return caller.ask()


def contradiction(caller: Caller) -> Any:
    if caller.operation == "create_job":
        key = {"Idempotency-Key": "contradiction"}
        caller.ask(headers=key)
        return caller.ask(content=png(seed=1), headers=key)
    caller.job = left(caller.server, content=png()[:60], headers=KEY).rpartition("/")[2]
    ended(caller.server, f"/v1/jobs/{caller.job}", **KEY)
    return caller.ask()


PROBLEMS: dict[str, Callable[[Caller], Any]] = {
    "malformed-request": lambda caller: caller.talk(content_length=5, transfer_encoding="chunked"),
    "headers-too-large": lambda caller: caller.talk(x="y" * 70_000),
    "too-many-connections": no_connections,
    "unauthorized": anonymous,
    "not-ready": not_ready,
    "draining": draining,
    "queue-full": full,
    "key-over-share": over_share,
    "storage-failed": broken_storage,
    "not-found": missing,
    "invalid-parameter": wrong_parameter,
    "upload-too-slow": slow,
    "takes-too-long": too_slow_an_engine,
    "deadline": no_time,
    "engine-failed": broken_engine,
    "conflict": contradiction,
    "no-picture": lambda caller: caller.ask(content=b""),
    "too-many-bytes": lambda caller: caller.ask(content=png()[:16] + bytes(100_000)),
    "chunks-too-small": lambda caller: caller.talk(b"1\r\nx\r\n" * 1001, transfer_encoding="chunked"),
    "too-many-pixels": lambda caller: caller.ask(content=png(101, 100)),
    "unsupported-format": lambda caller: caller.ask(content=b"hello"),
    "damaged-picture": lambda caller: caller.ask(content=png()[:60]),
    "range-not-satisfiable": lambda caller: caller.ask(headers={"Range": "bytes=99999999-"}),
}


def part(caller: Caller) -> httpx.Response:
    return caller.ask(headers={"Range": "bytes=0-9"})


def same(caller: Caller) -> httpx.Response:
    return caller.ask(headers={"If-None-Match": caller.ask().headers["etag"]})


def cancelled(caller: Caller) -> httpx.Response:
    """The answer for a job that cannot be done before it is cancelled."""
    blocked = Blocked()
    caller.spoil(caller.server.engine, "before", blocked)
    caller.job = left(caller.server, content=png(99, 99), headers=KEY).rpartition("/")[2]
    assert blocked.entered.acquire(timeout=60)
    try:
        return caller.ask()
    finally:
        blocked.let_go()


def removed(caller: Caller) -> httpx.Response:
    caller.job = left(caller.server, headers=KEY).rpartition("/")[2]
    ended(caller.server, f"/v1/jobs/{caller.job}", **KEY)
    return caller.ask()


GOOD: dict[tuple[str, str], Callable[[Caller], httpx.Response]] = {
    **{(operation, "200"): Caller.ask for operation in REQUESTS if operation not in ("create_job", "delete_job")},
    ("create_job", "202"): Caller.ask,
    ("delete_job", "202"): cancelled,
    ("delete_job", "204"): removed,
    ("get_result", "206"): part,
    ("get_result", "304"): same,
    ("watch_job", "204"): lambda caller: caller.ask(headers={"Last-Event-ID": "ended"}),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("jobs")
    limits: dict[str, Any] = {
        "limit_bytes": 90_000,
        "limit_megapixels": 0.01,
        "tile_lr_px": 16,
        "body_bytes_per_s": 10**9,
    }
    with serving(data_dir=str(folder), keys=f"alice:{ALICE}", log_level="CRITICAL", **limits, **QUICK) as server:
        yield server


@pytest.fixture(scope="module")
def job(running: Running) -> str:
    """The id of a job that is done."""
    location = left(running, headers=KEY)
    assert ended(running, location, **KEY)["status"] == "completed"
    return location.rpartition("/")[2]


def test_these_are_all_operations(running: Running) -> None:
    paths = running.app.openapi()["paths"]
    described = {
        operation["operationId"]: (method.upper(), path)
        for path, operations in paths.items()
        for method, operation in operations.items()
    }
    assert described == REQUESTS


@pytest.mark.parametrize("operation", REQUESTS)
def test_every_documented_answer_is_given(
    running: Running, job: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each status, and of each problem each code, by a request of that operation."""
    method, path = REQUESTS[operation]
    for status, response in running.app.openapi()["paths"][path][method.lower()]["responses"].items():
        content = response.get("content", {})
        for code in content.get("application/problem+json", {}).get("examples", {}):
            with monkeypatch.context() as patch:
                caller = Caller(running, operation, job, patch)
                with caller.undo:
                    problem(PROBLEMS[code](caller), int(status), code)
        if int(status) < 400:
            with monkeypatch.context() as patch:
                answer = GOOD[operation, status](Caller(running, operation, job, patch))
            assert answer.status_code == int(status), answer.text
            kinds = answer.headers.get("content-type", "").partition(";")[0]
            assert not content or kinds in content
            for name in response.get("headers", {}):
                assert name in answer.headers or name in ("X-Warnings", "X-Invented-Levels"), name


def test_no_documented_problem_is_forgotten_and_none_undocumented(running: Running) -> None:
    documented = json.dumps(running.app.openapi()["paths"])
    missing = {code for code in problems.PROBLEMS if f'"{code}"' not in documented}
    # The last one is of services without keys.
    assert missing == {"method-not-allowed", "internal-error", "foreign-origin"}
