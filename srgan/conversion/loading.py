"""From what a user names (a model, a device, a precision, a balance) to the engine that runs it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from srgan.conversion.trial import tried
from srgan.engines.int8 import Int8Form
from srgan.engines.openvino import OpenVinoEngine, listed_devices
from srgan.engines.protocol import Engine, Precision, is_faithful
from srgan.errors import UnknownModelError, UsageError, WeightsError
from srgan.installed import remedy
from srgan.machine import has_graphics_driver
from srgan.texts import did_you_mean
from srgan.weights import (
    TENSOR_SUFFIXES,
    ModelMetadata,
    Weights,
    balance_models,
    find_weights,
    int8_of,
    int8_path,
    is_bundled,
    read_file,
    tensors_of,
)

if TYPE_CHECKING:
    import torch

    from srgan.networks.foreign import ForeignNetwork

_DEVICES = ("auto", "cpu", "cuda", "mps", "gpu", "npu")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


def load_engine(
    model: str | Path | Weights | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    balance: float | None = None,
    halo_lr_px: int | None = None,
    faithful: bool | None = None,
) -> tuple[Engine, str]:
    """Return the engine for `model` and a hash: where hashes are equal, so are the results.

    On another device or with another number of threads they are so to within a grey level.

    `model`: a bundled name, the path of an ONNX file or of weights alone (.safetensors, .pth, ...), `Weights`, or
    None for the default. Weights alone need PyTorch: those of an SRResNet, ours or another's, are made an ONNX
    file for OpenVINO; other architectures, which spandrel recognises, are run by PyTorch. `device`: "cpu", "gpu",
    "gpu:N" or "npu" (OpenVINO), "cuda", "cuda:N" or "mps" (PyTorch), or "auto" for a graphics processor if PyTorch
    finds one. `precision`: "fp32", "bf16", "fp16" or "int8"; "auto" is fp16 on CUDA, bf16 on a processor that is
    faster in it if the model allows, and fp32 elsewhere. "int8" is for processors, and models with a form for it.
    `balance`: instead of a model, a point between the bundled pair: 0 is the model trained for content alone, 1
    the one trained in the adversarial game. `halo_lr_px`: the context that tiles need, for a foreign network whose
    own is not to be measured. `faithful`: whether results are corrected until they reduce to what they were made
    from; None for what suits the model, yes if it was trained on clean pictures.
    Raises UsageError for a combination that cannot be, and what `find_weights` and the engines raise.
    """
    if not re.fullmatch(r"auto|cpu|(cuda|gpu)(:\d+)?|mps|npu", device):
        raise UsageError(
            f"device {device!r} is not understood: choose auto, cpu, cuda, cuda:N, mps, gpu, gpu:N or npu"
            f"{did_you_mean(device, _DEVICES)}"
        )
    if precision not in PRECISIONS:
        raise UsageError(
            f"precision {precision!r} is not understood: choose {', '.join(PRECISIONS)}"
            f"{did_you_mean(precision, PRECISIONS)}"
        )
    if balance is None and is_weights_alone(model):
        return _of_weights_alone(Path(str(model)), device, precision, halo_lr_px, faithful)
    blend: tuple[Weights, float] | None = None
    if balance is None:
        weights = model if isinstance(model, Weights) else find_weights(model)
    elif isinstance(model, Weights):
        raise UsageError(f"balance is for the bundled models; leave {model.path} away")
    else:
        content, adversarial = map(find_weights, _balanced(model, balance))
        weights, blend = content, (adversarial, balance)
    if device == "auto":
        # PyTorch needs the weights beside the ONNX file, which a network of another program does not have.
        has_tensors = halo_lr_px is None and weights.path.with_suffix(".safetensors").is_file()
        device = _best_device() if has_tensors else "cpu"
    if _is_openvinos(device):
        int8 = _int8_form(weights, blend) if precision == "int8" and device == "cpu" else None
        runs = _by_openvino(weights, blend, halo_lr_px, device, precision, faithful, int8)
        runs.weights_sha256 = _weights_sha256(weights, blend)
        exact = runs.precision if int8 is None else f"int8 {int8.to_json()}"
        return runs, _sha256(weights.sha256, blend, exact, runs.faithful)
    exact = _chosen(precision, "fp16" if device.startswith("cuda") else "fp32")
    engine = _torch_engines().TorchEngine(
        tensors_of(weights),
        device=device,
        precision=exact,
        blend=None if blend is None else (tensors_of(blend[0]), blend[1]),
        faithful=faithful,
    )
    engine.weights_sha256 = _weights_sha256(weights, blend)
    if blend is not None:
        engine.metadata = replace(engine.metadata, name=_name(weights, *blend))
    return engine, _sha256(weights.sha256, blend, exact, engine.faithful)


def is_weights_alone(model: object) -> bool:
    """Return whether `model` is the path of a file of weights without a graph, to judge by its name."""
    return isinstance(model, str | Path) and Path(model).suffix.lower() in TENSOR_SUFFIXES


def _of_weights_alone(
    path: Path, device: str, precision: str, halo_lr_px: int | None, faithful: bool | None
) -> tuple[Engine, str]:
    if not path.is_file():
        raise UnknownModelError(f"{path}: no such file; `srgan models` lists the bundled models")
    network = _read_weights(path)
    if isinstance(network, tuple) and halo_lr_px is not None:
        raise UsageError(f"{path}: its halo is known to be {network[1].halo_lr_px}; leave --halo out")
    if device == "auto":
        device = _best_device()
    if _is_openvinos(device) and isinstance(network, tuple):
        content = _as_onnx(*network)
        runs = OpenVinoEngine(content, name=str(path), device=device, precision=precision, faithful=faithful)
        runs.weights_sha256 = hashlib.sha256(read_file(path)).hexdigest()
        return runs, _sha256(hashlib.sha256(content).hexdigest(), None, runs.precision, runs.faithful)
    if device == "cpu":
        _refuse_half(precision)
    elif _is_openvinos(device):
        raise UsageError(f"{path}: PyTorch runs networks of this architecture; choose --device cpu, cuda or mps")
    halved = device.startswith("cuda") and (isinstance(network, tuple) or network.half_will_do)
    exact = _chosen(precision, "fp16" if halved else "fp32")
    engine = _torch_engines().TorchEngine(
        network, device=device, precision=exact, name=str(path), halo_lr_px=halo_lr_px, faithful=faithful
    )
    engine.weights_sha256 = hashlib.sha256(read_file(path)).hexdigest()
    facts = [engine.weights_sha256, exact, str(engine.metadata.halo_lr_px)]
    facts += ["faithful"] * is_faithful(engine)
    return engine, hashlib.sha256(" ".join(facts).encode()).hexdigest()


def _best_device() -> str:
    """Return a graphics processor if PyTorch is there and can use one, else "cpu"; fast where there is none."""
    if not has_graphics_driver() or importlib.util.find_spec("torch") is None:
        return "cpu"
    device: str | None = _torch_engines().accelerator()
    return device or "cpu"


def devices() -> dict[str, str]:
    """Return all devices of this machine that can be asked for, and what each is."""
    listed = listed_devices()
    if importlib.util.find_spec("torch") is None:
        return listed | {"cuda, mps": f"only with PyTorch, which is not installed: {remedy('cuda')}"}
    name = _torch_engines().accelerator()
    return listed | ({name: "by PyTorch"} if name else {"cuda, mps": "none that PyTorch could use"})


def _torch_engines() -> ModuleType:
    """Return the module of PyTorch's engine, which takes a second to import and may lack its library."""
    try:
        from srgan.engines import torch as torch_engines
    except ModuleNotFoundError as error:
        raise UsageError(f"this device needs PyTorch, which is not installed: {remedy('cuda')}") from error
    return torch_engines


def _read_weights(path: Path) -> tuple[torch.nn.Module, ModelMetadata] | ForeignNetwork:
    """Return the network in a file of weights alone, of this program or another, as `TorchEngine` takes it.

    Raises UsageError where a package for it is missing, else what `importing.read_network` raises.
    """
    try:
        from srgan.conversion.importing import read_network
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{path}: weights alone need {error.name}, which is not installed: "
            f"{remedy('train')}; for networks of other architectures, the extra `models`"
        ) from error
    return read_network(path)


def _as_onnx(network: torch.nn.Module, metadata: ModelMetadata) -> bytes:
    """Return a generator of this program, or one of its kind, as an ONNX file that does the same."""
    from srgan.conversion.exporting import exported

    return exported(network, metadata, kinds=("onnx",))["onnx"]  # type: ignore[arg-type]  # of these two kinds


def _is_openvinos(device: str) -> bool:
    return device.split(":")[0] in ("cpu", "gpu", "npu")


def _chosen(precision: str, automatic: Precision) -> Precision:
    """Return a precision that PyTorch's engine has, `automatic` for "auto"."""
    if precision == "int8":
        raise UsageError("PyTorch computes in fp32, bf16 and fp16, not in int8; choose --device cpu")
    return automatic if precision == "auto" else cast(Precision, precision)


def _refuse_half(precision: str) -> None:
    if precision not in ("auto", "fp32"):
        raise UsageError(f"the cpu runs networks of this architecture in fp32, not in {precision}")


def _balanced(model: str | Path | None, balance: float) -> tuple[str, str]:
    """Return the models that `balance` lies between; a model named beside it must be one of them."""
    if not 0 <= balance <= 1:
        raise UsageError(f"balance {balance:g} is out of range: choose one from 0 to 1")
    pair = balance_models()
    if model is not None and str(model) not in pair:
        raise UsageError(f"balance lies between {pair[0]} (0) and {pair[1]} (1); leave {model} away")
    return pair


def _by_openvino(
    weights: Weights,
    blend: tuple[Weights, float] | None,
    halo_lr_px: int | None,
    device: str,
    precision: str,
    faithful: bool | None,
    int8: Int8Form | None,
) -> OpenVinoEngine:
    if blend is not None:
        return _blended(weights, *blend, device, precision, faithful)
    name = str(weights.path)
    if not is_bundled(weights.sha256):
        halo_lr_px = tried(weights.onnx, weights.sha256, name, halo_lr_px)
    return OpenVinoEngine(
        weights.onnx,
        name=name,
        halo_lr_px=halo_lr_px,
        device=device,
        precision=precision,
        faithful=faithful,
        int8=int8,
    )


def _int8_form(weights: Weights, blend: tuple[Weights, float] | None) -> Int8Form | None:
    """Return the int8 form that lies beside a model, if one does."""
    if blend is not None:
        raise UsageError("between two models there is no int8 form; leave --balance or --precision int8 out")
    if (content := int8_of(weights)) is None:
        return None
    form = Int8Form.from_json(content, int8_path(weights.path).name)
    if form.sha256 != weights.sha256:
        raise WeightsError(f"{int8_path(weights.path)}: the int8 form of another model than {weights.path.name}")
    return form


@lru_cache(maxsize=4)
def _blended(
    weights: Weights, towards: Weights, share: float, device: str, precision: str, faithful: bool | None
) -> OpenVinoEngine:
    name, blend = str(weights.path), (towards.onnx, share)
    engine = OpenVinoEngine(
        weights.onnx, name=name, blend=blend, device=device, precision=precision, faithful=faithful
    )
    engine.metadata = replace(engine.metadata, name=_name(weights, towards, share))
    return engine


def _name(weights: Weights, towards: Weights, share: float) -> str:
    return f"{weights.name}+{towards.name}@{share:g}"


def _weights_sha256(weights: Weights, blend: tuple[Weights, float] | None) -> str:
    """Return the hash of a model's file, or those of the two that it lies between."""
    return weights.sha256 if blend is None else f"{weights.sha256}+{blend[0].sha256}"


def _sha256(sha256: str, blend: tuple[Weights, float] | None, precision: str, faithful: bool) -> str:
    """Return the hash of what runs: that of the weights where it is those alone, in float32."""
    if blend is None and precision == "fp32" and not faithful:
        return sha256
    towards, share = ("", 0.0) if blend is None else (blend[0].sha256, blend[1])
    parts = [sha256, towards, repr(share), "" if precision == "fp32" else precision]
    parts += ["faithful"] * faithful
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
