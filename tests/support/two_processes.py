"""What each of two processes does in a test; the first argument is its rank."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from srgan.networks.generator import Generator
from srgan.training import run as run_module
from srgan.training import trainer
from srgan.training.checkpoint import checkpoints
from srgan.training.config import load_recipe, validated
from srgan.training.data.cache import build_cache
from srgan.training.data.patches import Patches
from srgan.training.processes import agreed, average_gradients, averaged, make_fabric, together
from srgan.training.run import Players, make_players, random_streams


def gradients_of_half(rank: int, folder: Path) -> None:
    """Gradients on half of a batch, averaged, and what the processes agree about."""
    fabric = make_fabric(validated({"precision": "fp32"}, "test"))
    with together(fabric):
        torch.manual_seed(0)
        generator = Generator(blocks=1, features=4)
        random = torch.Generator().manual_seed(1)
        lr, hr = torch.rand(4, 3, 8, 8, generator=random), torch.rand(4, 3, 32, 32, generator=random)
        half = slice(2 * rank, 2 * rank + 2)
        torch.nn.functional.mse_loss(generator(lr[half]), hr[half]).backward()
        average_gradients(fabric, generator)
        clock, stopping = agreed(fabric, 1.0 + rank, rank == 1)
        draws = torch.stack([torch.rand(1, generator=stream) for stream in random_streams(3, fabric)])
        out = {
            name: parameter.grad for name, parameter in generator.named_parameters() if parameter.grad is not None
        }
        out["agreed"] = torch.tensor([clock, float(stopping)])
        out["averaged"] = averaged(fabric, torch.tensor(float(rank)))
        out["draws"] = torch.cat([fabric.broadcast(draws, src=source) for source in range(2)]).flatten()
        save_file(out, folder / f"{rank}.safetensors")


def by_the_clock(rank: int, folder: Path) -> None:
    """Train for some seconds, alarms at every look: easing and the best have every chance to differ."""
    known: list[Players] = []
    real = make_players

    def noted(*arguments: Any, **options: Any) -> Players:
        known.append(real(*arguments, **options))
        return known[-1]

    pytest.MonkeyPatch().setattr(run_module, "make_players", noted)
    recipe = load_recipe(
        str(folder / "recipe.toml"),
        [
            *("guards.accuracy_above=0.0", "guards.accuracy_steps=2", "guards.ease_discriminator=true"),
            *("pretrain.steps=100000", "adversarial.steps=100000", "guards.patience=40"),
            *("validation_minutes=1e-9", "checkpoint_minutes=0.01", "generator.normalisation=batch"),
        ],
    )
    fabric = make_fabric(recipe)
    with together(fabric):
        cache = build_cache([folder / "photos"], folder / f"cache{rank}")
        trainer.train(recipe, cache, folder / "run", minutes=0.06, fabric=fabric)
    state = {
        f"{name}.{key}": value.contiguous()
        for name, player in (("generator", known[0].generator), ("discriminator", known[0].discriminator))
        for key, value in player.named_parameters()
    }
    save_file(state, folder / f"{rank}.safetensors")


def sittings(rank: int, folder: Path, objective: str, stops: dict[str, list[int]]) -> None:
    """Train each run of `stops` in sittings: the second process gets Ctrl-C as it draws its batch of that number.

    A sitting with 0 is the last. Each is disturbed in the streams that a new process would have anew. Every batch
    takes four seconds of a clock that stands still otherwise: the processes ask each other at every step.
    """
    rules = "began_gain=0.5" if objective == "began" else "penalty_steps=3"
    changes = [f"objective={objective}", "discriminator.features=8", f"losses.adversarial.{rules}"]
    recipe = load_recipe(str(folder / "recipe.toml"), [*changes, "adversarial.steps=8"])
    fabric, draw, drawn, clock = make_fabric(recipe), Patches.pairs, [0], SimpleNamespace(now_s=0.0)
    patch = pytest.MonkeyPatch()
    patch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))

    def counted(*arguments: Any) -> Any:
        clock.now_s += 4.0
        drawn[0] -= 1
        if not drawn[0] and rank == 1:
            signal.raise_signal(signal.SIGINT)
        return draw(*arguments)

    patch.setattr(Patches, "pairs", counted)
    with together(fabric):
        cache = build_cache([folder / "photos"], folder / f"cache{rank}")
        for name, numbers in stops.items():
            run = folder / name
            for sitting, number in enumerate(numbers):
                torch.manual_seed(100 * sitting + rank)
                drawn[0] = number
                with contextlib.nullcontext() if not number else _stopped():
                    trainer.train(recipe, cache, run, resume=bool(checkpoints(run)), fabric=fabric)


@contextlib.contextmanager
def _stopped() -> Any:
    try:
        yield
    except KeyboardInterrupt:
        return
    raise AssertionError("nobody stopped it")
