"""Which form of the last convolution a graphics processor runs best: found by running the network in each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from srgan.networks.layers import Tail, TailForm

# Tensor cores take channels of half precision by eights.
_TENSOR_CORE_CHANNELS = 8

# A form is not taken, however fast, that needs more than this many times the memory of the leanest: larger tiles
# and batches gain more than it does.
_LAVISH = 2.0

_TIMED_RUNS = 3


@dataclass(frozen=True)
class Cost:
    """What a run took: `seconds` of the fastest of some, `peak_bytes` of the device's memory beside weights."""

    seconds: float
    peak_bytes: int


def is_measurable(device: torch.device) -> bool:
    """Return whether `cost` can tell time and memory of what runs on `device`."""
    return device.type == "cuda"


def cost(run: Callable[[], object], device: torch.device) -> Cost | None:
    """Return what `run` takes of `device`, after one that is not counted, or None if it cannot be run there.

    For lack of memory, mostly, which libraries beneath torch tell in words of their own.
    """
    try:
        run()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, seconds = torch.cuda.memory_allocated(device), []
        for _ in range(_TIMED_RUNS):
            began = time.perf_counter()
            run()
            torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
        return Cost(min(seconds), torch.cuda.max_memory_allocated(device) - before)
    except RuntimeError:
        return None
    finally:
        torch.cuda.empty_cache()


def forms(network: nn.Module, *, half: bool) -> tuple[TailForm, ...]:
    """Return the forms that `network` can be run in; `half`: in half precision. Without a `Tail` there is one."""
    if not isinstance(getattr(network, "tail", None), Tail):
        return (TailForm(),)
    multiple = _TENSOR_CORE_CHANNELS if half else 1
    return TailForm(moved=False, multiple=multiple), TailForm(moved=True, multiple=multiple)


def cheapest(costs: Mapping[TailForm, Cost]) -> TailForm:
    """Return the fastest form of those that take no more than twice the memory of the leanest."""
    most_bytes = _LAVISH * min(cost.peak_bytes for cost in costs.values())
    return min(
        (form for form in costs if costs[form].peak_bytes <= most_bytes), key=lambda form: costs[form].seconds
    )


def choose_for_training(
    network: nn.Module,
    autocast: Callable[[], AbstractContextManager[object]],
    shape: tuple[int, int, int, int],
    *,
    half: bool,
) -> None:
    """Give `network` the form of its tail in which its device takes a step of training best, found on a copy.

    `autocast`: the precision of a step. `shape`: (N,3,h,w) of its LR. Where nothing can be measured, and where
    there is no choice, the form stays.
    """
    tail, device = getattr(network, "tail", None), next(network.parameters()).device
    if not isinstance(tail, Tail) or not is_measurable(device):
        return
    copied = copy.deepcopy(network)
    lr = torch.full(shape, 0.5, device=device)  # not random: a seeded run must not depend on what is measured

    def step() -> None:
        with autocast():
            sr = copied(lr)
        sr.float().sum().backward()
        copied.zero_grad()

    costs: dict[TailForm, Cost] = {}
    for form in forms(network, half=half):
        copied.tail.form = form  # type: ignore[union-attr]
        if (measured := cost(step, device)) is not None:
            costs[form] = measured
    if costs:
        tail.form = cheapest(costs)
