"""Fixed crops side by side, to be looked at: LR by its pixels, bicubic, one column a model, HR.

    python benchmarks/contact_sheet.py --hr Set14/HR --lr Set14/LRx4 -n srresnet-x4 -n srgan-x4 -o sheet.png

Each row is the most detailed window of one picture (by the mean gradient of HR), so the same crops come out
every time and none is chosen to please.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from srgan.evaluation.benchmark import SCALE, Pair, pairs
from srgan.files import write_atomically
from srgan.pictures import Picture, encode, resized
from srgan.upscale import Upscaler

GAP_PX = 4


def busiest_window(hr: np.ndarray, side_px: int) -> tuple[int, int]:
    """Return (top, left), multiples of 4, of the (side,side) window of `hr` (H,W,3) with the largest gradients."""
    grey = hr.mean(axis=2)
    energy = np.pad(np.abs(np.diff(grey, axis=0)), ((0, 1), (0, 0))) + np.pad(
        np.abs(np.diff(grey, axis=1)), ((0, 0), (0, 1))
    )
    sums = np.pad(energy, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    window = (
        sums[side_px:, side_px:]
        - sums[:-side_px, side_px:]
        - sums[side_px:, :-side_px]
        + sums[:-side_px, :-side_px]
    )
    grid = window[::SCALE, ::SCALE]
    row, column = np.unravel_index(int(grid.argmax()), grid.shape)
    return int(row) * SCALE, int(column) * SCALE


def row_of(pair: Pair, upscalers: dict[str, Upscaler], side_px: int) -> np.ndarray:
    """Return one row of the sheet: (side, columns × side, 3)."""
    side_px = min(side_px, pair.hr.height // SCALE * SCALE, pair.hr.width // SCALE * SCALE)
    top, left = busiest_window(pair.hr.pixels, side_px)
    nearest = pair.lr.pixels.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    columns = [nearest, resized(pair.lr, pair.hr.height, pair.hr.width).pixels]
    columns += [upscaler.upscale(pair.lr).pixels for upscaler in upscalers.values()]
    columns.append(pair.hr.pixels)
    gap = np.full((side_px, GAP_PX, 3), 255, np.uint8)
    crops = [column[top : top + side_px, left : left + side_px] for column in columns]
    return np.concatenate([part for crop in crops for part in (crop, gap)], axis=1)


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hr", type=Path, required=True, help="folder of HR pictures")
    parser.add_argument("--lr", type=Path, help="folder of LR pictures; made by bicubic reduction if left out")
    parser.add_argument("-n", "--model", action="append", default=[], help="model name or file; repeat for more")
    parser.add_argument("-o", "--out", type=Path, default=Path("contact_sheet.png"))
    parser.add_argument("--rows", type=int, default=6, help="how many pictures, evenly over the folder")
    parser.add_argument("--side", type=int, default=192, help="side of a crop in HR pixels, a multiple of 4")
    arguments = parser.parse_args()

    upscalers = {name: Upscaler(name) for name in arguments.model or ["srresnet-x4", "srgan-x4"]}
    every = list(pairs(arguments.hr, arguments.lr))
    chosen = [every[index] for index in np.unique(np.linspace(0, len(every) - 1, arguments.rows).astype(int))]
    rows = [row_of(pair, upscalers, arguments.side) for pair in chosen]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, GAP_PX), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    write_atomically(arguments.out, encode(Picture(np.concatenate(padded)), "png"))
    print(f"{arguments.out}: nearest, bicubic, {', '.join(upscalers)}, HR; {', '.join(p.name for p in chosen)}")


if __name__ == "__main__":
    main()
