"""What `srgan train` and `srgan export` do; the command line calls these and nothing below them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from srgan.errors import UsageError, WeightsError
from srgan.training import checkpoint
from srgan.training.config import load_recipe, validated
from srgan.training.data import build_cache
from srgan.training.trainer import export_ema
from srgan.training.trainer import train as run_training

log = logging.getLogger("srgan.training")


def train(
    recipe: str,
    data: Sequence[Path],
    run: Path,
    overrides: Sequence[str] = (),
    minutes: float | None = None,
    resume: bool = False,
) -> None:
    """Train `recipe` on the pictures below `data` and leave everything in the folder `run`."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("srgan").setLevel(logging.INFO)  # the libraries keep to warnings
    settings = load_recipe(recipe, overrides)
    if minutes is not None and not minutes > 0:
        raise UsageError(f"--minutes {minutes}: give a positive number")
    cache = build_cache(data, run.parent / "cache" if run.parent != Path() else Path("cache"))
    megapixels = float((cache.heights * cache.widths).sum()) / 1e6
    log.info("%d pictures, %.0f megapixels", len(cache), megapixels)
    for path in run_training(settings, cache, run, minutes=minutes, resume=resume):
        log.info("written: %s", path)


def export(checkpoint_path: Path, out: Path, name: str | None = None) -> None:
    """Write the averaged generator of a checkpoint as safetensors and ONNX into the folder `out`."""
    path = checkpoint_path / checkpoint.FILE_NAME if checkpoint_path.is_dir() else checkpoint_path
    state = checkpoint.load_checkpoint(path)
    try:
        recipe = validated(state["recipe"], str(path))
        prefix = "module."
        weights = {
            key.removeprefix(prefix): value for key, value in state["ema"].items() if key.startswith(prefix)
        }
        default_name: str = getattr(recipe, state["position"]["stage"]).export_name
        data_sha256: str = state["data_sha256"]
    except (KeyError, AttributeError) as error:
        raise WeightsError(f"{path} is not a training checkpoint: it lacks {error}") from error
    for written in export_ema(weights, recipe, name or default_name, data_sha256, {}, out):
        print(written)
