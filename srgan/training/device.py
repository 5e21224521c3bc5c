"""What passes between the host and the device that trains, so that neither waits for the other in a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor`, made on the CPU, on `device`. The host does not wait: a GPU copies from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def adam(module: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Return Adam for `module`, fused into one pass over the weights where its device has that."""
    parameters = list(module.parameters())
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=fused)


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Fill `optimizer` from `state`; whether it is fused is this machine's to say, not the checkpoint's."""
    fused = optimizer.param_groups[0].get("fused")
    groups = [group | {"fused": fused} for group in state["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})


def step_if_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Take the step of `optimizer` if `norm`, of all gradients, is finite; a fused one asks that on the device."""
    if optimizer.param_groups[0].get("fused"):
        # What GradScaler hands over: the kernel leaves weights, moments and its count of steps as they are.
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif norm.isfinite():
        optimizer.step()


@contextmanager
def normalised_once(module: nn.Module) -> Iterator[None]:
    """Within, the weights under spectral norm are computed once, in float32, and not at each forward.

    Their power iteration moves once, too, as in Miyato et al. 2018, algorithm 1. Begins outside of autocast.
    """
    with parametrize.cached():
        for part in module.modules():
            if parametrize.is_parametrized(part):
                for name in part.parametrizations:  # type: ignore[union-attr]
                    getattr(part, name)
        yield


@contextmanager
def fastest_convolutions(*, searched: bool) -> Iterator[None]:
    """Let cuDNN try its algorithms for each shape, which pays where shapes repeat; or not, where they vary."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=searched,
        deterministic=cudnn.deterministic,
        allow_tf32=cudnn.allow_tf32,
    ):
        yield
