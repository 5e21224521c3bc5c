"""Weights as other programs save them, and what these programs compute with them, written down plainly.

Every function takes the weights by their foreign names and a picture (N,3,H,W) in [0,1]; what it returns is the
result in [0,1] before it is clamped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
FEATURES = 6


@dataclass(frozen=True)
class Foreign:
    """One program's weights, small ones, and its function."""

    state: State
    forward: Callable[[State, Tensor], Tensor]
    scale: int
    blocks: int


class Maker:
    """Fills a state with layers of random weights."""

    def __init__(self, seed: int) -> None:
        self.state: State = {}
        self.random = torch.Generator().manual_seed(seed)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def conv(self, name: str, out: int, before: int, kernel: int, *, bias: bool = True) -> None:
        self.state[f"{name}.weight"] = self.noise(out, before, kernel, kernel) / (before * kernel**2) ** 0.5
        if bias:
            self.state[f"{name}.bias"] = 0.1 * self.noise(out)

    def norm(self, name: str, features: int = FEATURES) -> None:
        self.state[f"{name}.weight"] = 1 + 0.3 * self.noise(features)
        self.state[f"{name}.bias"] = 0.2 * self.noise(features)
        self.state[f"{name}.running_mean"] = 0.2 * self.noise(features)
        self.state[f"{name}.running_var"] = 1 + 0.5 * self.noise(features).tanh()
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(1000)

    def slope(self, name: str) -> None:
        self.state[f"{name}.weight"] = 0.25 + 0.1 * self.noise(1)


def conv(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)


def prelu(state: State, name: str, x: Tensor) -> Tensor:
    return F.prelu(x, state[f"{name}.weight"])


def leftthomas(blocks: int = 5, steps: int = 2, *, until_2019: bool = False) -> Foreign:
    """`until_2019`: as when its weights were published, with a PReLU instead of the last normalisation."""
    make = Maker(1)
    make.conv("block1.0", FEATURES, 3, 9)
    make.slope("block1.1")
    for index in range(2, 2 + blocks):
        for number in (1, 2):
            make.conv(f"block{index}.conv{number}", FEATURES, FEATURES, 3)
            make.norm(f"block{index}.bn{number}")
        make.slope(f"block{index}.prelu")
    trunk, end = f"block{2 + blocks}", f"block{3 + blocks}"
    make.conv(f"{trunk}.0", FEATURES, FEATURES, 3)
    if until_2019:
        make.slope(f"{trunk}.1")
    else:
        make.norm(f"{trunk}.1")
    for step in range(steps):
        make.conv(f"{end}.{step}.conv", 4 * FEATURES, FEATURES, 3)
        make.slope(f"{end}.{step}.prelu")
    make.conv(f"{end}.{steps}", 3, FEATURES, 9)

    def forward(state: State, lr: Tensor) -> Tensor:
        first = x = prelu(state, "block1.1", conv(state, "block1.0", lr))
        for index in range(2, 2 + blocks):
            inner = norm(state, f"block{index}.bn1", conv(state, f"block{index}.conv1", x))
            inner = conv(state, f"block{index}.conv2", prelu(state, f"block{index}.prelu", inner))
            x = x + norm(state, f"block{index}.bn2", inner)
        x = first + (prelu if until_2019 else norm)(state, f"{trunk}.1", conv(state, f"{trunk}.0", x))
        for step in range(steps):
            shuffled = F.pixel_shuffle(conv(state, f"{end}.{step}.conv", x), 2)
            x = prelu(state, f"{end}.{step}.prelu", shuffled)
        return (torch.tanh(conv(state, f"{end}.{steps}", x)) + 1) / 2

    return Foreign(make.state, forward, 2**steps, blocks)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def aitorzip(blocks: int = 3, steps: int = 2) -> Foreign:
    make = Maker(6)
    make.conv("conv1", FEATURES, 3, 9)
    for index in range(1, 1 + blocks):
        for number in (1, 2):
            make.conv(f"residual_block{index}.conv{number}", FEATURES, FEATURES, 3)
            make.norm(f"residual_block{index}.bn{number}")
    make.conv("conv2", FEATURES, FEATURES, 3)
    make.norm("bn2")
    for index in range(1, 1 + steps):
        make.conv(f"upsample{index}.conv", 4 * FEATURES, FEATURES, 3)
    make.conv("conv3", 3, FEATURES, 9)

    def forward(state: State, lr: Tensor) -> Tensor:
        mean, deviation = (
            torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        )
        first = x = swish(conv(state, "conv1", (lr - mean) / deviation))
        for index in range(1, 1 + blocks):
            block = f"residual_block{index}"
            inner = swish(norm(state, f"{block}.bn1", conv(state, f"{block}.conv1", x)))
            x = norm(state, f"{block}.bn2", conv(state, f"{block}.conv2", inner)) + x
        x = norm(state, "bn2", conv(state, "conv2", x)) + first
        for index in range(1, 1 + steps):
            x = swish(F.pixel_shuffle(conv(state, f"upsample{index}.conv", x), 2))
        # It learns normalised pictures, too; its program turns them back to be looked at.
        return conv(state, "conv3", x) * deviation + mean

    return Foreign(make.state, forward, 2**steps, blocks)


def lornatang(names: tuple[str, str, str] = ("conv1", "conv2", "conv3"), blocks: int = 3) -> Foreign:
    head, trunk, tail = names
    make = Maker(2)
    make.conv(f"{head}.0", FEATURES, 3, 9)
    make.slope(f"{head}.1")
    for index in range(blocks):
        make.conv(f"trunk.{index}.rcb.0", FEATURES, FEATURES, 3, bias=False)
        make.norm(f"trunk.{index}.rcb.1")
        make.slope(f"trunk.{index}.rcb.2")
        make.conv(f"trunk.{index}.rcb.3", FEATURES, FEATURES, 3, bias=False)
        make.norm(f"trunk.{index}.rcb.4")
    make.conv(f"{trunk}.0", FEATURES, FEATURES, 3, bias=False)
    make.norm(f"{trunk}.1")
    for step in range(2):
        make.conv(f"upsampling.{step}.upsample_block.0", 4 * FEATURES, FEATURES, 3)
        make.slope(f"upsampling.{step}.upsample_block.2")
    make.conv(tail, 3, FEATURES, 9)

    def forward(state: State, lr: Tensor) -> Tensor:
        first = x = prelu(state, f"{head}.1", conv(state, f"{head}.0", lr))
        for index in range(blocks):
            block = f"trunk.{index}.rcb"
            inner = prelu(state, f"{block}.2", norm(state, f"{block}.1", conv(state, f"{block}.0", x)))
            x = norm(state, f"{block}.4", conv(state, f"{block}.3", inner)) + x
        x = first + norm(state, f"{trunk}.1", conv(state, f"{trunk}.0", x))
        for step in range(2):
            block = f"upsampling.{step}.upsample_block"
            x = prelu(state, f"{block}.2", F.pixel_shuffle(conv(state, f"{block}.0", x), 2))
        return conv(state, tail, x)

    return Foreign(make.state, forward, 4, blocks)


def modified(program: str, factors: tuple[int, ...] = (2, 2), blocks: int = 3) -> Foreign:
    """MSRResNet, which BasicSR and mmagic name differently and do not compute alike."""
    basicsr = program == "BasicSR"
    body = "body" if basicsr else "trunk_net"
    ups = [f"upconv{i + 1}" if basicsr else f"upsample{i + 1}.upsample_conv" for i in range(len(factors))]
    make = Maker(3)
    make.conv("conv_first", FEATURES, 3, 3)
    for index in range(blocks):
        make.conv(f"{body}.{index}.conv1", FEATURES, FEATURES, 3)
        make.conv(f"{body}.{index}.conv2", FEATURES, FEATURES, 3)
    for up, factor in zip(ups, factors, strict=True):
        make.conv(up, factor**2 * FEATURES, FEATURES, 3)
    make.conv("conv_hr", FEATURES, FEATURES, 3)
    make.conv("conv_last", 3, FEATURES, 3)
    make.state["conv_last.weight"] *= 0.1  # near the interpolated picture, as one that is trained
    scale = torch.tensor(factors).prod().item()

    def forward(state: State, lr: Tensor) -> Tensor:
        x = F.leaky_relu(conv(state, "conv_first", lr), 0.1)
        for index in range(blocks):
            x = x + conv(state, f"{body}.{index}.conv2", F.relu(conv(state, f"{body}.{index}.conv1", x)))
        for up, factor in zip(ups, factors, strict=True):
            x = F.pixel_shuffle(conv(state, up, x), factor)
            x = F.leaky_relu(x, 0.1) if basicsr else x
        x = conv(state, "conv_last", F.leaky_relu(conv(state, "conv_hr", x), 0.1))
        return x + F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)

    return Foreign(make.state, forward, int(scale), blocks)


def sgrvinod(blocks: int = 3, steps: int = 2) -> Foreign:
    make = Maker(4)
    make.conv("conv_block1.conv_block.0", FEATURES, 3, 9)
    make.slope("conv_block1.conv_block.1")
    for index in range(blocks):
        for number in (1, 2):
            make.conv(f"residual_blocks.{index}.conv_block{number}.conv_block.0", FEATURES, FEATURES, 3)
            make.norm(f"residual_blocks.{index}.conv_block{number}.conv_block.1")
        make.slope(f"residual_blocks.{index}.conv_block1.conv_block.2")
    make.conv("conv_block2.conv_block.0", FEATURES, FEATURES, 3)
    make.norm("conv_block2.conv_block.1")
    for step in range(steps):
        make.conv(f"subpixel_convolutional_blocks.{step}.conv", 4 * FEATURES, FEATURES, 3)
        make.slope(f"subpixel_convolutional_blocks.{step}.prelu")
    make.conv("conv_block3.conv_block.0", 3, FEATURES, 9)

    def forward(state: State, lr: Tensor) -> Tensor:
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        lr = (lr - mean[:, None, None]) / deviation[:, None, None]
        first = x = prelu(state, "conv_block1.conv_block.1", conv(state, "conv_block1.conv_block.0", lr))
        for index in range(blocks):
            one, two = (f"residual_blocks.{index}.conv_block{number}.conv_block" for number in (1, 2))
            inner = prelu(state, f"{one}.2", norm(state, f"{one}.1", conv(state, f"{one}.0", x)))
            x = norm(state, f"{two}.1", conv(state, f"{two}.0", inner)) + x
        x = norm(state, "conv_block2.conv_block.1", conv(state, "conv_block2.conv_block.0", x)) + first
        for step in range(steps):
            up = f"subpixel_convolutional_blocks.{step}"
            x = prelu(state, f"{up}.prelu", F.pixel_shuffle(conv(state, f"{up}.conv", x), 2))
        return (torch.tanh(conv(state, "conv_block3.conv_block.0", x)) + 1) / 2

    return Foreign(make.state, forward, 2**steps, blocks)


def twtygqyy(blocks: int = 3) -> Foreign:
    make = Maker(5)
    make.conv("conv_input", FEATURES, 3, 9, bias=False)
    for index in range(blocks):
        for number in (1, 2):
            make.conv(f"residual.{index}.conv{number}", FEATURES, FEATURES, 3, bias=False)
            make.norm(f"residual.{index}.bn{number}")
    make.conv("conv_mid", FEATURES, FEATURES, 3, bias=False)
    make.norm("bn_mid")
    for index in (0, 3):
        make.conv(f"upscale4x.{index}", 4 * FEATURES, FEATURES, 3, bias=False)
    make.conv("conv_output", 3, FEATURES, 9, bias=False)

    def forward(state: State, lr: Tensor) -> Tensor:
        first = x = F.leaky_relu(conv(state, "conv_input", lr), 0.2)
        for index in range(blocks):
            inner = norm(state, f"residual.{index}.bn1", conv(state, f"residual.{index}.conv1", x))
            inner = conv(state, f"residual.{index}.conv2", F.leaky_relu(inner, 0.2))
            x = norm(state, f"residual.{index}.bn2", inner) + x
        x = norm(state, "bn_mid", conv(state, "conv_mid", x)) + first
        for index in (0, 3):
            x = F.leaky_relu(F.pixel_shuffle(conv(state, f"upscale4x.{index}", x), 2), 0.2)
        return conv(state, "conv_output", x)

    return Foreign(make.state, forward, 4, blocks)


FOREIGN: dict[str, Callable[[], Foreign]] = {
    "leftthomas": leftthomas,
    "leftthomas x2": lambda: leftthomas(steps=1),
    "leftthomas x8": lambda: leftthomas(steps=3),
    "leftthomas of 16 blocks": lambda: leftthomas(blocks=16),
    "leftthomas until 2019": lambda: leftthomas(until_2019=True),
    "leftthomas until 2019 x2": lambda: leftthomas(steps=1, until_2019=True),
    "leftthomas until 2019 x8": lambda: leftthomas(steps=3, until_2019=True),
    "aitorzip": aitorzip,
    "aitorzip x2": lambda: aitorzip(steps=1),
    "Lornatang": lornatang,
    "Lornatang 2022": lambda: lornatang(("conv_block1", "conv_block2", "conv_block3")),
    "BasicSR": lambda: modified("BasicSR"),
    "BasicSR x2": lambda: modified("BasicSR", (2,)),
    "BasicSR x3": lambda: modified("BasicSR", (3,)),
    "mmagic": lambda: modified("mmagic"),
    "sgrvinod": sgrvinod,
    "twtygqyy": twtygqyy,
}
