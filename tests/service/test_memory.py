"""A day's mix of pictures, in ten minutes, within 4 GiB: no job is lost, and nothing is killed."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.memory import MemoryGroup, peak_of
from support.serving import free_port, until

from srgan.pictures import Picture, encode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LIMIT_BYTES = 4 * 2**30
SECONDS = 600.0
KEYS = ["alice-alice-alice-alice-1", "bob-bob-bob-bob-bob-bob-2", "carol-carol-carol-carol-3"]

# Where the system has no such groups, the server is told what it may take, and its memory is looked at.
TOLD = f"""
import sys
from srgan_service.work import service
free = service.available_bytes
service.available_bytes = lambda: min(free(), {LIMIT_BYTES})
from srgan.commands.cli import main
sys.argv[0] = "srgan"
main()
"""


def photo(
    height: int, width: int, seed: int, *, clear: bool = False, grey: bool = False, deep: bool = False
) -> Picture:
    """Squares of eight pixels a side, some of them noisy, as photographs have sky and grass."""
    chance = np.random.default_rng(seed)
    squares = chance.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    pixels = squares.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].copy()
    pixels[: height // 3] ^= chance.integers(0, 64, (height // 3, width, 3), np.uint8)
    if deep:
        pixels = pixels.astype(np.uint16) * 257
    alpha = chance.integers(0, 256, (height, width), np.uint8) if clear else None
    return Picture(np.ascontiguousarray(pixels[..., 0]) if grey else pixels, alpha)


def animation(count: int, height: int, width: int, seed: int) -> Picture:
    frames = [replace(photo(height, width, seed + at), duration_ms=100.0) for at in range(count)]
    return replace(frames[0], further=tuple(frames[1:]))


@dataclass(frozen=True)
class Kind:
    """Uploads of a kind: as which formats, to which, and how often among all."""

    weight: int
    pictures: list[Picture]
    uploads: tuple[str, ...]
    results: tuple[str, ...] = ("auto", "png", "jpg", "webp", "avif", "tiff", "gif", "bmp", "ppm")


def kinds() -> list[Kind]:
    all_but_clear = ("auto", "png", "webp", "avif", "tiff")
    moving = ("auto", "png", "webp", "gif", "avif")
    return [
        Kind(
            30,
            [photo(90, 120, 1), photo(240, 320, 2)],
            ("jpg", "png", "webp", "gif", "avif", "tiff", "bmp", "ppm"),
        ),
        Kind(20, [photo(480, 640, 3), photo(613, 816, 4)], ("jpg", "jpg", "png", "webp", "avif", "tiff")),
        Kind(6, [photo(600, 800, 5, clear=True)], ("png", "webp"), all_but_clear),
        Kind(4, [photo(480, 640, 6, grey=True)], ("jpg", "png")),
        Kind(4, [photo(480, 640, 7, deep=True)], ("png", "tiff"), ("auto", "jpg", "avif")),
        Kind(10, [photo(1000, 1500, 8), photo(1500, 2000, 9)], ("jpg", "jpg", "png", "avif")),
        Kind(
            10, [animation(10, 240, 320, 20), animation(4, 480, 640, 40)], ("gif", "webp", "avif", "png"), moving
        ),
        Kind(2, [animation(10, 480, 640, 60)], ("gif", "webp"), moving),
        # As AVIF these would take minutes of a core each.
        Kind(3, [photo(3000, 4000, 10)], ("jpg", "png"), ("auto", "jpg", "png", "tiff", "webp", "bmp")),
    ]


@dataclass
class Day:
    """What is sent, and what became of it."""

    url: str
    kinds: list[Kind] = field(default_factory=kinds)
    jobs: dict[str, str] = field(default_factory=dict)  # where each is, and what it was
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    files: dict[tuple[int, str], bytes] = field(default_factory=dict)

    def upload(self, chance: random.Random) -> tuple[bytes, dict[str, str], str]:
        """A file, what is asked for, and both in words."""
        kind = chance.choices(self.kinds, [kind.weight for kind in self.kinds])[0]
        picture, format = chance.choice(kind.pictures), chance.choice(kind.uploads)
        known = id(picture), format
        content = self.files.get(known) or self.files.setdefault(known, encode(picture, format))
        asked = {"format": chance.choice(kind.results)}
        size = chance.choices(["", "scale", "strength", "long_side"], [12, 2, 2, 1])[0]
        asked |= {size: {"scale": "2", "strength": "0.5", "long_side": "1000"}[size]} if size else {}
        if picture.height * picture.width < 20_000:
            asked["model"] = chance.choice(["srgan-x4", "srresnet-x4"])  # others than the server's own
        frames = f" in {len(picture.frames)} frames" if picture.further else ""
        return content, asked, f"{picture.width}x{picture.height}{frames} {format} {asked}"

    def client(self, key: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, headers={"X-API-Key": key})

    def ask(self, key: str, seed: int, end: float) -> None:
        """Request after request; what the server refuses, it says why."""
        chance = random.Random(seed)
        with self.client(key) as client:
            while time.monotonic() < end:
                content, asked, words = self.upload(chance)
                try:
                    answer = client.post("/v1/upscale", params=asked, content=content)
                except httpx.TransportError as error:
                    self.faults.append(f"{words}: {error!r}")
                    return
                code = "" if answer.status_code == 200 else answer.json()["code"]
                self.answers[code, answer.status_code] += 1
                if answer.status_code not in (200, 413, 429, 503, 504):
                    self.faults.append(f"{words}: {answer.status_code} {answer.text}")
                time.sleep(min(1.0, float(answer.headers.get("retry-after", 0))))

    def leave(self, key: str, seed: int, end: float) -> None:
        """Job after job, each of one to three pictures, with a few waiting at any time."""
        chance = random.Random(seed)
        with self.client(key) as client:
            mine: list[str] = []
            while time.monotonic() < end:
                mine = [at for at in mine if client.get(at).json()["status"] in ("pending", "processing")]
                if len(mine) >= 3:
                    time.sleep(0.5)
                    continue
                content, asked, words = self.upload(chance)
                more = (
                    [self.upload(chance)[0] for _ in range(chance.choice([0, 0, 0, 2]))]
                    if "model" in asked
                    else []
                )
                form = [("image", ("a picture", each)) for each in (content, *more)]
                answer = client.post("/v1/jobs", params=asked, files=form)
                if answer.status_code == 202:
                    mine.append(answer.headers["location"])
                    self.jobs[mine[-1]] = words
                elif answer.status_code not in (429, 503):
                    self.faults.append(f"{words}: {answer.status_code} {answer.text}")


@contextlib.contextmanager
def group() -> Iterator[MemoryGroup | None]:
    try:
        made = MemoryGroup(f"srgan-test-{os.getpid()}", LIMIT_BYTES)
    except OSError:
        yield None
        return
    try:
        yield made
    finally:
        until(lambda: _is_gone(made))


def _is_gone(made: MemoryGroup) -> bool:
    try:
        made.close()
    except OSError:  # its last process is about to end
        return False
    return True


@contextlib.contextmanager
def server(model: Path, folder: Path, bounds: MemoryGroup | None) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`srgan serve` as anybody would start it, within a group if there is one."""
    port, start = free_port(), ["-m", "srgan"] if bounds else ["-c", TOLD]
    command = [*(bounds.within if bounds else []), sys.executable, *start]
    keys = ",".join(f"{key.partition('-')[0]}:{key}" for key in KEYS)
    environment = {"SRGAN_KEYS": keys, "SRGAN_MODEL": str(model), "SRGAN_DATA_DIR": str(folder / "data")}
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(
            [*command, "serve", "--port", str(port)], env={**os.environ, **environment}, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _is_ready(url), 120)
        yield running, url
    finally:
        running.terminate()
        running.wait(60)


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    return False


def outcome(job: dict[str, Any]) -> str:
    """In a word; what the job says that it would take, and nobody has, is no loss."""
    errors = [file["error"] or {} for file in job["files"]]
    refused = [error for error in errors if error.get("code") == "too-many-pixels" and " MB " in error["detail"]]
    if job["status"] == "completed" and not any(errors):
        return "completed"
    return "refused" if refused and len(refused) == sum(map(bool, errors)) else f"{job['status']} {errors}"


def ended(client: httpx.Client, location: str) -> dict[str, Any] | None:
    """A job when it has ended, None if it is another key's."""
    if client.get(location).status_code == 404:
        return None
    end = time.monotonic() + 600
    while True:
        job: dict[str, Any] = client.get(location).json()
        if job["status"] not in ("pending", "processing") or time.monotonic() > end:
            return job
        time.sleep(1)


def test_a_day_within_four_gigabytes(tiny_model: Path, tmp_path: Path) -> None:
    with group() as bounds, server(tiny_model, tmp_path, bounds) as (running, url), peak_of(running.pid) as peak:
        day, end = Day(url), time.monotonic() + SECONDS
        clients = [threading.Thread(target=day.ask, args=(KEYS[at % 2], at, end)) for at in range(4)]
        clients += [threading.Thread(target=day.leave, args=(KEYS[1 + at], 10 + at, end)) for at in range(2)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        outcomes: Counter[str] = Counter()
        for key in KEYS[1:]:
            with day.client(key) as client:
                for location, words in day.jobs.items():
                    if (job := ended(client, location)) is None:
                        continue
                    became = outcome(job)
                    outcomes[became] += 1
                    if became not in ("completed", "refused"):
                        day.faults.append(f"job {words}: {became}")
        metrics = httpx.get(f"{url}/metrics", headers={"X-API-Key": KEYS[0]}, trust_env=False).text
        print(f"requests {dict(day.answers)}, jobs {dict(outcomes)}, peak {peak[0] / 2**20:.0f} MiB")
        assert running.poll() is None
        if bounds is not None:
            print(f"of the group {bounds.peak_bytes / 2**20:.0f} MiB")
            assert bounds.kills == 0
        assert peak[0] < LIMIT_BYTES
    assert day.faults == []
    assert outcomes.total() == len(day.jobs) > 5
    assert outcomes["completed"] > 0.8 * outcomes.total()
    assert "srgan_decoder_crashes_total 0.0" in metrics
    assert day.answers["", 200] > 20
