"""Threads that begin together, so that what they share is shared in earnest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def at_once(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call `function` with each of `items` in a thread of its own, and return what they give, in that order.

    No thread begins before all are there. Raises what one of them raises.
    """
    start = threading.Barrier(len(items))

    def begin(item: Item) -> Result:
        start.wait(30)
        return function(item)

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(begin, items))
