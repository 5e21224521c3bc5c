"""The discriminators that the generator can play against (Ledig et al. 2017, figure 4, and others)."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from srgan.networks.layers import normalisation_layer


class Discriminator(nn.Module):
    """VGG-style classifier of Ledig et al. 2017: (N,3,P,P) in [0,1] to (N,1) logits, P = `patch_hr_px`.

    Eight 3×3 convolutions, every second with stride 2, `features` doubling from 64 to 512 by default, then two
    dense layers. `normalisation`: "batch" (the paper), "none" or "spectral".
    """

    def __init__(self, patch_hr_px: int = 96, features: int = 64, normalisation: str = "batch") -> None:
        super().__init__()
        if patch_hr_px % 16:
            raise ValueError(f"patch_hr_px must be a multiple of 16 (four strides of 2), not {patch_hr_px}")
        widths = [features * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8)]
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(widths):
            stride = 1 + index % 2
            # The first layer is never normalised: its statistics are the picture's own brightness.
            kind = "none" if index == 0 and normalisation == "batch" else normalisation
            conv = nn.Conv2d(before, width, 3, stride, padding=1, bias=kind != "batch")
            layers += [
                _spectral(conv, normalisation),
                normalisation_layer(width, kind),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            before = width
        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            _spectral(nn.Linear(before * (patch_hr_px // 16) ** 2, 16 * features), normalisation),
            nn.LeakyReLU(0.2, inplace=True),
            _spectral(nn.Linear(16 * features, 1), normalisation),
        )

    def forward(self, picture: Tensor) -> Tensor:
        """Return one logit per picture: above 0 means "real"."""
        logits: Tensor = self.dense(self.convolutions(2 * picture - 1).flatten(1))
        return logits


class UNetDiscriminator(nn.Module):
    """A judgement for every pixel: (N,3,P,P) in [0,1] to logits (N,1,P,P), P a multiple of 8.

    Encoder, decoder and skips with spectral norm (Schönfeld et al. 2020, as in Wang et al. 2021, Real-ESRGAN).
    `normalisation`: "spectral" as there, "batch" or "none". `patch_hr_px` is not used: any size will do.
    """

    def __init__(self, patch_hr_px: int = 96, features: int = 64, normalisation: str = "spectral") -> None:
        super().__init__()
        widths = [features, 2 * features, 4 * features, 8 * features]
        self.first = nn.Conv2d(3, features, 3, padding=1)
        self.down = nn.ModuleList(
            _convolution(before, after, normalisation, kernel=4, stride=2)
            for before, after in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(
            _convolution(before, after, normalisation) for before, after in itertools.pairwise(reversed(widths))
        )
        self.last = nn.Sequential(
            _convolution(features, features, normalisation), nn.Conv2d(features, 1, 3, padding=1)
        )

    def forward(self, picture: Tensor) -> Tensor:
        """Return one logit per pixel: above 0 means "real"."""
        x = F.leaky_relu(self.first(2 * picture - 1), 0.2)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)) + skip
        logits: Tensor = self.last(x)
        return logits


class PatchDiscriminator(nn.Module):
    """Judges overlapping 70×70 patches: (N,3,P,P) in [0,1] to logits (N,1,P/8-2,P/8-2).

    Source: Isola et al. 2017, section 6.1.2. `patch_hr_px` is not used: any size from 32 will do.
    """

    def __init__(self, patch_hr_px: int = 96, features: int = 64, normalisation: str = "batch") -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(3, features, "none" if normalisation == "batch" else normalisation, kernel=4, stride=2),
            _convolution(features, 2 * features, normalisation, kernel=4, stride=2),
            _convolution(2 * features, 4 * features, normalisation, kernel=4, stride=2),
            _convolution(4 * features, 8 * features, normalisation, kernel=4),
            _spectral(nn.Conv2d(8 * features, 1, 4, padding=1), normalisation),
        )

    def forward(self, picture: Tensor) -> Tensor:
        """Return one logit per patch: above 0 means "real"."""
        logits: Tensor = self.layers(2 * picture - 1)
        return logits


class AutoencoderDiscriminator(nn.Module):
    """BEGAN's discriminator: (N,3,P,P) in [0,1] to its own attempt at the same pictures, P a multiple of 8.

    Three halvings and three doublings (Berthelot et al. 2017, figure 1, without the dense bottleneck, so that
    any size will do). `patch_hr_px` is not used.
    """

    def __init__(self, patch_hr_px: int = 96, features: int = 64, normalisation: str = "none") -> None:
        super().__init__()
        widths = [features, 2 * features, 3 * features, 4 * features]
        encoder = [_convolution(3, features, "none")] + [
            _convolution(before, after, normalisation, kernel=4, stride=2)
            for before, after in itertools.pairwise(widths)
        ]
        bottleneck = [_convolution(4 * features, features, normalisation)]
        decoder: list[nn.Module] = []
        for _ in range(3):
            decoder += [nn.Upsample(scale_factor=2.0), _convolution(features, features, normalisation)]
        self.layers = nn.Sequential(*encoder, *bottleneck, *decoder, nn.Conv2d(features, 3, 3, padding=1))

    def forward(self, picture: Tensor) -> Tensor:
        """Return the reproduction, in the pictures' own range."""
        reproduction: Tensor = self.layers(2 * picture - 1)
        return (reproduction + 1) / 2


DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "vgg": Discriminator,
    "unet": UNetDiscriminator,
    "patch": PatchDiscriminator,
    "autoencoder": AutoencoderDiscriminator,
}


def _convolution(before: int, after: int, normalisation: str, *, kernel: int = 3, stride: int = 1) -> nn.Module:
    """Convolution with padding 1, normalisation and LeakyReLU 0.2."""
    conv = nn.Conv2d(before, after, kernel, stride, padding=1, bias=normalisation != "batch")
    return nn.Sequential(
        _spectral(conv, normalisation), normalisation_layer(after, normalisation), nn.LeakyReLU(0.2, inplace=True)
    )


def _spectral(layer: nn.Module, normalisation: str) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(layer) if normalisation == "spectral" else layer
