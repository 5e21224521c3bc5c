"""LR folders of benchmarks, made from HR by the benchmarks' bicubic: MATLAB's imresize, antialiased.

    python tools/reduce.py Set5 Set14 BSD100 --scale 2 --scale 8
    srgan evaluate --hr Set5/HR --lr Set5/LRx2 -n srgan-x4

Each folder holds HR; LRx2 and the like come beside it, and one that is there is left as it is. HR is cut at the
right and at the bottom to whole multiples of the scale first, as the field does.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from srgan.files import write_atomically
from srgan.networks.generator import STEPS


def reduced(hr: np.ndarray, scale: int) -> np.ndarray:
    """Return (H,W,3) uint8 `scale` times smaller, as imresize(hr, 1/scale): a = -0.5, edges repeated."""
    height, width = (side // scale * scale for side in hr.shape[:2])
    levels = hr[:height, :width].astype(np.float64)
    for axis in (0, 1):
        levels = np.moveaxis(np.tensordot(_matrix(levels.shape[axis], scale), levels, (1, axis)), 0, axis)
        levels = np.floor(levels.clip(0, 255) + 0.5)  # it rounds to uint8 between the two passes
    return levels.astype(np.uint8)


def _matrix(length: int, scale: int) -> np.ndarray:
    """Return (length/scale, length): the cubic kernel, stretched by `scale`, the last pixels repeated outwards."""
    matrix = np.zeros((length // scale, length))
    for row in range(len(matrix)):
        centre = scale * row + (scale - 1) / 2
        taps = np.arange(int(np.floor(centre - 2 * scale)), int(np.ceil(centre + 2 * scale)) + 1)
        x = np.abs(taps - centre) / scale
        weights = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
        weights[x >= 2] = 0
        np.add.at(matrix[row], taps.clip(0, length - 1), weights / weights.sum())
    return matrix


def write(benchmark: Path, scale: int) -> Path:
    """Write `benchmark`/LRx`scale` from its HR, unless it is there, and return it."""
    out = benchmark / f"LRx{scale}"
    if out.is_dir():
        return out
    paths = sorted((benchmark / "HR").glob("*.png"))
    if not paths:
        raise SystemExit(f"{benchmark / 'HR'}: no PNG pictures there")
    out.mkdir()
    for path in paths:
        buffer = io.BytesIO()
        Image.fromarray(reduced(np.asarray(Image.open(path).convert("RGB")), scale)).save(buffer, "PNG")
        write_atomically(out / path.name, buffer.getvalue())
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="+", type=Path, help="folders with HR inside")
    parser.add_argument("--scale", type=int, action="append", choices=STEPS, help="default: all")
    options = parser.parse_args(arguments)
    for benchmark in options.benchmarks:
        for scale in options.scale or STEPS:
            print(write(benchmark, scale))


if __name__ == "__main__":
    main()
