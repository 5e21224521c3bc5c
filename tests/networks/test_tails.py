"""The form of the last convolution: which is taken, and what half precision does to it in training."""

from __future__ import annotations

import colorsys
import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srgan.networks import tails
from srgan.networks.generator import Generator
from srgan.networks.layers import TailForm
from srgan.networks.reading import load_network
from srgan.networks.tails import Cost
from srgan.weights import bundled_folder

PLAIN, MOVED = TailForm(moved=False, multiple=8), TailForm(moved=True, multiple=8)


@pytest.mark.parametrize(
    ("plain", "moved", "chosen"),
    [
        (Cost(1.0, 100), Cost(2.0, 100), PLAIN),
        (Cost(2.0, 100), Cost(1.0, 100), MOVED),
        (Cost(2.0, 100), Cost(1.0, 200), MOVED),
        (Cost(2.0, 100), Cost(1.0, 201), PLAIN),  # twice as fast, and more than twice the memory
    ],
)
def test_the_fastest_of_those_that_are_not_lavish_is_taken(plain: Cost, moved: Cost, chosen: TailForm) -> None:
    assert tails.cheapest({PLAIN: plain, MOVED: moved}) == chosen
    assert tails.cheapest({MOVED: moved}) == MOVED


def test_outputs_are_filled_up_for_half_precision_alone() -> None:
    generator = Generator(blocks=1, features=4)
    assert tails.forms(generator, half=True) == (PLAIN, MOVED)
    assert {form.multiple for form in tails.forms(generator, half=False)} == {1}
    assert tails.forms(nn.Conv2d(3, 3, 1), half=True) == (TailForm(),)


def measured_by(costs: list[Cost | None], monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Let a run take what `costs` say, in turn; return what was run."""
    runs: list[Callable[[], object]] = []

    def cost(run: Callable[[], object], _: torch.device) -> Cost | None:
        run()
        runs.append(run)
        return costs[len(runs) - 1]

    monkeypatch.setattr(tails, "is_measurable", lambda _: True)
    monkeypatch.setattr(tails, "cost", cost)
    return runs


def choose(generator: Generator) -> None:
    tails.choose_for_training(generator, contextlib.nullcontext, (2, 3, 6, 6), half=True)


@pytest.mark.parametrize(
    ("costs", "chosen"),
    [
        ([Cost(1.0, 1), Cost(2.0, 1)], PLAIN),
        ([Cost(2.0, 1), Cost(1.0, 1)], MOVED),
        ([None, Cost(1.0, 1)], MOVED),  # the memory was too small
        ([None, None], TailForm()),
    ],
)
def test_training_takes_the_form_that_does_best_and_leaves_no_other_trace(
    costs: list[Cost | None], chosen: TailForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = measured_by(costs, monkeypatch)
    generator = Generator(blocks=1, features=4, normalisation="batch")
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    torch.manual_seed(3)
    choose(generator)
    assert (len(runs), generator.tail.form) == (2, chosen)
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in generator.parameters())
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def test_where_nothing_can_be_measured_the_form_stays() -> None:
    generator = Generator(blocks=1, features=4)
    choose(generator)
    assert generator.tail.form == TailForm()


@pytest.mark.parametrize("form", [TailForm(), PLAIN, MOVED])
def test_a_step_in_bfloat16_has_the_gradients_of_float32(form: TailForm) -> None:
    """To a hundredth, all weights and the tail's alone; measured: 0.004, and so it is with a tail in float32."""
    torch.manual_seed(0)
    generator = Generator(blocks=4, features=16)
    generator.tail.form = form
    hr = F.avg_pool2d(torch.rand(2, 3, 70, 70), 7, stride=1)
    lr = F.avg_pool2d(hr, 4)

    def gradients(half: bool) -> list[torch.Tensor]:
        generator.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            sr = generator(lr)
        assert sr.dtype == torch.float32
        F.l1_loss(sr, hr).backward()
        tail = generator.tail.weight.grad
        assert tail is not None
        every = [parameter.grad.flatten() for parameter in generator.parameters() if parameter.grad is not None]
        return [torch.cat(every), tail.clone()]

    for exact, rounded in zip(gradients(half=False), gradients(half=True), strict=True):
        assert 0 < (rounded - exact).norm() < 0.01 * exact.norm()


class InFloat32(nn.Module):
    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.tail = tail

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            sr: torch.Tensor = self.tail(features.float())
        return sr


def test_a_tail_in_bfloat16_adds_no_band_and_no_shift_to_ramps_of_all_hues() -> None:
    """Against float32 and a tail in float32: the skip is exact in both, and rounding comes from before."""
    network, _ = load_network(bundled_folder() / "srgan-x4.safetensors")
    exact_tail = copy.deepcopy(network)
    exact_tail.add_module("tail", InFloat32(exact_tail.tail))
    colours = torch.tensor([colorsys.hsv_to_rgb(hue / 6, 1, 1) for hue in range(6)] + [(1.0, 1.0, 1.0)])
    ramps = colours[:, :, None, None] * torch.linspace(0, 1, 128).expand(6, 128)
    with torch.inference_mode():
        exact = network(ramps)
        with torch.autocast("cpu", torch.bfloat16):
            before, difference = (255 * (rounded(ramps) - exact) for rounded in (exact_tail, network))
    assert difference.abs().max() < 0.8  # of single pixels; 0.69 with these weights
    assert difference.norm() < 1.02 * before.norm()
    assert difference.mean(dim=(2, 3)).abs().max() < 0.02  # no colour is shifted
    # The mean of an LR pixel's square follows, too: what LR-PSNR measures.
    assert F.avg_pool2d(difference, 4).norm() < 1.02 * F.avg_pool2d(before, 4).norm()
