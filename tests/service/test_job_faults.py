"""Jobs of servers that are killed, full, locked out, or shared; each test has a server of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from srgan_service.jobs.jobs import Jobs
from srgan_service.jobs.storage import Storage
from support.serving import (
    QUICK,
    Blocked,
    Process,
    accepted,
    ended,
    events_of,
    expected,
    left,
    png,
    problem,
    results,
    serving,
    until,
)

from srgan.errors import UsageError

ALICE, BOB = "alice-alice-alice-alice-1", "bob-bob-bob-bob-bob-bob-2"


def test_jobs_are_listed_by_pages(tmp_path: Path) -> None:
    with serving(data_dir=str(tmp_path), **QUICK) as server:
        ids = [left(server).rpartition("/")[2] for _ in range(5)]
        listed, offset = [], 0
        while offset is not None:
            page = server.client.get(f"/v1/jobs?limit=2&offset={offset}").json()
            listed += [job["id"] for job in page["jobs"]]
            offset = page["next_offset"]
        assert sorted(listed) == sorted(ids)


def test_a_job_can_be_cancelled_between_tiles_and_removed(tmp_path: Path) -> None:
    blocked = Blocked()
    with serving(before=blocked, data_dir=str(tmp_path), tile_lr_px=16, **QUICK) as server:
        location, waiting = left(server, content=png(64, 64)), left(server, content=png(64, 64))
        assert blocked.entered.acquire(timeout=30)
        blocked.let_go_once()
        assert blocked.entered.acquire(timeout=30)
        begun = server.client.get(location).json()
        assert begun["status"] == "processing"
        assert 0 < begun["progress"] < 1
        seen: list[dict[str, Any]] = []
        watcher = threading.Thread(target=lambda: seen.extend(events_of(server.client, location)))
        watcher.start()
        for address in (waiting, location):
            answer = server.client.delete(address)
            assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
            job = server.client.get(address).json()
            assert (job["status"], job["result"]) == ("cancelled", None)
            assert job["finished_at"] < job["expires_at"]
            was_begun = address == location
            assert job["started_at"] == (begun["started_at"] if was_begun else None)
            assert job["progress"] == (begun["progress"] if was_begun else 0)
            problem(server.client.get(f"{address}/result"), 409, "conflict")
        assert [job["status"] for job in server.client.get("/v1/jobs").json()["jobs"]] == ["cancelled"] * 2
        blocked.let_go()
        watcher.join(20)
        assert seen[-1]["status"] == "cancelled"
        until(lambda: not list(tmp_path.glob("jobs/*/in/*")) and not list(tmp_path.glob("jobs/*/out")))
        assert len(server.engine.calls) == 2  # with the tile at hand
        assert server.metric('srgan_jobs_ended_total{state="cancelled"}') == 2
        assert server.client.delete(location).status_code == 204
        problem(server.client.get(location), 404, "not-found")
        problem(server.client.delete(location), 404, "not-found")
        done = left(server)
        assert ended(server, done)["status"] == "completed"
        assert server.client.delete(done).status_code == 204
        problem(server.client.get(f"{done}/result"), 404, "not-found")
        assert not (tmp_path / "jobs" / done.rpartition("/")[2]).exists()


def test_a_service_without_its_jobs_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before their database is open, and no more once it is gone, whatever has been put in its place."""
    opening, begin = Blocked(), Jobs.start

    def start(jobs: Jobs) -> None:
        opening()
        begin(jobs)

    monkeypatch.setattr(Jobs, "start", start)
    folder = tmp_path / "data"
    with serving(data_dir=str(folder), is_ready=False, **QUICK) as server:
        assert opening.entered.acquire(timeout=30)
        assert problem(server.client.get("/readyz"), 503, "not-ready")["detail"] == "jobs"
        assert server.client.post("/v1/upscale", content=png()).status_code == 200
        opening.let_go()
        until(lambda: server.client.get("/readyz").status_code == 200)
        folder.rename(tmp_path / "elsewhere")
        assert problem(server.client.get("/readyz"), 503, "not-ready")["detail"] == "storage"
        assert server.metric("srgan_ready") == 0
        (tmp_path / "elsewhere").rename(folder)
        until(lambda: server.client.get("/readyz").status_code == 200)


def test_jobs_are_seen_by_their_key_alone(tmp_path: Path) -> None:
    with serving(data_dir=str(tmp_path), keys=f"a:{ALICE},b:{BOB}", **QUICK) as server:
        alice, bob = {"X-API-Key": ALICE}, {"X-API-Key": BOB}
        location = left(server, headers={**alice, "Idempotency-Key": "k"})
        assert ended(server, location, **alice)["status"] == "completed"
        for path in (location, f"{location}/result", f"{location}/events"):
            problem(server.client.get(path, headers=bob), 404, "not-found")
            problem(server.client.get(path), 401, "unauthorized")
        problem(server.client.delete(location, headers=bob), 404, "not-found")
        assert server.client.get("/v1/jobs", headers=bob).json()["jobs"] == []
        mine = left(server, headers={**bob, "Idempotency-Key": "k"})
        assert mine != location
        assert len(server.client.get("/v1/jobs", headers=alice).json()["jobs"]) == 1


def test_too_many_jobs_are_refused(tmp_path: Path) -> None:
    blocked = Blocked()
    with serving(
        before=blocked, data_dir=str(tmp_path), keys=f"a:{ALICE},b:{BOB}", job_queue=4, **QUICK
    ) as server:
        alice, bob = {"X-API-Key": ALICE}, {"X-API-Key": BOB}
        for _ in range(2):
            left(server, headers=alice)
        until(lambda: "srgan_jobs_pending 1.0" in server.client.get("/metrics", headers=alice).text)
        problem(server.client.post("/v1/jobs", content=png(), headers=alice), 429, "key-over-share")
        for _ in range(2):
            left(server, headers=bob)
        problem(server.client.post("/v1/jobs", content=png(), headers=bob), 503, "queue-full")
        blocked.let_go()


def test_what_has_expired_is_gone(tmp_path: Path) -> None:
    with serving(data_dir=str(tmp_path), job_expiry_s=0.5, **QUICK) as server:
        location = left(server)
        orphan = tmp_path / "jobs" / ("o" * 32) / "in" / "0"
        orphan.parent.mkdir(parents=True)
        orphan.write_bytes(png())  # of an upload that was cut off by a crash
        until(lambda: server.client.get(location).status_code == 404)
        until(lambda: not list((tmp_path / "jobs").iterdir()))


def test_a_database_that_is_locked_and_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is an undocumented error, and both pass."""
    with serving(data_dir=str(tmp_path), database_timeout_s=0.3, deadline_s=3, **QUICK) as server:
        server.service.decoder.decode(png())  # starting its process may take longer than a request may
        with sqlite3.connect(tmp_path / "jobs.sqlite") as other:
            other.execute("BEGIN EXCLUSIVE")
            problem(server.client.post("/v1/jobs", content=png()), 503, "storage-failed")
            problem(server.client.get("/v1/jobs"), 503, "storage-failed")
            assert server.client.get("/healthz").status_code == 200
            assert server.client.post("/v1/upscale", content=png()).status_code == 200
            other.rollback()
        until(lambda: server.client.get("/v1/jobs").status_code == 200)
        write = Storage.write

        def full(self: Storage, name: str, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Storage, "write", full)
        problem(server.client.post("/v1/jobs", content=png()), 503, "storage-failed")
        monkeypatch.setattr(Storage, "write", write)
        assert ended(server, left(server))["status"] == "completed"


def test_a_result_that_finds_no_room_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, failures = Storage.write, iter(range(1))

    def full_once(self: Storage, name: str, content: bytes) -> None:
        if "/out/" in name and next(failures, None) is not None:
            raise OSError(28, "No space left on device")
        write(self, name, content)

    monkeypatch.setattr(Storage, "write", full_once)
    with serving(data_dir=str(tmp_path), **QUICK) as server:
        assert ended(server, left(server))["status"] == "completed"


def test_remote_pictures_need_a_shared_database() -> None:
    with pytest.raises(UsageError, match="SRGAN_DATABASE_URL"), serving(jobs=True, data_dir="memory://x"):
        pass


def test_head_of_a_stream_does_not_wait_for_its_end(tmp_path: Path) -> None:
    blocked = Blocked()
    with serving(data_dir=str(tmp_path), before=blocked, **QUICK) as server:
        location = left(server)
        assert blocked.entered.acquire(timeout=20)
        answer = server.client.head(f"{location}/events")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert server.client.get(location, timeout=10).json()["status"] == "processing"  # on the same connection
        blocked.let_go()
        assert ended(server, location)["status"] == "completed"


# Crashes


def test_a_killed_server_loses_no_job(tmp_path: Path, tiny_model: Path) -> None:
    """Killed while it works, started again: every accepted job is done, and right."""
    contents = [png(70, 60, seed) for seed in range(4)]
    server = Process(tiny_model, tmp_path)
    try:
        server.wait()
        ids = accepted(server, contents)
        until(lambda: any(server.client.get(f"/v1/jobs/{id}").json()["status"] == "processing" for id in ids))
        with socket.create_connection(("127.0.0.1", server.port)) as uploading:
            uploading.sendall(
                b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 90000\r\n\r\n" + contents[0]
            )
            server.kill()
        server.start()
        server.wait()
        assert results(server.client, ids) == expected(tiny_model, contents)
        assert len(server.client.get("/v1/jobs").json()["jobs"]) == 4  # the upload that was cut off is none
        assert server.kill(signal.SIGTERM) == 0
        storage = Storage(str(tmp_path))
        storage.sweep(0)  # it may have been killed while it wrote
        assert storage.names("executors") == []
    finally:
        server.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_at_any_moment_loses_no_job(tmp_path: Path, tiny_model: Path) -> None:
    contents = [png(70, 60, seed) for seed in range(10)]
    server, moments = Process(tiny_model, tmp_path), np.random.default_rng(0).uniform(0.05, 1.5, 6)
    try:
        server.wait()
        ids = accepted(server, contents)
        for moment in moments:
            time.sleep(moment)
            server.kill()
            server.start()
            server.wait()
        right = dict(zip(ids, expected(tiny_model, contents), strict=True))
        until(lambda: server.client.get(f"/v1/jobs/{ids[-1]}").json()["status"] in ("completed", "failed"), 200)
        for id, content in right.items():
            job = server.client.get(f"/v1/jobs/{id}").json()
            if job["status"] == "failed":  # two of the six met the same picture
                assert "ended twice while it worked on this picture" in job["error"]["detail"]
            else:
                assert results(server.client, [id]) == [content]
    finally:
        server.close()


def test_what_killed_processes_left_half_written_goes_once_nobody_can_still_write_it(tmp_path: Path) -> None:
    old, new = (tmp_path / folder / ".0123.srgan-part" for folder in ("executors", "jobs/a/out"))
    for path in (old, new, tmp_path / "jobs" / "a" / "out" / "0"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 3600,) * 2)
    with serving(data_dir=str(tmp_path), **QUICK):
        until(lambda: not old.exists())
    assert new.exists()
    Storage(str(tmp_path)).sweep(0)
    assert not new.exists()
    assert (tmp_path / "jobs" / "a" / "out" / "0").exists()


@contextlib.contextmanager
def two_servers(state: Path, model: Path) -> Iterator[tuple[Process, Process]]:
    """Two servers, both ready, that share one folder and so one database."""
    first, second = Process(model, state), Process(model, state)
    try:
        first.wait()
        second.wait()
        yield first, second
    finally:
        first.close()
        second.close()


def started(server: Process, contents: list[bytes]) -> list[str]:
    """Leave jobs with a server, and return their ids once it is at one of them."""
    ids = accepted(server, contents)
    until(lambda: any(server.client.get(f"/v1/jobs/{id}").json()["status"] == "processing" for id in ids))
    return ids


@pytest.mark.slow
def test_a_server_that_ends_hands_its_job_to_another(tmp_path: Path, tiny_model: Path) -> None:
    contents = [png(90, 90, seed) for seed in range(3)]
    with two_servers(tmp_path, tiny_model) as (first, second):
        ids = started(first, contents)
        assert first.kill(signal.SIGTERM) == 0
        assert results(second.client, ids) == expected(tiny_model, contents)


@pytest.mark.slow
def test_one_of_two_servers_that_is_killed_takes_only_its_own_requests_along(
    tmp_path: Path, tiny_model: Path
) -> None:
    """They share one SQLite; the other goes on, does its jobs, and whoever is started again joins in."""
    contents = [png(90, 90, seed) for seed in range(3)]
    right = expected(tiny_model, contents)
    with two_servers(tmp_path, tiny_model) as (first, second):
        ids = started(first, contents)
        first.kill()
        assert second.client.post("/v1/upscale", content=contents[0]).content == right[0]
        assert results(second.client, ids) == right
        first.start()
        first.wait()
        assert results(first.client, ids) == right
        assert results(second.client, accepted(first, contents)) == right


@pytest.mark.slow
def test_a_disk_that_is_full_in_truth(tmp_path: Path, tiny_model: Path) -> None:
    """Six megabytes beside those that stay free: refusals meanwhile, and all is well once something is removed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=262m none "$0" && exec "$@"', str(disk)]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], check=False).returncode:
        pytest.skip("NO DISK CAN BE FILLED HERE: this system lets nobody mount a tmpfs (unshare -rm)")
    server = Process(tiny_model, disk, within=mounted)
    try:
        server.wait()
        small, large = png(20, 20), png(250, 250)
        right = expected(tiny_model, [small])
        kept = accepted(server, [small])
        assert results(server.client, kept) == right
        answers: list[httpx.Response] = []

        def is_refused() -> bool:
            answers.append(server.client.post("/v1/jobs", content=large))
            return answers[-1].status_code != 202

        until(is_refused, 200)
        assert (answers[-1].json()["code"], answers[-1].json()["detail"]) == ("not-ready", "disk")
        assert server.client.get("/healthz").status_code == 200
        assert server.client.get("/readyz").json()["code"] == "not-ready"
        assert server.client.post("/v1/upscale", content=small).content == right[0]
        assert server.client.get(f"/v1/jobs/{kept[0]}/result").content == right[0]
        for answer in answers:
            if answer.status_code == 202:
                assert server.client.delete(answer.headers["location"]).status_code in (202, 204)
        again: list[str] = []

        def is_accepted() -> bool:
            answer = server.client.post("/v1/jobs", content=small)
            again.extend([answer.json()["id"]] if answer.status_code == 202 else [])
            return bool(again)

        until(is_accepted, 60)
        assert results(server.client, again) == right
    finally:
        server.close()
