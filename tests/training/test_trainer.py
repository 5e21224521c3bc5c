"""The two steps by hand, the schedules, and runs that are interrupted, resumed, refused or left alone."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from support.caches import cache_of
from support.runs import discs, rows_of, small
from torch import Tensor, nn

from srgan.commands.export import export
from srgan.conversion.exporting import exported, write_files
from srgan.errors import BackboneError, TrainingError, UnknownModelError, UsageError, WeightsError
from srgan.evaluation import backbones, metrics
from srgan.evaluation.backbones import FOLDER_VARIABLE
from srgan.networks.generator import Generator
from srgan.networks.reading import load_checkpoint, load_generator
from srgan.training import run as run_module
from srgan.training import trainer, validation
from srgan.training.checkpoint import checkpoint_path, latest_checkpoint, save_checkpoint
from srgan.training.config import Recipe, StageRecipe, load_recipe, validated
from srgan.training.data.cache import PictureCache, build_cache, split
from srgan.training.data.patches import Patches
from srgan.training.losses import generator_terms
from srgan.training.processes import make_fabric, precision_of
from srgan.training.run import Clock, Players, Position, Run, begin_stage, make_players
from srgan.training.trainer import (
    Batch,
    Pace,
    discriminator_rate,
    discriminator_step,
    frozen,
    generator_step,
    gradient_norms,
    learning_rate,
    pace_of,
    pretrain_step,
    stage_step,
    train,
)
from srgan.training.validation import validate
from srgan.weights import ModelMetadata, bundled_tensors


@pytest.fixture(autouse=True)
def no_alexnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation here goes without LPIPS: no test fetches or loads AlexNet."""
    monkeypatch.setattr(validation, "lpips_available", lambda: False)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on such small networks cost five times what they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache() -> PictureCache:
    return cache_of(*discs(6))


def players_of(recipe: Recipe) -> Players:
    torch.manual_seed(0)
    return make_players(recipe, make_fabric(recipe), torch.Generator().manual_seed(1))


def batch(count: int = 2, patch: int = 16) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    hr = torch.rand(count, 3, patch, patch, generator=random)
    return nn.functional.avg_pool2d(hr, 4), hr


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def small_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    features = torchvision.models.vgg.make_layers([4, 4, "M", 8, 8, "M"]).eval().requires_grad_(False)
    monkeypatch.setattr(backbones, "load_features", lambda network, file="": features)


# --- schedules -------------------------------------------------------------------------------------------------


def rate(progress: float, step: int = 10**6, **changes: Any) -> float:
    values = {"learning_rate": 1e-3, "final_learning_rate": 1e-5, "steps": 100} | changes
    return learning_rate(StageRecipe(export_name="x", **values), step, progress)


def test_the_rate_falls_on_half_a_cosine_from_full_to_floor() -> None:
    assert rate(0.0) == pytest.approx(1e-3)
    assert rate(0.5) == pytest.approx((1e-3 + 1e-5) / 2)
    assert rate(0.25) == pytest.approx(1e-5 + 0.99e-3 * (1 + math.sqrt(0.5)) / 2)
    assert rate(1.0) == pytest.approx(1e-5)
    assert rate(1.7) == pytest.approx(1e-5)
    rates = [rate(progress / 50) for progress in range(51)]
    assert rates == sorted(rates, reverse=True)


def test_the_rate_is_held_before_it_falls() -> None:
    assert [rate(p, hold=0.4) for p in (0.0, 0.2, 0.4)] == [1e-3] * 3
    assert 1e-5 < rate(0.41, hold=0.4) < 1e-3
    assert rate(0.7, hold=0.4) == pytest.approx((1e-3 + 1e-5) / 2)
    assert rate(1.0, hold=0.4) == pytest.approx(1e-5)
    assert rate(0.99, hold=1.0) == 1e-3


def test_the_rate_warms_up_linearly_from_above_nothing() -> None:
    assert [rate(0.0, step, warmup_steps=4) for step in range(5)] == pytest.approx(
        [2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3]
    )


def test_the_adversarial_weight_ramps_after_the_discriminators_lead() -> None:
    stage = small(adversarial={"discriminator_alone_steps": 3, "ramp_steps": 4}).adversarial
    paces = [pace_of(stage, Position(step=3 + n, moved=n), 0.5, by_clock=False) for n in (0, 1, 2, 3, 4, 50)]
    assert [pace.ramp for pace in paces] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [pace.alone for pace in paces] == [False] * 6
    assert [pace_of(stage, Position(step=n), 0.9, by_clock=False).alone for n in (0, 2, 3)] == [True, True, False]
    assert pace_of(small().adversarial, Position(), 0.0, by_clock=False)[:3] == (1e-3, False, 1.0)


def test_by_the_clock_the_beginnings_end_in_time() -> None:
    """Counted in steps, each would outlast a short stage: its first tenth is all that they get."""
    stage = small(
        adversarial={"discriminator_alone_steps": 1000, "ramp_steps": 1000, "warmup_steps": 1000, "hold": 1.0}
    ).adversarial
    paces = [pace_of(stage, Position(step=5), done, by_clock=True) for done in (0.0, 0.05, 0.1, 0.15, 0.2, 1.0)]
    assert [pace.alone for pace in paces] == [True, True, False, False, False, False]
    assert [pace.learning_rate for pace in paces] == pytest.approx([6e-6, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3])
    assert [pace.ramp for pace in paces[2:]] == pytest.approx([0.001, 0.5, 1.0, 1.0])


def test_the_rate_never_rises_to_a_floor_above_it() -> None:
    assert [rate(p, learning_rate=1e-6, final_learning_rate=1e-5) for p in (0.0, 0.5, 1.0)] == [1e-6] * 3


class Watch:
    """Stands still but for what the test lets pass."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Every batch takes four seconds."""
    clock, draw = Watch(), Patches.pairs
    monkeypatch.setattr(run_module, "time", clock)

    def slow(*arguments: Any) -> tuple[Tensor, Tensor]:
        clock.now_s += 4.0
        return draw(*arguments)

    monkeypatch.setattr(Patches, "pairs", slow)
    return clock


@pytest.fixture
def weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages export no graph beside their weights: torch takes four seconds for one of any size."""

    def export_weights(generator: Generator, metadata: ModelMetadata, folder: Path) -> list[Path]:
        return write_files(exported(generator, metadata, ["safetensors"]), folder, metadata.name)

    monkeypatch.setattr(run_module, "export_generator", export_weights)


def test_minutes_anneal_both_stages_by_the_clock(
    cache: PictureCache, tmp_path: Path, clock: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four minutes, three quarters of them for the first stage, whatever the steps say."""
    monkeypatch.setattr(trainer, "accuracy", lambda *_: torch.tensor(0.5))  # whose pairs take time, too
    recipe = small(
        pretrain={"time_share": 3.0, "steps": 2, "final_learning_rate": 1e-6},
        adversarial={"time_share": 1.0, "steps": 10**6, "final_learning_rate": 1e-6, "hold": 0.5},
        log_steps=1,
    )
    train(recipe, cache, tmp_path, minutes=4)
    assert 1000 + 240 - 20 <= clock.now_s <= 1000 + 240
    rows = [row for row in rows_of(tmp_path) if "learning_rate" in row]
    first = [row for row in rows if row["stage"] == "pretrain"]
    second = [row for row in rows if row["stage"] == "adversarial"]
    assert len(first) == math.ceil((180 - 15) / 4)
    for row, step in zip(first, range(10**6), strict=False):
        expected = learning_rate(recipe.pretrain, step, 4 * step / 165)
        assert row["learning_rate"] == pytest.approx(expected, rel=1e-4)
    assert first[-1]["learning_rate"] < 2e-5 < 5e-4 < first[len(first) // 2 - 2]["learning_rate"]
    began = first[-1]["elapsed_s"] + 4
    assert second[0]["elapsed_s"] == pytest.approx(began)
    assert [row["learning_rate"] for row in second if row["elapsed_s"] - began <= (225 - began) / 2] == (
        pytest.approx([1e-3] * 8)
    )
    assert second[-1]["learning_rate"] < 1e-4
    assert len(second) == math.ceil((225 - began) / 4)


def test_minutes_of_a_single_stage_are_all_its_own(cache: PictureCache, tmp_path: Path, clock: Watch) -> None:
    train(small(adversarial={"steps": 0}), cache, tmp_path, minutes=2)
    assert 1000 + 120 - 20 <= clock.now_s <= 1000 + 120


def exports_of(run: Path) -> list[str]:
    return sorted(path.stem for path in run.glob("*.safetensors"))


@pytest.mark.usefixtures("weights_alone")
def test_a_game_without_time_writes_no_model_and_can_go_on(
    cache: PictureCache, tmp_path: Path, clock: Watch
) -> None:
    recipe = small(pretrain={"time_share": 1.0}, adversarial={"time_share": 1e-6})
    message = r"adversarial took 0 steps in its share of --minutes 2, .*srgan-x4 was not written.*--resume"
    with pytest.raises(TrainingError, match=message):
        train(recipe, cache, tmp_path, minutes=2)
    assert exports_of(tmp_path) == ["srresnet-x4"]
    with pytest.raises(TrainingError, match="adversarial took 0 steps"):
        train(recipe, cache, tmp_path, minutes=2, resume=True)
    more = small(pretrain={"time_share": 1.0}, adversarial={"time_share": 1.0})
    train(more, cache, tmp_path, minutes=5, resume=True)
    assert exports_of(tmp_path) == ["srgan-x4", "srresnet-x4"]


@pytest.mark.usefixtures("weights_alone")
def test_a_game_is_not_the_discriminators_alone(cache: PictureCache, tmp_path: Path, clock: Watch) -> None:
    recipe = small(adversarial={"discriminator_alone_steps": 1000})
    train(recipe, cache, tmp_path / "by-clock", minutes=2)
    assert exports_of(tmp_path / "by-clock") == ["srgan-x4", "srresnet-x4"]
    with pytest.raises(UsageError, match=r"adversarial\.steps = 4 leave the generator as it was.*alone for 1000"):
        train(recipe, cache, tmp_path / "by-steps")
    assert not (tmp_path / "by-steps").exists()


def test_minutes_that_leave_nothing_to_the_first_stage_are_refused(cache: PictureCache, tmp_path: Path) -> None:
    recipe = small(pretrain={"time_share": 0.01}, adversarial={"time_share": 1.0})
    with pytest.raises(UsageError, match="--minutes 2 leaves no time for the stage pretrain"):
        train(recipe, cache, tmp_path / "run", minutes=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("weights_alone")
@pytest.mark.parametrize(
    ("stage", "growing"),
    [("pretrain", {"warmup_steps": 5}), ("adversarial", {"discriminator_alone_steps": 2, "ramp_steps": 3})],
)
def test_a_stage_that_ends_while_it_grows_is_told(
    cache: PictureCache, tmp_path: Path, stage: str, growing: dict[str, int]
) -> None:
    train(small(**{stage: growing}), cache, tmp_path / "short")
    alarms = [row for row in rows_of(tmp_path / "short") if "too short" in row.get("alarm", "")]
    assert [(row["stage"], row["step"]) for row in alarms] == [(stage, 4)]
    assert "too short: it ended within the 5 steps" in alarms[0]["alarm"]
    train(small(**{stage: growing | {"steps": 5}}), cache, tmp_path / "long")
    assert not [row for row in rows_of(tmp_path / "long") if "too short" in row.get("alarm", "")]


def test_the_speed_that_is_logged_is_that_of_training(
    cache: PictureCache, tmp_path: Path, clock: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look takes a minute; a step of two patches, four seconds."""

    def slow(*arguments: Any) -> dict[str, float]:
        clock.now_s += 60
        return validate(*arguments)

    monkeypatch.setattr(run_module, "validate", slow)
    train(small(adversarial={"steps": 0}, validation_minutes=1e-9), cache, tmp_path)
    speeds = [row["patches_per_s"] for row in rows_of(tmp_path) if "patches_per_s" in row]
    assert all(0.5 <= speed <= 1 for speed in speeds)  # the first interval lacks a step


def test_a_resumed_run_knows_the_minutes_that_are_gone(
    cache: PictureCache, tmp_path: Path, clock: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(adversarial={"steps": 0}, log_steps=1)
    with stopping_after(monkeypatch, 10), pytest.raises(KeyboardInterrupt):
        train(recipe, cache, tmp_path, minutes=2)
    clock.now_s += 10_000  # what passes between the sittings does not count
    resumed_at = clock.now_s
    train(recipe, cache, tmp_path, minutes=2, resume=True)
    assert clock.now_s - resumed_at == pytest.approx(105 - 40, abs=4.1)


def test_the_first_checkpoint_of_a_stage_knows_the_minutes_that_are_gone(
    cache: PictureCache, tmp_path: Path, clock: Watch
) -> None:
    """Or a run killed soon after it would begin its `--minutes` anew."""
    train(small(), cache, tmp_path)
    position = load_checkpoint(checkpoint_path(tmp_path, 1, "adversarial", 0))["position"]
    assert position["elapsed_s"] == position["stage_began_s"] == 4 * 4


def test_an_export_of_a_stage_that_has_not_moved_yet_says_so(
    cache: PictureCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(), cache, tmp_path)
    export(str(checkpoint_path(tmp_path, 1, "adversarial", 0)), tmp_path / "out", kinds=["safetensors"])
    assert "has not moved the generator yet, so srgan-x4 is what it began with" in capsys.readouterr().err
    export(str(tmp_path), tmp_path / "out", kinds=["safetensors"])
    assert "srgan-x4 is the average at step 4 of adversarial, the best" in capsys.readouterr().err


# --- steps -----------------------------------------------------------------------------------------------------


def test_ema_moves_towards_the_model_by_one_minus_decay() -> None:
    recipe = small(pretrain={"ema_decay": 0.9})
    players = players_of(recipe)
    content = nn.functional.mse_loss
    lr, hr = batch()
    pretrain_step(players, content, lr, hr, 1.0)
    assert same(copied(players.ema.module), copied(players.generator))  # the first one is taken whole
    for count in (*range(1, 4), 80, 81):  # at first the average follows faster: (1 + n) / (10 + n)
        players.ema.n_averaged.fill_(count)
        decay = {1: 2 / 11, 2: 3 / 12, 3: 4 / 13, 80: 0.9, 81: 0.9}[count]
        before = copied(players.ema.module)
        pretrain_step(players, content, lr, hr, 1.0)
        now = players.generator.state_dict()
        for name, averaged in players.ema.module.state_dict().items():
            torch.testing.assert_close(averaged, decay * before[name] + (1 - decay) * now[name])
            assert not torch.equal(averaged, now[name])


def test_a_pretraining_step_is_adam_on_the_content_loss() -> None:
    """Against a loop written with torch alone."""
    recipe = small(pretrain={"betas": [0.8, 0.95]})
    players = players_of(recipe)
    other = Generator(1, 4)
    other.load_state_dict(players.generator.state_dict())
    optimizer = torch.optim.Adam(other.parameters(), lr=5e-3, betas=(0.8, 0.95))
    lr, hr = batch()
    step = stage_step("pretrain", recipe, players)
    for number in range(3):
        terms = step(lambda: (lr, hr), Position(step=number), Pace(5e-3))
        optimizer.zero_grad()
        loss = (other(lr) - hr).square().mean()
        loss.backward()
        gradients = [parameter.grad for parameter in other.parameters() if parameter.grad is not None]
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for gradient in gradients:
            gradient *= min(1.0, 1.0 / (float(norm) + 1e-6))  # clip_norm = 1
        optimizer.step()
        assert float(terms["content"]) == pytest.approx(float(loss.detach()), rel=1e-5)
        assert float(terms["gradient_norm"]) == pytest.approx(float(norm), rel=1e-4)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(players.generator.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("clip", "expected"), [(0.01, 0.01), (0.0, 30.0), (100.0, 30.0)])
def test_gradients_are_clipped_to_the_norm(clip: float, expected: float) -> None:
    module = nn.Linear(9, 1, bias=False)
    start = module.weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    loss = module(torch.full((1, 9), 10.0)).sum()
    assert float(trainer.descend(make_fabric(small()), module, optimizer, loss, clip)) == pytest.approx(30.0)
    assert float((module.weight.detach() - start).norm()) == pytest.approx(expected, rel=1e-4)


def test_the_discriminators_step_leaves_the_generator_alone() -> None:
    players = players_of(small())
    lr, hr = batch()
    weights, judge = copied(players.generator), copied(players.discriminator)
    sr = players.generator(lr)
    discriminator_step(players, hr, sr, 1.0)
    assert same(copied(players.generator), weights)
    assert all(parameter.grad is None for parameter in players.generator.parameters())
    moved = copied(players.discriminator)
    assert all(not torch.equal(moved[name], judge[name]) for name, _ in players.discriminator.named_parameters())


@pytest.mark.parametrize("normalisation", ["batch", "none", "spectral"])
def test_the_generators_step_leaves_the_discriminator_alone(normalisation: str) -> None:
    players = players_of(small(discriminator={"normalisation": normalisation}))
    lr, hr = batch()
    before = {name: p.clone() for name, p in players.discriminator.named_parameters()}
    weights = copied(players.generator)
    sr = players.generator(lr)
    generator_step(players, {}, {"adversarial": 1.0}, Batch(lr, hr, sr), 1.0, measure=True)
    for name, parameter in players.discriminator.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad
    assert not same(copied(players.generator), weights)


def test_frozen_thaws_even_after_a_failure() -> None:
    module = nn.Linear(2, 2)
    within: list[bool] = []

    def fails() -> None:
        with frozen(module):
            within.extend(parameter.requires_grad for parameter in module.parameters())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert within == [False, False]
    assert all(parameter.requires_grad for parameter in module.parameters())


ALL_TERMS = {
    "content": {"weight": 1.0},
    "perceptual": {"weight": 1.0, "layers": {"conv1_1": 0.5, "conv2_2": 1.0}},
    "artifact": 1.0,
}


@pytest.mark.usefixtures("small_vgg")
@pytest.mark.parametrize("term", [*ALL_TERMS, "adversarial"])
def test_every_term_gives_the_generator_a_gradient(term: str) -> None:
    recipe = small(losses=ALL_TERMS, discriminator={"normalisation": "none"})
    players = players_of(recipe)
    lr, hr = batch()

    class Perfect(nn.Module):
        """An average that is always better, so that the artifact term has something to blame everywhere."""

        def forward(self, _lr: Tensor) -> Tensor:
            return hr

    functions, _ = generator_terms(recipe.losses, Perfect(), players.fabric.device)
    assert set(functions) == set(ALL_TERMS)
    chosen = dict.fromkeys([*functions, "adversarial"], 0.0) | {term: 1.0}
    generator_step(players, functions, chosen, Batch(lr, hr, players.generator(lr)), 0.0)
    gradients = {name: p.grad for name, p in players.generator.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.abs().sum() > 0]
    assert silent == []


@pytest.mark.usefixtures("small_vgg")
def test_terms_without_weight_are_not_even_built() -> None:
    recipe = small(losses={"content": {"weight": 0.0}, "perceptual": {"weight": 0.0}})
    players = players_of(recipe)
    assert generator_terms(recipe.losses, players.ema, torch.device("cpu")) == ({}, {})


@pytest.mark.usefixtures("small_vgg")
def test_the_generators_step_is_adam_on_the_weighted_sum() -> None:
    """Against the sum written out with autograd alone."""
    recipe = small(losses=ALL_TERMS | {"artifact": 0.0}, discriminator={"normalisation": "none"})
    players = players_of(recipe)
    lr, hr = batch()
    functions, _ = generator_terms(recipe.losses, players.ema, players.fabric.device)
    weights = {"content": 0.3, "perceptual": 0.07, "adversarial": 0.9}
    sr = players.generator(lr)
    total = 0.3 * (sr - hr).square().mean() + 0.07 * functions["perceptual"](sr, hr, lr)
    total = total - 0.9 * torch.log(torch.sigmoid(players.discriminator(sr))).mean()
    expected = torch.autograd.grad(total, list(players.generator.parameters()))
    terms = generator_step(players, functions, weights, Batch(lr, hr, players.generator(lr)), 0.0)
    for parameter, gradient in zip(players.generator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert sum(weights[name] * float(terms[name]) for name in weights) == pytest.approx(
        float(total.detach()), rel=1e-5
    )


def test_gradient_norms_by_hand() -> None:
    sr, hr = batch()[1].requires_grad_(), torch.zeros(2, 3, 16, 16)
    terms = {"square": (sr - hr).square().sum(), "sum": sr.sum()}
    norms = gradient_norms(terms, {"square": 0.5, "sum": 3.0}, sr)
    assert float(norms["gradient/square"]) == pytest.approx(float(sr.detach().norm()), rel=1e-5)
    assert float(norms["gradient/sum"]) == pytest.approx(3 * math.sqrt(sr.numel()), rel=1e-5)
    assert sr.grad is None
    sum(terms.values()).backward()  # type: ignore[union-attr]  # the graph is still there


def test_the_discriminator_alone_moves_first() -> None:
    recipe = small(adversarial={"discriminator_alone_steps": 2})
    players = players_of(recipe)
    step = stage_step("adversarial", recipe, players)
    for number, moves in ((0, False), (1, False), (2, True)):
        weights, judge = copied(players.generator), copied(players.discriminator)
        position = Position("adversarial", number)
        step(batch, position, pace_of(recipe.adversarial, position, 0.0, by_clock=False))
        assert same(copied(players.generator), weights) is not moves
        assert not same(copied(players.discriminator), judge)


def test_both_players_follow_the_schedule() -> None:
    recipe = small(adversarial={"learning_rate": 1e-3, "discriminator_learning_rate": 4e-4})
    players = players_of(recipe)
    step, position = (
        stage_step("adversarial", recipe, players),
        Position("adversarial", 9, rate_scale=0.5, discriminator_rate_scale=0.1),
    )
    pace = pace_of(recipe.adversarial, position, 0.9, by_clock=False)
    step(batch, position, pace)
    assert players.generator_optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * pace.learning_rate)
    in_proportion = 0.1 * 0.5 * pace.learning_rate * 0.4
    assert players.discriminator_optimizer.param_groups[0]["lr"] == pytest.approx(in_proportion)


def test_the_discriminator_may_have_a_schedule_of_its_own() -> None:
    own = {"discriminator_final_learning_rate": 1e-4, "discriminator_hold": 0.0, "discriminator_warmup_steps": 4}
    stage = small(
        adversarial={"discriminator_learning_rate": 3e-4, "warmup_steps": 0, "hold": 1.0, **own}
    ).adversarial
    rates = [discriminator_rate(stage, step, p) for step, p in ((0, 0.0), (1, 0.0), (9, 0.0), (9, 0.5), (9, 1.0))]
    assert rates == pytest.approx([0.75e-4, 1.5e-4, 3e-4, 2e-4, 1e-4])
    assert [learning_rate(stage, step, 0.5) for step in (0, 9)] == [1e-3] * 2


def test_clip_norm_and_betas_of_the_discriminator_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small(
        adversarial={"clip_norm": 7.0, "discriminator_clip_norm": 0.5, "discriminator_betas": [0.0, 0.9]}
    )
    players = players_of(recipe)
    assert players.discriminator_optimizer.param_groups[0]["betas"] == (0.0, 0.9)
    clipped: dict[int, float] = {}

    def noted(fabric: Any, module: nn.Module, optimizer: Any, loss: Tensor, clip_norm: float) -> Tensor:
        clipped[id(module)] = clip_norm
        return loss.detach()

    monkeypatch.setattr(trainer, "descend", noted)
    stage_step("adversarial", recipe, players)(batch, Position("adversarial"), Pace(1e-3))
    assert clipped == {id(players.generator): 7.0, id(players.discriminator): 0.5}


@pytest.mark.parametrize("normalisation", ["batch", "none", "spectral"])
def test_looking_at_the_accuracy_leaves_no_trace(normalisation: str) -> None:
    players = players_of(
        small(discriminator={"normalisation": normalisation}, generator={"normalisation": "batch"})
    )
    before = copied(players.discriminator), copied(players.generator)
    share = trainer.accuracy(players, lambda: batch(3))
    assert 0 <= float(share) <= 1
    assert same(copied(players.discriminator), before[0])
    assert same(copied(players.generator), before[1])
    assert players.discriminator.training


class Told(nn.Module):
    """Knows pictures by their brightness under BatchNorm: by the batch it can tell, by running statistics not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, picture: Tensor) -> Tensor:
        assert torch.is_autocast_enabled("cpu")
        if not self.training:
            return torch.zeros(len(picture), 1)
        return self.norm(picture).abs().mean((1, 2, 3))[:, None] + picture.mean((1, 2, 3))[:, None]


def test_accuracy_is_that_of_the_mode_that_plays_on_fresh_pairs() -> None:
    players = players_of(small(precision="bf16"))
    players.discriminator = Told()
    drawn = iter([1.0, -1.0, 1.0, 1.0])

    def draw() -> tuple[Tensor, Tensor]:
        """HR brighter than SR, or darker once."""
        lr, _ = batch(3)
        return lr, torch.full((3, 3, 16, 16), 5.0 * next(drawn))

    assert float(trainer.accuracy(players, draw)) == 0.75
    assert next(drawn, None) is None


def test_the_discriminators_own_steps_keep_no_graph_of_the_generator() -> None:
    recipe = small(adversarial={"discriminator_steps": 3})
    players = players_of(recipe)
    kept: list[bool] = []
    forward = players.generator.forward

    def watched(lr: Tensor) -> Tensor:
        sr: Tensor = forward(lr)
        kept.append(sr.requires_grad)
        return sr

    players.generator.forward = watched  # type: ignore[method-assign]
    step = stage_step("adversarial", recipe, players)
    step(batch, Position("adversarial"), Pace(1e-3))
    assert kept == [False, False, True]
    step(batch, Position("adversarial"), Pace(1e-3, alone=True))
    assert kept[3:] == [False] * 3


# --- runs ------------------------------------------------------------------------------------------------------


@contextmanager
def stopping_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> Iterator[None]:
    """A run within the block gets Ctrl-C while it draws its batch number `steps`."""
    drawn, draw = [0], Patches.pairs

    def counted(*arguments: Any) -> tuple[Tensor, Tensor]:
        drawn[0] += 1
        if drawn[0] == steps:
            signal.raise_signal(signal.SIGINT)
        return draw(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Patches, "pairs", counted)
        yield


def final(run: Path) -> dict[str, Any]:
    """The last state, without the clock's part of it."""
    _, state = latest_checkpoint(run)
    state["position"] = {k: v for k, v in state["position"].items() if not k.endswith("_s") and "best" not in k}
    return state


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    if isinstance(one, Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys"]
        return [line for key in one for line in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{where}: length"]
        pairs = enumerate(zip(one, other, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{where}/{index}")]
    return [] if one == other else [f"{where}: {one} != {other}"]


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "batch": {"generator": {"normalisation": "batch"}},
    "spectral": {"discriminator": {"normalisation": "spectral"}, "losses": {"artifact": 1.0}},
    "stages": {  # everything that differs between the stages and moves within them
        "pretrain": {"warmup_steps": 3, "betas": [0.5, 0.9]},
        "adversarial": {"discriminator_alone_steps": 2, "ramp_steps": 2, "discriminator_steps": 2, "hold": 0.0},
        "objective": "wgan",
        "discriminator": {"kind": "vgg"},
    },
    "penalties": {
        "objective": "relativistic-paired",
        "losses": {"adversarial": {"penalty_steps": 3}},
    },
    "balance": {"objective": "began", "losses": {"adversarial": {"began_gain": 0.5}}},
}


@pytest.fixture(scope="module")
def straight(cache: PictureCache, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The last state of a run that was never stopped, by kind."""
    known: dict[str, dict[str, Any]] = {}

    def run(kind: str) -> dict[str, Any]:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Run, "export", lambda *_: [])
                train(small(**KINDS[kind]), cache, folder)
            known[kind] = final(folder)
        return known[kind]

    return run


@pytest.mark.parametrize(
    ("kind", "stops"),
    [
        ("default", [1]),
        ("default", [3, 2]),
        ("default", [4]),  # at the seam of the stages
        ("default", [5]),
        ("default", [7]),
        ("default", [1] * 8),
        ("batch", [2, 4]),
        ("spectral", [3, 3]),
        ("stages", [2, 4, 2]),
        ("penalties", [6, 1]),
        ("penalties", [7]),
        ("balance", [6]),
    ],
)
def test_resuming_equals_never_stopping(
    straight: Callable[[str], dict[str, Any]],
    cache: PictureCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    stops: list[int],
) -> None:
    monkeypatch.setattr(Run, "export", lambda *_: [])
    recipe = small(**KINDS[kind])
    for sitting, steps in enumerate(stops):
        with stopping_after(monkeypatch, steps), pytest.raises(KeyboardInterrupt):
            train(recipe, cache, tmp_path, resume=sitting > 0)
        torch.manual_seed(12345 + sitting)  # another process would not start where this one stands
    train(recipe, cache, tmp_path, resume=True)
    assert differences(straight(kind), final(tmp_path)) == []


def test_a_state_holds_what_a_resume_hangs_on(straight: Callable[[str], dict[str, Any]]) -> None:
    state = straight("default")
    assert state["position"]["stage"] == "adversarial"
    assert state["position"]["step"] == 4
    for part in ("generator_optimizer", "discriminator_optimizer"):
        assert {float(entry["step"]) for entry in state[part]["state"].values()} == {4.0}
    assert differences(state["ema"], {f"module.{k}": v for k, v in state["generator"].items()})


@pytest.fixture(scope="module")
def finished(cache: PictureCache, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A run of both stages and what it exported; not to be written to."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "lpips_available", lambda: True)
        patch.setattr(metrics, "lpips", lambda *_: 0.25)
        return run, train(small(), cache, run)


def test_a_run_exports_both_stages(finished: tuple[Path, list[Path]], cache: PictureCache) -> None:
    run, exported = finished
    names = [f"{name}.{kind}" for name in ("srresnet-x4", "srgan-x4") for kind in ("safetensors", "onnx")]
    assert [path.name for path in exported] == names
    assert all(path.parent == run and path.is_file() for path in exported)
    generator, metadata = load_generator(exported[2])
    _, state = latest_checkpoint(run)
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, state["ema"][f"module.{name}"])  # the average, not the generator of the day
    assert any(not torch.equal(t, state["generator"][name]) for name, t in generator.state_dict().items())
    assert metadata.name == "srgan-x4"
    assert metadata.architecture == small().generator.model_dump()
    assert metadata.halo_lr_px == generator.halo_lr_px
    assert metadata.data_sha256 == cache.sha256
    assert validated(metadata.recipe, "x") == small()
    assert metadata.metrics["validation/lpips"] == 0.25
    assert 5 < metadata.metrics["validation/psnr_y"] < 60


def test_the_second_stage_starts_from_the_average(finished: tuple[Path, list[Path]], cache: PictureCache) -> None:
    run, exported = finished
    first = load_generator(exported[0])[0].state_dict()
    best = load_checkpoint(checkpoint_path(run, 0, "pretrain", None))
    assert all(torch.equal(first[name], best["ema"][f"module.{name}"]) for name in first)
    players = players_of(small())
    with torch.no_grad():
        for parameter in players.ema.module.parameters():
            parameter.fill_(0.125)
    pretrain_step(players, nn.functional.mse_loss, *batch(), 1.0)
    with torch.no_grad():
        for parameter in players.ema.module.parameters():
            parameter.fill_(0.125)
    begin_stage(players, small().adversarial)
    assert all((parameter == 0.125).all() for parameter in players.generator.parameters())
    assert not players.generator_optimizer.state
    assert players.ema.n_averaged == 0


def test_metrics_rows(finished: tuple[Path, list[Path]]) -> None:
    rows = [row for row in rows_of(finished[0]) if "alarm" not in row]
    seen = [(row["stage"], row["step"], "learning_rate" in row) for row in rows]
    assert seen == [
        ("pretrain", 0, False),  # of bicubic, then of what the stage begins with
        ("pretrain", 0, False),
        ("pretrain", 2, True),
        ("pretrain", 4, True),
        ("pretrain", 4, False),
        ("adversarial", 0, False),
        ("adversarial", 2, True),
        ("adversarial", 4, True),
        ("adversarial", 4, False),
    ]
    assert {"content", "gradient_norm"} <= rows[2].keys()
    game = {"discriminator", "discriminator_accuracy", "content", "adversarial"}
    assert game | {"gradient/content", "gradient/adversarial"} <= rows[6].keys()
    assert {"bicubic/psnr_y", "bicubic/lpips"} <= rows[0].keys()
    assert {"validation/psnr_y", "validation/lpips"} <= rows[1].keys() & rows[4].keys()
    for row in rows:
        assert all(math.isfinite(value) for value in row.values() if not isinstance(value, str))
    assert [row["elapsed_s"] for row in rows] == sorted(row["elapsed_s"] for row in rows)
    written = json.loads((finished[0] / "recipe.json").read_text())
    del written["run"]
    assert Recipe.model_validate(written) == small()


def test_the_same_seed_gives_the_same_run_and_another_does_not(
    straight: Callable[[str], dict[str, Any]],
    cache: PictureCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Run, "export", lambda *_: [])
    train(small(), cache, tmp_path / "same")
    assert differences(straight("default"), final(tmp_path / "same")) == []
    train(small(seed=1), cache, tmp_path / "other")
    assert differences(straight("default")["generator"], final(tmp_path / "other")["generator"])


def test_a_run_is_not_overwritten(finished: tuple[Path, list[Path]], cache: PictureCache) -> None:
    run, _ = finished
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="already holds a run: add --resume"):
        train(small(), cache, run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"generator": {"features": 5}}, "made with generator = "),
        ({"generator": {"blocks": 2}}, "made with generator = "),
        ({"discriminator": {"features": 3}}, "made with discriminator = "),
        ({"objective": "lsgan"}, "made with objective = nonsaturating"),
        ({"seed": 4}, "made with seed = 0"),
    ],
)
def test_another_run_is_not_resumed(
    finished: tuple[Path, list[Path]], cache: PictureCache, change: dict[str, Any], part: str
) -> None:
    with pytest.raises(WeightsError, match=part) as caught:
        train(small(**change), cache, finished[0], resume=True)
    assert "\n" not in str(caught.value)


def test_each_process_resumes_its_own_random_streams(cache: PictureCache, tmp_path: Path) -> None:
    class Process:
        """Rank 1 of 2, whose rank 0 has the states of generators that never drew."""

        world_size, global_rank, is_global_zero, device = 2, 1, True, torch.device("cpu")

        def broadcast(self, state: Tensor, src: int) -> Tensor:
            return state if src == 1 else torch.Generator().manual_seed(0).get_state()

        def barrier(self) -> None:
            pass

        def autocast(self) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    fabric: Any = Process()
    run = Run(small(), cache, tmp_path, Clock(fabric))
    with run.journal:
        streams = (run.patch_random, run.players.objective.random)
        torch.rand(7, generator=run.patch_random)
        run.save()
        expected = [torch.rand(3, generator=stream) for stream in streams]
        run.load()
        for stream, numbers in zip(streams, expected, strict=True):
            assert torch.equal(torch.rand(3, generator=stream), numbers)


def test_other_pictures_are_not_resumed_on(finished: tuple[Path, list[Path]], cache: PictureCache) -> None:
    other = cache_of(*discs(6), sha256="b" * 64)
    with pytest.raises(WeightsError, match="trained on other pictures: give --data the same folders"):
        train(small(), other, finished[0], resume=True)


def test_nothing_to_resume(cache: PictureCache, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="start without --resume"):
        train(small(), cache, tmp_path / "absent", resume=True)


def test_start_from_weights(finished: tuple[Path, list[Path]], cache: PictureCache, tmp_path: Path) -> None:
    start = str(finished[1][0])
    recipe = small(start=start, pretrain={"steps": 0})
    players = players_of(recipe)
    assert same(copied(players.generator), copied(load_generator(Path(start))[0]))
    assert [path.name for path in train(recipe, cache, tmp_path)] == ["srgan-x4.safetensors", "srgan-x4.onnx"]
    with pytest.raises(WeightsError, match="another architecture"):
        players_of(small(start=start, generator={"features": 5}))
    with pytest.raises(WeightsError, match="cannot be read"):
        players_of(small(start=str(tmp_path / "absent.safetensors")))


def test_start_from_a_bundled_model() -> None:
    bundled, _ = load_generator(bundled_tensors("srresnet-x4"))
    players = players_of(small(start="srresnet-x4", generator={"blocks": 16, "features": 64}))
    assert same(copied(players.generator), copied(bundled))
    with pytest.raises(UnknownModelError, match="no model 'nothing-x4': choose one of srresnet-x4"):
        players_of(small(start="nothing-x4"))


def test_a_resume_does_not_need_what_it_started_from(
    finished: tuple[Path, list[Path]], cache: PictureCache, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(finished[1][0].read_bytes())
    recipe = small(start=str(start), pretrain={"steps": 0})
    train(recipe, cache, tmp_path / "run")
    start.unlink()
    assert len(train(small(start=str(start), pretrain={"steps": 0}), cache, tmp_path / "run", resume=True)) == 2


def test_start_from_a_checkpoint_goes_on_with_both_players(
    finished: tuple[Path, list[Path]], cache: PictureCache, tmp_path: Path
) -> None:
    path = checkpoint_path(finished[0], 1, "adversarial", None)
    state = load_checkpoint(path)
    recipe = small(start=str(path), pretrain={"steps": 0})
    players = players_of(recipe)
    for name, tensor in players.generator.state_dict().items():
        assert torch.equal(tensor, state["ema"][f"module.{name}"])
        assert torch.equal(tensor, players.ema.module.state_dict()[name])
    for name, tensor in players.discriminator.state_dict().items():
        assert torch.equal(tensor, state["discriminator"][name])
    assert not same(copied(players.discriminator), copied(players_of(small()).discriminator))
    assert [path.name for path in train(recipe, cache, tmp_path)] == ["srgan-x4.safetensors", "srgan-x4.onnx"]


def test_start_from_a_checkpoint_that_does_not_fit(finished: tuple[Path, list[Path]], tmp_path: Path) -> None:
    path = checkpoint_path(finished[0], 1, "adversarial", None)
    for change in ({"generator": {"features": 5}}, {"discriminator": {"kind": "unet", "features": 4}}):
        with pytest.raises(WeightsError, match="another architecture"):
            players_of(small(start=str(path), **change))
    state = load_checkpoint(path)
    for key in ("ema", "discriminator"):
        broken = tmp_path / f"{key}.pt"
        save_checkpoint(broken, {name: value for name, value in state.items() if name != key})
        with pytest.raises(WeightsError, match=r"it lacks 'ema'|another architecture"):
            players_of(small(start=str(broken)))


def test_a_first_stage_alone_asks_for_no_discriminator(finished: tuple[Path, list[Path]]) -> None:
    path = checkpoint_path(finished[0], 1, "adversarial", None)
    players = players_of(
        small(start=str(path), adversarial={"steps": 0}, discriminator={"kind": "patch", "features": 4})
    )
    averaged = load_checkpoint(path)["ema"]
    for name, tensor in players.generator.state_dict().items():
        assert torch.equal(tensor, averaged[f"module.{name}"])


def test_pictures_smaller_than_a_patch_with_its_margin(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 32 px on both sides"):
        train(small(), cache_of(*discs(5, size=31)), tmp_path)


def test_held_out_pictures_may_be_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An icon among the photographs must not end a run when it is its turn to be validated on."""
    monkeypatch.setattr(Run, "export", lambda *_: [])
    for side in (1, 3, 11, 33):
        pictures = [*discs(5), *[np.full((side, side + 1, 3), 77, np.uint8)] * 5]
        train(small(data={"held_out": 2}, seed=side), cache_of(*pictures), tmp_path / str(side))


def test_a_run_without_held_out_pictures(tmp_path: Path) -> None:
    exported = train(small(data={"held_out": 0}, adversarial={"steps": 0}), cache_of(*discs(1)), tmp_path)
    assert load_generator(exported[0])[1].metrics == {}


def test_mistakes_of_the_second_stage_are_found_before_the_first(
    cache: PictureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day of pre-training should not end on a layer that VGG does not have, or a backbone that is not there."""
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    steps: list[object] = []
    monkeypatch.setattr(Patches, "pairs", lambda *_: steps.append(1))
    absent = {"perceptual": {"weight": 1.0, "file": str(tmp_path / "absent.safetensors")}}
    unknown = {"perceptual": {"weight": 1.0, "layers": {"conv9_9": 1.0}}}
    with pytest.raises(BackboneError, match=r"absent\.safetensors"):
        train(small(losses=absent), cache, tmp_path / "a")
    with pytest.raises(UsageError, match="conv9_9"):
        train(small(losses=unknown), cache, tmp_path / "b")
    with pytest.raises(UsageError, match="at least 80 px on both sides"):
        train(small(adversarial={"patch_hr_px": 64}), cache, tmp_path / "c")

    single = {"batch_size": 1}  # of which BatchNorm has one value for each channel, where the strides have ended
    with pytest.raises(UsageError, match="a step of adversarial cannot be taken: Expected more than 1 value"):
        train(small(adversarial=single), cache, tmp_path / "single")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Kernel size can't be greater than actual input size")

    monkeypatch.setattr(trainer, "generator_step", fails)
    with pytest.raises(UsageError, match="a step of adversarial cannot be taken: Kernel size"):
        train(small(), cache, tmp_path / "d")
    assert steps == []


def test_a_step_that_memory_has_no_room_for_is_refused_before_the_first(
    cache: PictureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "generator_step", full)
    with pytest.raises(
        UsageError, match=r"a step of adversarial needs more memory.*lower adversarial\.batch_size"
    ):
        train(small(), cache, tmp_path)


def test_a_rehearsal_changes_nothing(cache: PictureCache, tmp_path: Path) -> None:
    run = Run(small(), cache, tmp_path, Clock(make_fabric(small())))
    with run.journal:
        before = torch.get_rng_state(), copied(run.players.generator), run.patch_random.get_state()
        trainer.rehearse(run)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert same(copied(run.players.generator), before[1])
        assert torch.equal(run.patch_random.get_state(), before[2])


def test_exports_that_would_meet_or_leave_the_folder_are_refused() -> None:
    with pytest.raises(UsageError, match="one would overwrite the other"):
        small(pretrain={"export_name": "mine"}, adversarial={"export_name": "mine"})
    for name in ("../mine", "", "a/b", ".hidden", "a\nb"):
        with pytest.raises(UsageError, match=r"pretrain\.export_name"):
            small(pretrain={"export_name": name})


@pytest.mark.parametrize(
    "change",
    [
        {"pretrain": {"betas": [0.9, 1.0]}},
        {"losses": {"perceptual": {"weight": 1.0, "layers": {}}}},
        {"seed": 2**70},
    ],
)
def test_values_that_torch_refuses_are_refused_by_the_recipe(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        small(**change)


def waves(count: int, size: int = 96) -> list[np.ndarray]:
    """Pictures of waves as short as LR can just hold: bicubic damps them, and a little training undoes that."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    pictures = []
    for _ in range(count):
        picture = np.full((size, size, 3), 127.0)
        for _ in range(6):
            period, angle, phase = random.uniform(10, 16), random.uniform(0, 6.3), random.uniform(0, 6.3, 3)
            along = np.cos(angle) * x + np.sin(angle) * y
            picture += 20 * np.sin(2 * np.pi * along[..., None] / period + phase)
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    return pictures


def gain(recipe: Recipe, run: Path) -> float:
    """How much held-out PSNR a run gains over the untrained generator, in dB."""
    cache = cache_of(*waves(12))
    _, held_out = split(cache, recipe.data)
    torch.manual_seed(recipe.seed)
    start = validate(Generator(**recipe.generator.model_dump()).eval(), held_out)["validation/psnr_y"]
    exported = train(recipe, cache, run)
    return validate(load_generator(exported[-2])[0].eval(), held_out)["validation/psnr_y"] - start


def test_the_tiny_recipe_shortened_beats_its_start(tmp_path: Path) -> None:
    overrides = ["pretrain.steps=150", "adversarial.steps=0", "pretrain.patch_hr_px=32"]
    assert gain(load_recipe("tiny", [*overrides, "pretrain.learning_rate=1e-3"]), tmp_path) > 0.7


@pytest.mark.slow
def test_the_tiny_recipe_beats_its_start(tmp_path: Path) -> None:
    assert gain(load_recipe("tiny"), tmp_path) > 4.0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_a_checkpoint_and_the_right_exit_code(tmp_path: Path, number: int, code: int) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for index, picture in enumerate(discs(5)):
        Image.fromarray(picture).save(photos / f"{index}.png")
    overrides = {
        "generator.features": 4,
        "pretrain.steps": 10**6,
        "pretrain.patch_hr_px": 16,
        "adversarial.patch_hr_px": 16,
        "data.held_out": 0,
        "log_steps": 1,
    }
    settings = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "srgan", "train", "tiny", "--data", str(photos), "--run", str(run)]
    with subprocess.Popen(
        [*command, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "pretrain 3 " in line:
                process.send_signal(number)
                break
        lines += list(process.stdout)
        assert process.wait() == code, "".join(lines)
    assert "Traceback" not in "".join(lines)
    _, state = latest_checkpoint(run)
    assert state["position"]["step"] >= 3
    cache = build_cache([photos], run.parent / "cache")
    assert state["data_sha256"] == cache.sha256


SIGNALS = """
import os, signal, sys
from pathlib import Path
from srgan.training import trainer
from srgan.training.config import load_recipe
from srgan.training.data.cache import build_cache
from srgan.training.data.patches import Patches

def step(*arguments):
    for number in signals:
        signal.raise_signal(number)
    return draw(*arguments)

def outcome():
    try:
        trainer.train(recipe, cache, run, resume=run.exists())
    except BaseException as error:
        return type(error).__name__, getattr(error, "code", None)

folder = Path(sys.argv[1])
run, recipe = folder / "run", load_recipe(str(folder / "recipe.toml"))
cache = build_cache([folder], folder / "cache")
draw, Patches.pairs = Patches.pairs, step
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
for signals in ([signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGINT]):
    print(*outcome())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
"""


def test_a_signal_waits_for_the_step_and_a_second_one_does_not(tmp_path: Path) -> None:
    """In a process of its own: what other tests load may have changed how this one takes signals."""
    for index, picture in enumerate(discs(5)):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    (tmp_path / "recipe.toml").write_text(
        "generator = { blocks = 1, features = 4 }\ndata = { held_out = 0 }\nadversarial = { steps = 0 }\n"
        "pretrain = { steps = 100, batch_size = 2, patch_hr_px = 16 }\n"
    )
    command = [sys.executable, "-c", SIGNALS, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["SystemExit 143", "KeyboardInterrupt None", "KeyboardInterrupt None"]
    _, state = latest_checkpoint(tmp_path / "run")
    assert state["position"]["step"] == 2  # the two that were let end


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")],
)
def test_half_precision_only_where_the_processor_computes_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision_of(small(precision="auto")) == precision
    assert precision_of(small(precision="fp32")) == "fp32"
    for recipe, kind in ((small(precision="auto"), precision), (small(precision="fp32"), "fp32")):
        with make_fabric(recipe).autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]


def test_a_step_in_half_precision_keeps_its_losses_and_weights_in_full() -> None:
    steps = {}
    for precision in ("fp32", "bf16"):
        recipe = small(precision=precision, generator={"blocks": 2, "features": 8})
        players = players_of(recipe)
        lr, hr = batch()
        steps[precision] = pretrain_step(players, nn.functional.l1_loss, lr, hr, 0.0)
        assert all(parameter.dtype == torch.float32 for parameter in players.generator.parameters())
    half, full = steps["bf16"], steps["fp32"]
    assert half["content"].dtype == torch.float32
    assert float(half["content"]) == pytest.approx(float(full["content"]), rel=5e-3)
    assert float(half["gradient_norm"]) == pytest.approx(float(full["gradient_norm"]), rel=5e-2)
    assert float(half["content"]) != float(full["content"])
