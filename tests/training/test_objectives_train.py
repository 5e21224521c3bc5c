"""Every objective in a short run on small pictures: the generator improves and the game's state is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.caches import cache_of
from support.runs import discs

from srgan.networks.generator import Generator
from srgan.networks.reading import load_generator
from srgan.training import trainer
from srgan.training.adversarial import OBJECTIVES
from srgan.training.checkpoint import latest_checkpoint
from srgan.training.config import validated
from srgan.training.data.cache import PictureCache, split
from srgan.training.validation import validate
from srgan.weights import METADATA_KEY, ModelMetadata


@pytest.fixture(scope="module")
def shapes() -> PictureCache:
    return cache_of(*discs(6, 96, each=12, radii=(4, 20)))


@pytest.fixture(scope="module")
def poor_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator whose last layer is ten times too loud, so that there is much to improve."""
    torch.manual_seed(0)
    generator = Generator(1, 8)
    with torch.no_grad():
        generator.tail.weight.mul_(10)
    path = tmp_path_factory.mktemp("start") / "poor.safetensors"
    metadata = ModelMetadata("poor", 4, generator.halo_lr_px, {"blocks": 1, "features": 8})
    save_file(generator.state_dict(), path, {METADATA_KEY: metadata.to_json()})
    return path


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_generator_improves_under_every_objective(
    shapes: PictureCache, poor_start: Path, tmp_path: Path, objective: str
) -> None:
    recipe = validated(
        {
            "objective": objective,
            "start": str(poor_start),
            "generator": {"blocks": 1, "features": 8},
            "discriminator": {
                "kind": "autoencoder" if objective == "began" else "vgg",
                "features": 4,
                "normalisation": "none",
            },
            "losses": {"content": {"kind": "l1"}, "perceptual": {"weight": 0.0}},
            "data": {"held_out": 1},
            "pretrain": {"steps": 0},
            "adversarial": {
                "steps": 40,
                "batch_size": 4,
                "patch_hr_px": 32,
                "learning_rate": 1e-3,
                "ema_decay": 0.9,
            },
            "log_steps": 20,
        },
        "test",
    )
    _, held_out = split(shapes, recipe.data)
    start = validate(load_generator(poor_start)[0], held_out)["validation/psnr_y"]
    trainer.train(recipe, shapes, tmp_path)
    generator = Generator(**recipe.generator.model_dump())
    _, state = latest_checkpoint(tmp_path)
    generator.load_state_dict({k.removeprefix("module."): v for k, v in state["ema"].items() if "module" in k})
    assert validate(generator, held_out)["validation/psnr_y"] > start + 0.5
    if objective == "wgan":
        biases = [tensor for tensor in state["discriminator"].values() if tensor.dim() == 1]
        assert max(bias.abs().max() for bias in biases) <= 0.01
    if objective == "began":
        assert 0 <= state["objective"]["k"] <= 1
    log = (tmp_path / "metrics.jsonl").read_text()
    for key in ("discriminator_accuracy", "gradient/adversarial", "gradient/content", "adversarial"):
        assert f'"{key}"' in log
