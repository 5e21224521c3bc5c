"""What runs a generator: the `Engine` protocol, and those of engines that can do more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from srgan.weights import ModelMetadata

if TYPE_CHECKING:
    import numpy as np

# In what a generator is computed, by the same word wherever one is named: recipes, commands, engines. No engine
# takes all of them.
Precision = Literal["fp32", "bf16", "fp16", "int8"]

ReadRows = Callable[[int, int], "np.ndarray"]


class Engine(Protocol):
    """Something that runs a generator; what `Upscaler` needs of it, and what a test can fake."""

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says of itself: its scale and halo among it."""
        ...

    def run(self, lr: np.ndarray) -> np.ndarray:
        """Return SR (N,3,sH,sW) float32, not clamped, of `lr` (N,3,H,W) float32 in [0,1].

        Called from several threads at once. Raises EngineError rather than return anything but a full result,
        and of its kind OutOfMemoryError where a smaller tile may do.
        """
        ...


def precision_of(engine: object) -> Precision:
    """Return in what an engine, or what stands in front of one, computes; "fp32" if it does not say."""
    precision: Precision = getattr(engine, "precision", "fp32")
    return precision


def is_faithful(engine: object) -> bool:
    """Return whether an engine, or one behind it, corrects its results until they reduce to what they are of."""
    faithful: bool = getattr(engine, "faithful", False)
    return faithful


def weights_sha256_of(engine: object) -> str:
    """Return the hash of the weights of an engine, or one behind it; "" if it does not say."""
    sha256: str = getattr(engine, "weights_sha256", "")
    return sha256


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """An engine with memory of its own, that may run in half precision: `run` can raise PrecisionError."""

    @property
    def batch_lr_px(self) -> int:
        """How many LR pixels are best run at once, in several tiles if they are small; 0 for tile by tile."""
        ...

    @property
    def bytes_per_lr_px(self) -> float | None:
        """What a tile was measured to take of its memory, for each LR pixel; None if it was not."""
        ...

    def run_precisely(self, lr: np.ndarray) -> np.ndarray:
        """Do what `run` does, in float32 whatever the precision is else."""
        ...

    def free_bytes(self) -> int:
        """Return how much of its memory may be taken."""
        ...

    def forget(self) -> None:
        """Give back the memory that is kept to be faster next time."""
        ...


@runtime_checkable
class LevelsEngine(DeviceEngine, Protocol):
    """A device's engine that takes and gives levels as they are in pictures, and copies while it computes."""

    def submit_levels(self, levels: np.ndarray) -> Callable[[], np.ndarray]:
        """Begin with `levels`, (N,H,W,3) or grey (N,H,W), uint8 or uint16; what it returns waits for the end.

        It gives (N,sH,sW,3) or (N,sH,sW) of the same type, clamped and rounded. Both raise what `run` raises.
        """
        ...


@dataclass(frozen=True)
class StripFacts:
    """What strips cost: rows that are run beyond the picture's height, and bytes of kept rows per LR column."""

    lag_lr_px: int
    bytes_per_column: int


@runtime_checkable
class StripEngine(Engine, Protocol):
    """An engine that can also run a picture in strips of rows: nothing twice, in memory for the width alone."""

    @property
    def strip_facts(self) -> StripFacts | None:
        """What strips cost, or None if this model cannot be run so."""
        ...

    def strips(self, height: int, width: int, rows: int, read: ReadRows) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows of SR from the top down, each with its (1,3,h,sW) float32, valid until the next is asked for.

        `read(start, stop)` returns these rows of LR, (1,3,h,W) float32 in [0,1]; `rows` are run at once. What is
        kept between strips belongs to this one iterator. Raises what `run` raises.
        """
        ...

    def forget(self) -> None:
        """Give back the memory that is kept to be faster next time."""
        ...
