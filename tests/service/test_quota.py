"""Disk: what one key's jobs may keep, what nobody needs any more, and who may read it."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from srgan_service.jobs.storage import Storage
from srgan_service.jobs.workflows import Workflows
from srgan_service.work import service
from support.serving import QUICK, Blocked, Running, ended, left, png, problem, serving, until

ALICE, BOB = {"X-API-Key": "alice-alice-alice-alice-1"}, {"X-API-Key": "bob-bob-bob-bob-bob-bob-2"}
KEYS = f"alice:{ALICE['X-API-Key']},bob:{BOB['X-API-Key']}"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "jobs").rglob("*") if path.is_file())


def test_a_key_keeps_so_many_jobs(tmp_path: Path) -> None:
    with serving(data_dir=str(tmp_path), keys=KEYS, key_jobs=2, **QUICK) as server:
        first, second = (left(server, headers=ALICE) for _ in range(2))
        for location in (first, second):
            ended(server, location, **ALICE)
        refusal = problem(server.client.post("/v1/jobs", content=png(), headers=ALICE), 429, "key-over-share")
        assert "2 jobs" in refusal["detail"]
        left(server, headers=BOB)
        assert server.client.delete(first, headers=ALICE).status_code == 204
        left(server, headers=ALICE)


def test_a_key_keeps_so_many_bytes(tmp_path: Path) -> None:
    """Of uploads before they are accepted, of results before they are written; what is removed counts no more."""
    four = [("image", ("a.png", png(30, 30, seed))) for seed in range(4)]
    with serving(data_dir=str(tmp_path), keys=KEYS, key_job_bytes=70_000, **QUICK) as server:
        location = left(server, content=None, files=four, headers=ALICE, params={"format": "bmp"})
        job = ended(server, location, **ALICE)
        assert job["result"]["bytes"] > 120 * 120 * 3  # none of the second's 43 KB beside the first's
        codes = [file["error"] and file["error"]["code"] for file in job["files"]]
        assert codes == [None, *["key-over-share"] * 3]
        assert ended(server, left(server, headers=BOB), **BOB)["status"] == "completed"
        assert server.client.delete(location, headers=ALICE).status_code == 204
        many = [("image", ("a.png", png(90, 90, seed))) for seed in range(4)]
        problem(server.client.post("/v1/jobs", files=many, headers=ALICE), 429, "key-over-share")
        assert len(list((tmp_path / "jobs").iterdir())) == 1  # Bob's
        assert ended(server, left(server, headers=ALICE), **ALICE)["status"] == "completed"


def test_what_comes_at_the_same_time_counts(tmp_path: Path) -> None:
    content, blocked = png(100, 100), Blocked()
    with serving(data_dir=str(tmp_path), keys=KEYS, key_job_bytes=50_000, before=blocked, **QUICK) as server:

        def leave(_: int) -> int:
            return server.client.post("/v1/jobs", content=content, headers=ALICE).status_code

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(leave, range(4))) == [202, 429, 429, 429]
        blocked.let_go()


def test_a_key_has_its_own_share_of_the_jobs(tmp_path: Path) -> None:
    entries = [("alice", ALICE, 0.25), ("bob", BOB, 0.75)]
    (tmp_path / "keys.toml").write_text(
        "".join(
            f'[keys.{name}]\nsha256 = "{hashlib.sha256(key["X-API-Key"].encode()).hexdigest()}"\nshare = {share}\n'
            for name, key, share in entries
        )
    )
    blocked = Blocked()
    settings = {"data_dir": str(tmp_path / "data"), "keys_file": tmp_path / "keys.toml", "job_queue": 4, **QUICK}
    with serving(before=blocked, **settings) as server:
        left(server, headers=ALICE)
        problem(server.client.post("/v1/jobs", content=png(), headers=ALICE), 429, "key-over-share")
        for _ in range(3):
            left(server, headers=BOB)
        blocked.let_go()


def test_what_has_ended_keeps_its_result_alone(tmp_path: Path) -> None:
    with serving(data_dir=str(tmp_path), **QUICK) as server:
        failed = left(server, content=png()[:60])
        assert ended(server, failed)["status"] == "failed"
        assert files(tmp_path) == []
        assert server.client.get(failed).json()["error"]["code"] == "damaged-picture"
        one = left(server)
        assert ended(server, one)["status"] == "completed"
        assert files(tmp_path) == ["0000_x4.png"]
        many = left(server, content=None, files=[("image", ("a.png", png())), ("image", ("b.png", png()))])
        assert ended(server, many)["status"] == "completed"
        assert files(tmp_path) == ["0000_x4.png", "result.zip"]
        for location in (one, many):
            assert server.client.get(f"{location}/result").status_code == 200


def test_refused_uploads_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever refuses them, and whenever."""
    with serving(data_dir=str(tmp_path), limit_bytes=5000, **QUICK) as server:
        write, add = Storage.write, Workflows.add
        several = [("image", ("a.png", png())), ("image", ("b.png", png(seed=1)))]

        def full_at_second(self: Storage, name: str, content: bytes) -> None:
            if name.endswith("-0001"):
                raise OSError(28, "No space left on device")
            write(self, name, content)

        def broken(self: Workflows, *arguments: Any) -> bool:
            raise OSError("no database")

        for owner, name, value in ((Storage, "write", full_at_second), (Workflows, "add", broken)):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, value)
                problem(server.client.post("/v1/jobs", files=several), 503, "storage-failed")
        assert server.client.post("/v1/jobs?model=none", content=png()).status_code == 422
        assert server.client.post("/v1/jobs", content=b"hello").status_code == 415
        with server.connect(
            b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900\r\n\r\n" + png()[:50]
        ):
            pass
        headers = {"Idempotency-Key": "k"}
        left(server, headers=headers)
        problem(server.client.post("/v1/jobs", content=png(seed=1), headers=headers), 409, "conflict")
        assert Workflows.add is add
        assert len(list((tmp_path / "jobs").iterdir())) == 1


def test_jobs_are_accepted_as_long_as_the_service_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(data_dir=str(tmp_path), **QUICK) as server:
        causes: dict[str, tuple[object, str, object]] = {
            "disk": (shutil, "disk_usage", lambda place: SimpleNamespace(free=0)),
            "storage": (server.service, "jobs_not_ready", lambda: "storage"),
            "memory": (service, "available_bytes", lambda: 0),
        }
        for reason, cause in causes.items():
            with monkeypatch.context() as patch:
                patch.setattr(*cause)
                until(lambda: server.client.get("/readyz").status_code == 503)
                for answer in (server.client.get("/readyz"), server.client.post("/v1/jobs", content=png())):
                    assert problem(answer, 503, "not-ready")["detail"] == reason
                status = server.client.post("/v1/upscale", content=png()).status_code
                assert status == (503 if reason == "memory" else 200)  # which needs no disk
            until(lambda: server.client.get("/readyz").status_code == 200)
        assert server.client.get("/v1/jobs").json()["jobs"] == []
        left(server)


def test_other_users_cannot_read_what_is_kept(tmp_path: Path) -> None:
    old = tmp_path / "data" / "jobs" / ("o" * 32)
    old.mkdir(parents=True)  # by a version that let everybody in
    for folder in (tmp_path / "data" / "jobs", tmp_path / "data" / "executors"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    (tmp_path / "data" / "jobs.sqlite").touch(0o644)
    with serving(data_dir=str(tmp_path / "data"), **QUICK) as server:
        ended(server, left(server))
        kept = [path for path in (tmp_path / "data").rglob("*") if path != old]
        assert {path.name for path in kept} > {"jobs", "executors", "out", "0000_x4.png", "jobs.sqlite"}
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in kept}
        assert modes == {path.name: 0o700 if path.is_dir() else 0o600 for path in kept}
    Storage(str(tmp_path / "new" / "data")).prepare()
    assert stat.S_IMODE((tmp_path / "new" / "data").stat().st_mode) == 0o700


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    """Somebody may have given one that belongs to others, too."""
    tmp_path.chmod(0o755)
    Storage(str(tmp_path)).prepare()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


# Who watches


def watching(server: Running, location: str, key: dict[str, str]) -> Any:
    return server.connect(
        f"GET {location}/events HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key['X-API-Key']}\r\n\r\n".encode()
    )


def test_watchers_of_one_key_leave_room_for_those_of_another(tmp_path: Path) -> None:
    with serving(data_dir=str(tmp_path), keys=KEYS, job_watchers=4, job_poll_s=60, jobs=True) as server:
        of_alice, of_bob = left(server, headers=ALICE), left(server, headers=BOB)
        held = [watching(server, of_alice, ALICE) for _ in range(5)]
        heads = [connection.recv(12) for connection in held]
        assert sorted(heads) == [b"HTTP/1.1 200"] * 2 + [b"HTTP/1.1 429"] * 3
        bobs = [watching(server, of_bob, BOB) for _ in range(2)]
        assert [connection.recv(12) for connection in bobs] == [b"HTTP/1.1 200"] * 2
        for connection in held:
            connection.close()
        problem(server.client.get("/v1/jobs/none/events", headers=BOB), 429, "key-over-share")
        for connection in bobs:
            connection.close()


# Odd encodings

ODD_CHARSETS = [
    *(
        "undefined",
        "idna",
        "punycode",
        "utf-7",
        "utf-16",
        "unicode_escape",
        "base64",
        "rot13",
        "none",
        '"',
    ),
    *("cp65001", "latin-1", "a" * 10_000, "\xe9", "utf-8' x", "mbcs", "hex", "zlib"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(data_dir=str(tmp_path_factory.mktemp("jobs")), **QUICK) as server:
        yield server


@pytest.mark.parametrize("charset", ODD_CHARSETS)
def test_a_charset_changes_nothing(running: Running, charset: str) -> None:
    """RFC 7578 knows none for a form; a picture has none."""
    form = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="\xc3\xa4+2AA-.png"\r\n\r\n%b\r\n--b--\r\n'
    )
    value = f"multipart/form-data; boundary=b; charset*={charset}; charset={charset}".encode("latin-1")
    answer = running.client.post("/v1/upscale", content=form % png(), headers=[(b"Content-Type", value)])
    assert answer.status_code == 200, answer.text
    assert "%C3%A4%2B2AA-_x4.png" in answer.headers["content-disposition"]
    headers = [(b"Content-Type", f"image/png; charset={charset}".encode("latin-1"))]
    assert running.client.post("/v1/upscale", content=png(), headers=headers).status_code == 200


@pytest.mark.parametrize(
    "odd",
    [
        *(
            b"name=\"image\"; filename*=undefined''%ff",
            b"name*=idna''image; filename=\"a\"",
            b'name="\xff"; filename="a"',
        ),
        *(
            b'name="image"; filename="\xed\xa0\x80.png"',
            b"name=image; filename=",
            b'name="ima\x00ge"; filename="\x00"',
        ),
        *(
            b'name="scale"',
            b'name="image"',
            b'name="image"; filename="' + "\u202e".encode() * 1000 + b'"',
            b"",
            b";;=;",
        ),
    ],
)
def test_odd_fields_are_no_fault_of_the_service(running: Running, odd: bytes) -> None:
    form = (
        b"--b\r\nContent-Disposition: form-data; %b\r\nContent-Type: x; charset=undefined\r\n\r\n%b\r\n--b--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for address in ("/v1/upscale", "/v1/jobs"):
        for content in (png(), b"\xff\xfe", b""):
            answer = running.client.post(address, content=form % (odd, content), headers=headers)
            assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("boundary", [b"", b'""', b"b" * 71, b"\xff", b'"a\\"b"', b"b; boundary=c", b"\t;"])
def test_odd_boundaries_are_no_fault_of_the_service(running: Running, boundary: bytes) -> None:
    header = (b"Content-Type", b"multipart/form-data; boundary=" + boundary)
    answer = running.client.post("/v1/upscale", content=b"--b\r\n\r\n--b--", headers=[header])
    assert 400 <= answer.status_code < 500, answer.text


ODD_HEADERS = (
    *("Idempotency-Key", "Range", "If-None-Match", "If-Range", "Last-Event-ID", "X-Request-Id", "Accept", "TE"),
    *("If-Modified-Since", "Content-Encoding", "Accept-Encoding", "Authorization", "X-API-Key", "Cookie"),
)


@pytest.mark.parametrize("value", [b"\xff\xfe", "+2AA-\u0661".encode(), b"1e999", b"'" * 2000])
def test_odd_headers_and_queries_are_no_fault_of_the_service(running: Running, value: bytes) -> None:
    location = left(running)
    ended(running, location)
    headers = [(name.encode(), value) for name in ODD_HEADERS]
    text = "".join(f"%{byte:02x}" for byte in value)
    paths = [f"{location}/result", f"{location}/events", "/static/app.js", "/v1/models", f"/static/{text}"]
    for path in (*paths, "/static/%00", f"/v1/jobs?limit={text}&offset={text}", f"/v1/jobs/{text[:99]}"):
        answer = running.client.get(path, headers=headers)
        assert answer.status_code < 500, (path, answer.text)
    assert running.client.post("/v1/jobs", content=png(), headers=headers).status_code < 500
    for query in ("model", "scale", "format", "quality", text, "balance", "metadata"):
        assert running.client.post(f"/v1/upscale?{query}={text}", content=png()).status_code == 422


def test_false_boundaries_are_counted(running: Running) -> None:
    """Each costs the parser a thousand times its bytes."""
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    form = io.BytesIO(part + b"\r\n--bx" * 1000 + b"\r\n--b--\r\n")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = running.client.post("/v1/upscale", content=form.getvalue(), headers=headers)
    assert "parts" in problem(answer, 400, "malformed-request")["detail"]
