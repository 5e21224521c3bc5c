"""Networks and their weights from files that nobody vouches for: checked before use, and no code is ever run."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from srgan.errors import WeightsError
from srgan.networks.generator import Generator, GeneratorRecipe
from srgan.networks.residual import Architecture, ResidualNetwork
from srgan.weights import METADATA_KEY, ModelMetadata, check_file, read_file

# How a checkpoint begins; the hash of the rest follows (training/checkpoint.py writes it).
CHECKPOINT_MAGIC = b"srgan-checkpoint 1 "

MAX_CHECKPOINT_BYTES = 16 * 2**30  # four networks of the largest recipe, and two optimizers

_HEADER_BYTES = len(CHECKPOINT_MAGIC) + 64 + 1

# What torch's reader raises on hostile content, as met by damaging it at random.
_UNPICKLING_ERRORS = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote, on the CPU. Raises WeightsError if it is torn, foreign or missing."""
    content = read_file(path, MAX_CHECKPOINT_BYTES)
    header, payload = content[:_HEADER_BYTES], content[_HEADER_BYTES:]
    if not header.startswith(CHECKPOINT_MAGIC):
        raise WeightsError(
            f"{path} is not a checkpoint of this version of srgan; `srgan import` reads weights by other programs"
        )
    if header[len(CHECKPOINT_MAGIC) :] != hashlib.sha256(payload).hexdigest().encode() + b"\n":
        raise WeightsError(f"{path} is damaged: restore an intact copy, or remove it to go on from the one before")
    state = unpickled(payload)
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds something else than a training state; it was not loaded")
    return state


def averaged_weights(state: dict[str, Any], source: Path) -> dict[str, torch.Tensor]:
    """Return the averaged generator's tensors of the training state `state`, by their names in the generator.

    Raises WeightsError, naming `source`, if it holds none.
    """
    prefix = "module."  # of torch's AveragedModel
    try:
        weights = {key.removeprefix(prefix): v for key, v in state["ema"].items() if key.startswith(prefix)}
    except (KeyError, AttributeError) as error:
        raise WeightsError(f"{source} is not a training checkpoint: it lacks {error}") from error
    return weights


def is_checkpoint(content: bytes) -> bool:
    """Return whether `content` is that of a file by `save_checkpoint`, of any version."""
    return content.startswith(CHECKPOINT_MAGIC.partition(b" ")[0])


def unpickled(payload: bytes) -> Any:
    """Return what `torch.save` put into `payload`, on the CPU, or None where that is not plain data.

    Plain: tensors, numbers, text and containers of them. No code is ever executed, and what would unpack to more
    than the bytes that are there is not unpacked.
    """
    try:
        if zipfile.is_zipfile(io.BytesIO(payload)):  # torch stores its records uncompressed
            with zipfile.ZipFile(io.BytesIO(payload)) as archive:
                if sum(record.file_size for record in archive.infolist()) > len(payload):
                    return None
        with warnings.catch_warnings():  # torch guesses aloud about files that are not its own
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except _UNPICKLING_ERRORS:
        return None  # torch's own text is not passed on: it advises to switch the protection off


def load_generator(path: Path) -> tuple[Generator, ModelMetadata]:
    """Return the generator of a safetensors file that `export_generator` wrote, and what it says of itself.

    Raises WeightsError if the file is damaged, carries no metadata, or its tensors are not those of the
    architecture that it names.
    """
    state, metadata = read_safetensors(path)
    try:
        recipe = GeneratorRecipe.model_validate(metadata.architecture)  # bounds, before anything is built
    except ValidationError as error:
        raise WeightsError(
            f"{path}: its architecture is unknown to this version: {metadata.architecture}"
        ) from error
    if metadata.scale != recipe.scale:
        raise WeightsError(f"{path}: says x{metadata.scale} of itself, and its architecture is of x{recipe.scale}")
    generator = Generator(**recipe.model_dump())
    fill(generator, state, str(path))
    return generator, metadata


def load_network(path: Path) -> tuple[Generator | ResidualNetwork, ModelMetadata]:
    """Return the network of a safetensors file that this program wrote, trained or imported, and its metadata.

    Raises WeightsError if the file is damaged, foreign, or its tensors are not those of its architecture.
    """
    state, metadata = read_safetensors(path)
    if metadata.architecture.get("network") != "residual":
        return load_generator(path)
    try:
        network = ResidualNetwork(Architecture.model_validate(metadata.architecture))
    except ValidationError as error:
        raise WeightsError(f"{path}: its architecture is unknown to this version") from error
    fill(network, state, str(path))
    return network, metadata


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], ModelMetadata]:
    """Return the tensors of a safetensors file by this program, half precision made single, and its metadata."""
    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
    if text is None:
        raise WeightsError(
            f"{path} carries no srgan metadata: it was not written by this program; `srgan import` may read it"
        )
    state = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in state.items()}
    return state, ModelMetadata.from_json(text, str(path))


def fill(module: nn.Module, state: dict[str, Any], source: str) -> None:
    """Load `state` into `module`, only if it is exactly what `module` needs.

    Names, shapes and dtypes must be the same, every tensor dense, no larger in storage than in shape, and
    finite. Raises WeightsError otherwise, before anything is copied.
    """
    expected = module.state_dict()
    if not isinstance(state, dict) or state.keys() != expected.keys():
        raise WeightsError(f"{source} belongs to another architecture: use the recipe it was made with")
    for name, wanted in expected.items():
        tensor = state[name]
        check_plain(tensor, name, source)
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise WeightsError(f"{source} belongs to another architecture: {name} has another shape or type")
        check_values(tensor, name, source)
    module.load_state_dict(state)


def check_plain(tensor: Any, name: str, source: str) -> None:
    """Raise WeightsError if `tensor` is not a dense tensor with values."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or tensor.is_meta:
        raise WeightsError(f"{source}: {name} is not a plain tensor")


def check_values(tensor: torch.Tensor, name: str, source: str) -> None:
    """Raise WeightsError if a plain `tensor` claims more values than it stores, or one is not finite."""
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise WeightsError(f"{source}: {name} claims more numbers than the file holds")
    if not tensor.isfinite().all():
        raise WeightsError(f"{source}: {name} holds values that are not finite")
