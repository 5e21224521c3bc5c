"""Generators of the SRResNet family that others trained: one network whose parts are a matter of description."""

from __future__ import annotations

import math
from typing import Annotated, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from srgan.networks.layers import Interpolation, ResidualBlock, SubPixelStep, Tail

Kernel = Literal[1, 3, 5, 7, 9]


class Architecture(BaseModel):
    """What a `ResidualNetwork` consists of; stored in the metadata of its files under `architecture`.

    `layout`: whose names and conventions the weights had. `factors`: of the sub-pixel steps, in their order.
    `long_skip`: a convolution after the blocks and a sum with what went into them. `hr_convolution`: a 3×3
    convolution at full size before the last one. `activation`: behind convolutions; "swish" is x · sigmoid(x).
    `trunk_activation`: there is one behind that after the blocks, too. `picture_skip`: what the result is added
    to. `input`: "imagenet" for LR normalised by the mean and deviation of ImageNet. `output`: "tanh" for
    (tanh(x) + 1) / 2, "imagenet" for a result that is normalised likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: Literal["residual"] = "residual"
    layout: Annotated[str, Field(max_length=60)]
    blocks: Annotated[int, Field(ge=1, le=64)]
    features: Annotated[int, Field(ge=1, le=512)]
    factors: Annotated[tuple[Literal[2, 3], ...], Field(min_length=1, max_length=3)]
    head_kernel: Kernel
    tail_kernel: Kernel
    long_skip: bool = True
    hr_convolution: bool = False
    activation: Literal["prelu", "swish"] = "prelu"
    trunk_activation: bool = False
    picture_skip: Literal["none", "bilinear"] = "none"
    input: Literal["plain", "imagenet"] = "plain"
    output: Literal["linear", "tanh", "imagenet"] = "linear"

    @property
    def scale(self) -> int:
        """Output pixels per input pixel."""
        return math.prod(self.factors)

    @property
    def halo_lr_px(self) -> int:
        """How far, in LR pixels, an output pixel can see: the context that makes tiling exact."""
        at_lr = self.head_kernel // 2 + 2 * self.blocks + self.long_skip
        reach = int(self.picture_skip != "none")
        for phase in range(self.scale):
            for sign in (-1, 1):
                place = phase + sign * (self.tail_kernel // 2 + self.hr_convolution)
                for factor in reversed(self.factors):
                    place = place // factor + sign
                reach = max(reach, abs(place + sign * at_lr))
        return reach


class ResidualNetwork(nn.Module):
    """A generator as `architecture` describes it: LR (N,3,H,W) in [0,1] to SR (N,3,sH,sW), not clamped.

    Batch normalisation is folded into the convolutions, and every activation but swish is a PReLU: one with slope
    0 is a ReLU, with slope 1 none at all. A sub-pixel step is activated before its shuffle, as in `SubPixelStep`.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        features = architecture.features
        self.head = _convolution(3, features, architecture.head_kernel)
        self.head_act = nn.PReLU()
        self.blocks = nn.Sequential(*(ResidualBlock(features) for _ in range(architecture.blocks)))
        self.trunk = _convolution(features, features, 3) if architecture.long_skip else None
        self.trunk_act = nn.PReLU() if architecture.trunk_activation else nn.Identity()
        self.steps = nn.ModuleList(SubPixelStep(features, factor) for factor in architecture.factors)
        self.hr = _convolution(features, features, 3) if architecture.hr_convolution else None
        self.hr_act = nn.PReLU() if architecture.hr_convolution else None
        # The same function, computed before the last shuffle: `Tail` says why.
        self.early_tail = architecture.tail_kernel == 9 and not architecture.hr_convolution
        self.tail = (
            Tail(features, architecture.factors[-1])
            if self.early_tail
            else _convolution(features, 3, architecture.tail_kernel)
        )
        self.skip = (
            Interpolation("bilinear", architecture.scale) if architecture.picture_skip == "bilinear" else None
        )
        # ImageNet's mean and deviation, as torchvision gives them.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1), persistent=False)
        if architecture.activation == "swish":
            _activate_by_swish(self)

    def forward(self, lr: Tensor) -> Tensor:
        """Return SR, not clamped."""
        normalised = (lr - self.mean) / self.deviation if self.architecture.input == "imagenet" else lr
        shallow = self.head_act(self.head(normalised))
        features = self.blocks(shallow)
        if self.trunk is not None:
            features = shallow + self.trunk_act(self.trunk(features))
        *steps, last = (cast(SubPixelStep, step) for step in self.steps)
        for step in steps:
            features = step(features)
        features = last.before_shuffle(features) if self.early_tail else last(features)
        if self.hr is not None and self.hr_act is not None:
            features = self.hr_act(self.hr(features))
        residual = self.tail(features)
        if torch.is_autocast_enabled(lr.device.type):  # what decides grey levels stays float32
            with torch.autocast(lr.device.type, enabled=False):
                return self._picture(residual.float(), lr.float())
        return self._picture(residual, lr)

    def _picture(self, sr: Tensor, lr: Tensor) -> Tensor:
        if self.architecture.output == "tanh":
            sr = (torch.tanh(sr) + 1) / 2
        elif self.architecture.output == "imagenet":
            sr = sr * self.deviation + self.mean
        return sr if self.skip is None else sr + self.skip(lr)


def _activate_by_swish(network: nn.Module) -> None:
    """Put a swish in place of every PReLU of `network`."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.PReLU):
                setattr(module, name, nn.SiLU())


def _convolution(before: int, after: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2)
