"""Load on a running service: many clients with pictures of their own, each answer checked by its content.

    python benchmarks/load.py --seconds 120 --clients 64

It starts `srgan serve` itself, on the loopback address alone, and stops it at the end. First the engine alone
upscales the same pictures in this process, one after another, decoding and encoding left out; then the clients ask
for them. Printed: throughput of both and their ratio, latencies, statuses, the server's resident memory over time,
and the latency of /healthz meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from srgan.pictures import Picture, decode, encode
from srgan.upscale import Upscaler

Key = tuple[int, int]


@dataclass
class Tally:
    """What happened."""

    latencies: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    wrong: int = 0
    retried: int = 0
    lr_px: int = 0
    memory_mib: list[tuple[float, float]] = field(default_factory=list)


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


def alone(upscaler: Upscaler, files: list[bytes], seconds: float) -> tuple[float, list[np.ndarray]]:
    """Return the engine's own LR pixels per second, and the right result for each file."""
    decoded = [decode(file) for file in files]
    results = [upscaler.upscale(picture).pixels for picture in decoded]  # and everything is compiled now
    done, spent = 0, 0.0
    while spent < seconds:
        for picture in decoded:
            started = time.perf_counter()
            upscaler.upscale(picture)
            spent += time.perf_counter() - started
            done += picture.width * picture.height
    return done / spent, results


async def client(
    http: httpx.AsyncClient, number: int, files: list[bytes], right: list[np.ndarray], tally: Tally, end: float
) -> None:
    """Ask until the time is over; come again after what Retry-After says."""
    turn = number
    while time.monotonic() < end:
        index = turn % len(files)
        started = time.monotonic()
        answer = await http.post("/v1/upscale", content=files[index])
        tally.statuses[answer.status_code] += 1
        if answer.status_code in (429, 503):
            tally.retried += 1
            await asyncio.sleep(min(float(answer.headers["retry-after"]), 5))
            continue
        turn += 1
        if answer.status_code != 200:
            continue
        tally.latencies.append(time.monotonic() - started)
        pixels = (await asyncio.to_thread(decode, answer.content)).pixels
        if pixels.shape != right[index].shape or np.abs(pixels.astype(np.int16) - right[index]).max() > 1:
            tally.wrong += 1
        elif time.monotonic() < end:
            tally.lr_px += pixels.shape[0] * pixels.shape[1] // 16


async def watch(http: httpx.AsyncClient, process: int, tally: Tally, end: float) -> None:
    """Look at /healthz and at the server's memory, twice a second."""
    began = time.monotonic()
    while time.monotonic() < end:
        started = time.monotonic()
        answer = await http.get("/healthz")
        tally.health.append(time.monotonic() - started)
        assert answer.status_code == 200
        status = Path(f"/proc/{process}/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        tally.memory_mib.append((time.monotonic() - began, resident))
        await asyncio.sleep(0.5)


async def load(
    url: str, process: int, clients: int, files: list[bytes], right: list[np.ndarray], seconds: float
) -> Tally:
    """Return what `clients` met in `seconds`."""
    tally, limits = Tally(), httpx.Limits(max_connections=clients + 8)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as http:
        end = time.monotonic() + seconds
        asking = [client(http, number, files, right, tally, end) for number in range(clients)]
        await asyncio.gather(*asking, watch(http, process, tally, end))
    return tally


def report(tally: Tally, seconds: float, engine: float) -> None:
    """Print the figures."""

    def at(values: list[float], share: float) -> float:
        return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")

    served = tally.lr_px / seconds
    print(f"engine alone  {engine / 1e3:8.1f} thousand pixels of input per second")
    print(f"service       {served / 1e3:8.1f}   ratio {served / engine:.2f}")
    print("answers       " + ", ".join(f"{count} x {status}" for status, count in sorted(tally.statuses.items())))
    print(f"wrong pictures {tally.wrong}, asked again after 429 or 503 {tally.retried}")
    for name, values in (("latency s", tally.latencies), ("/healthz s", tally.health)):
        print(f"{name:13} p50 {at(values, 0.5):.3f}  p99 {at(values, 0.99):.3f}  max {at(values, 1):.3f}")
    steps = max(1, len(tally.memory_mib) // 10)
    curve = "  ".join(f"{second:.0f}s:{mib:.0f}" for second, mib in tally.memory_mib[::steps])
    print(f"resident MiB  {curve}  highest {max(mib for _, mib in tally.memory_mib):.0f}")


def is_ready(url: str) -> bool:
    """Return whether the server takes requests."""
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    """Read the options, start the server, load it, stop it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 128, 160, 192])
    parser.add_argument("--model", default=None)
    options = parser.parse_args()
    files = pictures(options.pictures, options.sides)
    engine, right = alone(Upscaler(options.model), files, min(20, options.seconds / 4))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "SRGAN_JOBS": "false", "SRGAN_LOG_LEVEL": "ERROR", "SRGAN_QUEUE_REQUESTS": "80"}
    if options.model:
        environment["SRGAN_MODEL"] = options.model
    command = [sys.executable, "-m", "srgan", "serve", "--port", str(port)]
    with subprocess.Popen(command, env=environment) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            while not is_ready(url):
                time.sleep(0.2)
            warm = asyncio.run(load(url, server.pid, 4, files[: len(options.sides)], right, 3))
            tally = asyncio.run(load(url, server.pid, options.clients, files, right, options.seconds))
        finally:
            server.send_signal(signal.SIGTERM)
    report(tally, options.seconds, engine)
    sys.exit(bool(tally.wrong or warm.wrong or set(tally.statuses) - {200, 429, 503}))


if __name__ == "__main__":
    main()
