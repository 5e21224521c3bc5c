"""The layers that generators are made of, ours and those of other programs, and their form for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class ResidualBlock(nn.Module):
    """Convolution, PReLU, convolution, added to the input; (N,C,H,W) to (N,C,H,W)."""

    def __init__(self, features: int, normalisation: str = "none") -> None:
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
    """Enlargement by sub-pixel convolution (Shi et al. 2016); (N,C,H,W) to (N,C,factor·H,factor·W).

    The activation stands before the shuffle: a PReLU with one slope commutes with it, and there the inference
    engine fuses it into the convolution.
    """

    def __init__(self, features: int, factor: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, factor**2 * features, 3, padding=1)
        self.act = nn.PReLU()
        self.shuffle = nn.PixelShuffle(factor)
        icnr_(self.conv.weight, factor)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)  # sub-pixels with a bias each would start as a checkerboard

    def before_shuffle(self, x: Tensor) -> Tensor:
        """Return what the shuffle is to be given, (N,factor²·C,H,W): the last step leaves it to the `Tail`."""
        activated: Tensor = self.act(self.conv(x))
        return activated

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` at `factor` times its size."""
        enlarged: Tensor = self.shuffle(self.before_shuffle(x))
        return enlarged


def _tent(x: float) -> float:
    """The kernel of bilinear interpolation at the distance `x` in pixels."""
    return max(0.0, 1 - abs(x))


def _keys(x: float, a: float = -0.5) -> float:
    """The kernel of bicubic interpolation at the distance `x` in pixels; Keys 1981, whose a is -0.5."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


# The kernel of each kind, and how many pixels of LR it reaches to either side.
_KERNELS: dict[str, tuple[Callable[[float], float], int]] = {"bilinear": (_tent, 1), "bicubic": (_keys, 2)}


class Interpolation(nn.Module):
    """Enlargement by interpolation, edges replicated, as one fixed convolution; (N,3,H,W) to (N,3,sH,sW).

    Written as a convolution so that every engine computes the same: `Resize` nodes differ between runtimes in
    their cubic coefficient and in what they do at the edges. "bilinear" is what
    `F.interpolate(align_corners=False)` does.
    """

    kernel: Tensor

    def __init__(self, kind: Literal["bilinear", "bicubic"], scale: int) -> None:
        super().__init__()
        weight, self.reach = _KERNELS[kind]
        self.scale = scale
        # Output pixel s·i + p sits at LR coordinate i + (p + ½)/s - ½; its taps lie up to `reach` pixels from i.
        offsets = range(-self.reach, self.reach + 1)
        taps = torch.tensor(
            [[weight((phase + 0.5) / scale - 0.5 - offset) for offset in offsets] for phase in range(scale)],
            dtype=torch.float64,
        )
        side = len(offsets)
        phases = torch.einsum("py,qx->pqyx", taps, taps).reshape(scale**2, side, side)
        kernel = torch.zeros(3, scale**2, 3, side, side, dtype=torch.float64)
        for channel in range(3):
            kernel[channel, :, channel] = phases
        flat = kernel.reshape(3 * scale**2, 3, side, side)  # channels in the order of pixel_shuffle
        self.register_buffer("kernel", flat.float(), persistent=False)

    def forward(self, lr: Tensor) -> Tensor:
        """Return `lr` enlarged `scale` times."""
        phases = F.conv2d(F.pad(lr, (self.reach,) * 4, mode="replicate"), self.kernel)
        return F.pixel_shuffle(phases, self.scale)


@dataclass(frozen=True)
class TailForm:
    """How a `Tail` is computed; whatever it is, the function is the same up to the order of summation.

    `moved`: before the last pixel shuffle, else as published, after it. `multiple`: its output channels are filled
    up with zeros to a multiple of it.
    """

    moved: bool = True
    multiple: int = 1


class Tail(nn.Conv2d):
    """The 9×9 convolution that ends the network, with the last pixel shuffle.

    Input: what the shuffle by `factor`, 2 or 3, is given, (N,factor²·C,H,W). Output: (N,3,factor·H,factor·W). The
    parameters are those of the plain `Conv2d(C, 3, 9, padding=4)` after the shuffle. `form`: how it is computed.
    After the shuffle its three output channels at full size fill a fifth of a processor's lanes and took 40 % of
    the time; moved before it, it is a 5×5 convolution with 3·factor² output channels at the size before, and the
    shuffle carries 3 channels, not C.
    """

    def __init__(self, features: int, factor: int = 2) -> None:
        super().__init__(features, 3, 9, padding=4)
        self.factor, self.form = factor, TailForm()

    def forward(self, before_shuffle: Tensor) -> Tensor:
        """Return the picture's three channels at `factor` times the size."""
        weight, bias, used = self._computed()
        if self.form.moved:
            moved = F.conv2d(before_shuffle, weight, bias, padding=2)[:, :used]
            return F.pixel_shuffle(moved, self.factor)
        return F.conv2d(F.pixel_shuffle(before_shuffle, self.factor), weight, bias, padding=4)[:, :used]

    def constant(self) -> nn.Module:
        """Return the same function in the same form, with the weights that form computes with as parameters."""
        with torch.no_grad():
            weight, bias, used = self._computed()
        outputs, inputs, side, _ = weight.shape
        conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, dtype=weight.dtype)
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        convolution = [conv] if used == outputs else [conv, _First(used)]
        shuffle = nn.PixelShuffle(self.factor)
        return nn.Sequential(*convolution, shuffle) if self.form.moved else nn.Sequential(shuffle, *convolution)

    def _computed(self) -> tuple[Tensor, Tensor, int]:
        """Return weight and bias that are computed with in this form, and how many of their outputs are used."""
        weight, bias = self.weight, cast(Tensor, self.bias)
        if self.form.moved:
            weight, bias = _before_shuffle(weight, self.factor), bias.repeat_interleave(self.factor**2)
        used = weight.shape[0]
        if spare := -used % self.form.multiple:
            weight, bias = F.pad(weight, (0, 0) * 3 + (0, spare)), F.pad(bias, (0, spare))
        return weight, bias, used


class _First(nn.Module):
    """The first `channels` of (N,C,H,W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.channels]


def deployed(network: Network, form: TailForm | None = None) -> Network:
    """Return a copy of `network`, the same function in the form in which an inference engine runs it fastest.

    The weights of its `Tail`, if it ends in one, are brought into their form, `form` or by default the moved one,
    once and for all: an engine can optimise constants. Equal up to the order of summation.
    """
    copied = copy.deepcopy(network)
    if isinstance(tail := getattr(copied, "tail", None), Tail):
        tail.form = form or TailForm()
        copied.tail = tail.constant()
    return copied


def icnr_(weight: Tensor, factor: int) -> Tensor:
    """Initialise a sub-pixel convolution so that its `factor`² sub-pixels start equal, in place.

    `weight`: (C·factor², C_in, k, k). Removes the checkerboard of random starts (Aitken et al. 2017).
    """
    kernels = torch.empty(weight.shape[0] // factor**2, *weight.shape[1:])
    nn.init.kaiming_normal_(kernels, a=0.25)  # PReLU's first slope
    with torch.no_grad():
        weight.copy_(kernels.repeat_interleave(factor**2, dim=0))
    return weight


def normalisation_layer(features: int, kind: str) -> nn.Module:
    """Return what normalises `features` channels: "none", "batch" or, of a discriminator, "spectral"."""
    if kind == "batch":
        return nn.BatchNorm2d(features)
    if kind in ("none", "spectral"):
        return nn.Identity()
    raise ValueError(f"unknown normalisation {kind!r}: choose none, batch or, for a discriminator, spectral")


def _before_shuffle(weight: Tensor, factor: int) -> Tensor:
    """Return the (f²O,f²C,5,5) kernel that does before a ×f pixel shuffle what (O,C,9,9) `weight` does after it.

    Row y of the kernel, read from row p of an f×f block, lies p + y - 4 rows below the block's first: that is row
    i of the block that is b - 2 blocks further down, where f·b + i = p + y + 2f - 4. So padding above by
    p + 2f - 4 and cutting into blocks sorts the taps; columns likewise. For f of 2 or 3 they lie in five blocks.
    """
    out_channels, in_channels = weight.shape[:2]
    first, last = 2 * factor - 4, 3 * factor - 5  # rows of zeros above and below for p = 0
    phases = torch.stack(
        [F.pad(weight, (first + q, last - q, first + p, last - p)) for p in range(factor) for q in range(factor)],
        dim=1,
    )
    # O, pq, C, block row, i, block column, j
    taps = phases.reshape((out_channels, factor**2, in_channels, 5, factor, 5, factor))
    return taps.permute((0, 1, 2, 4, 6, 3, 5)).reshape(factor**2 * out_channels, factor**2 * in_channels, 5, 5)
