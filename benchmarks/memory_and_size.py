"""Time and memory of one picture, for several sizes: how both grow from a small picture to a photograph.

    python benchmarks/memory_and_size.py                         # 0.016 to 12 megapixels in
    python benchmarks/memory_and_size.py --sizes 500x500 2000x1500 --plain --memory 300e6

Each picture is upscaled in a process of its own, whose peak memory the system tells; the result's own bytes are
taken off. "CPU" is the time of all cores together, which other work on the machine disturbs less than the clock.
Ours are compared with the size of --reference. "Plain" runs the picture whole through PyTorch (plain_folder.py),
as far as the memory reaches: it grows with the pixels, so what a size would need is known from the one before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import write_figures

from srgan.machine import available_bytes
from srgan.pictures import Picture
from srgan.upscale import Upscaler

SIZES = ["128x128", "256x256", "500x500", "1000x1000", "2000x1500", "4000x3000"]
PRECISIONS = ("fp32", "int8")  # beside what `auto` takes
SHARE_OF_FREE_MEMORY = 0.8


def main() -> None:
    """Read the options, measure each size in a fresh process, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WxH")
    parser.add_argument("--plain", nargs="*", default=SIZES[:5], metavar="WxH", help="sizes for plain PyTorch")
    parser.add_argument("--reference", default="500x500", metavar="WxH", help="what ours are compared with")
    parser.add_argument("--memory", type=float, help="bytes that inference may take; default: the program's own")
    parser.add_argument("--model", help="bundled name or an .onnx file")
    parser.add_argument("--precision", default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--one", choices=["ours", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one == "ours":
        print(json.dumps(measure(options.sizes[0], options.memory, options.model, options.precision)))
        return
    if options.one == "plain":
        print(json.dumps(measure_plain(options.sizes[0])))
        return
    print(f"{'LR':>12}{'':>7}{'MP out':>8}{'s/MP':>8}{'CPU s/MP':>10}{'peak MB':>9}")
    given = ["--memory", str(options.memory)] if options.memory else []
    given += ["--model", options.model] if options.model else []
    found = {"ours": [in_a_process("ours", size, given) for size in options.sizes]}
    for kind in PRECISIONS:
        found[kind] = [in_a_process("ours", size, [*given, "--precision", kind]) for size in options.sizes]
    found["plain"] = []
    for size in options.plain:
        found["plain"].append(too_large(size, found["plain"]) or in_a_process("plain", size, []))
    write_figures(options.json, found | {"reference": options.reference})


def in_a_process(how: str, size: str, given: list[str]) -> dict[str, Any]:
    """Measure one picture in a process of its own, and print it."""
    command = [sys.executable, __file__, "--one", how, "--sizes", size, *given]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        why = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        return {"size": size, "missing": why[:200]}
    found: dict[str, Any] = {"size": size} | json.loads(ended.stdout)
    print(
        f"{size:>12}{how:>7}{found['megapixels']:8.1f}{found['wall']:8.2f}{found['cpu']:10.2f}"
        f"{found['peak'] / 1e6:9.0f}",
        flush=True,
    )
    return found


def too_large(size: str, before: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row of a size that the machine has no memory for, judged by the largest one `before` it."""
    measured = [row for row in before if "peak" in row]
    if not measured:
        return None
    width, height = map(int, size.split("x"))
    needed = measured[-1]["peak"] / measured[-1]["megapixels"] * 16 * width * height / 1e6
    if needed <= SHARE_OF_FREE_MEMORY * available_bytes():
        return None
    return {"size": size, "missing": f"not tried: it would need about {needed / 1e9:.0f} GB"}


def measure(size: str, memory: float | None, model: str | None, precision: str) -> dict[str, float]:
    """Upscale noise of that size; return seconds per output megapixel and peak bytes less those of the result."""
    upscaler = Upscaler(model, working_bytes=int(memory) if memory else None, device="cpu", precision=precision)
    levels = noise(size)
    wall, cpu = time.perf_counter(), sum(os.times()[:2])
    result = upscaler.upscale(Picture(levels))
    return cost(result.pixels, wall, cpu)


def measure_plain(size: str) -> dict[str, float]:
    """Do the same with the plain script's generator."""
    import plain_folder
    from PIL import Image

    generator, picture = plain_folder.load(), Image.fromarray(noise(size))
    wall, cpu = time.perf_counter(), sum(os.times()[:2])
    result = plain_folder.upscale(generator, picture)
    return cost(np.asarray(result), wall, cpu)


def noise(size: str) -> np.ndarray:
    """Return (H,W,3) uint8."""
    width, height = map(int, size.split("x"))
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def cost(result: np.ndarray, wall: float, cpu: float) -> dict[str, float]:
    """Return what `result` took since the clocks stood at `wall` and `cpu`."""
    wall, cpu = time.perf_counter() - wall, sum(os.times()[:2]) - cpu
    megapixels = result.shape[0] * result.shape[1] / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - result.nbytes
    return {"megapixels": megapixels, "wall": wall / megapixels, "cpu": cpu / megapixels, "peak": peak}


if __name__ == "__main__":
    main()
