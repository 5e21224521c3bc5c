"""Folders of pictures through `srgan upscale` and through a plain script of PyTorch and Pillow, whole processes.

    python benchmarks/speed_folder.py
    python benchmarks/speed_folder.py --thumbnails 20 --photographs 2 --rounds 1

Each run is a process of its own, from its start to its end: imports, loading and compiling the model, decoding,
upscaling, encoding and writing count. The plain script is plain_folder.py. Three folders: one picture of 128x128,
where starting is all; many thumbnails of one size; photographs of which no two have the same size, so that a model
compiled for one shape is compiled anew for each. Contenders take turns.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measuring import in_turns, photographs, write_figures

PLAIN = Path(__file__).parent / "plain_folder.py"
THUMBNAIL = (120, 90)
PRECISIONS = ("fp32", "int8")  # beside what `auto` takes


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--thumbnails", type=int, default=40)
    parser.add_argument("--photographs", type=int, default=6, help="about 400x300, no two alike")
    parser.add_argument("--rounds", type=int, default=3, help="turns; the medians count")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    cases = {
        "one picture of 128×128": ([(128, 128)], "png", 2 * options.rounds - 1),
        f"{options.thumbnails} PNG of 120×90": ([THUMBNAIL] * options.thumbnails, "png", options.rounds),
        f"{options.photographs} JPEG of about 400×300, all sizes different": (
            [(400 + 8 * number, 300 - 4 * number) for number in range(options.photographs)],
            "jpg",
            options.rounds,
        ),
    }
    found: list[dict[str, Any]] = []
    for name, (sizes, suffix, rounds) in cases.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = photographs(Path(scratch) / "in", sizes, suffix)
            found.append(measure(name, folder, sizes, rounds, alone=not found))
            report(found[-1])
    write_figures(options.json, {"cases": found})


def measure(
    name: str, folder: Path, sizes: Sequence[tuple[int, int]], rounds: int, *, alone: bool
) -> dict[str, Any]:
    """Return wall and CPU seconds and peak bytes of every run over `folder`; `alone`: starting torch beside it."""
    results = folder.parent / "out"
    ours = [sys.executable, "-m", "srgan", "upscale", str(folder), "-o", str(results), "-f", "png"]
    commands = {
        "srgan upscale": ours,
        **{f"srgan upscale --precision {kind}": [*ours, "--precision", kind] for kind in PRECISIONS},
        "plain script": [sys.executable, str(PLAIN), str(folder), str(results)],
    }

    def over_the_folder(command: list[str]) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            shutil.rmtree(results, ignore_errors=True)
            found = run(command)
            written = len(list(results.glob("*.png")))
            if written != len(sizes):
                raise SystemExit(f"{' '.join(command)}: wrote {written} of {len(sizes)} pictures")
            return found

        return once

    contenders = {name: over_the_folder(command) for name, command in commands.items()}
    if alone:
        contenders["import torch, nothing else"] = lambda: run([sys.executable, "-c", "import torch"])
        in_turns(contenders, 1)  # what is read from the disk is in memory now
    megapixels = sum(16 * width * height for width, height in sizes) / 1e6
    return {
        "name": name,
        "pictures": len(sizes),
        "megapixels_out": megapixels,
        "runs": in_turns(contenders, rounds),
    }


def run(command: Sequence[str]) -> dict[str, float]:
    """Run a process and return its wall and CPU seconds and its peak resident bytes.

    Never less than this process's own: the system counts what a process was before it became another program.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{said}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * unit}


def report(case: dict[str, Any]) -> None:
    """Print one line for each contender."""
    print(f"{case['name']}, {case['megapixels_out']:.1f} megapixels out")
    ours = [one["wall"] for one in case["runs"]["srgan upscale"]]
    for name, runs in case["runs"].items():
        wall = [one["wall"] for one in runs]
        ratio = statistics.median(theirs / own for theirs, own in zip(wall, ours, strict=True))
        peak = statistics.median(one["peak_bytes"] for one in runs)
        median = statistics.median(wall)
        rate = case["pictures"] / median
        print(f"  {name:32}{median:8.2f} s{rate:8.2f} files/s{ratio:7.2f}x{peak / 1e6:8.0f} MB", flush=True)


if __name__ == "__main__":
    main()
