"""The one who computes: tiles of all requests go through here, one after another or in batches, by turns."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from service.fair import FairQueue, Flow, Stopped
from srgan.engine import Engine
from srgan.errors import EngineError
from srgan.weights import ModelMetadata

# Whose tiles those of this thread are; set by `Device.shared_by`.
_flow: contextvars.ContextVar[Flow | None] = contextvars.ContextVar("flow", default=None)


@dataclass(eq=False)
class _Tile:
    engine: Engine
    lr: np.ndarray
    flow: Flow
    sr: Future[np.ndarray] = field(default_factory=Future)

    def goes_with(self, other: _Tile) -> bool:
        return self.engine is other.engine and self.lr.shape == other.lr.shape


class Device:
    """A processor that is shared: `share(engine)` is an engine whose tiles take turns with all others' here.

    `batch_tiles`: how many tiles of one model and shape run at once, which pays on GPUs. Threads that use a shared
    engine wait for their turn; a thread of the device's own computes. Call `close` at the end.
    """

    def __init__(self, *, batch_tiles: int = 1) -> None:
        self._batch_tiles = batch_tiles
        self._waiting: FairQueue[_Tile] = FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self.busy_s = 0.0
        self.lr_px_per_s = 0.0  # of late; 0 until something was computed
        self._thread = threading.Thread(target=self._work, name="srgan-device", daemon=True)
        self._thread.start()

    def share(self, engine: Engine) -> Engine:
        """Return an engine that does what `engine` does, when its turn comes."""
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
        tile = _Tile(engine, lr, _flow.get() or Flow())
        with self._changed:
            if self._closed:
                raise EngineError("the service is shutting down")
            self._waiting.put(tile.flow, lr.shape[0] * lr.shape[2] * lr.shape[3], tile)
            self._changed.notify()
        return tile.sr.result()

    def close(self) -> None:
        """Refuse what waits and end the thread, after the tile at hand."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self._waiting.get().sr.set_exception(EngineError("the service is shutting down"))
            self._changed.notify()
        self._thread.join(timeout=30)

    def _work(self) -> None:
        while (tiles := self._next()) is not None:
            started = time.perf_counter()
            try:
                _compute(tiles)
            finally:
                self._measure(sum(tile.lr.shape[2] * tile.lr.shape[3] for tile in tiles), started)

    def _next(self) -> list[_Tile] | None:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            first = self._waiting.get()
            tiles = [first, *self._waiting.get_like(first.goes_with, self._batch_tiles - 1)]
        for tile in tiles:
            if tile.flow.stopped:
                tile.sr.set_exception(Stopped())
        return [tile for tile in tiles if not tile.sr.done()]

    def _measure(self, lr_px: int, started: float) -> None:
        seconds = time.perf_counter() - started
        self.busy_s += seconds
        if lr_px >= 1024:  # the time of less is mostly overhead
            speed = lr_px / max(seconds, 1e-9)
            self.lr_px_per_s = 0.8 * self.lr_px_per_s + 0.2 * speed if self.lr_px_per_s else speed


class _SharedEngine:
    def __init__(self, device: Device, engine: Engine) -> None:
        self._device = device
        self._engine = engine

    @property
    def metadata(self) -> ModelMetadata:
        return self._engine.metadata

    def run(self, lr: np.ndarray) -> np.ndarray:
        return self._device.run(self._engine, lr)


def _compute(tiles: list[_Tile]) -> None:
    """Run tiles together; if that fails, each alone, so that none suffers for another."""
    if len(tiles) > 1:
        with contextlib.suppress(Exception):
            together = tiles[0].engine.run(np.concatenate([tile.lr for tile in tiles]))
            for index, tile in enumerate(tiles):
                tile.sr.set_result(together[index : index + 1])
            return
    for tile in tiles:
        try:
            tile.sr.set_result(tile.engine.run(tile.lr))
        except BaseException as error:  # noqa: BLE001  # handed to the thread that asked
            tile.sr.set_exception(error)
