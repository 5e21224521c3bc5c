"""Measure the peak memory of `srgan upscale` and its encoders together, by format, under a bound.

    python benchmarks/upscale_memory.py                           # 12 megapixels, --memory 800M, every format
    python benchmarks/upscale_memory.py --memory 3G --size 2000x1500 --model srgan-x4 avif png

A small model (`--model FILE`) takes minutes less; the memory of picture, result and encoding is the same.
Memory is that of all processes of the run, each shared page counted once (PSS), asked ten times a second.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from srgan.pictures import FORMATS, Picture, encode


def main() -> None:
    """Read the options, run each format, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--memory", default="800M")
    parser.add_argument("--size", default="4000x3000", metavar="WxH")
    parser.add_argument("--model", default="srgan-x4")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source.png"
        levels = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        source.write_bytes(encode(Picture(levels.repeat(8, axis=0).repeat(8, axis=1)), "png"))
        for format in options.formats:
            target = Path(name) / f"result{FORMATS[format].suffixes[0]}"
            command = ["upscale", source, "-o", target, "-n", options.model, "--memory", options.memory]
            started = time.monotonic()
            peak, _, lines = measured([str(part) for part in command])
            seconds = time.monotonic() - started
            print(f"{format:5} {peak / 1e6:7.0f} MB {seconds:6.0f} s  {[*lines, ''][-1]}", flush=True)


def measured(arguments: list[str]) -> tuple[int, int, list[str]]:
    """Run `srgan` and return its peak memory in bytes, its exit code, and the lines that it said."""
    peak = 0
    with tempfile.TemporaryFile("w+") as log:
        run = subprocess.Popen([sys.executable, "-m", "srgan", *arguments], stdout=log, stderr=log)
        while run.poll() is None:
            peak = max(peak, tree_bytes(run.pid))
            time.sleep(0.1)
        log.seek(0)
        return peak, run.returncode, log.read().strip().splitlines()


def tree_bytes(pid: int) -> int:
    """Return the memory of a process and all that it has started, each shared page counted once."""
    return sum(map(_bytes_of, _tree(pid)))


def _tree(pid: int) -> list[int]:
    children: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, tasks.read_text().split())
        except OSError:
            continue  # it has ended
    return [pid, *(inner for child in children for inner in _tree(child))]


def _bytes_of(pid: int) -> int:
    try:
        match = re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


if __name__ == "__main__":
    main()
