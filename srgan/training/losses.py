"""Content and perceptual losses: what SR should share with HR, in pixels and in features."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srgan.errors import RecipeError
from srgan.evaluation import backbones, metrics
from srgan.training.config import LossesRecipe, PerceptualRecipe

TermFunction = Callable[[Tensor, Tensor, Tensor], Tensor]  # of (sr, hr, lr); a scalar


def generator_terms(
    losses: LossesRecipe, average: nn.Module, device: torch.device
) -> tuple[dict[str, TermFunction], dict[str, float]]:
    """Return the terms beside the adversarial one whose weight is not 0, and their weights, by name."""
    content, perceptual = losses.content, losses.perceptual
    makers: dict[str, tuple[float, Callable[[], TermFunction]]] = {
        "content": (content.weight, lambda: _of_pictures(CONTENT_LOSSES[content.kind])),
        "perceptual": (perceptual.weight, lambda: _of_pictures(PerceptualLoss(perceptual).to(device))),
        "lpips": (losses.lpips, lambda: _of_pictures(LpipsLoss().to(device))),
        "structure_texture": (losses.structure_texture, lambda: _of_pictures(StructureTextureLoss().to(device))),
        "artifact": (losses.artifact, lambda: ArtifactLoss(average)),
    }
    chosen = {name: (weight, make) for name, (weight, make) in makers.items() if weight}
    return {name: make() for name, (_, make) in chosen.items()}, {name: w for name, (w, _) in chosen.items()}


def _of_pictures(loss: Callable[[Tensor, Tensor], Tensor]) -> TermFunction:
    return lambda sr, hr, _lr: loss(sr, hr)


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean of √((sr - hr)² + 10⁻⁶), a smooth L1; a scalar (Lai et al. 2017)."""
    return torch.sqrt((sr - hr).square() + 1e-6).mean()


CONTENT_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,  # Ledig et al. 2017, eq. 4
    "l1": F.l1_loss,
    "charbonnier": charbonnier,
}


class LpipsLoss(nn.Module):
    """Mean LPIPS (Zhang et al. 2018, v0.1, AlexNet) of (N,3,H,W) SR and HR in [0,1]; a float32 scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.network = copy.deepcopy(metrics.lpips_network())  # its own: validation keeps its network on the CPU

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the loss; its gradient reaches `sr` alone."""
        with torch.autocast(sr.device.type, enabled=False):
            distances: Tensor = self.network(2 * sr.float() - 1, 2 * hr.float() - 1)
        return distances.mean()


class StructureTextureLoss(nn.Module):
    """1 - similarity of the means (texture) and of the correlations (structure) of VGG16's feature maps.

    As DISTS (Ding et al. 2020, eq. 4 to 6), with equal weights for all channels in place of its learned ones.
    Inputs are (N,3,H,W) SR and HR in [0,1]; returns a float32 scalar between 0 (alike) and 2.
    """

    _STABLE = 1e-6  # c1 and c2 of the paper

    def __init__(self, file: str = "") -> None:
        super().__init__()
        layers = {"conv1_2": 1.0, "conv2_2": 1.0, "conv3_3": 1.0, "conv4_3": 1.0, "conv5_3": 1.0}
        self.vgg = PerceptualLoss(PerceptualRecipe(network="vgg16", file=file, layers=layers))

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the loss; its gradient reaches `sr` alone."""
        with torch.autocast(sr.device.type, enabled=False):
            with torch.no_grad():
                targets = [hr.float(), *self.vgg.activations(hr.float()).values()]
            maps = [sr.float(), *self.vgg.activations(sr.float()).values()]
            likeness = [self._likeness(x, y) for x, y in zip(maps, targets, strict=True)]
            return 1 - torch.cat(likeness).mean()

    def _likeness(self, x: Tensor, y: Tensor) -> Tensor:
        x_mean, y_mean = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
        x_var, y_var = (x - x_mean).square().mean((2, 3)), (y - y_mean).square().mean((2, 3))
        covariance = ((x - x_mean) * (y - y_mean)).mean((2, 3))
        x_mean, y_mean = x_mean.flatten(1), y_mean.flatten(1)
        texture = (2 * x_mean * y_mean + self._STABLE) / (x_mean.square() + y_mean.square() + self._STABLE)
        structure = (2 * covariance + self._STABLE) / (x_var + y_var + self._STABLE)
        return ((texture + structure) / 2).mean(1)  # each layer counts alike, however many channels it has


class ArtifactLoss(nn.Module):
    """L1 where SR looks like an artifact: locally restless, and worse than the average generator (LDL).

    `average`: the averaged generator, whose own SR is the steadier reference. Inputs are (N,3,P,P) SR and HR and
    (N,3,P/4,P/4) LR, in [0,1]; returns a scalar. Source: Liang et al. 2022, eq. 3 to 7, window 7.
    """

    def __init__(self, average: nn.Module) -> None:
        super().__init__()
        self._average = (average,)  # in a tuple: it is not this module's own

    def forward(self, sr: Tensor, hr: Tensor, lr: Tensor) -> Tensor:
        """Return the weighted L1; the weights carry no gradient."""
        with torch.no_grad():
            residual = (sr - hr).abs().sum(1, keepdim=True)
            steady = (self._average[0](lr).float() - hr).abs().sum(1, keepdim=True)
            overall = residual.var(dim=(1, 2, 3), keepdim=True) ** (1 / 5)
            weight = overall * local_variance(residual) * (residual >= steady)
        return F.l1_loss(weight * sr, weight * hr)


def local_variance(picture: Tensor, window: int = 7) -> Tensor:
    """Unbiased variance of (N,1,H,W) in a sliding window, edges reflected; the same shape."""
    padded = F.pad(picture, [window // 2] * 4, mode="reflect")
    mean, square = F.avg_pool2d(padded, window, 1), F.avg_pool2d(padded.square(), window, 1)
    return (square - mean.square()).clamp(min=0) * window**2 / (window**2 - 1)


# Convolutions in each of VGG's five blocks (Simonyan and Zisserman 2015, table 1, columns D and E).
_VGG_CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


class PerceptualLoss(nn.Module):
    """Distance of VGG features of SR and HR, summed over layers by weight (Ledig et al. 2017, eq. 5).

    `layers`: weight by name, "convI_J" being the J-th convolution of the I-th block. `feature_scale` multiplies
    the features; see `PerceptualRecipe`. Inputs are (N,3,H,W) in [0,1]; ImageNet's mean and deviation are
    buffers here. Returns a float32 scalar. Under bfloat16 autocast VGG runs in bfloat16, which has float32's range
    (half precision would overflow), and the distance is taken in float32.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, recipe: PerceptualRecipe) -> None:
        super().__init__()
        self.distance = CONTENT_LOSSES[recipe.kind]
        self.feature_scale = recipe.feature_scale
        self.taps = {
            layer_index(recipe.network, name) + recipe.after_activation: weight
            for name, weight in recipe.layers.items()
        }
        features = backbones.load_features(recipe.network, recipe.file)[: max(self.taps) + 1]
        for layer in features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # a tap before the activation must keep its values
        self.features = features
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the loss; its gradient reaches `sr` alone."""
        with torch.no_grad():
            targets = self.activations(hr)
        activations = self.activations(sr)
        with torch.autocast(sr.device.type, enabled=False):
            terms = [
                weight * self.distance(self.feature_scale * activations[tap], self.feature_scale * targets[tap])
                for tap, weight in self.taps.items()
            ]
            return torch.stack(terms).sum()

    def activations(self, picture: Tensor) -> dict[int, Tensor]:
        """Return the tapped features of (N,3,H,W) pictures in [0,1], by index in torchvision's `features`."""
        x, tapped = (picture.float() - self.mean) / self.deviation, {}
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                tapped[index] = x.float()
        return tapped


def layer_index(network: str, layer: str) -> int:
    """Return where the convolution `layer` ("conv5_4") stands in torchvision's `features`. Raises RecipeError."""
    counts = _VGG_CONVOLUTIONS[network]
    names = {f"conv{i}_{j}": (i, j) for i, count in enumerate(counts, 1) for j in range(1, count + 1)}
    if layer not in names:
        raise RecipeError(f"losses.perceptual.layers: {network} has no {layer!r}, only {', '.join(names)}")
    block, position = names[layer]
    # Each convolution is followed by its ReLU, each block by one pooling.
    return 2 * (sum(counts[: block - 1]) + position - 1) + (block - 1)
