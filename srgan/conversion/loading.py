"""From what a user names (a model, a device, a precision, a balance) to the engine that runs it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from srgan.engines.openvino import OpenVinoEngine
from srgan.engines.protocol import Engine
from srgan.errors import UnknownModelError, UsageError
from srgan.weights import TENSOR_SUFFIXES, ModelMetadata, Weights, balance_models, find_weights, tensors_of

if TYPE_CHECKING:
    import torch

    from srgan.networks.foreign import ForeignNetwork

PRECISIONS = ("auto", "fp32", "fp16", "bf16")


def load_engine(
    model: str | Path | Weights | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    balance: float | None = None,
    halo_lr_px: int | None = None,
) -> tuple[Engine, str]:
    """Return the engine for `model` and a hash: where hashes are equal, so are the results.

    `model`: a bundled name, the path of an ONNX file or of weights alone (.safetensors, .pth, ...), `Weights`, or
    None for the default. Weights alone need PyTorch: those of an SRResNet, ours or another's, are made an ONNX
    file for the CPU; other architectures, which spandrel recognises, are run by PyTorch. `device`: "cpu"
    (OpenVINO), "cuda", "cuda:N" or "mps" (PyTorch), or "auto" for a graphics processor if PyTorch finds one.
    `precision`: "fp32", "fp16" or "bf16"; "auto" is fp16 on CUDA and fp32 elsewhere. `balance`: instead of a
    model, a point between the bundled pair: 0 is the model trained for content alone, 1 the one trained in the
    adversarial game. `halo_lr_px`: the context that tiles need, for a foreign network whose own is not to be
    measured.
    Raises UsageError for a combination that cannot be, and what `find_weights` and the engines raise.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device):
        raise UsageError(f"device {device!r} is not understood: choose auto, cpu, cuda, cuda:N or mps")
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not understood: choose {', '.join(PRECISIONS)}")
    if balance is None and is_weights_alone(model):
        return _of_weights_alone(Path(str(model)), device, precision, halo_lr_px)
    if balance is None:
        one, other, share = model if isinstance(model, Weights) else find_weights(model), None, 0.0
    elif isinstance(model, Weights):
        raise UsageError(f"balance is for the bundled models; leave {model.path} away")
    else:
        one, other, share = *map(find_weights, _balanced(model, balance)), balance
    if device == "auto":
        from srgan.engines.torch import accelerator

        # PyTorch needs the weights beside the ONNX file, which a network of another program does not have.
        known = halo_lr_px is None and one.path.with_suffix(".safetensors").is_file()
        device = (accelerator() if known else None) or "cpu"
    if device == "cpu":
        _refuse_half(precision)
        return _on_cpu(one, other, share, halo_lr_px), _sha256(one, other, share)
    from srgan.engines.torch import TorchEngine

    if precision == "auto":
        precision = "fp16" if device.startswith("cuda") else "fp32"
    blend = None if other is None else (tensors_of(other), share)
    engine = TorchEngine(tensors_of(one), device=device, precision=precision, blend=blend)
    if other is not None:
        engine.metadata = replace(engine.metadata, name=_name(one, other, share))
    return engine, _sha256(one, other, share, "" if precision == "fp32" else precision)


def is_weights_alone(model: object) -> bool:
    """Return whether `model` is the path of a file of weights without a graph, to judge by its name."""
    return isinstance(model, str | Path) and Path(model).suffix.lower() in TENSOR_SUFFIXES


def _of_weights_alone(path: Path, device: str, precision: str, halo_lr_px: int | None) -> tuple[Engine, str]:
    from srgan.engines.torch import TorchEngine, accelerator

    if not path.is_file():
        raise UnknownModelError(f"{path}: no such file; `srgan models` lists the bundled models")
    found = _read_weights(path)
    if isinstance(found, tuple) and halo_lr_px is not None:
        raise UsageError(f"{path}: its halo is known to be {found[1].halo_lr_px}; leave --halo out")
    if device == "auto":
        device = accelerator() or "cpu"
    if device == "cpu":
        _refuse_half(precision)
        if isinstance(found, tuple):
            content = _as_onnx(*found)
            return OpenVinoEngine(content, name=str(path)), hashlib.sha256(content).hexdigest()
    if precision == "auto":
        half = device.startswith("cuda") and (isinstance(found, tuple) or found.half_will_do)
        precision = "fp16" if half else "fp32"
    engine = TorchEngine(found, device=device, precision=precision, name=str(path), halo_lr_px=halo_lr_px)
    facts = [hashlib.sha256(path.read_bytes()).hexdigest(), precision, str(engine.metadata.halo_lr_px)]
    return engine, hashlib.sha256(" ".join(facts).encode()).hexdigest()


def _read_weights(path: Path) -> tuple[torch.nn.Module, ModelMetadata] | ForeignNetwork:
    """Return the network in a file of weights alone, of this program or another, as `TorchEngine` takes it.

    Raises UsageError where a package for it is missing, else what `importing.read_network` raises.
    """
    try:
        from srgan.conversion.importing import read_network
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{path}: weights alone need {error.name}, which is not installed: "
            'pip install "srgan[train]", or "srgan[models]" for networks of other architectures'
        ) from error
    return read_network(path)


def _as_onnx(network: torch.nn.Module, metadata: ModelMetadata) -> bytes:
    """Return a generator of this program, or one of its kind, as an ONNX file that does the same."""
    from srgan.conversion.exporting import exported

    return exported(network, metadata, kinds=("onnx",))["onnx"]  # type: ignore[arg-type]  # of these two kinds


def _refuse_half(precision: str) -> None:
    if precision not in ("auto", "fp32"):
        raise UsageError(f"the cpu runs in fp32, not {precision}; choose --device cuda or leave --precision away")


def _balanced(model: str | Path | None, balance: float) -> tuple[str, str]:
    """Return the models that `balance` lies between; a model named beside it must be one of them."""
    if not 0 <= balance <= 1:
        raise UsageError(f"balance {balance:g} is out of range: choose one from 0 to 1")
    pair = balance_models()
    if model is not None and str(model) not in pair:
        raise UsageError(f"balance lies between {pair[0]} (0) and {pair[1]} (1); leave {model} away")
    return pair


def _on_cpu(one: Weights, other: Weights | None, share: float, halo_lr_px: int | None) -> OpenVinoEngine:
    if other is None:
        return OpenVinoEngine(one.onnx, name=str(one.path), halo_lr_px=halo_lr_px)
    return _blended(one, other, share)


@lru_cache(maxsize=4)
def _blended(one: Weights, other: Weights, share: float) -> OpenVinoEngine:
    engine = OpenVinoEngine(one.onnx, name=str(one.path), blend=(other.onnx, share))
    engine.metadata = replace(engine.metadata, name=_name(one, other, share))
    return engine


def _name(one: Weights, other: Weights, share: float) -> str:
    return f"{one.name}+{other.name}@{share:g}"


def _sha256(one: Weights, other: Weights | None, share: float, precision: str = "") -> str:
    if other is None and not precision:
        return one.sha256
    parts = [one.sha256, other.sha256 if other else "", repr(share), precision]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
