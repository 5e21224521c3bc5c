"""Measure what each encoder takes beside the picture: the table of srgan/pictures/costs.py.

Every case runs in a process of its own; its peak of resident memory is counted from the picture on, its result
included, on noise, which no encoder makes small.

    python benchmarks/encoding_memory.py                      # all cases of the table
    python benchmarks/encoding_memory.py avif still RGB 8     # one: format, kind, mode, megapixels in all frames
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from srgan.pictures import Picture, Quality, costs, encode

_FRAMES = 4
_MEGAPIXELS = {"still": 8.0, "frames": 2.0}  # of kinds that end so
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}


def main() -> None:
    """Measure one case, or all of them beside what the table says."""
    if len(sys.argv) > 1:
        format, kind, mode, megapixels = sys.argv[1:]
        print(f"{_bytes_per_px(format, kind, mode, float(megapixels)):.1f}")
        return
    for (format, kind), row in costs.BYTES_PER_PX.items():
        for mode, stated in row.items():
            case = format, kind, mode, str(_MEGAPIXELS[kind.split()[-1]])
            done = subprocess.run([sys.executable, __file__, *case], capture_output=True, text=True)
            measured = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]
            print(f"{format:5} {kind:15} {mode:5} measured {measured:>6}  table {stated:6g}", flush=True)


def _bytes_per_px(format: str, kind: str, mode: str, megapixels: float) -> float:
    count = _FRAMES if kind.endswith("frames") else 1
    quality: Quality = "lossless" if kind.startswith("lossless") else 95 if format in ("webp", "avif") else None
    side = math.isqrt(int(megapixels * 1e6 / count))
    frames = [_noise(side, mode, seed) for seed in range(count)]
    picture = frames[0]
    if count > 1:
        frames = [replace(frame, duration_ms=None if format == "tiff" else 100.0) for frame in frames]
        picture = replace(frames[0], further=tuple(frames[1:]))
    encode(Picture(np.zeros((64, 64, 3), np.uint8)), format, quality=quality)  # libraries load what they need
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = _memory("VmRSS")
    content = encode(picture, format, quality=quality)
    return (_memory("VmHWM") - before) / (side * side * count) if content else math.nan


def _noise(side: int, mode: str, seed: int) -> Picture:
    chance = np.random.default_rng(seed)
    levels = chance.integers(0, 256, (side, side, _CHANNELS[mode]), np.uint8)
    alpha = np.ascontiguousarray(levels[..., 3]) if mode == "RGBA" else None
    return Picture(np.ascontiguousarray(levels[..., 0] if mode == "L" else levels[..., :3]), alpha)


def _memory(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 if match else 0


if __name__ == "__main__":
    main()
