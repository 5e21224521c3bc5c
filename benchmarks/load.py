"""Load on a running service: many clients with pictures of their own, each answer checked by its content.

    python benchmarks/load.py --seconds 120 --clients 64 --json load.json
    python benchmarks/load.py --soak 10000 --sides 16 24

It starts `srgan serve` itself, on the loopback address alone, and stops it at the end. The engine alone upscales
the same pictures in this process, one after another, decoding and encoding left out, before the load and again
after it; in between the clients ask for them. Printed, and written to the file of `--json`: throughput of both and
their ratio, processor time, latencies, statuses, the server's resident memory over time, the latency of /healthz
meanwhile, and what is left when all is quiet again.

The clients share the server's cores, so they do little: an answer's pixels are looked at when the load is over,
once for each file that came, and every answer was one of these files.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import hashlib
import http.client
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import busy_s
from measuring import write_figures

from srgan.machine import available_cores
from srgan.pictures import Picture, decode, encode
from srgan.upscale import Upscaler

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CORES = available_cores()
_HEALTH_PAUSE_S = 0.1


def pictures(count: int, sides: list[int]) -> list[bytes]:
    """Return PNG files that are all different and look like photographs to an encoder: smooth, with some noise."""
    files = []
    for index in range(count):
        generator = np.random.default_rng(index)
        side = sides[index % len(sides)]
        coarse = generator.integers(0, 256, (side // 8 + 2, side // 8 + 2, 3))
        smooth = coarse.repeat(8, 0).repeat(8, 1)[:side, :side].astype(np.int16)
        noisy = smooth + generator.integers(-8, 9, smooth.shape)
        files.append(encode(Picture(noisy.clip(0, 255).astype(np.uint8)), "png"))
    return files


def machine_cpu_s() -> float:
    """Return the processor time that everybody on this machine has had so far, and what its host took away."""
    seconds = busy_s()
    assert seconds is not None, "the load is measured on Linux"
    return seconds


# The engine alone


@dataclass
class Alone:
    """What the engine does with nobody else there. `machine_cpu_s`: what everybody had meanwhile."""

    lr_px: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    machine_cpu_s: float = 0.0

    @property
    def lr_px_per_s(self) -> float:
        """Pixels of input per second."""
        return self.lr_px / self.wall_s

    def measure(self, upscaler: Upscaler, decoded: list[Picture], seconds: float) -> None:
        """Upscale the pictures in turn for so long, all of them at least once."""
        end = self.wall_s + seconds
        while self.wall_s < end:
            started, cpu, machine = time.perf_counter(), time.process_time(), machine_cpu_s()
            for picture in decoded:
                upscaler.upscale(picture)
            self.wall_s += time.perf_counter() - started
            self.cpu_s += time.process_time() - cpu
            self.machine_cpu_s += machine_cpu_s() - machine
            self.lr_px += sum(picture.width * picture.height for picture in decoded)


# The server, seen from outside


def text_of(place: Path) -> str:
    """Return what stands there of a process or thread, nothing if it has ended."""
    try:
        return place.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Server:
    """`srgan serve` in a process of its own."""

    def __init__(self, model: str | None, precision: str, scratch: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._scratch = Path(scratch)
        own = {"SRGAN_JOBS": "false", "SRGAN_LOG_LEVEL": "ERROR", "SRGAN_QUEUE_REQUESTS": "80", "TMPDIR": scratch}
        own["SRGAN_PRECISION"] = precision
        if model:
            own["SRGAN_MODEL"] = model
        command = [sys.executable, "-m", "srgan", "serve", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env={**os.environ, **own})

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Wait until it takes requests; end it with the context."""
        with self.process:
            try:
                while self.get("/readyz")[0] != 200:
                    time.sleep(0.2)
                yield
            finally:
                self.process.send_signal(signal.SIGTERM)

    def get(self, path: str) -> tuple[int, str]:
        """Return status and text of a page, 0 where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def processes(self) -> list[Path]:
        """Return the places under /proc of the server and of its decoders."""
        own = Path(f"/proc/{self.process.pid}")
        children = [child for task in own.glob("task/*/children") for child in text_of(task).split()]
        return [own, *(Path("/proc") / child for child in children)]

    def resident_mib(self) -> float:
        """Resident memory of all its processes; pages that two of them share count twice."""
        sizes = [text_of(place / "statm").split() for place in self.processes()]
        return sum(int(size[1]) for size in sizes if size) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu_s(self) -> float:
        """Processor time of all its processes so far."""
        fields = [text_of(place / "stat").rpartition(")")[2].split() for place in self.processes()]
        return sum(int(stat[11]) + int(stat[12]) for stat in fields if stat) / _TICKS_PER_S

    def holds(self) -> dict[str, int]:
        """Return how many of which things it holds that should not grow."""
        own, *children = self.processes()
        return {
            "threads": len(list((own / "task").iterdir())),
            "open_files": len(list((own / "fd").iterdir())),
            "decoders": len(children),
            "temporary_files": sum(1 for _ in self._scratch.rglob("*")),
        }

    def wait_until_quiet(self) -> None:
        """Wait until no request is inside."""
        while "srgan_requests_inside 0.0" not in self.get("/metrics")[1]:
            time.sleep(0.1)


def probe(port: int, seconds: float) -> list[float]:
    """Ask for /healthz, on a connection of its own each time, as orchestrators do; return the latencies."""
    latencies, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        answer.read()
        latencies.append(time.monotonic() - started)
        connection.close()
        time.sleep(_HEALTH_PAUSE_S)
    return latencies


# The clients


class Answers:
    """Every file that came, for each picture; `check` looks at their pixels afterwards."""

    def __init__(self, scratch: str) -> None:
        self._scratch = Path(scratch)
        self._counts: collections.Counter[tuple[int, str]] = collections.Counter()
        self._in_time: collections.Counter[tuple[int, str]] = collections.Counter()

    def note(self, index: int, content: bytes, *, in_time: bool) -> None:
        """Count an answer to picture `index`."""
        key = index, hashlib.sha256(content).hexdigest()
        if key not in self._counts:
            self._place(key).write_bytes(content)
        self._counts[key] += 1
        self._in_time[key] += in_time

    def check(self, right: list[np.ndarray]) -> tuple[int, int, int]:
        """Return the number of wrong answers, the pixels of input of the right ones, and of those in time."""
        wrong = lr_px = in_time_px = 0
        for (index, digest), count in self._counts.items():
            pixels = decode(self._place((index, digest)).read_bytes()).pixels
            expected = right[index]
            if pixels.shape != expected.shape or np.abs(pixels.astype(np.int16) - expected).max() > 1:
                wrong += count
            else:
                each_px = expected.shape[0] * expected.shape[1] // 16
                lr_px += count * each_px
                in_time_px += self._in_time[index, digest] * each_px
        return wrong, lr_px, in_time_px

    @property
    def distinct(self) -> int:
        """How many different files came."""
        return len(self._counts)

    def _place(self, key: tuple[int, str]) -> Path:
        return self._scratch / f"{key[0]}-{key[1]}"


@dataclass
class Tally:
    """What happened. `memory`: seconds, answers until then, MiB."""

    answers: Answers
    seconds: float = 0.0
    asked: int = 0
    retried: int = 0
    latencies: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    memory: list[tuple[float, int, float]] = field(default_factory=list)


class Client:
    """One connection after another; httpx would take more of the processor than the server's own part does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, content: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**23)
        head = f"POST /v1/upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        self._writer.write(head.encode() + content)
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await self._reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), headers, body

    def close(self) -> None:
        """Leave."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@dataclass
class Until:
    """When to stop: at a time, or after so many requests."""

    at: float
    requests: float = float("inf")

    def over(self, asked: int) -> bool:
        """Return whether no more are to be asked for."""
        return time.monotonic() >= self.at or asked >= self.requests


async def ask_on(port: int, number: int, files: list[bytes], tally: Tally, until: Until) -> None:
    """Ask for one picture after another; come again after what Retry-After says."""
    client, turn = Client(port), number
    while not until.over(tally.asked):
        index = turn % len(files)
        tally.asked += 1
        started = time.monotonic()
        status, headers, body = await client.post(files[index])
        tally.statuses[status] += 1
        if status in (429, 503):
            tally.retried += 1
            await asyncio.sleep(min(float(headers["retry-after"]), 5))
            continue
        turn += 1
        if status == 200:
            tally.latencies.append(time.monotonic() - started)
            tally.answers.note(index, body, in_time=time.monotonic() < until.at)
    client.close()


async def watch(server: Server, tally: Tally, until: Until) -> None:
    """Look at the server's memory, twice a second."""
    began = time.monotonic()
    while not until.over(tally.asked):
        tally.memory.append((time.monotonic() - began, sum(tally.statuses.values()), server.resident_mib()))
        await asyncio.sleep(0.5)


async def load(server: Server, clients: int, files: list[bytes], answers: Answers, until: Until) -> Tally:
    """Return what `clients` met."""
    tally, began = Tally(answers), time.monotonic()
    asking = [ask_on(server.port, number, files, tally, until) for number in range(clients)]
    await asyncio.gather(*asking, watch(server, tally, until))
    tally.seconds = min(time.monotonic(), until.at) - began
    return tally


# The figures


def at(values: list[float], share: float) -> float:
    """Return the value below which `share` of them lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def spread(values: list[float]) -> dict[str, float]:
    """Return what is told of latencies."""
    return {name: round(at(values, share), 4) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


def bytes_per_request(memory: list[tuple[float, int, float]]) -> float:
    """Return the slope of resident memory over answers, in the later three quarters."""
    later = np.array(memory[len(memory) // 4 :])
    if len(later) < 3 or np.ptp(later[:, 1]) == 0:
        return float("nan")
    return float(np.polyfit(later[:, 1], later[:, 2], 1)[0] * 2**20)


class Cpu:
    """Processor time from here to `stop`, of the server, of the clients and of everybody else, in seconds."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        return self._server.cpu_s(), time.process_time(), machine_cpu_s()

    def stop(self, seconds: float) -> None:
        """End the measurement, which took so long."""
        (self.server_s, self.clients_s, machine_s) = np.subtract(self._now(), self._before)
        # The prober's share counts as others'; it is small.
        self.others_share = (machine_s - self.server_s - self.clients_s) / (seconds * _CORES)


def figures(tally: Tally, before: Alone, after: Alone, right: list[np.ndarray], cpu: Cpu) -> dict[str, Any]:
    """Return everything that was found, to be written as JSON."""
    wrong, lr_px, in_time_px = tally.answers.check(right)
    engine = (before.lr_px + after.lr_px) / (before.wall_s + after.wall_s)
    engine_cpu = (before.cpu_s + after.cpu_s) / (before.lr_px + after.lr_px)
    alone_s = (before.wall_s + after.wall_s) * _CORES
    others = before.machine_cpu_s + after.machine_cpu_s - before.cpu_s - after.cpu_s
    served = in_time_px / tally.seconds
    return {
        "seconds": round(tally.seconds, 2),
        "engine_lr_px_per_s": round(engine),
        "engine_before_lr_px_per_s": round(before.lr_px_per_s),
        "engine_after_lr_px_per_s": round(after.lr_px_per_s),
        "service_lr_px_per_s": round(served),
        "ratio": round(served / engine, 4),
        "engine_cpu_s_per_lr_megapixel": round(engine_cpu * 1e6, 2),
        "server_cpu_s_per_lr_megapixel": round(cpu.server_s / max(1, lr_px) * 1e6, 2),
        "clients_cpu_s_per_lr_megapixel": round(cpu.clients_s / max(1, lr_px) * 1e6, 2),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "wrong": wrong,
        "retried": tally.retried,
        "distinct_files": tally.answers.distinct,
        "latency_s": spread(tally.latencies),
        "health_s": {**spread(tally.health), "count": len(tally.health)},
        "resident_mib": {
            "highest": round(max(mib for _, _, mib in tally.memory)),
            "curve": [[round(second, 1), round(mib)] for second, _, mib in tally.memory],
            "bytes_per_request": round(bytes_per_request(tally.memory)),
        },
        "processors": _CORES,
        "others_share_alone": round(others / alone_s, 3),
        "others_share_under_load": round(cpu.others_share, 3),
    }


def report(found: dict[str, Any]) -> None:
    """Print the figures."""
    alone = f"before {found['engine_before_lr_px_per_s']}, after {found['engine_after_lr_px_per_s']}"
    print(f"engine alone  {found['engine_lr_px_per_s']:8} pixels of input per second ({alone})")
    print(f"service       {found['service_lr_px_per_s']:8} ratio {found['ratio']:.3f}")
    cpu = [f"{name} {found[f'{name}_cpu_s_per_lr_megapixel']}" for name in ("engine", "server", "clients")]
    print(f"CPU s per megapixel of input  {', '.join(cpu)}")
    others = f"{found['others_share_alone']:.1%} alone, {found['others_share_under_load']:.1%} under load"
    print(f"taken by other processes  {others}")
    print("answers       " + ", ".join(f"{count} x {status}" for status, count in found["statuses"].items()))
    print(f"wrong pictures {found['wrong']}, asked again after 429 or 503 {found['retried']}")
    for name, title in (("latency_s", "latency s"), ("health_s", "/healthz s")):
        print(f"{title:13} " + "  ".join(f"{key} {value}" for key, value in found[name].items()))
    curve = found["resident_mib"]["curve"]
    points = "  ".join(f"{second:.0f}s:{mib}" for second, mib in curve[:: max(1, len(curve) // 10)])
    print(f"resident MiB  {points}  highest {found['resident_mib']['highest']}", end=", ")
    print(f"{found['resident_mib']['bytes_per_request']} bytes a request")
    for name, (first, last) in found["held"].items():
        print(f"{name:15} {first} before, {last} after")


def measured(options: argparse.Namespace, precision: str, scratch: str) -> dict[str, Any]:
    """Start the server, load it between two looks at the engine alone, and return the figures."""
    files = pictures(options.pictures, options.sides)
    decoded = [decode(file) for file in files]
    upscaler, alone_s = Upscaler(options.model, precision=precision), min(20, options.seconds / 4)
    right = [upscaler.upscale(picture).pixels for picture in decoded]  # and everything is compiled now
    before, after = Alone(), Alone()
    places = [Path(scratch, name) for name in ("server", "answers", "warm")]
    for place in places:
        place.mkdir()
    server = Server(options.model, precision, str(places[0]))
    # A prober of its own process: in this one it would wait for the clients' turn.
    prober = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with server.running(), prober:
        warm_up = Until(time.monotonic() + 3)
        warm = asyncio.run(load(server, 4, files[: len(options.sides)], Answers(str(places[2])), warm_up))
        assert set(warm.statuses) == {200}, warm.statuses
        prober.submit(probe, server.port, 0.3).result()
        server.wait_until_quiet()
        held = server.holds()
        before.measure(upscaler, decoded, alone_s)
        began, cpu = time.monotonic(), Cpu(server)
        until = Until(time.monotonic() + options.seconds)
        if options.soak:
            until = Until(float("inf"), options.soak)
        health = prober.submit(probe, server.port, options.seconds)
        tally = asyncio.run(load(server, options.clients, files, Answers(str(places[1])), until))
        cpu.stop(time.monotonic() - began)
        tally.health = health.result()
        server.wait_until_quiet()
        left = server.holds()
        after.measure(upscaler, decoded, alone_s)
    found = figures(tally, before, after, right, cpu)
    return found | {"held": {name: [held[name], left[name]] for name in held}}


def main() -> None:
    """Read the options, measure, tell, and fail on a wrong picture or an answer that should not be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--soak", type=int, default=0, help="stop after so many requests instead")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 128, 160, 192])
    parser.add_argument("--model", default=None)
    parser.add_argument("--precisions", nargs="+", default=["auto"], help="one after the other")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    options = parser.parse_args()
    found = {}
    for precision in options.precisions:
        with tempfile.TemporaryDirectory() as scratch:
            found[precision] = measured(options, precision, scratch)
        print(f"precision     {precision}")
        report(found[precision])
    first, *others = options.precisions
    write_figures(options.json, found[first] | {"others": {precision: found[precision] for precision in others}})
    wrong = [set(each["statuses"]) - {"200", "429", "503"} or each["wrong"] for each in found.values()]
    sys.exit(any(wrong))


if __name__ == "__main__":
    main()
