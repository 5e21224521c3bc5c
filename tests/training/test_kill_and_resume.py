"""A run that is killed at any moment and resumed ends as one that never stopped, bit for bit."""

from __future__ import annotations

import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.forked import began, command, ended

from srgan.training.checkpoint import checkpoints, latest_checkpoint

RECIPE = """
checkpoint_minutes = 1e-9     # after every step
validation_minutes = 1e-9
log_steps = 3
keep_checkpoints = 3
generator = { blocks = 1, features = 4 }
discriminator = { features = 2, normalisation = "batch" }
losses.perceptual.weight = 0.0
data = { held_out = 1 }
pretrain = { steps = STEPS, batch_size = 2, patch_hr_px = 32, learning_rate = 1e-3, warmup_steps = 3 }
adversarial = { steps = STEPS, batch_size = 2, patch_hr_px = 32, discriminator_alone_steps = 2, ramp_steps = 3 }
"""


PAIRED = (
    'objective = "relativistic-paired"'
    + RECIPE.replace(', normalisation = "batch"', "")
    + "losses.adversarial.penalty_steps = 3\n"
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(noise.integers(0, 256, (64, 72, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def training(photos: Path, run: Path, *more: str) -> BaseProcess:
    arguments = ["train", str(photos.parent / "recipe.toml"), "--data", str(photos), "--run", str(run), *more]
    return began(command, photos.parent / "log", arguments)


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{prefix}/{key}").items()}
    if isinstance(state, (list, tuple)):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{prefix}/{i}").items()}
    return {prefix: state}


def final_state(run: Path, steps: int) -> dict[str, Any]:
    path, state = latest_checkpoint(run)
    assert path.name == f"1-adversarial-{steps:09d}.pt"
    # The clock, and what validation by the clock has counted, are not part of the promise.
    for key in ("elapsed_s", "stage_began_s", "best", "best_step", "validations_since_best"):
        del state["position"][key]
    return flat(state)


def train_with_kills(photos: Path, run: Path, steps: int, kills: int, moments: random.Random) -> None:
    for number in range(kills):
        more = ["--resume"] if checkpoints(run) else []
        process = training(photos, run, *more)
        # Some steps after the last one that is safe, so that the kills spread over both stages.
        before, further = newest(run, steps), moments.randint(1, max(1, 3 * steps // 2 // kills))
        while process.is_alive() and newest(run, steps) - before < further:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.03)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), f"run {number} failed on its own"
    more = ["--resume"] if checkpoints(run) else []
    ended([training(photos, run, *more)], photos.parent / "log")


def newest(run: Path, steps: int) -> int:
    """Steps done over both stages, by the newest checkpoint."""
    names = [path.stem.split("-") for path in checkpoints(run)]
    return max((int(number) * steps + int(step) for number, _, step in names), default=0)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


@pytest.mark.parametrize(
    ("recipe", "steps", "kills"),
    [
        (RECIPE, 10, 2),
        pytest.param(RECIPE, 100, 12, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param(PAIRED, 40, 5, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_killed_and_resumed_equals_never_stopped(
    photos: Path, tmp_path: Path, recipe: str, steps: int, kills: int
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    (tmp_path / "recipe.toml").write_text(recipe.replace("STEPS", str(steps)))
    ended([training(photos, straight)], photos.parent / "log")
    train_with_kills(photos, killed, steps, kills, random.Random(kills))
    assert_same(final_state(straight, steps), final_state(killed, steps))
    exported = {path.name for path in killed.glob("*.safetensors")}
    assert "srgan-x4.safetensors" in exported
    for name in exported:
        assert (killed / name).read_bytes() == (straight / name).read_bytes()
    assert not [path for path in killed.rglob("*") if path.name.endswith(".srgan-part")]
