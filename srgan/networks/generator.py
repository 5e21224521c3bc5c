"""SRGAN's generator (Ledig et al. 2017, figure 4)."""

from __future__ import annotations

import copy
import math
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

SCALE = 4  # two sub-pixel ×2 steps, the paper's only factor

# Reach of a 3×3 and of a 9×9 convolution on each side, in the pixels it runs on.
_REACH_3, _REACH_9 = 1, 4


class GeneratorRecipe(BaseModel):
    """Keyword arguments of `Generator`; Ledig et al. 2017, figure 4, but for the normalisation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    blocks: Annotated[int, Field(ge=1, le=64)] = 16
    features: Annotated[int, Field(ge=1, le=512)] = 64
    normalisation: Literal["none", "batch"] = "none"  # BatchNorm costs range and shifts colours


class ResidualBlock(nn.Module):
    """Convolution, PReLU, convolution, added to the input; (N,C,H,W) to (N,C,H,W)."""

    def __init__(self, features: int, normalisation: str) -> None:
        super().__init__()
        bias = normalisation == "none"  # a normalisation layer has its own shift
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, bias=bias)
        self.norm1 = normalisation_layer(features, normalisation)
        self.act = nn.PReLU()
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=bias)
        self.norm2 = normalisation_layer(features, normalisation)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` plus the block's correction."""
        sum_: Tensor = x + self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return sum_


class SubPixelStep(nn.Module):
    """×2 by sub-pixel convolution (Shi et al. 2016); (N,C,H,W) to (N,C,2H,2W).

    The activation stands before the shuffle: a PReLU with one slope commutes with it, and there the inference
    engine fuses it into the convolution.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, 4 * features, 3, padding=1)
        self.act = nn.PReLU()
        self.shuffle = nn.PixelShuffle(2)
        icnr_(self.conv.weight, factor=2)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)  # four sub-pixels with four biases would start as a checkerboard

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` at twice the size."""
        twice: Tensor = self.shuffle(self.act(self.conv(x)))
        return twice


class BicubicUpscale(nn.Module):
    """×4 bicubic interpolation (a = -0.5, edges replicated) as one fixed convolution; (N,3,H,W) to (N,3,4H,4W).

    Written as a convolution so that every engine computes the same: `Resize` nodes differ between runtimes in
    their cubic coefficient and in what they do at the edges. Source of the kernel: Keys 1981.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", _bicubic_phases(), persistent=False)

    def forward(self, lr: Tensor) -> Tensor:
        """Return `lr` enlarged four times."""
        phases = F.conv2d(F.pad(lr, (2, 2, 2, 2), mode="replicate"), self.kernel)
        return F.pixel_shuffle(phases, SCALE)


class Tail(nn.Conv2d):
    """The 9×9 convolution that ends the network, computed before the last pixel shuffle instead of after it.

    Input: what the shuffle would be given, (N,4C,H,W). Output: (N,3,2H,2W). The parameters are those of the plain
    `Conv2d(C, 3, 9, padding=4)` after the shuffle, which is the same function up to the order of summation. There
    its three output channels at full size fill a fifth of a processor's lanes and took 40 % of the time; moved, it
    is a 5×5 convolution with twelve output channels at half the size, and the shuffle carries 3 channels, not C.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, 3, 9, padding=4)

    def forward(self, before_shuffle: Tensor) -> Tensor:
        """Return the picture's three channels at twice the size."""
        bias = cast(Tensor, self.bias).repeat_interleave(4)
        return F.pixel_shuffle(F.conv2d(before_shuffle, _before_shuffle(self.weight), bias, padding=2), 2)

    def moved(self) -> nn.Module:
        """Return the same function with the moved weights as its own parameters."""
        conv = nn.Conv2d(4 * self.in_channels, 12, 5, padding=2, dtype=self.weight.dtype)
        with torch.no_grad():
            conv.weight.copy_(_before_shuffle(self.weight))
            cast(Tensor, conv.bias).copy_(cast(Tensor, self.bias).repeat_interleave(4))
        return nn.Sequential(conv, nn.PixelShuffle(2))


class Generator(nn.Module):
    """SRResNet, the generator of SRGAN: LR (N,3,H,W) to SR (N,3,4H,4W), float RGB.

    Input in [0,1]; the output is linear and may leave [0,1] a little, so it is clamped where it becomes a
    picture and never in training, where a clamp would cut the gradient. `normalisation`: "none" (default) or
    "batch" (the paper). Differences from the paper, each measured by others (docs/decisions.md): no
    normalisation, residual branches that start at a tenth, ICNR, and a bicubic skip around the whole network.
    """

    def __init__(self, blocks: int = 16, features: int = 64, normalisation: str = "none") -> None:
        super().__init__()
        self.blocks_count = blocks
        self.head = nn.Sequential(nn.Conv2d(3, features, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(features, normalisation) for _ in range(blocks)))
        self.trunk = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1, bias=normalisation == "none"),
            normalisation_layer(features, normalisation),
        )
        self.upscale = nn.Sequential(SubPixelStep(features), SubPixelStep(features))
        self.tail = Tail(features)
        self.skip = BicubicUpscale()
        with torch.no_grad():
            if normalisation == "none":
                for block in self.blocks:  # 16 residual sums at full strength would start too loud
                    cast(ResidualBlock, block).conv2.weight.mul_(0.1)
            self.tail.weight.mul_(0.1)  # start near bicubic
            nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]  # a Conv2d made with bias has one

    def forward(self, lr: Tensor) -> Tensor:
        """Return SR, not clamped."""
        shallow = self.head(lr)
        deep = shallow + self.trunk(self.blocks(shallow))
        first, second = cast(SubPixelStep, self.upscale[0]), cast(SubPixelStep, self.upscale[1])
        features = second.act(second.conv(first(deep)))
        if torch.is_autocast_enabled(lr.device.type):  # the last sum decides grey levels, so it stays float32
            with torch.autocast(lr.device.type, enabled=False):
                return self._pixels(features.float(), lr)
        return self._pixels(features, lr)

    def _pixels(self, features: Tensor, lr: Tensor) -> Tensor:
        sr: Tensor = self.tail(features) + self.skip(lr)
        return sr

    @property
    def halo_lr_px(self) -> int:
        """How far, in LR pixels, an output pixel can see: the context that makes tiling exact."""
        at_lr = _REACH_9 + 2 * _REACH_3 * self.blocks_count + _REACH_3 + _REACH_3
        return math.ceil(at_lr + _REACH_3 / 2 + _REACH_9 / 4)


class DeployedGenerator(nn.Module):
    """The same function as a `Generator`, for inference; LR (N,3,H,W) to SR (N,3,4H,4W), not clamped.

    The tail's weights, moved once and for all, are a constant that an inference engine can optimise. Equal up to
    the order of summation; `generator` is not changed.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = copy.deepcopy(generator)
        self.generator.tail = generator.tail.moved()  # type: ignore[assignment]  # same input, same output

    def forward(self, lr: Tensor) -> Tensor:
        """Return SR, not clamped."""
        sr: Tensor = self.generator(lr)
        return sr


def icnr_(weight: Tensor, factor: int) -> Tensor:
    """Initialise a sub-pixel convolution so that its `factor`² sub-pixels start equal, in place.

    `weight`: (C·factor², C_in, k, k). Removes the checkerboard of random starts (Aitken et al. 2017).
    """
    kernels = torch.empty(weight.shape[0] // factor**2, *weight.shape[1:])
    nn.init.kaiming_normal_(kernels, a=0.25)  # PReLU's first slope
    with torch.no_grad():
        weight.copy_(kernels.repeat_interleave(factor**2, dim=0))
    return weight


def _before_shuffle(weight: Tensor) -> Tensor:
    """Return the (4O,4C,5,5) kernel that does before a ×2 pixel shuffle what (O,C,9,9) `weight` does after it.

    Row y of the kernel, read from row p of a 2×2 block, lies p + y - 4 rows below the block's first: that is row
    i of the block that is b - 2 blocks further down, where 2b + i = p + y. So padding by p and cutting into pairs
    sorts the taps; columns likewise.
    """
    out_channels, in_channels = weight.shape[:2]
    phases = torch.stack([F.pad(weight, (q, 1 - q, p, 1 - p)) for p in range(2) for q in range(2)], dim=1)
    taps = phases.reshape(out_channels, 4, in_channels, 5, 2, 5, 2)  # O, pq, C, block row, i, block column, j
    return taps.permute(0, 1, 2, 4, 6, 3, 5).reshape(4 * out_channels, 4 * in_channels, 5, 5)


def normalisation_layer(features: int, kind: str) -> nn.Module:
    """Return what normalises `features` channels: "none", "batch" or, of a discriminator, "spectral"."""
    if kind == "batch":
        return nn.BatchNorm2d(features)
    if kind in ("none", "spectral"):
        return nn.Identity()
    raise ValueError(f"unknown normalisation {kind!r}: choose none, batch or, for a discriminator, spectral")


def _bicubic_phases() -> Tensor:
    """Keys' kernel sampled for the 16 sub-pixel phases of ×4: (48,3,5,5), channel order of pixel_shuffle."""

    def keys(x: float, a: float = -0.5) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    # Output pixel 4i+p sits at LR coordinate i + (p + ½)/4 - ½; its taps lie at offsets -2..2 from i.
    taps = torch.tensor(
        [[keys((p + 0.5) / SCALE - 0.5 - offset) for offset in range(-2, 3)] for p in range(SCALE)],
        dtype=torch.float64,
    )
    phases = torch.einsum("py,qx->pqyx", taps, taps).reshape(SCALE**2, 5, 5)
    kernel = torch.zeros(3, SCALE**2, 3, 5, 5, dtype=torch.float64)
    for channel in range(3):
        kernel[channel, :, channel] = phases
    return kernel.reshape(3 * SCALE**2, 3, 5, 5).float()
