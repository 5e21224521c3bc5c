"""The one who computes: tiles and strips of all requests go through here, one after another, by turns."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from srgan.engines.protocol import (
    DeviceEngine,
    Engine,
    LevelsEngine,
    StripEngine,
    StripFacts,
    is_faithful,
    precision_of,
    weights_sha256_of,
)
from srgan.errors import EngineError
from srgan.weights import ModelMetadata
from srgan_service.work.fair import FairQueue, Flow, Stopped

# Whose tiles those of this thread are; set by `Device.shared_by`.
_flow: contextvars.ContextVar[Flow | None] = contextvars.ContextVar("flow", default=None)


# Compiled models take up to a gigabyte for each engine, and every model and every balance of two is one.
WARM_ENGINES = 2

# Of the speed's memory, in time of work.
_SPEED_HALF_LIFE_S = 5.0

Strip = tuple[slice, np.ndarray]


@dataclass(eq=False)
class _Piece:
    """Something to compute: of a tile, which others of its shape may join, or whatever `compute` does without."""

    engine: Engine
    flow: Flow
    lr_px: int
    compute: Callable[..., Any]
    tile: np.ndarray | None = None
    done: Future[Any] = field(default_factory=Future)

    def goes_with(self, other: _Piece) -> bool:
        if self.tile is None or other.tile is None:
            return False
        alike = self.tile.shape == other.tile.shape and self.tile.dtype == other.tile.dtype
        return self.engine is other.engine and alike


class Device:
    """A processor that is shared: `share(engine)` is an engine whose work takes turns with all others' here.

    `batch_tiles`: how many tiles of one model and shape run at once, by default what the engine likes best: one on
    a CPU, more on a GPU. Threads that use a shared
    engine wait for their turn; a thread of the device's own, begun with the first work, computes. Call `close` at
    the end.
    """

    def __init__(self, *, batch_tiles: int | None = None) -> None:
        self._batch_tiles = batch_tiles
        self._waiting: FairQueue[_Piece] = FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self.busy_s = 0.0
        self.forget_speed()
        self._warm: list[StripEngine] = []
        self._thread = threading.Thread(target=self._work, name="srgan-device", daemon=True)

    def share(self, engine: Engine) -> Engine:
        """Return an engine that does what `engine` does, when its turn comes."""
        if isinstance(engine, LevelsEngine):
            return _SharedLevelsEngine(self, engine)
        if isinstance(engine, DeviceEngine):
            return _SharedDeviceEngine(self, engine)
        if isinstance(engine, StripEngine):
            return _SharedStripEngine(self, engine)
        return _SharedEngine(self, engine)

    @contextlib.contextmanager
    def shared_by(self, flow: Flow) -> Iterator[None]:
        """Count the tiles that this thread asks for in the meantime as those of `flow`."""
        token = _flow.set(flow)
        try:
            yield
        finally:
            _flow.reset(token)

    def run(self, engine: Engine, lr: np.ndarray) -> np.ndarray:
        """Return what `engine.run(lr)` does, when its turn comes; raises what that raises, or Stopped."""
        return self.submit(engine, lr).result()

    def submit(self, engine: Engine, lr: np.ndarray) -> Future[np.ndarray]:
        """Return at once the future of what `run` returns."""
        lr_px = lr.shape[0] * lr.shape[2] * lr.shape[3]
        return self._put(_Piece(engine, _flow.get() or Flow(), lr_px, engine.run, tile=lr))

    def submit_levels(self, engine: LevelsEngine, levels: np.ndarray) -> Future[np.ndarray]:
        """Return at once the future of what `engine.submit_levels(levels)` waits for."""

        def compute(tiles: np.ndarray) -> np.ndarray:
            return engine.submit_levels(tiles)()

        lr_px = levels.shape[0] * levels.shape[1] * levels.shape[2]
        return self._put(_Piece(engine, _flow.get() or Flow(), lr_px, compute, tile=levels))

    def run_precisely(self, engine: DeviceEngine, lr: np.ndarray) -> np.ndarray:
        """Return what `engine.run_precisely(lr)` does, when its turn comes; raises what that does, or Stopped."""
        lr_px = lr.shape[0] * lr.shape[2] * lr.shape[3]
        flow = _flow.get() or Flow()
        sr: np.ndarray = self._put(_Piece(engine, flow, lr_px, lambda: engine.run_precisely(lr))).result()
        return sr

    def strips(
        self, engine: StripEngine, height: int, width: int, rows: int, read: Callable[[int, int], np.ndarray]
    ) -> Iterator[Strip]:
        """Yield what `engine.strips` does, each strip when its turn comes."""
        flow, strips = _flow.get() or Flow(), engine.strips(height, width, rows, read)

        def following() -> Strip | None:
            return next(strips, None)

        while (strip := self._put(_Piece(engine, flow, rows * width, following)).result()) is not None:
            yield strip

    def _put(self, piece: _Piece) -> Future[Any]:
        with self._changed:
            if self._closed:
                raise EngineError("the service is shutting down")
            if self._thread.ident is None:  # not before: an application that is refused its place is never closed
                self._thread.start()
            self._waiting.put(piece.flow, piece.lr_px, piece)
            self._changed.notify()
        return piece.done

    def forget_speed(self) -> None:
        """Measure the speed anew: what was computed so far says nothing about what comes."""
        self.lr_px_per_s = 0.0  # of late; 0 until something was computed
        self.best_lr_px_per_s = 0.0
        self._late_px = self._late_s = 0.0

    def close(self) -> None:
        """Refuse what waits and end the thread, after the tile at hand."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self._waiting.get().done.set_exception(EngineError("the service is shutting down"))
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout=30)

    def _work(self) -> None:
        while (pieces := self._next()) is not None:
            for piece in pieces:
                self._keep_few_warm(piece.engine)
            started = time.perf_counter()
            _compute(pieces)
            self._measure(sum(piece.lr_px for piece in pieces), started)

    def _next(self) -> list[_Piece] | None:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            first = self._waiting.get()
            pieces = [first, *self._waiting.get_like(first.goes_with, self._most_beside(first))]
        for piece in pieces:
            if piece.flow.stopped:
                piece.done.set_exception(Stopped())
        return [piece for piece in pieces if not piece.done.done()]

    def _keep_few_warm(self, engine: Engine) -> None:
        """Let all engines but those used last give back the memory that makes them faster."""
        if (self._warm and engine is self._warm[-1]) or not isinstance(engine, StripEngine):
            return
        self._warm = [*(warm for warm in self._warm if warm is not engine), engine]
        while len(self._warm) > WARM_ENGINES:
            self._warm.pop(0).forget()

    def _most_beside(self, piece: _Piece) -> int:
        """Return how many tiles may be run together with a tile."""
        if self._batch_tiles is not None:
            return self._batch_tiles - 1
        best_px = getattr(piece.engine, "batch_lr_px", 0) if piece.tile is not None else 0
        return max(0, best_px // max(1, piece.lr_px) - 1)

    def _measure(self, lr_px: int, started: float) -> None:
        seconds = time.perf_counter() - started
        self.busy_s += seconds
        if lr_px >= 1024:  # the time of less is mostly overhead
            kept = 0.5 ** (seconds / _SPEED_HALF_LIFE_S)
            self._late_px = self._late_px * kept + lr_px
            self._late_s = self._late_s * kept + seconds
            self.lr_px_per_s = self._late_px / max(self._late_s, 1e-9)
            self.best_lr_px_per_s = max(self.best_lr_px_per_s, self.lr_px_per_s)


class _SharedEngine:
    def __init__(self, device: Device, engine: Engine) -> None:
        self._device = device
        self._engine = engine
        self.precision = precision_of(engine)
        self.faithful = is_faithful(engine)
        self.weights_sha256 = weights_sha256_of(engine)

    @property
    def metadata(self) -> ModelMetadata:
        return self._engine.metadata

    def run(self, lr: np.ndarray) -> np.ndarray:
        return self._device.run(self._engine, lr)


class _SharedDeviceEngine(_SharedEngine):
    def __init__(self, device: Device, engine: DeviceEngine) -> None:
        super().__init__(device, engine)
        self._device_engine = engine

    @property
    def batch_lr_px(self) -> int:
        return self._device_engine.batch_lr_px

    @property
    def bytes_per_lr_px(self) -> float | None:
        return self._device_engine.bytes_per_lr_px

    def run_precisely(self, lr: np.ndarray) -> np.ndarray:
        return self._device.run_precisely(self._device_engine, lr)

    def free_bytes(self) -> int:
        return self._device_engine.free_bytes()

    def forget(self) -> None:
        self._device_engine.forget()


class _SharedLevelsEngine(_SharedDeviceEngine):
    def __init__(self, device: Device, engine: LevelsEngine) -> None:
        super().__init__(device, engine)
        self._levels_engine = engine

    def submit_levels(self, levels: np.ndarray) -> Callable[[], np.ndarray]:
        return self._device.submit_levels(self._levels_engine, levels).result


class _SharedStripEngine(_SharedEngine):
    def __init__(self, device: Device, engine: StripEngine) -> None:
        super().__init__(device, engine)
        self._strip_engine = engine

    @property
    def strip_facts(self) -> StripFacts | None:
        return self._strip_engine.strip_facts

    def strips(
        self, height: int, width: int, rows: int, read: Callable[[int, int], np.ndarray]
    ) -> Iterator[Strip]:
        return self._device.strips(self._strip_engine, height, width, rows, read)

    def forget(self) -> None:
        self._strip_engine.forget()


def _compute(pieces: list[_Piece]) -> None:
    """Run tiles together; if that fails, each alone, so that none suffers for another."""
    tiles = [piece.tile for piece in pieces if piece.tile is not None]
    if len(tiles) > 1:
        with contextlib.suppress(Exception):
            together = pieces[0].compute(np.concatenate(tiles))
            for index, piece in enumerate(pieces):
                piece.done.set_result(together[index : index + 1])
            return
    for piece in pieces:
        try:
            piece.done.set_result(piece.compute() if piece.tile is None else piece.compute(piece.tile))
        except BaseException as error:  # noqa: BLE001  # handed to the thread that asked
            piece.done.set_exception(error)
