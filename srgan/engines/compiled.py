"""Compiled models that are kept, because to compile one costs as much as half a picture of 90 pixels a side."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

# Each holds its own working memory, kilobytes per LR pixel, so their sum is bounded by pixels and not only by
# their number.
MOST_MODELS = 12
MOST_LR_PX = 320 * 320


class CompiledModels:
    """The models compiled last, by the shape that each is for: (N,C,H,W), or (rows, width) of strips.

    Not for several threads at once.
    """

    def __init__(self, most: int = MOST_MODELS, most_lr_px: int = MOST_LR_PX) -> None:
        self._most, self._most_lr_px = most, most_lr_px
        self._models: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes whose models are kept, the longest unused first."""
        return list(self._models)

    def get(self, shape: tuple[int, ...], build: Callable[[], Any]) -> Any:
        """Return the model for `shape`, made by `build` unless it is kept; others go where it needs their room."""
        model = self._models.pop(shape, None)
        if model is None:
            while self._models and not self._fits(shape):
                self._models.popitem(last=False)
            model = build()
        self._models[shape] = model  # now the most recent
        return model

    def clear(self) -> None:
        """Drop all; they are made again when needed."""
        self._models.clear()

    def _fits(self, shape: tuple[int, ...]) -> bool:
        kept_px = sum(map(_lr_px, self._models))
        return len(self._models) < self._most and kept_px + _lr_px(shape) <= self._most_lr_px


def _lr_px(shape: tuple[int, ...]) -> int:
    return math.prod(shape) // (shape[1] if len(shape) == 4 else 1)
