"""Encoding is work like inference: it ends with who waits for it, and what takes too much is refused before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from srgan_service.jobs.files import JobFiles
from srgan_service.jobs.storage import Storage
from support.serving import QUICK, Blocked, Running, ended, head, left, png, problem, serving, until

from srgan.pictures import Picture, encode
from srgan.pictures.guarded import process

# A worker whose encoder never ends on AVIF.
SLEEPY = f"""
import time
{process.START.removesuffix("serve()")}
from srgan import pictures
honest = pictures.encode
def sleepy(picture, format, **options):
    return time.sleep(600) if format == "avif" else honest(picture, format, **options)
pictures.encode = sleepy
serve()
"""


@contextlib.contextmanager
def sleeping(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Iterator[Running]:
    monkeypatch.setattr(process, "START", SLEEPY)
    with serving(**changes) as server:
        yield server


def is_encoding(server: Running) -> bool:
    return bool(server.service.works.coder.worker_pids) and server.metric("srgan_small_working") > 0


def test_an_encoder_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """And another's picture is answered while it is at work, and after."""
    content = png()
    with sleeping(monkeypatch) as server:
        sent = head(path="/v1/upscale?format=avif", content_length=len(content)) + content
        with server.connect(sent):
            until(lambda: is_encoding(server))
            assert server.client.post("/v1/upscale", content=content).status_code == 200
        until(lambda: server.metric("srgan_requests_inside") == 0)
        assert server.client.post("/v1/upscale", content=content).status_code == 200
        assert server.metric("srgan_small_working") == 0


def test_an_encoder_ends_with_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    with sleeping(monkeypatch, deadline_s=3.0) as server:
        problem(server.client.post("/v1/upscale?format=avif", content=png()), 504, "deadline")
        assert server.metric("srgan_small_working") == 0


def test_an_encoder_ends_with_its_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with sleeping(monkeypatch, data_dir=str(tmp_path), **QUICK) as server:
        answer = server.client.post("/v1/jobs?format=avif", content=png())
        location = answer.headers["location"]
        until(lambda: server.service.works.coder.worker_pids)
        assert server.client.delete(location).json()["status"] == "cancelled"
        assert ended(server, left(server))["status"] == "completed"  # jobs are done one at a time


def test_what_takes_more_memory_than_there_is_is_refused_before_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("srgan_service.work.service.room_bytes", lambda *_: 600_000_000)
    content = encode(Picture(np.zeros((800, 1000, 3), np.uint8)), "png")
    with serving(data_dir=str(tmp_path), **QUICK) as server:
        refused = problem(server.client.post("/v1/upscale?format=avif", content=content), 413, "too-many-pixels")
        assert refused["detail"].startswith("the result as AVIF takes ")
        assert "choose another format" in refused["detail"]
        job = ended(server, server.client.post("/v1/jobs?format=avif", content=content).headers["location"])
        assert job["status"] == "failed"
        assert job["files"][0]["error"]["code"] == "too-many-pixels"
        assert not server.engine.calls
        answer: httpx.Response = server.client.post("/v1/upscale?format=png", content=content)
        assert answer.status_code == 200


def test_a_picture_whose_process_ended_twice_is_not_tried_again(tmp_path: Path) -> None:
    blocked = Blocked()
    with serving(data_dir=str(tmp_path), before=blocked, **QUICK) as server:
        first = left(server)
        assert blocked.entered.acquire(timeout=20)
        second, third = left(server), left(server)
        files = JobFiles(Storage(str(tmp_path)))
        for location, ends in ((second, 2), (third, 1)):  # as killed processes leave them
            files.write_unfinished_starts(location.rpartition("/")[2], 0, ends)
        blocked.let_go()
        assert ended(server, first)["status"] == "completed"
        job = ended(server, second)
        assert job["status"] == "failed"
        assert "ended twice while it worked on this picture" in job["error"]["detail"]
        assert ended(server, third)["status"] == "completed"
        assert [files.unfinished_starts(at.rpartition("/")[2], 0) for at in (first, third)] == [0, 1]
