"""SRGAN's generator (Ledig et al. 2017, figure 4)."""

from __future__ import annotations

import math
from typing import Annotated, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from srgan.networks.layers import Interpolation, ResidualBlock, SubPixelStep, Tail, normalisation_layer

# The sub-pixel steps of each scale; the paper has ×4 alone.
STEPS: dict[int, tuple[int, ...]] = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}

# Reach of a 3×3 and of a 9×9 convolution on each side, in the pixels it runs on.
_REACH_3, _REACH_9 = 1, 4


class GeneratorRecipe(BaseModel):
    """Keyword arguments of `Generator`; Ledig et al. 2017, figure 4, but for the normalisation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scale: Literal[2, 3, 4, 8] = 4  # the paper's
    blocks: Annotated[int, Field(ge=1, le=64)] = 16  # likewise
    features: Annotated[int, Field(ge=1, le=512)] = 64  # likewise
    normalisation: Literal["none", "batch"] = "none"  # BatchNorm costs range and shifts colours


class Generator(nn.Module):
    """SRResNet, the generator of SRGAN: LR (N,3,H,W) to SR (N,3,sH,sW), float RGB.

    Input in [0,1]; the output is linear and may leave [0,1] a little, so it is clamped where it becomes a
    picture and never in training, where a clamp would cut the gradient. `normalisation`: "none" (default) or
    "batch" (the paper). `scale`: one of `STEPS`. Differences from the paper, each measured by others
    (docs/decisions.md): no normalisation, residual branches that start at a tenth, ICNR, and a bicubic skip around
    the whole network.
    """

    def __init__(self, blocks: int = 16, features: int = 64, normalisation: str = "none", scale: int = 4) -> None:
        super().__init__()
        self.blocks_count, self.scale = blocks, scale
        self.head = nn.Sequential(nn.Conv2d(3, features, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(features, normalisation) for _ in range(blocks)))
        self.trunk = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1, bias=normalisation == "none"),
            normalisation_layer(features, normalisation),
        )
        self.upscale = nn.Sequential(*(SubPixelStep(features, factor) for factor in STEPS[scale]))
        self.tail = Tail(features, STEPS[scale][-1])
        self.skip = Interpolation("bicubic", scale)
        with torch.no_grad():
            if normalisation == "none":
                for block in self.blocks:  # 16 residual sums at full strength would start too loud
                    cast(ResidualBlock, block).conv2.weight.mul_(0.1)
            self.tail.weight.mul_(0.1)  # start near bicubic
            nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]  # a Conv2d made with bias has one

    def forward(self, lr: Tensor) -> Tensor:
        """Return SR, not clamped."""
        shallow = self.head(lr)
        features = shallow + self.trunk(self.blocks(shallow))
        *steps, last = (cast(SubPixelStep, step) for step in self.upscale)
        for step in steps:
            features = step(features)
        residual = self.tail(last.before_shuffle(features))
        if torch.is_autocast_enabled(lr.device.type):  # the last sum decides grey levels, so it stays float32
            with torch.autocast(lr.device.type, enabled=False):
                return self._sum(residual.float(), lr.float())
        return self._sum(residual, lr)

    def _sum(self, residual: Tensor, lr: Tensor) -> Tensor:
        sr: Tensor = residual + self.skip(lr)
        return sr

    @property
    def halo_lr_px(self) -> int:
        """How far, in LR pixels, an output pixel can see: the context that makes tiling exact."""
        at_lr = _REACH_9 + 2 * _REACH_3 * self.blocks_count + _REACH_3
        factors = STEPS[self.scale]
        enlarged = sum(_REACH_3 / math.prod(factors[:step]) for step in range(len(factors)))
        return math.ceil(at_lr + enlarged + _REACH_9 / self.scale)
