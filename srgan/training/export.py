"""A trained generator as files: safetensors to train on from, ONNX to upscale with, checked against each other."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import save
from torch import nn

from srgan.engine import OpenVinoEngine
from srgan.errors import WeightsError
from srgan.files import write_atomically
from srgan.training.models import DeployedGenerator, Generator
from srgan.weights import METADATA_KEY, ModelMetadata

PARITY_TOLERANCE = 1e-4  # of [0,1]: a fortieth of a grey level, far above float32 rounding and far below sight


def export_generator(generator: Generator, metadata: ModelMetadata, folder: Path) -> tuple[Path, Path]:
    """Write `NAME.safetensors` and `NAME.onnx` into `folder` and return both paths.

    The ONNX file takes "lr" (N,3,H,W) float32 in [0,1] to "sr" (N,3,4H,4W), not clamped, for any N, H and W.
    Both are written whole or not at all, and the ONNX file only after OpenVINO has reproduced torch's output
    within `PARITY_TOLERANCE`. Raises WeightsError if it does not, or if a weight is not finite.
    """
    metadata = replace(metadata, recipe=_without_places(metadata.recipe))
    generator = generator.eval().cpu().float()
    for name, tensor in generator.state_dict().items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{metadata.name}: {name} holds values that are not finite; nothing was written")
    onnx_bytes = onnx_from(DeployedGenerator(generator), metadata)
    difference = parity(generator, onnx_bytes)
    if not difference <= PARITY_TOLERANCE:
        raise WeightsError(
            f"{metadata.name}: the exported file differs from torch by {difference:.2g} (allowed "
            f"{PARITY_TOLERANCE:g}); nothing was written"
        )
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    paths = folder / f"{metadata.name}.safetensors", folder / f"{metadata.name}.onnx"
    write_atomically(paths[0], save(state, {METADATA_KEY: metadata.to_json()}))
    write_atomically(paths[1], onnx_bytes)
    return paths


def onnx_from(generator: nn.Module, metadata: ModelMetadata) -> bytes:
    """Return the generator as a serialised ONNX model with dynamic batch, height and width."""
    sizes: Any = {axis: torch.export.Dim(name) for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}
    with warnings.catch_warnings():  # the exporter warns of its own internals; parity() judges the result
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            generator.eval(),
            (torch.rand(2, 3, 24, 20),),  # sizes that differ, so that none is taken for another
            dynamo=True,
            verbose=False,
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=(sizes,),
        )
    if program is None:
        raise WeightsError(f"{metadata.name}: torch's ONNX exporter returned nothing")
    model = program.model_proto
    for node in model.graph.node:  # the exporter's notes on every node are larger than the graph
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.checker.check_model(model)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


def parity(generator: nn.Module, onnx_bytes: bytes) -> float:
    """Return the largest difference, in units of [0,1], between torch and OpenVINO on one seeded noise picture."""
    lr = np.random.default_rng(0).random((1, 3, 37, 53), dtype=np.float32)
    with torch.inference_mode():
        expected = generator(torch.from_numpy(lr)).numpy()
    return float(np.abs(OpenVinoEngine(onnx_bytes).run(lr) - expected).max())


def _without_places(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return `recipe` with the files it names reduced to their names: where they lay is nobody else's business."""
    shared = copy.deepcopy(recipe)
    for section, key in ((shared, "start"), (shared.get("losses", {}).get("perceptual", {}), "file")):
        if section.get(key):
            section[key] = Path(section[key]).name
    return shared
