"""The full state of a training run as one file: all that is needed to go on as if never stopped."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from srgan.errors import WeightsError
from srgan.files import write_atomically
from srgan.training.models import Generator
from srgan.weights import METADATA_KEY, ModelMetadata

FORMAT = 1
FILE_NAME = "checkpoint.pt"


def save_checkpoint(run: Path, state: dict[str, Any]) -> Path:
    """Write `state` (tensors, numbers, strings, nested) as RUN/checkpoint.pt, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    path = run / FILE_NAME
    write_atomically(path, buffer.getvalue())
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote, on the CPU; never executes code. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"no checkpoint {path}: start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        IndexError,
        ValueError,
        OSError,
        zipfile.BadZipFile,
    ) as error:
        # torch's own text is not passed on: it advises to switch the protection off.
        raise WeightsError(f"{path} is damaged or not a checkpoint of srgan: restore an intact copy") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise WeightsError(f"{path} is not a checkpoint of this version of srgan")
    return state


def load_generator(path: Path) -> tuple[Generator, ModelMetadata]:
    """Return the generator of a safetensors file that `export_generator` wrote, and what it says of itself.

    Raises WeightsError if the file is damaged, carries no metadata, or its tensors are not those of the
    architecture that it names.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
    if text is None:
        raise WeightsError(f"{path} carries no srgan metadata: it was not written by this program")
    metadata = ModelMetadata.from_json(text, str(path))
    try:
        generator = Generator(**metadata.architecture)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its architecture is unknown to this version ({error})") from error
    fill(generator, state, str(path))
    return generator, metadata


def fill(module: nn.Module, state: dict[str, Any], source: str) -> None:
    """Load `state` into `module`; names, shapes and finite values must be exact. Raises WeightsError."""
    expected = module.state_dict()
    if state.keys() != expected.keys() or any(state[name].shape != expected[name].shape for name in expected):
        raise WeightsError(f"{source} belongs to another architecture: use the recipe it was made with")
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{source}: {broken[0]} holds values that are not finite")
    module.load_state_dict(state)
