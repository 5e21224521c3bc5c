"""Fixed crops side by side, to be looked at: LR by its pixels, bicubic, one column a model, HR.

    python tools/contact_sheet.py --hr Set14/HR --lr Set14/LRx4 -n srresnet-x4 -n srgan-x4 -o sheet.png
    python tools/contact_sheet.py --lr examples -n srgan-x4 -n srgan-x4-photo -o docs/plots/examples.webp

Each row is the most detailed window of one picture (by the mean gradient of HR, or of LR where there is no HR), so
the same crops come out every time and none is chosen to please.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from srgan.evaluation.benchmark import pairs
from srgan.evaluation.tables import SCALE
from srgan.files import write_atomically
from srgan.pictures import PICTURE_SUFFIXES, Picture, decode, encode, resized
from srgan.upscale import Upscaler

GAP_PX = 4
Crops = list[tuple[str, Picture, Picture | None]]  # name, LR, HR


def busiest_window(picture: np.ndarray, side_px: int, step_px: int = 1) -> tuple[int, int]:
    """Return (top, left), multiples of `step_px`, of the (side,side) window of (H,W,3) with most gradient."""
    grey = picture.mean(axis=2)
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
    grid = window[::step_px, ::step_px]
    row, column = np.unravel_index(int(grid.argmax()), grid.shape)
    return int(row) * step_px, int(column) * step_px


def row_of(
    lr: Picture, hr: Picture | None, upscalers: dict[str, Upscaler], side_px: int, scale: int = SCALE
) -> np.ndarray:
    """Return a row of the sheet, (side, columns × side, 3): one window as all show it, then the truth if known.

    `lr`: (h,w,3); `hr`: (scale × h, scale × w, 3).
    """
    side_px = min(side_px // scale, lr.height, lr.width) * scale
    if hr is not None:
        top, left = busiest_window(hr.pixels, side_px, scale)
    else:
        top, left = (scale * at for at in busiest_window(lr.pixels, side_px // scale))
    nearest = lr.pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    columns = [nearest, resized(lr, scale * lr.height, scale * lr.width).pixels]
    columns += [upscaler.upscale(lr, scale=scale).pixels for upscaler in upscalers.values()]
    columns += [] if hr is None else [hr.pixels]
    gap = np.full((side_px, GAP_PX, 3), 255, np.uint8)
    crops = [column[top : top + side_px, left : left + side_px] for column in columns]
    return np.concatenate([part for crop in crops for part in (crop, gap)], axis=1)


def sheet(rows: Sequence[np.ndarray]) -> Picture:
    """Return the rows one above the other, narrower ones filled with white."""
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, GAP_PX), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return Picture(np.concatenate(padded))


def without_truth(folder: Path) -> Crops:
    """Return (name, LR, None) of the coloured and opaque pictures in `folder`."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURE_SUFFIXES]
    found = [(path.name, decode(path)) for path in paths]
    return [(name, Picture(lr.pixels), None) for name, lr in found if lr.pixels.ndim == 3 and lr.alpha is None]


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hr", type=Path, help="folder of HR pictures, or none")
    parser.add_argument("--lr", type=Path, help="folder of LR pictures; made by bicubic reduction if left out")
    parser.add_argument("-n", "--model", action="append", default=[], help="model name or file; repeat for more")
    parser.add_argument("-o", "--out", type=Path, default=Path("contact_sheet.png"))
    parser.add_argument("--rows", type=int, default=6, help="how many pictures, evenly over the folder")
    parser.add_argument("--side", type=int, default=192, help="side of a crop in HR pixels")
    parser.add_argument(
        "--scale", type=int, default=SCALE, help="HR pixels per LR pixel, whatever the models' own"
    )
    arguments = parser.parse_args()
    every: Crops
    if arguments.hr is not None:
        every = [(pair.name, pair.lr, pair.hr) for pair in pairs(arguments.hr, arguments.lr, arguments.scale)]
    elif arguments.lr is not None:
        every = without_truth(arguments.lr)
    else:
        parser.error("give --hr, --lr or both")

    upscalers = {name: Upscaler(name) for name in arguments.model or ["srresnet-x4", "srgan-x4"]}
    chosen = [every[index] for index in np.unique(np.linspace(0, len(every) - 1, arguments.rows).astype(int))]
    picture = sheet([row_of(lr, hr, upscalers, arguments.side, arguments.scale) for _, lr, hr in chosen])
    write_atomically(arguments.out, encode(picture, arguments.out.suffix[1:]))
    columns = ["nearest", "bicubic", *upscalers, *(["HR"] if arguments.hr else [])]
    print(f"{arguments.out}: {', '.join(columns)}; {', '.join(name for name, _, _ in chosen)}")


if __name__ == "__main__":
    main()
