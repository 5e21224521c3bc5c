"""What the measuring scripts share: contenders in turns, sample pictures, figures as a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from srgan.files import write_atomically
from srgan.pictures import Picture, decode, encode, resized

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = [ROOT / "examples" / name for name in ("astronaut.png", "chelsea.png", "rocket.jpg")]

T = TypeVar("T")


def in_turns(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return what each contender's call gives in every round; a busy moment of the machine meets each of them."""
    found: dict[str, list[T]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            found[name].append(run())
    return found


def timed(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that `run` takes by `clock`."""
    started = clock()
    run()
    return clock() - started


def write_figures(path: Path | None, figures: object) -> None:
    """Write what was found as JSON, where a file was asked for."""
    if path is not None:
        write_atomically(path, (json.dumps(figures, indent=1) + "\n").encode())


def photographs(folder: Path, sizes: Sequence[tuple[int, int]], suffix: str) -> Path:
    """Fill `folder` with one picture for each (width, height), cut from the examples and resampled; return it."""
    folder.mkdir(parents=True)
    samples = [decode(path) for path in EXAMPLES]
    for number, (width, height) in enumerate(sizes):
        sample = samples[number % len(samples)]
        offset = number * 7 % 40  # so that no two are alike
        part = Picture(np.ascontiguousarray(sample.pixels[offset:, offset:]))
        content = encode(resized(part, height, width), suffix)
        (folder / f"{number:04}.{suffix}").write_bytes(content)
    return folder


def read_figures(path: Path) -> Any:
    """Return what `write_figures` wrote."""
    return json.loads(path.read_text())
