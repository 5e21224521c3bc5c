"""The game for a main network that is no generator of photographs, from Python and as `srgan train` plays it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from srgan.commands.cli import app
from srgan.errors import RecipeError, TrainingError, UsageError
from srgan.training import adversarialise
from srgan.training.adversarial import OBJECTIVES
from srgan.training.config import Recipe, validated
from srgan.training.games import load_module, play_module

# The main network is a shift: what goes in comes out, plus one number that it learns. The real thing is +1.
MODULE = """
import numpy as np
import torch
from torch import nn

class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.by

def network():
    return Shift()

def discriminator(objective):
    return nn.Linear(4, 4 if objective == "began" else 1)

def loss(made, real):
    return (made - real).square().mean()

def batches(data, random):
    assert list(data) == ["anything"]
    while True:
        x = torch.rand(8, 4, generator=random)
        yield (x,), x + 1

def sheet(network):
    return np.full((4, 6, 3), 7, np.uint8)
"""


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "precision": "fp32",
        "main_network": "shift.py",
        "objective": "lsgan",
        "losses": {"content": {"weight": 1.0}, "adversarial": {"weight": 0.1}},
        "pretrain": {"steps": 20, "learning_rate": 0.02, "final_learning_rate": 0.02},
        "adversarial": {"steps": 20, "learning_rate": 0.02, "export_name": "shift"},
        "log_steps": 10,
    }
    return validated(values | changes, "test")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shift.py").write_text(MODULE)
    return tmp_path / "shift.py"


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


def ones(count: int = 8) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    random = torch.Generator().manual_seed(0)
    while True:
        x = torch.rand(count, 4, generator=random)
        yield (x,), x + 1


def squares(made: Tensor, real: Tensor) -> Tensor:
    return (made - real).square().mean()


def test_the_main_loss_alone_is_adam_on_it() -> None:
    alone = recipe(adversarial={"steps": 0})
    network = adversarialise(Shift(), squares, ones(), None, alone)
    other = Shift()
    optimizer = torch.optim.Adam(other.parameters(), 0.02)
    for _, ((x,), real) in zip(range(20), ones(), strict=False):
        optimizer.zero_grad()
        squares(other(x), real).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimizer.step()
    assert isinstance(network, Shift)
    assert not network.training
    torch.testing.assert_close(network.by, other.by)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_game_alone_teaches_what_the_main_loss_is_not_asked_for(objective: str) -> None:
    torch.manual_seed(0)
    judge = nn.Linear(4, 4 if objective == "began" else 1)
    game = recipe(
        objective=objective,
        losses={"content": {"weight": 0.0}, "adversarial": {"weight": 1.0}},
        pretrain={"steps": 0},
        adversarial={"steps": 4, "learning_rate": 0.02, "discriminator_learning_rate": 0.05},
    )
    network = adversarialise(Shift(), squares, ones(), judge, game)
    assert isinstance(network, Shift)
    assert network.by != 0
    assert network.by.isfinite()
    if objective not in ("began", "minimax"):  # whose first steps may go either way
        assert network.by > -0.1


def test_what_is_watched_is_what_a_run_logs() -> None:
    seen: list[tuple[str, int, set[str], int]] = []

    def watch(stage: str, step: int, scalars: dict[str, float], alarms: list[str]) -> None:
        seen.append((stage, step, set(scalars), len(alarms)))

    adversarialise(Shift(), squares, ones(), nn.Linear(4, 1), recipe(), watch)
    assert [(stage, step) for stage, step, _, _ in seen] == [
        ("pretrain", 10),
        ("pretrain", 20),
        ("adversarial", 10),
        ("adversarial", 20),
    ]
    game = {"discriminator", "discriminator_accuracy", "adversarial", "adversarial_weight", "content"}
    assert game | {"gradient/content", "gradient/adversarial"} <= seen[-1][2]


@pytest.mark.usefixtures("module")
def test_srgan_train_plays_for_a_module(tmp_path: Path) -> None:
    (tmp_path / "shift.toml").write_text(
        'main_network = "shift.py"\nobjective = "relativistic-paired"\nlog_steps = 5\n[losses]\n'
        "content.weight = 1.0\n[pretrain]\nsteps = 5\n[adversarial]\nsteps = 10\n"
        'learning_rate = 0.05\nexport_name = "shift"\n'
    )
    arguments = ["train", "shift.toml", "--data", "anything", "--run", "run"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert load_file(tmp_path / "run" / "shift.safetensors")["by"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows if "alarm" not in row] == [
        ("pretrain", 5),
        ("adversarial", 5),
        ("adversarial", 10),
    ]
    with Image.open(tmp_path / "run" / "samples" / "adversarial-000000010.png") as sheet:
        assert np.asarray(sheet).tolist() == np.full((4, 6, 3), 7).tolist()
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["main_network"] == "shift.py"
    with pytest.raises(UsageError, match="already holds a run"):
        play_module(recipe(), ["anything"], tmp_path / "run")
    for more in (["--resume"], ["--minutes", "3"], ["--devices", "2"]):
        with pytest.raises(UsageError, match="one process and one sitting"):
            CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)


def test_a_module_that_lacks_a_part_is_refused(module: Path) -> None:
    assert load_module("shift.py").network().by == 0
    module.write_text(MODULE.replace("def loss(", "def loss_(").replace("def batches(", "def batches_("))
    with pytest.raises(RecipeError, match="has no loss and no batches"):
        load_module("shift.py")
    for name in ("absent.py", "no_such_module_anywhere"):
        with pytest.raises(RecipeError, match="cannot be loaded"):
            load_module(name)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"generator": {"blocks": 2}}, "generator"),
        ({"start": "srgan-x4"}, "start"),
        ({"data": {"held_out": 1}}, "data"),
        ({"discriminator": {"kind": "unet"}}, "discriminator"),
        ({"losses": {"perceptual": {"weight": 1.0}}}, "losses.perceptual"),
        ({"losses": {"content": {"kind": "l1"}}}, "losses.content.kind"),
        ({"pretrain": {"steps": 2, "content": "l1"}}, "pretrain.content"),
        ({"adversarial": {"steps": 2, "batch_size": 4}}, "adversarial.batch_size"),
        ({"validation_minutes": 1.0}, "validation_minutes"),
    ],
)
def test_what_a_main_network_does_not_read_is_refused(section: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError, match=f"{key} is not read beside main_network"):
        recipe(**section)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_recipe_of_a_main_network_that_was_written_whole_is_read_again(objective: str) -> None:
    written = recipe(objective=objective)
    assert validated(written.model_dump(mode="json"), "recipe.json") == written


def test_a_main_loss_that_is_no_number_ends_the_training() -> None:
    broken = recipe(guards={"bad_steps": 5})
    with pytest.raises(TrainingError, match=r"pretrain step 10: gradients are not finite; lower pretrain\."):
        adversarialise(
            Shift(), lambda made, real: squares(made, real) * torch.nan, ones(), nn.Linear(4, 1), broken
        )
