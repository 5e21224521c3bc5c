"""What tiles cost, and what they get wrong, by the width of the halo and the size of the tile.

    python benchmarks/tile_overhead.py
    python benchmarks/tile_overhead.py --side 256 --halos 10 40 --tiles 64 --rounds 1

A photograph is upscaled whole and in tiles, in turns; the tile of a size is its core, the halo is read around it
and thrown away. Measured: time over that of the whole picture, and the largest difference from it in grey levels
of 255, before rounding. Computed: pixels that are run over those of the picture. The halo that makes tiles exact
is the model's reach; smaller ones are what other programs use. The last row is what this program does with a
picture that is too large to be run whole: strips of rows, which keep what the next strip needs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from measuring import ROOT, in_turns, photographs, timed, write_figures

from srgan.engines import tiling
from srgan.engines.inference import Inference
from srgan.engines.openvino import OpenVinoEngine
from srgan.pictures import decode
from srgan.weights import ModelMetadata

STRIP_ROWS = 32


@dataclass
class WithHalo:
    """`engine` with another halo than its own."""

    engine: OpenVinoEngine
    halo_lr_px: int

    @property
    def metadata(self) -> ModelMetadata:
        """The model's, with that halo."""
        return replace(self.engine.metadata, halo_lr_px=self.halo_lr_px)

    def run(self, lr: np.ndarray) -> np.ndarray:
        """Return SR of `lr`."""
        return self.engine.run(lr)


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=384, help="of the square LR picture in pixels")
    parser.add_argument("--halos", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--tiles", type=int, nargs="+", default=[48, 96, 192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "srgan-x4.onnx", help="an .onnx file")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    found = measure(options)
    write_figures(options.json, found)
    whole = float(np.median(found["whole_seconds"]))
    for row in found["rows"]:
        ratio = float(np.median(row["seconds"])) / whole
        size = f"tile {row['tile']}, halo {row['halo']}" if row["tile"] else f"strips of {STRIP_ROWS} rows"
        print(f"{size:24} run {row['pixels_run']:.2f}x, time {ratio:.2f}x, off by {row['difference']:.3f} levels")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return what every combination costs and how far it is off."""
    engine = OpenVinoEngine(options.model)
    lr = photograph(options.side)
    whole = Inference(engine, tile_lr_px="off")
    right = whole.array(lr)
    rows: list[dict[str, Any]] = []
    contenders: dict[str, Callable[[], float]] = {"whole": ready(whole, engine, lr, options.side)}
    for halo in options.halos:
        for tile in options.tiles:
            tiles = tiling.tiles_of_size(options.side, options.side, tile_lr_px=tile, halo_lr_px=halo)
            inference = Inference(WithHalo(engine, halo), tile_lr_px=tile)
            contenders[str(len(rows))] = ready(inference, engine, lr, tiles[0].rows.read_stop)
            pixels_run = sum(one.read_px for one in tiles) / options.side**2
            rows.append({"halo": halo, "tile": tile, "pixels_run": pixels_run} | off(inference, lr, right))
    strips = Strips(engine)
    facts = engine.strip_facts
    assert facts
    contenders[str(len(rows))] = lambda: timed(lambda: strips.array(lr))
    pixels_run = -(-(options.side + facts.lag_lr_px) // STRIP_ROWS) * STRIP_ROWS / options.side
    rows.append({"halo": None, "tile": None, "pixels_run": pixels_run} | off(strips, lr, right))
    seconds = in_turns(contenders, options.rounds)
    for number, row in enumerate(rows):
        row["seconds"] = seconds[str(number)]
    return {"side_lr_px": options.side, "whole_seconds": seconds["whole"], "rows": rows}


@dataclass
class Strips:
    """Pictures in strips of rows, whatever their size."""

    engine: OpenVinoEngine

    def array(self, lr: np.ndarray) -> np.ndarray:
        """Return SR of `lr`."""
        _, _, height, width = lr.shape
        strips = self.engine.strips(height, width, STRIP_ROWS, lambda start, stop: lr[:, :, start:stop])
        return np.concatenate([piece.copy() for _, piece in strips], axis=2)


def ready(inference: Inference, engine: OpenVinoEngine, lr: np.ndarray, side: int) -> Callable[[], float]:
    """Return the timing of `inference`, after what it runs tiles of `side` with has been compiled."""

    def once() -> float:
        engine.run(np.zeros((1, 3, side, side), np.float32))  # few models are kept, so it may have to be made anew
        return timed(lambda: inference.array(lr))

    return once


def off(inference: Inference | Strips, lr: np.ndarray, right: np.ndarray) -> dict[Literal["difference"], float]:
    """Return the largest difference from the whole picture in grey levels."""
    return {"difference": float(np.abs(inference.array(lr) - right).max() * 255)}


def photograph(side: int) -> np.ndarray:
    """Return (1,3,side,side) float32 of an example."""
    with tempfile.TemporaryDirectory() as scratch:
        path = photographs(Path(scratch) / "one", [(side, side)], "png") / "0000.png"
        pixels = decode(path).pixels
    return np.moveaxis(pixels, -1, 0)[None].astype(np.float32) / 255


if __name__ == "__main__":
    main()
