"""`srgan export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from srgan.commands.terminal import say
from srgan.conversion.calibrating import lr_crops
from srgan.conversion.exporting import KINDS, exported, write_files
from srgan.errors import UsageError
from srgan.networks import reading
from srgan.networks.generator import Generator
from srgan.networks.residual import ResidualNetwork
from srgan.texts import did_you_mean, one_line
from srgan.training import checkpoint
from srgan.weights import ModelMetadata, bundled_tensors, usable_name


def export(
    source: str,
    out: Path,
    name: str | None = None,
    kinds: Sequence[str] = (),
    fp16: bool = False,
    opset: int | None = None,
    calibrate: Path | None = None,
) -> None:
    """Write a generator into the folder `out`, as files of `kinds` (by default safetensors and ONNX).

    `source`: a run's folder, the best of whose last stage is taken, a checkpoint, a safetensors file of this
    program, or the name of a bundled model. `fp16`: in half precision, NAME-fp16. `opset`: of ONNX's operators.
    `calibrate`: a folder of photographs, for the form in eight bits; without ONNX that is called NAME-int8. Prints
    the paths.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        kind = unknown.pop()
        raise UsageError(f"--to {kind}: choose from {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    kinds = list(dict.fromkeys(kinds)) or ["safetensors", "onnx"]
    if opset is not None and "onnx" not in kinds:
        raise UsageError("--opset is for --to onnx")
    if name is not None:
        usable_name(name)
    network, metadata = _network_of(source)
    crops = () if calibrate is None else lr_crops(calibrate, metadata.scale)
    if name is None:
        name = metadata.name + ("-fp16" if fp16 else "-int8" if crops and "onnx" not in kinds else "")
    contents = exported(network, replace(metadata, name=name), kinds, fp16=fp16, opset=opset, crops=crops)
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
        latest, state = checkpoint.latest_checkpoint(path)
        path, state = latest, checkpoint.best_of_stage(path, state)
    else:
        state = reading.load_checkpoint(path)
    generator, metadata = checkpoint.described(state, str(path))
    stage, step, name = metadata.run["stage"], metadata.run["best_step"], metadata.name
    if not state["position"].get("moved", step):
        say("warning", f"{path}: the stage has not moved the generator yet, so {name} is what it began with")
    elif Path(source).is_dir():
        say("note", f"{name} is the average at step {step} of {stage}, the best that was kept")
    return generator, metadata
