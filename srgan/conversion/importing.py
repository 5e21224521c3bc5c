"""Generators that others trained, as files of ours: read without running their code, recognised and checked."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from srgan import isolated
from srgan.conversion.exporting import check_parity, exported, onnx_from, refuse_foreign, write_files
from srgan.conversion.trial import tried
from srgan.engines import contents
from srgan.engines.openvino import OpenVinoEngine
from srgan.errors import UsageError, WeightsError
from srgan.networks.foreign import ForeignNetwork, foreign_network
from srgan.networks.layouts import network_from
from srgan.networks.reading import check_plain, check_values, is_checkpoint, load_network, unpickled
from srgan.networks.residual import ResidualNetwork
from srgan.weights import METADATA_KEY, ModelMetadata, check_file, name_of_file, read_file

MAX_TENSORS = 20_000

# Where training programs put a generator's weights, the averaged ones first.
_CONTAINERS = (
    *("params_ema", "ema_state_dict", "generator_ema", "g_ema", "ema", "params", "state_dict"),
    *("model_state_dict", "generator_state_dict", "generator", "netG", "model", "net"),
)
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel, of torch.compile
_ROLES = ("generator_ema.", "generator.", "netG.", "net_g.", "net.", "model.")  # a generator among other networks
_NO_WEIGHTS = ("num_batches_tracked", "n_averaged")


def import_model(source: Path, out: Path, name: str | None = None, halo_lr_px: int | None = None) -> list[Path]:
    """Write what `read_model` returns into the folder `out`, as files called `name`; return their paths."""
    name = name_of_file(source) if name is None else name
    refuse_foreign(out, name, ("onnx",))
    return write_files(read_model(source, name, halo_lr_px), out, name)


def read_model(source: Path, name: str, halo_lr_px: int | None = None) -> dict[str, bytes]:
    """Return the generator in `source` as files of ours, by suffix: "onnx" and, of an SRResNet, "safetensors".

    `source`: an ONNX file; or a .pth, .pt, .pth.tar, .ckpt or .safetensors file with the weights of one of
    `layouts.LAYOUTS` or, where spandrel is installed, of any architecture that it knows. `halo_lr_px`: the context
    of a network whose own cannot be told. Raises UsageError or WeightsError if it cannot be used.
    """
    if source.suffix.lower() == ".onnx":
        return {"onnx": _measured(read_file(source), source, name, halo_lr_px)}
    state = read_tensors(source)
    network = network_from(state, str(source))
    if network is None:
        return {"onnx": _converted(foreign_network(state, source), source, name, halo_lr_px)}
    if halo_lr_px is not None:
        raise UsageError(f"{source}: its halo is known to be {network.architecture.halo_lr_px}; leave --halo out")
    return exported(network, _metadata_of(network, source, name))


def read_network(source: Path) -> tuple[nn.Module, ModelMetadata] | ForeignNetwork:
    """Return the network in a file of weights alone: ours or of `layouts.LAYOUTS` with its metadata, or another's.

    Raises what `read_tensors`, `load_network` and `foreign_network` raise.
    """
    if is_ours(source):
        return load_network(source)
    state = read_tensors(source)
    network = network_from(state, str(source))
    if network is None:
        return foreign_network(state, source)
    return network, _metadata_of(network, source, name_of_file(source))


def _metadata_of(network: ResidualNetwork, source: Path, name: str) -> ModelMetadata:
    facts = network.architecture
    origin = {"imported_from": source.name, "imported_sha256": hashlib.sha256(read_file(source)).hexdigest()}
    return ModelMetadata(name, facts.scale, facts.halo_lr_px, facts.model_dump(mode="json"), origin)


def is_ours(path: Path) -> bool:
    """Return whether `path` is a safetensors file that this program wrote."""
    if path.suffix.lower() != ".safetensors":
        return False
    with contextlib.suppress(SafetensorError, OSError):
        check_file(path)
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    return False


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the generator's weights in `path` by their plain names: dense, finite, floating point, on the CPU.

    Code in the file is never executed. Raises WeightsError if there are no such tensors in it.
    """
    content = read_file(path)
    if is_checkpoint(content):
        raise UsageError(f"{path} is a checkpoint of this program: `srgan export {path}` writes its generator")
    if path.suffix.lower() == ".safetensors":
        try:
            found: Any = load_safetensors(content)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise WeightsError(f"{path} cannot be read as safetensors; it is damaged or something else") from error
    else:
        found = unpickled(content)
        if found is None:
            raise WeightsError(
                f"{path} holds something else than tensors, or is damaged; code in it is never run. Where it was "
                "made, write its weights alone: torch.save(model.state_dict(), FILE)"
            )
    state = _without_wrappers(_state_dict(found, path))
    for name, tensor in state.items():
        label = repr(name[:80])
        check_plain(tensor, label, str(path))
        if not tensor.is_floating_point() and not _is_table(name, tensor):
            raise WeightsError(f"{path}: {label} is of {tensor.dtype}, not of floating point")
        check_values(tensor, label, str(path))
    return state


def _state_dict(found: Any, path: Path) -> dict[str, Any]:
    """Return the innermost container of tensors that is a generator's."""
    for _ in range(3):
        inside = next(
            (
                found[key]
                for key in _CONTAINERS
                if isinstance(found, Mapping) and isinstance(found.get(key), Mapping) and found[key]
            ),
            None,
        )
        if inside is None:
            break
        found = inside
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path} holds no weights of a generator")
    if len(found) > MAX_TENSORS:
        raise WeightsError(f"{path} holds {len(found)} tensors, more than any generator has")
    if not all(isinstance(name, str) for name in found):
        raise WeightsError(f"{path} holds tensors without names")
    return dict(found)


def _is_table(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor of whole numbers may be: which relative positions are meant, and the like."""
    whole = (torch.int64, torch.int32, torch.bool)
    return tensor.dtype in whole and name.rpartition(".")[2] not in ("weight", "bias")


def _without_wrappers(state: dict[str, Any]) -> dict[str, Any]:
    """Return the generator's part of `state`, without the prefixes of what was wrapped around it."""
    state = {name: value for name, value in state.items() if name.rpartition(".")[2] not in _NO_WEIGHTS}
    changed = True
    while changed:
        changed = False
        for prefix in _WRAPPERS:
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
                changed = True
        for prefix in _ROLES:
            inside = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
            # A part of it may be called so, too: "model.0.weight" is a name of ESRGAN's.
            named = not any(name[:1].isdigit() for name in inside)
            if (named and len(inside) == len(state)) or (inside and prefix.startswith(("generator", "net"))):
                changed, state = True, inside
                break
    return state


def _converted(network: ForeignNetwork, source: Path, name: str, halo_lr_px: int | None) -> bytes:
    """Return a network of another architecture as an ONNX file, where that can be had and does the same."""
    refused = f"{source}: {network.kind} cannot be made an ONNX file; use it as it is: srgan upscale -n {source}"
    if network.multiple_lr_px > 1:
        raise WeightsError(refused)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        # In a process of its own: torch's exporter ends it on some networks (SPAN), without a word.
        call = "import srgan.conversion.importing as importing; importing.write_traced(*sys.argv)"
        done = subprocess.run(  # noqa: S603  # this Python and its places
            isolated.command(call, str(source), str(path)),
            env=isolated.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode or not path.is_file():
            raise WeightsError(refused)
        content = path.read_bytes()
    content = _measured(content, source, name, halo_lr_px, network.kind)
    check_parity(network.model, content, name, channels=network.channels)
    return content


def write_traced(source: str, out: str) -> None:
    """Write the network of another architecture in the file `source` as an ONNX file without metadata."""
    network = foreign_network(read_tensors(Path(source)), Path(source))
    Path(out).write_bytes(onnx_from(network.model, None, network.channels))


def _measured(content: bytes, source: Path, name: str, halo_lr_px: int | None, kind: str = "ONNX") -> bytes:
    """Return an ONNX model with what it shows of itself written into it."""
    contents.check(content, str(source))
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise WeightsError(f"{source}: not an ONNX model") from error
    for prop in model.metadata_props:
        if prop.key != METADATA_KEY:
            continue
        ModelMetadata.from_json(prop.value, str(source))
        raise UsageError(f"{source}: it can be used as it is: srgan upscale -n {source}")
    halo_lr_px = tried(content, hashlib.sha256(content).hexdigest(), str(source), halo_lr_px)
    metadata = OpenVinoEngine(content, name=str(source), halo_lr_px=halo_lr_px).metadata
    added = model.metadata_props.add()
    added.key, added.value = (
        METADATA_KEY,
        replace(metadata, name=name, architecture={"network": "foreign", "layout": kind}).to_json(),
    )
    return bytes(model.SerializeToString())
