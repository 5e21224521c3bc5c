"""Devices, and several processes that act as one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from srgan.errors import UsageError
from srgan.training.config import Recipe

_DECODING_TIMEOUT = timedelta(hours=12)  # of processes that wait for the first one to decode a large folder

_LIGHTNING_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def make_fabric(recipe: Recipe, devices: int = 1, nodes: int = 1) -> Fabric:
    """Return the devices and processes to train on; GPUs where there are some, else CPU processes.

    Under torchrun its processes are taken. Raises UsageError if `devices` or `nodes` say something else.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if (devices, nodes) not in ((1, 1), (local, world // local)):
            raise UsageError(
                f"--devices {devices} --nodes {nodes}: torchrun has started {local} processes on each of "
                f"{world // local} machines; leave both options out"
            )
        devices, nodes = local, world // local
    strategy: Any = DDPStrategy(timeout=_DECODING_TIMEOUT) if devices * nodes > 1 else "auto"
    precision: Any = _LIGHTNING_PRECISIONS[precision_of(recipe)]
    return Fabric(accelerator="auto", devices=devices, num_nodes=nodes, strategy=strategy, precision=precision)


def precision_of(recipe: Recipe) -> Literal["fp32", "bf16"]:
    """Return what the recipe's precision comes to on this machine."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16" if _computes_bfloat16() else "fp32"


def device_name(device: torch.device) -> str:
    """Return what a device is called: a GPU by its model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _computes_bfloat16() -> bool:
    """Return whether the device that trains has instructions for bfloat16; without them it is only emulated."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.backends.mps.is_available():
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@contextmanager
def together(fabric: Fabric) -> Iterator[None]:
    """Start the processes of `fabric`, and part them in good order when the block ends."""
    fabric.launch()
    try:
        yield
        fabric.barrier()
    finally:
        if torch.distributed.is_initialized():
            # Left to the interpreter's exit, the group's threads now and then abort the process.
            torch.distributed.destroy_process_group()


def agreed(fabric: Fabric, now_s: float, stopping: bool) -> tuple[float, bool]:
    """Return the first process's clock, and whether any process was asked to stop, the same everywhere."""
    if fabric.world_size == 1:
        return now_s, stopping
    clock = fabric.broadcast(now_s)
    asked: Any = fabric.all_reduce(torch.tensor(float(stopping)), reduce_op="sum")
    return clock, bool(asked > 0)


def averaged(fabric: Fabric, value: Tensor) -> Tensor:
    """Return the mean of every process's scalar `value`, the same everywhere."""
    mean: Any = fabric.all_reduce(value, reduce_op="mean") if fabric.world_size > 1 else value
    return torch.as_tensor(mean)


def average_gradients(fabric: Fabric, module: nn.Module) -> None:
    """Give every process the mean of all processes' gradients, in one exchange.

    By hand and not by DistributedDataParallel: its wrapper expects one forward for every backward, and a game
    that shares forwards, freezes players and differentiates gradients breaks that in four places.
    """
    if fabric.world_size == 1:
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    mean: Any = fabric.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduce_op="mean")
    for gradient, share in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(share.view_as(gradient))
