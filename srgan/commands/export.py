"""`srgan export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from srgan.commands.terminal import say
from srgan.conversion.exporting import KINDS, exported, write_files
from srgan.errors import UsageError, WeightsError
from srgan.networks import reading
from srgan.networks.generator import Generator
from srgan.networks.residual import ResidualNetwork
from srgan.texts import one_line
from srgan.training import checkpoint
from srgan.training.config import validated
from srgan.weights import ModelMetadata, bundled_tensors, usable_name


def export(
    source: str,
    out: Path,
    name: str | None = None,
    kinds: Sequence[str] = (),
    fp16: bool = False,
    opset: int | None = None,
) -> None:
    """Write a generator into the folder `out`, as files of `kinds` (by default safetensors and ONNX).

    `source`: a run's folder, whose last intact checkpoint is taken, a checkpoint, a safetensors file of this
    program, or the name of a bundled model. `fp16`: in half precision, NAME-fp16. `opset`: of ONNX's operators.
    Prints the paths.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise UsageError(f"--to {unknown.pop()}: choose from {', '.join(KINDS)}")
    kinds = list(dict.fromkeys(kinds)) or ["safetensors", "onnx"]
    if opset is not None and "onnx" not in kinds:
        raise UsageError("--opset is for --to onnx")
    if name is not None:
        usable_name(name)
    network, metadata = _network_of(source)
    name = metadata.name + ("-fp16" if fp16 else "") if name is None else name
    contents = exported(network, replace(metadata, name=name), kinds, fp16=fp16, opset=opset)
    for path in write_files(contents, out, name):
        print(one_line(str(path)))


def _network_of(source: str) -> tuple[Generator | ResidualNetwork, ModelMetadata]:
    path = Path(source)
    if path.suffix.lower() == ".onnx":
        raise UsageError(f"{source}: an ONNX file has no weights to export; give what it was made of")
    if path.suffix.lower() == ".safetensors":
        return reading.load_network(path)
    if not path.exists() and path.name == source:
        return reading.load_network(bundled_tensors(source))
    if path.is_dir():
        path, state = checkpoint.latest_checkpoint(path)
    else:
        state = reading.load_checkpoint(path)
    try:
        recipe = validated(state["recipe"], str(path))
        weights = reading.averaged_weights(state, path)
        stage, step = recipe.stages()[state["position"]["stage"]], int(state["position"]["step"])
        name = stage.export_name
        data_sha256 = str(state["data_sha256"])
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is not a training checkpoint: it lacks {error}") from error
    if step <= stage.idle_steps:
        say("warning", f"{path}: the stage has not moved the generator yet, so {name} is what it began with")
    return checkpoint.described(weights, recipe, name, data_sha256, {})
