"""Whose turn it is: start-time fair queueing."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818  # nothing went wrong
    """Work that nobody waits for any more."""


@dataclass(eq=False)
class Flow:
    """Somebody who shares with others. `weight`: its part, compared with theirs. `stopped`: it wants no more."""

    weight: float = 1.0
    stopped: bool = False
    _finish: float = field(default=0.0, init=False)


class FairQueue(Generic[T]):
    """A queue that serves flows in proportion to their weights, whatever the sizes of what they put in.

    Start-time fair queueing (Goyal, Vin and Cheng 1996): a clock of work done; what is put in starts where its
    flow's work before ends, but never in the past; the smallest start goes first. So a newcomer with little is
    next after the piece at hand, and nobody waits for ever. Not safe for threads by itself.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._clock = 0.0
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[T]:
        """Go through what waits, in no order."""
        return (item for _, _, item in self._heap)

    def put(self, flow: Flow, cost: float, item: T) -> None:
        """Add `item` of `flow`; `cost` in whatever unit all flows use."""
        start = max(self._clock, flow._finish)
        flow._finish = start + cost / flow.weight
        heapq.heappush(self._heap, (start, next(self._arrivals), item))

    def get(self) -> T:
        """Take out what is next. Raises IndexError if nothing waits."""
        self._clock, _, item = heapq.heappop(self._heap)
        return item

    def get_first(self, matches: Callable[[T], bool]) -> T | None:
        """Take out what is next of those that `matches` is true of, None if there is none."""
        entry = min((entry for entry in self._heap if matches(entry[2])), default=None)
        if entry is None:
            return None
        self._heap.remove(entry)
        heapq.heapify(self._heap)
        self._clock = max(self._clock, entry[0])
        return entry[2]

    def get_like(self, matches: Callable[[T], bool], most: int) -> list[T]:
        """Take out up to `most` that `matches` is true of, in order, without moving the clock."""
        taken = heapq.nsmallest(most, (entry for entry in self._heap if matches(entry[2])))
        for entry in taken:
            self._heap.remove(entry)
        if taken:
            heapq.heapify(self._heap)
        return [item for _, _, item in taken]

    def remove(self, item: T) -> None:
        """Take out `item`, if it is still there."""
        kept = [entry for entry in self._heap if entry[2] is not item]
        if len(kept) < len(self._heap):
            self._heap = kept
            heapq.heapify(self._heap)
