"""What `srgan train`, `export` and `import` do; the command line calls these and nothing below them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from srgan.engine import OpenVinoEngine
from srgan.errors import UsageError, WeightsError
from srgan.training import checkpoint, importing, trainer
from srgan.training.architectures import ResidualNetwork
from srgan.training.config import load_recipe, validated
from srgan.training.data import build_cache
from srgan.training.data_check import report_of, summary
from srgan.training.export import KINDS, exported, write_files
from srgan.training.models import Generator
from srgan.training.processes import make_fabric, together
from srgan.training.sources import parse_source
from srgan.weights import ModelMetadata, bundled_tensors

log = logging.getLogger(__name__)


def train(
    recipe: str,
    data: Sequence[str],
    run: Path,
    overrides: Sequence[str] = (),
    minutes: float | None = None,
    resume: bool = False,
    devices: int = 1,
    nodes: int = 1,
) -> None:
    """Train `recipe` on the pictures of `data` and leave everything in the folder `run`.

    `data`: folders, as DIR, DIR=WEIGHT (its share of the patches) or HR_DIR:LR_DIR (LR as shipped).

    `devices`: GPUs, or CPU processes where there is no GPU, on each of `nodes` machines.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("srgan").setLevel(logging.INFO)  # the libraries keep to warnings
    settings = load_recipe(recipe, overrides)
    if minutes is not None and not minutes > 0:
        raise UsageError(f"--minutes {minutes}: give a positive number")
    if devices < 1 or nodes < 1:
        raise UsageError(f"--devices {devices} --nodes {nodes}: give at least 1 of each")
    fabric = make_fabric(settings, devices, nodes)
    with together(fabric):
        with fabric.rank_zero_first():  # the others then only map what the first has packed
            sources = [parse_source(text) for text in data]
            cache = build_cache(sources, run.parent / "cache", max_bad_share=settings.data.max_bad_share)
        if not fabric.is_global_zero:
            logging.getLogger("srgan").setLevel(logging.WARNING)
        log.info("%s", summary(report_of(cache, settings)))
        for path in trainer.train(settings, cache, run, minutes=minutes, resume=resume, fabric=fabric):
            log.info("written: %s", path)


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
    network, metadata = _network_of(source)
    own_name = name or metadata.name + ("-fp16" if fp16 else "")
    contents = exported(network, replace(metadata, name=own_name), kinds, fp16=fp16, opset=opset)
    for written in write_files(contents, out, own_name):
        print(written)


def import_(source: Path, out: Path, name: str | None = None, halo_lr_px: int | None = None) -> None:
    """Write a generator that another program trained into the folder `out`, and print what it is and the paths."""
    if name is not None and Path(name).name != name:
        raise UsageError(f"--name {name}: give a name, not a path; the folder is --output")
    paths = importing.import_model(source, out, name, halo_lr_px)
    metadata = OpenVinoEngine(next(path for path in paths if path.suffix == ".onnx")).metadata
    kind = metadata.architecture.get("layout", "ONNX")
    print(f"{source}: {kind}, x{metadata.scale}, {metadata.halo_lr_px} pixels of context")
    for written in paths:
        print(written)


def _network_of(source: str) -> tuple[Generator | ResidualNetwork, ModelMetadata]:
    path = Path(source)
    if path.suffix.lower() == ".onnx":
        raise UsageError(f"{source}: an ONNX file has no weights to export; give what it was made of")
    if path.suffix.lower() == ".safetensors":
        return checkpoint.load_network(path)
    if not path.exists() and path.name == source:
        return checkpoint.load_network(bundled_tensors(source))
    if path.is_dir():
        path, state = checkpoint.latest_checkpoint(path)
    else:
        state = checkpoint.load_checkpoint(path)
    try:
        recipe = validated(state["recipe"], str(path))
        weights = checkpoint.averaged_weights(state, path)
        name: str = getattr(recipe, state["position"]["stage"]).export_name
        data_sha256: str = state["data_sha256"]
    except (KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path} is not a training checkpoint: it lacks {error}") from error
    return trainer.described(weights, recipe, name, data_sha256, {})
