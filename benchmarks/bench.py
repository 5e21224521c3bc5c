"""Measure everything that is said about speed and memory, and write it down: what `make bench` runs.

    python benchmarks/bench.py                    # all parts, half an hour on two idle cores
    python benchmarks/bench.py engine training    # these parts; the others keep their figures
    python benchmarks/bench.py --quick            # everything small, into build/bench: does it still run?
    python benchmarks/bench.py --render           # nothing is measured: the page from the figures that are there

Each part is a script of its own and a process of its own. Its figures are kept in results/PART.json, with the
machine, the command, and how many cores other processes kept busy meanwhile; RESULTS.md, plots/ and what the
README repeats are made from these files alone. A run that was interrupted goes on after its last finished part;
--fresh begins again. A part that fails is named with its reason, the rest goes on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import results_page
from machine import OtherWork, machine
from measuring import ROOT, read_figures, write_figures

from srgan.files import write_atomically

Record = dict[str, Any]

# What the README repeats.
IN_SHORT = re.compile(r"(<!-- measured -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """One script of this folder, its options, and those of a quick try."""

    name: str
    script: str
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()

    def command(self, *, quick: bool) -> list[str]:
        """Return the command as it is told and run, without the interpreter."""
        return [f"benchmarks/{self.script}", *(self.quick if quick else self.options)]


PARTS = (
    Part(
        "engine",
        "speed_engine.py",
        quick=("--sizes", "48", "--rounds", "2", "--without", "ncnn", "torch.compile, channels_last"),
    ),
    Part("folder", "speed_folder.py", quick=("--thumbnails", "3", "--photographs", "1", "--rounds", "1")),
    Part("batch", "speed_batch.py", quick=("--pictures", "6", "--parts", "2")),
    Part(
        "memory",
        "memory_and_size.py",
        quick=("--sizes", "64x64", "96x64", "--plain", "64x64", "--reference", "64x64"),
    ),
    Part(
        "tiles",
        "tile_overhead.py",
        quick=("--side", "96", "--halos", "0", "40", "--tiles", "32", "--rounds", "1"),
    ),
    Part(
        "training",
        "speed_training.py",
        ("--steps", "3", "--rounds", "3", "--workers", "0"),
        ("--recipe", "tiny", "--steps", "1", "--rounds", "1", "--workers", "0"),
    ),
    Part(
        "load",
        "load.py",
        ("--seconds", "45", "--precisions", "auto", "fp32", "int8"),
        ("--seconds", "4", "--clients", "4", "--pictures", "4", "--precisions", "auto", "fp32"),
    ),
)


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Read the options, measure, write; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"Parts: {', '.join(part.name for part in parts)}.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="measure these only")
    parser.add_argument("--quick", action="store_true", help="small sizes and few turns, to see that it runs")
    parser.add_argument("--fresh", action="store_true", help="begin again instead of going on")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the page again")
    parser.add_argument("--out", type=Path, help="folder for RESULTS.md, results/ and plots/")
    parser.add_argument("--limit", type=float, default=900, help="seconds that a part may take")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - {part.name for part in parts}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in parts)}")
    out = options.out or ROOT / ("build/bench" if options.quick else "benchmarks")
    (out / "results").mkdir(parents=True, exist_ok=True)
    failed = False if options.render else measure_parts(parts, out, options)
    render(out)
    print(f"{out / 'RESULTS.md'} is written")
    return int(failed)


def measure_parts(parts: Sequence[Part], out: Path, options: argparse.Namespace) -> bool:
    """Measure what is wanted and not finished yet; return whether any part failed."""
    unfinished = out / "results" / "unfinished"  # the parts that are done of a run over all of them
    if options.fresh:
        unfinished.unlink(missing_ok=True)
    done = unfinished.read_text().split() if unfinished.exists() and not options.parts else []
    failed = False
    for part in parts:
        if options.parts and part.name not in options.parts:
            continue
        if part.name in done:
            print(f"{part.name}: was finished before the interruption", flush=True)
            continue
        record = measured(part, quick=options.quick, limit_s=options.limit)
        write_figures(out / "results" / f"{part.name}.json", record)
        render(out)
        failed |= "failed" in record
        if not options.parts and "failed" not in record:
            done.append(part.name)
            write_atomically(unfinished, "\n".join(done).encode())
    if not options.parts:
        unfinished.unlink(missing_ok=True)
    return failed


def measured(part: Part, *, quick: bool, limit_s: float) -> Record:
    """Run the part's script; return its figures, or why there are none, with all that belongs to them."""
    command = part.command(quick=quick)
    told = shlex.join(["python", *command])
    print(f"\n{part.name}: {told}", flush=True)
    record: Record = {
        "part": part.name,
        "command": told,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine(),
        "load_average": os.getloadavg()[0],
    }
    others, began = OtherWork(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        path, said = Path(scratch) / "figures.json", Path(scratch) / "stderr"
        arguments = [sys.executable, str(ROOT / command[0]), *command[1:], "--json", str(path)]
        code = run(arguments, said, limit_s)
        if code == 0 and path.exists():
            record["figures"] = read_figures(path)
        else:
            lines = said.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            print("\n".join(lines), file=sys.stderr)
            why = f"took longer than {limit_s:g} s" if code is None else f"exit code {code}: {lines[-1][:200]}"
            record["failed"] = why
    return record | {"seconds": round(time.monotonic() - began, 1), "others_busy_cores": others.cores()}


def run(command: Sequence[str], stderr: Path, limit_s: float) -> int | None:
    """Run a script to its end and return its exit code, or None if it took too long; nothing of it stays."""
    with stderr.open("wb") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stderr=errors, process_group=0)
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it has started
            process.wait()


def render(out: Path) -> None:
    """Write the page and its plots from the figures in `out`."""
    records = dict(recorded(out / "results"))
    page, plots = results_page.render(records)
    for name, drawing in plots.items():
        (out / "plots").mkdir(exist_ok=True)
        write_atomically(out / "plots" / name, drawing.encode())
    for stale in {path.name for path in (out / "plots").glob("*.svg")} - set(plots):
        (out / "plots" / stale).unlink()
    write_atomically(out / "RESULTS.md", page.encode())
    if out == ROOT / "benchmarks":
        readme = ROOT / "README.md"
        text = IN_SHORT.sub(lambda found: found[1] + results_page.in_short(records) + found[2], readme.read_text())
        write_atomically(readme, text.encode())


def recorded(folder: Path) -> Iterator[tuple[str, Record]]:
    """Yield the name and the record of every part that was measured."""
    for path in sorted(folder.glob("*.json")):
        yield path.stem, read_figures(path)


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # by an exception, so that the script in work ends, too
    sys.exit(main())
