"""The full state of a training run as one file: all that is needed to go on as if never stopped.

A checkpoint is one line, `srgan-checkpoint 1 SHA256`, and what `torch.save` made of the state; the hash tells a
torn file from a whole one. Loading never executes code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from srgan.errors import TrainingError, UsageError, WeightsError
from srgan.files import TEMPORARY_SUFFIX, write_atomically
from srgan.networks import reading
from srgan.networks.generator import Generator
from srgan.networks.reading import CHECKPOINT_MAGIC, load_checkpoint
from srgan.training.config import STAGES, validated
from srgan.training.data.cache import locked
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


def drop_latest(folder: Path, stage: str, step: int) -> None:
    """Remove the newest checkpoint if it is of `step` of `stage` and not the only one."""
    *before, latest = [None, *checkpoints(folder)]
    if latest is not None and len(before) > 1 and latest.stem.endswith(f"{stage}-{step:09d}"):
        latest.unlink(missing_ok=True)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last `keep` numbered checkpoints."""
    for path in checkpoints(folder)[:-keep]:
        path.unlink(missing_ok=True)


def drop_after(path: Path) -> None:
    """Remove the checkpoints of a run that were written after `path`, which a resume goes on from.

    They are torn, or of a stage that is to begin anew. The best of its own stage stays: it is a result.
    """
    best = f"{path.stem.rpartition('-')[0]}-{BEST}.pt"
    for other in path.parent.glob("*.pt"):
        if other.name > path.name and other.name != best:
            other.unlink(missing_ok=True)


def best_checkpoint(folder: Path, stage_number: int, stage: str) -> dict[str, Any] | None:
    """Return the best checkpoint of a stage, or None if there is no intact one."""
    path = checkpoint_path(folder, stage_number, stage, None)
    try:
        return load_checkpoint(path) if path.is_file() else None
    except WeightsError as error:
        log.warning("%s", error)
        return None


def best_of_stage(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Return the best of the stage that `state` stands in; `state` itself if it is that, or there is no other."""
    position = state["position"]
    stage, step = position["stage"], position["step"]
    if position.get("best_step", step) not in (0, step):
        best = best_checkpoint(folder, STAGES.index(stage), stage)
        if best is not None:
            return best
    return state


@contextlib.contextmanager
def held(folder: Path, fabric: Fabric) -> Iterator[None]:
    """Hold the run in `folder` against other processes that would train it.

    The lock falls when the process does, however it ends. Raises UsageError if another one has it.
    """
    free = True
    with contextlib.ExitStack() as stack:
        if fabric.is_global_zero:
            with contextlib.suppress(OSError):  # told where the first checkpoint is written
                folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(folder, waits=False))
            except TimeoutError:
                free = False
        if not fabric.broadcast(free):
            raise UsageError(f"{folder} is being trained by another process: wait for it, or stop it first")
        yield


def described(state: dict[str, Any], source: str) -> tuple[Generator, ModelMetadata]:
    """Return the averaged generator of a training state, and everything that made it.

    `source` names the state in errors. Raises WeightsError if it is not a training state.
    """
    try:
        recipe = validated(state["recipe"], source)
        weights = reading.averaged_weights(state, Path(source))
        position = state["position"]
        name = recipe.stages()[position["stage"]].export_name
        step = int(position["step"])
        data_sha256 = str(state["data_sha256"])
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{source} is not a training checkpoint: it lacks {error}") from error
    scores: dict[str, float] = state.get("scores", {})
    architecture = recipe.generator.model_dump()
    generator = Generator(**architecture)
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    reading.fill(generator, weights, name)
    metadata = ModelMetadata(
        name=name,
        scale=generator.scale,
        halo_lr_px=generator.halo_lr_px,
        architecture=architecture,
        recipe=recipe.model_dump(mode="json"),
        data_sha256=data_sha256,
        metrics={key: round(value, 4) for key, value in scores.items()},
        run=state.get("run", {}) | {"stage": position["stage"], "best_step": step},
    )
    return generator, metadata
