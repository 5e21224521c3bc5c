"""The full state of a training run as one file: all that is needed to go on as if never stopped.

A checkpoint is one line, `srgan-checkpoint 1 SHA256`, and what `torch.save` made of the state; the hash tells a
torn file from a whole one. Loading never executes code.
"""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from srgan.errors import TrainingError, WeightsError
from srgan.files import TEMPORARY_SUFFIX, write_atomically
from srgan.networks import reading
from srgan.networks.generator import SCALE, Generator
from srgan.networks.reading import CHECKPOINT_MAGIC, load_checkpoint
from srgan.training.config import Recipe
from srgan.weights import ModelMetadata

log = logging.getLogger(__name__)

FOLDER = "checkpoints"  # in the run's folder
BEST = "best"  # what the name of the best checkpoint of a stage ends with


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, nested), whole or not at all.

    Raises TrainingError if the disk is full or forbids it; an existing file is then as it was.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, CHECKPOINT_MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written: {error.strerror}. It needs {len(payload) / 1e6:.0f} MB: make room or "
            "choose another --run, then go on with --resume"
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """Return the numbered checkpoints of the run in `folder`, oldest first; names sort by stage and step."""
    return sorted(path for path in (folder / FOLDER).glob("*.pt") if not path.stem.endswith(BEST))


def checkpoint_path(folder: Path, stage_number: int, stage: str, step: int | None) -> Path:
    """Return where the checkpoint of `stage` at `step` lies, or with None the best of the stage."""
    name = BEST if step is None else f"{step:09d}"
    return folder / FOLDER / f"{stage_number}-{stage}-{name}.pt"


def latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the newest intact checkpoint of the run in `folder`. Raises WeightsError if there is none.

    A torn one is named in the log, and the one before it is used.
    """
    for path in reversed(checkpoints(folder)):
        try:
            return path, load_checkpoint(path)
        except WeightsError as error:
            log.warning("%s", error)
    raise WeightsError(f"no intact checkpoint in {folder / FOLDER}: start without --resume")


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`."""
    for path in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last `keep` numbered checkpoints."""
    for path in checkpoints(folder)[:-keep]:
        path.unlink(missing_ok=True)


def described(
    state: dict[str, Any], recipe: Recipe, name: str, data_sha256: str, scores: dict[str, float]
) -> tuple[Generator, ModelMetadata]:
    """Return the generator that has the weights `state`, and everything that made them."""
    architecture = recipe.generator.model_dump()
    generator = Generator(**architecture)
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    reading.fill(generator, state, name)
    metadata = ModelMetadata(
        name=name,
        scale=SCALE,
        halo_lr_px=generator.halo_lr_px,
        architecture=architecture,
        recipe=recipe.model_dump(mode="json"),
        data_sha256=data_sha256,
        metrics={key: round(value, 4) for key, value in scores.items()},
    )
    return generator, metadata
