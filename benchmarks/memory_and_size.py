"""Time and memory of one picture, for several sizes: how both grow from a small picture to a photograph.

    python benchmarks/memory_and_size.py                         # 0.25, 3 and 12 megapixels in
    python benchmarks/memory_and_size.py --sizes 500x500 2000x1500 --memory 300e6

Each picture is upscaled in a process of its own, whose peak memory the system tells; the result's own bytes are
taken off. "CPU" is the time of all cores together, which other work on the machine disturbs less than the clock.
The first size is what the others are compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np

from srgan.pictures import Picture
from srgan.upscale import Upscaler


def main() -> None:
    """Read the options, measure each size in a fresh process, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["500x500", "2000x1500", "4000x3000"], metavar="WxH")
    parser.add_argument("--memory", type=float, help="bytes that inference may take; default: the program's own")
    parser.add_argument("--model", help="bundled name or an .onnx file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.sizes[0], options.memory, options.model)))
        return
    print(f"{'LR':>12}{'MP out':>8}{'s/MP':>8}{'CPU s/MP':>10}{'ratio':>7}{'CPU ratio':>11}{'peak MB':>9}")
    first: dict[str, float] = {}
    for size in options.sizes:
        command = [sys.executable, __file__, "--one", "--sizes", size]
        command += ["--memory", str(options.memory)] if options.memory else []
        command += ["--model", options.model] if options.model else []
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        first = first or found
        print(
            f"{size:>12}{found['megapixels']:8.1f}{found['wall']:8.2f}{found['cpu']:10.2f}"
            f"{found['wall'] / first['wall']:7.2f}{found['cpu'] / first['cpu']:11.2f}{found['peak'] / 1e6:9.0f}",
            flush=True,
        )


def measure(size: str, memory: float | None, model: str | None) -> dict[str, float]:
    """Upscale noise of that size; return seconds per output megapixel and peak bytes less those of the result."""
    width, height = map(int, size.split("x"))
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    upscaler = Upscaler(model, memory_bytes=int(memory) if memory else None, device="cpu")
    wall, cpu = time.perf_counter(), sum(os.times()[:2])
    result = upscaler.upscale(Picture(levels))
    wall, cpu = time.perf_counter() - wall, sum(os.times()[:2]) - cpu
    megapixels = result.height * result.width / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - result.pixels.nbytes
    return {"megapixels": megapixels, "wall": wall / megapixels, "cpu": cpu / megapixels, "peak": peak}


if __name__ == "__main__":
    main()
