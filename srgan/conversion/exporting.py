"""A trained generator as files: safetensors to train on from, ONNX to upscale with, checked against each other."""

from __future__ import annotations

import copy
import io
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import unescape

import numpy as np
import onnx
import onnx.version_converter
import torch
from google.protobuf.message import DecodeError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from srgan.conversion.calibrating import int8_form
from srgan.engines.graphs import openvino_ir
from srgan.engines.int8 import Int8Form
from srgan.engines.openvino import OpenVinoEngine, run_openvino_ir
from srgan.errors import UsageError, WeightsError
from srgan.files import write_atomically
from srgan.networks.generator import Generator
from srgan.networks.layers import deployed
from srgan.networks.residual import ResidualNetwork
from srgan.weights import METADATA_KEY, ModelMetadata, check_file, is_file_name, read_file, usable_name

PARITY_TOLERANCE = 1e-4  # of [0,1]: a fortieth of a grey level, far above float32 rounding and far below sight
FP16_TOLERANCE = 1 / 255  # a grey level: half precision keeps eleven bits of every sum (docs/decisions.md)

INT8_TOLERANCE = 2 / 255  # in the mean over photographs, where the bundled models differ by a third of it
_NAMED_IN_RUNS = ("data", "validation", "held_out")  # of folders and files, which a run's recipe.json keeps
_A_FILE = "(file)"

# Up to the exporter's own version these are the same, but for types that nothing here uses.
OLDEST_OPSET = 11
_UNCHANGED_SINCE_OLDEST = {"Add", "Cast", "Conv", "DepthToSpace", "Div", "Mul", "PRelu", "Pad", "Sub", "Tanh"}


def export_generator(generator: Generator, metadata: ModelMetadata, folder: Path) -> tuple[Path, Path]:
    """Write `NAME.safetensors` and `NAME.onnx` into `folder` and return both paths, as `exported` makes them."""
    tensors, graph = write_files(exported(generator, metadata), folder, metadata.name)
    return tensors, graph


def exported(
    network: Generator | ResidualNetwork,
    metadata: ModelMetadata,
    kinds: Sequence[str] = ("safetensors", "onnx"),
    *,
    fp16: bool = False,
    opset: int | None = None,
    crops: Sequence[np.ndarray] = (),
) -> dict[str, bytes]:
    """Return the contents of `network`'s files by suffix.

    `kinds`, of `KINDS`: "onnx" takes "lr" (N,3,H,W) float32 in [0,1] to "sr" (N,3,sH,sW), not clamped, for any N,
    H and W; "openvino" is the same as IR, a .bin and an .xml; "safetensors" are the weights. `fp16`: half
    precision, computed so in ONNX, stored so in the others; inputs and outputs stay float32. `opset`: of ONNX.
    `crops`: of LR, as `calibrating.crops` gives them; with them "openvino" is computed in eight bits, and beside
    "onnx" comes "int8.json", with which this program does so.
    All have reproduced torch's output within the tolerance. Raises WeightsError if one does not, or if a weight is
    not finite.
    """
    metadata = shared(metadata)
    network = network.eval().cpu().float()
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{metadata.name}: {name} holds values that are not finite; nothing was written")
    contents: dict[str, bytes] = {}
    for kind in kinds:
        contents |= _WRITERS[kind](network, metadata, fp16, opset)
    return contents | (_in_int8(network, metadata, contents, crops) if crops else {})


def write_files(contents: Mapping[str, bytes], folder: Path, name: str) -> list[Path]:
    """Write `contents`, by suffix, as files called `name`, each whole or not at all; return their paths.

    Raises UsageError for a name that a model may not have, WeightsError if a file that is not the model of that
    name by this program is in the way, or one cannot be written.
    """
    refuse_foreign(folder, name, tuple(contents))
    paths = {folder / f"{name}.{suffix}": content for suffix, content in contents.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in paths.items():
            write_atomically(path, content)
    except OSError as error:
        raise WeightsError(f"{folder / name}: cannot be written: {error.strerror}") from error
    return list(paths)


def refuse_foreign(folder: Path, name: str, suffixes: Sequence[str] = ("safetensors", "onnx")) -> None:
    """Raise what `write_files` would, before any work, if files of these `suffixes` may not be called `name`."""
    usable_name(name)
    for suffix in suffixes:
        path = folder / f"{name}.{suffix}"
        if os.path.lexists(path) and not _is_model_of_ours(path, name):
            raise WeightsError(
                f"{path}: exists and is not the model {name} by this program; give another name or folder, or "
                "move it away"
            )


def _is_model_of_ours(path: Path, name: str) -> bool:
    """Return whether `path` is a file that `write_files` left there for the model `name`, and no link to one."""
    if path.suffix == ".bin":  # what it is, the .xml beside it says
        return not path.is_symlink() and _is_model_of_ours(path.with_suffix(".xml"), name)
    try:
        if path.is_symlink():
            return False
        if path.suffix == ".onnx":
            texts = {prop.key: prop.value for prop in onnx.load_model_from_string(read_file(path)).metadata_props}
        elif path.suffix == ".json":
            return bool(Int8Form.from_json(read_file(path), str(path)))
        elif path.suffix == ".xml":
            attribute = re.search(f'<{METADATA_KEY} value="([^"]*)"', read_file(path).decode())
            texts = {METADATA_KEY: unescape(attribute[1], {"&quot;": '"'})} if attribute else {}
        else:
            check_file(path)
            with safe_open(path, framework="pt") as file:
                texts = file.metadata() or {}
        return ModelMetadata.from_json(texts[METADATA_KEY], str(path)).name == name
    except (WeightsError, SafetensorError, DecodeError, OSError, ValueError, KeyError):
        return False


def check_parity(
    network: nn.Module, onnx_bytes: bytes, name: str, *, fp16: bool = False, channels: int = 3
) -> None:
    """Raise WeightsError if `onnx_bytes`, run by OpenVINO, are not the same function as `network`."""
    _check_difference(parity(network, onnx_bytes, channels), name, fp16)


class HalfPrecision(nn.Module):
    """`network` computed in float16, between float32 pictures."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """Return SR, not clamped, as float32."""
        sr: torch.Tensor = self.network(lr.half())
        return sr.float()


def onnx_from(generator: nn.Module, metadata: ModelMetadata | None, channels: int = 3) -> bytes:
    """Return the generator as a serialised ONNX model with dynamic batch, height and width.

    Raises WeightsError if torch cannot export it so.
    """
    sizes: Any = {axis: torch.export.Dim(name) for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}
    with warnings.catch_warnings():  # the exporter warns of its own internals; parity() judges the result
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            generator.eval(),
            (torch.rand(2, channels, 24, 20),),  # sizes that differ, so that none is taken for another
            dynamo=True,
            verbose=False,
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=(sizes,),
        )
    if program is None:
        name = "the network" if metadata is None else metadata.name
        raise WeightsError(f"{name}: torch's ONNX exporter returned nothing")
    model = program.model_proto
    for node in model.graph.node:  # the exporter's notes on every node are larger than the graph
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    if metadata is not None:
        onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.checker.check_model(model)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


def with_opset(onnx_bytes: bytes, opset: int) -> bytes:
    """Return the model for version `opset` of ONNX's operators. Raises UsageError if that cannot be."""
    model = onnx.load_model_from_string(onnx_bytes)
    (entry,) = (entry for entry in model.opset_import if not entry.domain)
    try:
        if opset >= entry.version:
            model = onnx.version_converter.convert_version(model, opset)
        elif opset >= OLDEST_OPSET and {node.op_type for node in model.graph.node} <= _UNCHANGED_SINCE_OLDEST:
            entry.version = opset
            model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
        else:
            raise ValueError(opset)
        onnx.checker.check_model(model, full_check=True)
    except (ValueError, RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UsageError(
            f"--opset {opset}: this network can be had for {OLDEST_OPSET} to {onnx.defs.onnx_opset_version()}"
        ) from error
    return bytes(model.SerializeToString())


def parity(generator: nn.Module, onnx_bytes: bytes, channels: int = 3) -> float:
    """Return the largest difference, in units of [0,1], between torch and OpenVINO on one seeded noise picture."""
    lr = np.random.default_rng(0).random((1, 3, 37, 53), dtype=np.float32)
    return float(np.abs(OpenVinoEngine(onnx_bytes).run(lr) - _by_torch(generator, lr, channels)).max())


def _by_torch(network: nn.Module, lr: np.ndarray, channels: int = 3) -> np.ndarray:
    planes = torch.from_numpy(lr).reshape(-1, channels, *lr.shape[2:])
    with torch.inference_mode():
        sr: torch.Tensor = network(planes)
    return sr.reshape(lr.shape[0], 3, *sr.shape[2:]).numpy()


def _check_difference(difference: float, name: str, fp16: bool) -> None:
    allowed = FP16_TOLERANCE if fp16 else PARITY_TOLERANCE
    if not difference <= allowed:
        raise WeightsError(
            f"{name}: the exported file differs from torch by {difference:.2g} (allowed {allowed:g}); "
            "nothing was written"
        )


def _onnx(network: nn.Module, metadata: ModelMetadata, fp16: bool, opset: int | None) -> dict[str, bytes]:
    module = deployed(network)
    content = onnx_from(HalfPrecision(module) if fp16 else module, metadata)
    if opset is not None:
        content = with_opset(content, opset)
    check_parity(network, content, metadata.name, fp16=fp16)
    return {"onnx": content}


def _openvino(network: nn.Module, metadata: ModelMetadata, fp16: bool, opset: int | None) -> dict[str, bytes]:
    xml, weights = openvino_ir(onnx_from(deployed(network), metadata), fp16=fp16)
    lr = np.random.default_rng(0).random((1, 3, 37, 53), dtype=np.float32)
    difference = np.abs(run_openvino_ir(xml, weights, lr) - _by_torch(network, lr)).max()
    _check_difference(float(difference), metadata.name, fp16)
    return {"bin": weights, "xml": xml}


def _safetensors(network: nn.Module, metadata: ModelMetadata, fp16: bool, opset: int | None) -> dict[str, bytes]:
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if fp16:
        state = {name: tensor.half() for name, tensor in state.items()}
        lr = np.random.default_rng(0).random((1, 3, 37, 53), dtype=np.float32)
        rounded = copy.deepcopy(network).half().float()
        difference = np.abs(_by_torch(rounded, lr) - _by_torch(network, lr)).max()
        _check_difference(float(difference), metadata.name, fp16)
    return {"safetensors": save(state, {METADATA_KEY: metadata.to_json()})}


def _in_int8(
    network: nn.Module, metadata: ModelMetadata, contents: Mapping[str, bytes], crops: Sequence[np.ndarray]
) -> dict[str, bytes]:
    """Return those of the files that are others in eight bits; raises WeightsError if they differ by too much."""
    content = contents.get("onnx") or onnx_from(deployed(network), metadata)
    form = int8_form(content, metadata.name, crops)
    xml, weights = openvino_ir(content, int8=form)
    difference = np.mean([np.abs(run_openvino_ir(xml, weights, lr) - _by_torch(network, lr)) for lr in crops[:4]])
    if not difference <= INT8_TOLERANCE:
        raise WeightsError(
            f"{metadata.name}: in eight bits it differs from torch by {difference:.2g} in the mean "
            f"(allowed {INT8_TOLERANCE:.2g}); nothing was written"
        )
    files = {"bin": weights, "xml": xml} if "xml" in contents else {}
    return files | ({"int8.json": form.to_json().encode()} if "onnx" in contents else {})


_WRITERS = {"onnx": _onnx, "openvino": _openvino, "safetensors": _safetensors}
KINDS = tuple(_WRITERS)


def shared(metadata: ModelMetadata) -> ModelMetadata:
    """Return `metadata` without the folders and files that it names: they are nobody else's business.

    What they come to, counts and hashes, stays. What the recipe took from a file becomes "(file)".
    """
    recipe = copy.deepcopy(metadata.recipe)
    start, perceptual = recipe.get("start"), recipe.get("losses", {}).get("perceptual", {})
    if start and (Path(start).name != start or is_file_name(start)):
        recipe["start"] = _A_FILE
    if perceptual.get("file"):
        perceptual["file"] = _A_FILE
    run = {key: value for key, value in metadata.run.items() if key not in _NAMED_IN_RUNS}
    return replace(metadata, recipe=recipe, run=run)
