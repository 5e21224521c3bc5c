"""How a picture of any size goes through an engine: whole, in strips or in tiles, as its memory allows."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from srgan.engines import tiling
from srgan.engines.levels import from_levels, to_levels
from srgan.engines.protocol import DeviceEngine, Engine, LevelsEngine, StripEngine, StripFacts
from srgan.errors import OutOfMemoryError, PrecisionError, UsageError
from srgan.machine import available_bytes

# A generator of 64 features works on two of its largest layers at once: 64 features of 4 bytes at 16 pixels for
# each LR pixel. Measured with OpenVINO: 7.5 KB; in strips 8.7 KB and the kept rows five times, two sets that
# change places and three copies within.
_WORKING_BYTES_PER_LR_PX_AT_X4 = 8192
_STRIP_BYTES_PER_LR_PX_AT_X4 = 9216
_KEPT_ROWS_COPIES = 5

# By default a third of what is free is used, and no more than 2.7 GB: a whole picture of 576 pixels a side. Strips
# gain nothing from more than 1.2 GB, and tiles beside them take no more either: at 12,000×100, 1.9 GB otherwise.
_MOST_BYTES = 576 * 576 * _WORKING_BYTES_PER_LR_PX_AT_X4
_ENOUGH_STRIP_BYTES = 1.2e9

# Of a graphics processor's memory, where it was measured what a pixel takes: at 5 KB, by count, a tile of 1180
# pixels a side, a seventh of which is halo.
_MOST_DEVICE_BYTES = 7e9

# How many pieces a device is given at once: one to compute, one to copy.
_IN_FLIGHT = 2

# How much faster tiles must be than strips to be taken: a narrow picture, where few pixels are halo, gains a
# twentieth of the time by tiles of 2.5 GB instead of strips of 50 MB.
_TILES_MUST_GAIN = 1.1

# Rows of a strip, and how much longer a pixel takes in one than in a whole picture (benchmarks/tile_overhead.py).
_STRIP_OVERHEADS = {32: 1.07, 16: 1.08, 8: 1.10, 4: 1.15}

# How often a picture is tried again, each time with half of the memory.
_RETRIES = 3

Progress = Callable[[float], None]
Read = Callable[[slice, slice], np.ndarray]
Write = Callable[[slice, slice, np.ndarray], None]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How a picture is run: `tiles` in turn, each at once or, if `strip_rows` is not 0, in strips of so many rows.

    `needed_bytes`: the engine's working memory. `cost`: time, in LR pixels of a whole picture. `together`: how
    many tiles are run at once.
    """

    tiles: tiling.Grid
    strip_rows: int
    needed_bytes: float
    cost: float
    together: int = 1


class Inference:
    """Runs `engine` over pictures of any size, whole or in pieces; the result is the same. Any thread may call.

    `tile_lr_px`: the side of a tile's core in LR pixels, "off" for the whole picture at once, or "auto" for what
    is fastest within `memory_bytes` of working memory; by default a third of what is free. Raises UsageError for a
    tile size below 1 or no memory at all.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        tile_lr_px: int | Literal["auto", "off"] = "auto",
        memory_bytes: int | None = None,
    ) -> None:
        if isinstance(tile_lr_px, int) and tile_lr_px < 1:
            raise UsageError(f'a tile of {tile_lr_px} pixels is none: give 1 or more, "auto" or "off"')
        if memory_bytes is not None and memory_bytes < 1:
            raise UsageError(f"{memory_bytes} bytes of memory are none")
        self.engine = engine
        self._tile_lr_px = tile_lr_px
        self._memory_bytes = memory_bytes
        self._learnt_limit_bytes = math.inf  # a device's, once its memory was too small for more

    def run(
        self,
        height: int,
        width: int,
        read: Read,
        write: Write,
        *,
        report: Progress | None = None,
        warn: Warn | None = None,
        limit_bytes: float | None = None,
    ) -> None:
        """Upscale the picture of `height` × `width` LR pixels behind `read` into what lies behind `write`.

        `read(rows, columns)` returns that part of the LR picture, (1,3,h,w) float32 in [0,1]; parts may overlap.
        `write(rows, columns, piece)` takes a part of SR, (1,3,h,w) float32, not clamped, and keeps none of it;
        every pixel comes at least once, and the last one counts. `report` is called with the finished fraction,
        1.0 last; what it raises stops the work. If memory runs out, the picture is begun again with half of it,
        three times. Where half precision will not do, tiles are run again in float32, and `warn` is told.
        `limit_bytes`: of working memory, in place of `memory_bytes`. Raises EngineError if inference fails,
        UsageError if these are too few for any way.
        """
        report = _rising(report) if report is not None else _ignore
        precision_errors: list[str] = []
        self._within_memory(
            height, width, limit_bytes, lambda plan: self._carry_out(plan, read, write, report, precision_errors)
        )
        _tell(precision_errors, warn)

    def levels(
        self,
        levels: np.ndarray,
        *,
        report: Progress | None = None,
        warn: Warn | None = None,
        limit_bytes: float | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return SR of `levels`, (H,W,3) or grey (H,W), uint8 or uint16: (sH,sW,3) or (sH,sW) of the same type.

        Clamped, and rounded to the nearest. An engine that takes levels gets them as they are, and works on one
        piece while the one before is copied back. `out`: where to, if not into an array of its own. `report`,
        `warn`, `limit_bytes`, errors: see `run`.
        """
        scale = self.engine.metadata.scale
        height, width, *channels = levels.shape
        sr = np.empty((height * scale, width * scale, *channels), levels.dtype) if out is None else out
        if isinstance(self.engine, LevelsEngine):
            rising = _rising(report) if report is not None else _ignore
            precision_errors: list[str] = []
            self._within_memory(
                height,
                width,
                limit_bytes,
                lambda plan: self._carry_out_levels(plan, levels, sr, rising, precision_errors),
            )
            _tell(precision_errors, warn)
            return sr

        def read(rows: slice, columns: slice) -> np.ndarray:
            return from_levels(levels[None, rows, columns])

        def write(rows: slice, columns: slice, piece: np.ndarray) -> None:
            sr[rows, columns] = to_levels(piece, like=levels[None])[0]

        self.run(height, width, read, write, report=report, warn=warn, limit_bytes=limit_bytes)
        return sr

    def _within_memory(
        self, height: int, width: int, limit_bytes: float | None, carry_out: Callable[[Plan], None]
    ) -> None:
        """Carry out the plan for the memory there is or, where that runs out, for half of it, three times."""
        bound = limit_bytes or self._memory_bytes
        limit = min(bound or self._usual_bytes(), self._learnt_limit_bytes)
        for retry in itertools.count():
            plan = self.plan(height, width, limit)
            if retry == 0 and bound is not None and plan.needed_bytes > bound:
                raise UsageError(
                    f"{bound / 1e6:.3g} MB of memory are too little for a picture of {width}x{height}"
                    f" pixels: {math.ceil(plan.needed_bytes / 1e6)} MB are needed"
                )
            try:
                carry_out(replace(plan, together=self._tiles_at_once(plan.tiles[0].read_px, bound)))
                break
            except OutOfMemoryError as error:
                if self._tile_lr_px != "auto":
                    raise OutOfMemoryError(f"{error}; choose a smaller tile, or auto") from error
                if retry == _RETRIES:
                    raise OutOfMemoryError(
                        f"{error}, nor for pieces of it; close other programs or allow this one more memory"
                    ) from error
                if isinstance(self.engine, StripEngine | DeviceEngine):
                    self.engine.forget()
                limit = min(limit, plan.needed_bytes) / 2
                if isinstance(self.engine, DeviceEngine):
                    self._learnt_limit_bytes = limit

    def array(self, lr: np.ndarray) -> np.ndarray:
        """Return SR (N,3,sH,sW) float32, not clamped, of `lr` (N,3,H,W) float32 in [0,1]."""
        batch, channels, height, width = lr.shape
        scale = self.engine.metadata.scale
        sr = np.empty((batch, channels, height * scale, width * scale), np.float32)
        for picture, out in zip(lr, sr, strict=True):

            def read(rows: slice, columns: slice, picture: np.ndarray = picture) -> np.ndarray:
                return picture[None, :, rows, columns]

            def write(rows: slice, columns: slice, piece: np.ndarray, out: np.ndarray = out) -> None:
                out[:, rows, columns] = piece[0]

            self.run(height, width, read, write)
        return sr

    def plan(self, height: int, width: int, limit_bytes: float) -> Plan:
        """Return the fastest way within `limit_bytes`, or if there is none, the one that needs least."""
        if self._tile_lr_px == "off":
            return self._in_tiles(tiling.whole(height, width))
        # Planned in blocks, of one pixel each for all networks but those that work in windows.
        block = self.engine.metadata.multiple_lr_px
        halo = math.ceil(self.engine.metadata.halo_lr_px / block)
        size = math.ceil(height / block), math.ceil(width / block)
        if self._tile_lr_px != "auto":
            tile = max(1, self._tile_lr_px // block)
            tiles = tiling.tiles_of_size(*size, tile_lr_px=tile, halo_lr_px=halo)
            return self._in_tiles(tiling.in_blocks(tiles, block, height, width))
        most_px = int(limit_bytes / self._bytes_per_lr_px())
        facts = self.engine.strip_facts if isinstance(self.engine, StripEngine) else None
        if facts is not None and height * width > most_px:
            most_px = min(most_px, int(_ENOUGH_STRIP_BYTES / self._bytes_per_lr_px()))
        tiles = tiling.tiles_within(*size, max_read_px=most_px // block**2, halo_lr_px=halo)
        plans = [self._in_tiles(tiling.in_blocks(tiles, block, height, width))]
        if facts is not None and (len(plans[0].tiles) > 1 or plans[0].needed_bytes > limit_bytes):
            plans += [self._in_strips(height, width, rows, limit_bytes, facts) for rows in _STRIP_OVERHEADS]
        fitting = [plan for plan in plans if plan.needed_bytes <= limit_bytes]
        if fitting:
            return min(fitting, key=lambda plan: plan.cost * (1 if plan.strip_rows else _TILES_MUST_GAIN))
        return min(plans, key=lambda plan: plan.needed_bytes)

    def needed_bytes(self, height: int, width: int, limit_bytes: int | None = None) -> int:
        """Return how much working memory `run` would take, where it may be so much or as much as by default."""
        limit = limit_bytes or self._memory_bytes or self._usual_bytes()
        return math.ceil(self.plan(height, width, limit).needed_bytes)

    def _in_tiles(self, tiles: tiling.Grid) -> Plan:
        read_px = tiles[0].read_px
        return Plan(tiles, 0, read_px * self._bytes_per_lr_px(), cost=read_px * len(tiles))

    def _in_strips(self, height: int, width: int, rows: int, limit_bytes: float, facts: StripFacts) -> Plan:
        """Return the plan for strips of `rows`, across the picture or, where that is too wide, columns of it."""
        per_column = rows * self._scaled(_STRIP_BYTES_PER_LR_PX_AT_X4) + _KEPT_ROWS_COPIES * facts.bytes_per_column
        most = int(min(limit_bytes, _ENOUGH_STRIP_BYTES) / per_column)
        halo = self.engine.metadata.halo_lr_px
        columns = tiling.tiles_within(1, width, max_read_px=most, halo_lr_px=halo)
        tiles = tiling.Grid([tiling.Span(0, height, 0, height)], columns.columns)
        run_rows = math.ceil((height + facts.lag_lr_px) / rows) * rows
        read_width = columns[0].read_px
        cost = len(tiles) * run_rows * read_width * _STRIP_OVERHEADS[rows]
        return Plan(tiles, rows, read_width * per_column, cost)

    def _usual_bytes(self) -> float:
        """Return how much memory is used where nobody says it."""
        measured = isinstance(self.engine, DeviceEngine) and self.engine.bytes_per_lr_px is not None
        return min(self._free_bytes() / 3, _MOST_DEVICE_BYTES if measured else _MOST_BYTES)

    def _bytes_per_lr_px(self) -> float:
        measured = self.engine.bytes_per_lr_px if isinstance(self.engine, DeviceEngine) else None
        return measured or self._scaled(_WORKING_BYTES_PER_LR_PX_AT_X4)

    def _scaled(self, bytes_at_x4: int) -> float:
        return bytes_at_x4 * self.engine.metadata.scale**2 / 4**2

    def _carry_out(
        self, plan: Plan, read: Read, write: Write, report: Progress, precision_errors: list[str]
    ) -> None:
        scale = self.engine.metadata.scale
        if plan.strip_rows:
            for done, tile in enumerate(plan.tiles):
                target, (_, kept), (_, columns) = tile.rows.stop * scale, tile.kept(scale), tile.target(scale)
                for rows, sr in self._strips(tile, plan.strip_rows, read):
                    write(rows, columns, sr[:, :, :, kept])
                    report((done + rows.stop / target) / len(plan.tiles))
            return
        for done in range(0, len(plan.tiles), plan.together):
            tiles = plan.tiles[done : done + plan.together]
            lr = np.ascontiguousarray(np.concatenate([read(*tile.read) for tile in tiles]))
            for tile, sr in zip(tiles, self._run(lr, precision_errors), strict=True):
                write(*tile.target(scale), sr[None, :, *tile.kept(scale)])
            report((done + len(tiles)) / len(plan.tiles))

    def _carry_out_levels(
        self, plan: Plan, levels: np.ndarray, sr: np.ndarray, report: Progress, precision_errors: list[str]
    ) -> None:
        scale, engine = self.engine.metadata.scale, cast(LevelsEngine, self.engine)
        together = plan.together
        under_way: deque[tuple[list[tiling.Tile], np.ndarray, Callable[[], np.ndarray]]] = deque()
        done = 0
        for start in range(0, len(plan.tiles) + _IN_FLIGHT * together, together):
            if tiles := plan.tiles[start : start + together]:
                lr = np.stack([levels[tile.read] for tile in tiles])
                under_way.append((tiles, lr, engine.submit_levels(lr)))
            if len(under_way) == _IN_FLIGHT or (under_way and not tiles):
                tiles, lr, result = under_way.popleft()
                try:
                    pieces = result()
                except PrecisionError as error:
                    precision_errors.append(str(error))
                    pieces = to_levels(engine.run_precisely(from_levels(lr)), like=lr)
                for tile, piece in zip(tiles, pieces, strict=True):
                    sr[tile.target(scale)] = piece[tile.kept(scale)]
                done += len(tiles)
                report(done / len(plan.tiles))

    def _run(self, lr: np.ndarray, precision_errors: list[str]) -> np.ndarray:
        try:
            return self.engine.run(lr)
        except PrecisionError as error:
            if not isinstance(self.engine, DeviceEngine):
                raise
            precision_errors.append(str(error))
            return self.engine.run_precisely(lr)

    def _tiles_at_once(self, tile_px: int, bound_bytes: float | None) -> int:
        if self.engine.metadata.multiple_lr_px > 1:
            return 1  # they may differ in shape
        best_px = self.engine.batch_lr_px if isinstance(self.engine, DeviceEngine) else 0
        limit = min(bound_bytes or self._free_bytes() / 3, self._learnt_limit_bytes)
        return max(1, int(min(best_px, limit / self._bytes_per_lr_px()) / tile_px))

    def _free_bytes(self) -> int:
        return self.engine.free_bytes() if isinstance(self.engine, DeviceEngine) else available_bytes()

    def _strips(self, tile: tiling.Tile, rows: int, read: Read) -> Iterator[tuple[slice, np.ndarray]]:
        (whole, columns), engine = tile.read, cast(StripEngine, self.engine)
        return engine.strips(
            whole.stop,
            columns.stop - columns.start,
            rows,
            lambda start, stop: read(slice(start, stop), columns),
        )


def _tell(precision_errors: list[str], warn: Warn | None) -> None:
    if precision_errors and warn is not None:
        warn(f"{precision_errors[0]}, so parts were run again in float32")


def _rising(report: Progress) -> Progress:
    """Return `report` such that a second start does not take it back."""
    highest = 0.0

    def keep(fraction: float) -> None:
        nonlocal highest
        highest = max(highest, fraction)
        report(highest)

    return keep


def _ignore(fraction: float) -> None:
    """Take progress where nobody asked for it."""
