"""A step asks the device for nothing, sends what it must without waiting, and its shortcuts change no gradient."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

import pytest
import torch
from support.caches import cache_of
from support.runs import discs, small
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from srgan.networks.generator import Generator
from srgan.training.adversarial import OBJECTIVES
from srgan.training.config import Recipe
from srgan.training.data.degradation import filtered, jpeg
from srgan.training.device import adam, normalised_once, restore, step_if_finite
from srgan.training.discriminators import DISCRIMINATORS
from srgan.training.losses import ArtifactLoss
from srgan.training.processes import make_fabric
from srgan.training.run import Average, Clock, Health, Players, Position, make_players
from srgan.training.trainer import Pace, batch_source, pretrain_step, stage_step

aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """Notes what a host would wait for: results that are read, and copies to another device that block.

    Whole numbers are draws and counts of the CPU's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reads = func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
        if reads and args[0].dtype in (torch.bool, torch.float32, torch.bfloat16):
            self.seen.append(str(func))
        goes = func is aten._to_copy.default and kwargs.get("device", args[0].device) != args[0].device
        if goes and not kwargs.get("non_blocking"):
            self.seen.append(f"{func} to {kwargs['device']}")
        return func(*args, **kwargs)


def players_of(recipe: Recipe) -> Players:
    torch.manual_seed(0)
    return make_players(recipe, make_fabric(recipe), torch.Generator().manual_seed(1))


def gradients(module: nn.Module) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in module.parameters() if weight.grad is not None])


def test_the_counter_sees_what_waits() -> None:
    with Waits() as waits:
        float(torch.ones(()))
        bool(torch.ones(()).isfinite())
        torch.ones(2).to("meta")
        torch.ones(2).to("meta", non_blocking=True)
    assert len(waits.seen) == 3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_step_asks_the_device(objective: str) -> None:
    judge = {"patch_hr_px": 32, "batch_size": 2}
    recipe = small(objective=objective, pretrain=judge, adversarial=judge, log_steps=100)
    players, health = players_of(recipe), Health(torch.device("cpu"))
    for name, stage in recipe.stages().items():
        draw = batch_source(recipe, stage, cache_of(*discs(2)), torch.device("cpu"), torch.Generator())
        step = stage_step(name, recipe, players)
        with Waits() as waits:
            for number in range(2):
                health.note(step(draw, Position(name, step=number), Pace(1e-4, discriminator_rate=1e-4)))
        assert waits.seen == []


def test_jpeg_and_blur_send_what_they_need_without_waiting() -> None:
    pictures, qualities = torch.empty(2, 3, 32, 32, device="meta"), torch.tensor([50.0, 90.0])
    jpeg(pictures, qualities)  # its tables go once
    with Waits() as waits:
        assert jpeg(pictures, qualities).is_meta
        assert filtered(pictures, torch.ones(2, 21, 21), torch.tensor([True, True])).is_meta
    assert waits.seen == ["aten.nonzero.default"]  # of the CPU's own draw, which are chosen


def test_a_step_without_finite_gradients_is_left_out_on_the_device() -> None:
    layer = nn.Linear(3, 1)
    before, optimizer = copy.deepcopy(layer.state_dict()), adam(layer, 0.1, (0.9, 0.99))
    layer(torch.ones(1, 3)).sum().backward()
    with Waits() as waits:
        step_if_finite(optimizer, torch.tensor(torch.inf))
    assert waits.seen == []
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    step_if_finite(optimizer, torch.tensor(1.0))
    torch.testing.assert_close(layer.weight.detach(), before["weight"] - 0.1)  # Adam's first step is its rate


def test_an_optimiser_of_another_machine_goes_on_as_this_one_can() -> None:
    layer = nn.Linear(3, 1)
    plain, fused = torch.optim.Adam(layer.parameters(), fused=False), adam(layer, 0.1, (0.9, 0.99))
    layer(torch.ones(1, 3)).sum().backward()
    plain.step()
    restore(fused, plain.state_dict())
    assert fused.param_groups[0]["fused"]
    assert fused.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize("kind", ["vgg", "unet"])
def test_spectral_norm_once_gives_the_gradients_of_every_time(kind: str) -> None:
    """Of the same power iteration; the weights are those of float32 even where the forward is not."""
    torch.manual_seed(0)
    judge = DISCRIMINATORS[kind](32, 2, "spectral")
    once = copy.deepcopy(judge)
    hr, sr = torch.rand(2, 2, 3, 32, 32)
    judge(hr)  # moves the power iteration
    judge.eval()
    (judge(hr).square().mean() + judge(sr).sigmoid().mean()).backward()
    with normalised_once(once):
        (once(hr).square().mean() + once(sr).sigmoid().mean()).backward()
    torch.testing.assert_close(gradients(once), gradients(judge), rtol=1e-5, atol=1e-7)
    state = judge.state_dict()
    for name, buffer in once.named_buffers():
        torch.testing.assert_close(buffer, state[name])


def test_the_steps_gradients_in_bfloat16_are_those_of_float32() -> None:
    """Within 2 % of their length and at a cosine of 0.995."""
    found = []
    for precision in ("fp32", "bf16"):
        players = players_of(small(precision=precision, generator={"blocks": 2, "features": 16}))
        hr = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        pretrain_step(players, nn.functional.mse_loss, hr[..., ::4, ::4], hr, 0.0)
        found.append(gradients(players.generator))
    exact, half = found
    assert abs(half.norm() / exact.norm() - 1) < 0.02
    assert nn.functional.cosine_similarity(half, exact, dim=0) > 0.995


def test_the_average_runs_in_bfloat16_under_autocast() -> None:
    average = Average(Generator(1, 4), 0.9)
    seen: list[torch.dtype] = []
    convolutions = [part for part in average.modules() if isinstance(part, nn.Conv2d)]
    convolutions[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    sr, hr = torch.rand(2, 1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = ArtifactLoss(average)(sr, hr, torch.rand(1, 3, 8, 8))
    assert seen == [torch.bfloat16]
    assert half.isfinite()


def test_compiled_steps_are_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the part of torch.compile that takes a network apart and joins it again; the rest takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    weights = []
    for compile_ in (False, True):
        players = players_of(small(compile=compile_))
        hr = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        pretrain_step(players, nn.functional.mse_loss, hr[..., ::4, ::4], hr, 1.0)
        weights.append(players.generator.state_dict())
    plain, compiled = weights
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-6)


class TwoProcesses:
    """Stands in for a fabric of two processes that never disagree, and counts how often they meet."""

    world_size, met = 2, 0

    def broadcast(self, value: float) -> float:
        return value

    def all_reduce(self, value: Tensor, reduce_op: str) -> Tensor:
        self.met += 1
        return value


def test_processes_agree_about_the_time_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    fabric: Any = TwoProcesses()
    clock = Clock(fabric, asked_to_stop=lambda: now[0] > 9.5)
    told = []
    for _ in range(1000):
        now[0] += 0.01
        told.append(clock.pass_step() - now[0])
    assert fabric.met < 15
    assert max(map(abs, told)) < 1e-6  # between two agreements it is right for steps of one length
    assert clock.stopping


def test_processes_whose_steps_take_long_ask_before_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage begins with a look at the time, and its steps may be slower than those before."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    fabric: Any = TwoProcesses()
    clock = Clock(fabric, asked_to_stop=lambda: now[0] > 9.5)
    stopped_s = []
    for step_s in (0.001, 4.0):
        clock.tick()
        for _ in range(5):
            assert clock.pass_step() == pytest.approx(now[0])
            stopped_s += [now[0]] if clock.stopping else []
            now[0] += step_s
    assert stopped_s == pytest.approx([12.005, 16.005])  # the first step after the wish
