"""How a picture of any size goes through an engine: in which pieces, and what is done with each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from srgan import tiling
from srgan.engine import Engine, available_bytes
from srgan.errors import UsageError

# A generator of 64 features works on two of its largest layers at once: 64 features of 4 bytes at 16 pixels for
# each LR pixel. Measured with OpenVINO: 7.5 KB.
_WORKING_BYTES_PER_LR_PX_AT_X4 = 8192

# The largest tile that is worth its memory (2.6 GB): a core of 512 pixels a side and its halos.
_MAX_READ_PX = 592 * 592

Progress = Callable[[float], None]
Read = Callable[[slice, slice], np.ndarray]
Write = Callable[[slice, slice, np.ndarray], None]


class Inference:
    """Runs `engine` over pictures of any size, whole or in pieces; the result is the same. Any thread may call.

    `tile_lr_px`: the side of a tile's core in LR pixels, "off" for the whole picture at once, or "auto" for whole
    pictures as long as they fit into a third of the free memory. Raises UsageError for a tile size below 1.
    """

    def __init__(self, engine: Engine, *, tile_lr_px: int | Literal["auto", "off"] = "auto") -> None:
        if isinstance(tile_lr_px, int) and tile_lr_px < 1:
            raise UsageError(f'a tile of {tile_lr_px} pixels is none: give 1 or more, "auto" or "off"')
        self.engine = engine
        self._tile_lr_px = tile_lr_px

    def run(self, height: int, width: int, read: Read, write: Write, *, report: Progress | None = None) -> None:
        """Upscale the picture of `height` × `width` LR pixels behind `read` into what lies behind `write`.

        `read(rows, columns)` returns that part of the LR picture, (N,3,h,w) float32 in [0,1]; parts may overlap.
        `write(rows, columns, piece)` takes a part of SR, (N,3,h,w) float32, not clamped; every pixel comes at
        least once, and the last one counts. `report` is called with the finished fraction, 1.0 last; what it
        raises stops the work. Raises EngineError if inference fails.
        """
        scale = self.engine.metadata.scale
        tiles = self._plan(height, width)
        for done, tile in enumerate(tiles, start=1):
            sr = self.engine.run(np.ascontiguousarray(read(*tile.read)))
            rows, columns = tile.kept(scale)
            write(*tile.target(scale), sr[:, :, rows, columns])
            if report is not None:
                report(done / len(tiles))

    def array(self, lr: np.ndarray) -> np.ndarray:
        """Return SR (N,3,sH,sW) float32, not clamped, of `lr` (N,3,H,W) float32 in [0,1]."""
        batch, channels, height, width = lr.shape
        scale = self.engine.metadata.scale
        sr = np.empty((batch, channels, height * scale, width * scale), np.float32)

        def write(rows: slice, columns: slice, piece: np.ndarray) -> None:
            sr[:, :, rows, columns] = piece

        self.run(height, width, lambda rows, columns: lr[:, :, rows, columns], write)
        return sr

    def _plan(self, height: int, width: int) -> list[tiling.Tile]:
        metadata = self.engine.metadata
        if self._tile_lr_px == "off":
            return tiling.whole(height, width)
        if self._tile_lr_px == "auto":
            bytes_per_lr_px = _WORKING_BYTES_PER_LR_PX_AT_X4 * metadata.scale**2 / 4**2
            affordable = int(available_bytes() / 3 / bytes_per_lr_px)
            limit = min(_MAX_READ_PX, affordable)
            return tiling.tiles_within(height, width, max_read_px=limit, halo_lr_px=metadata.halo_lr_px)
        return tiling.tiles_of_size(height, width, tile_lr_px=self._tile_lr_px, halo_lr_px=metadata.halo_lr_px)
