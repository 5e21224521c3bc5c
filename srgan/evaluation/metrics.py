"""PSNR, SSIM, LPIPS and DISTS as the field takes them: border shaved, BT.601 studio-range luma, 8 bits."""

from __future__ import annotations

import functools
import warnings
from importlib import resources
from pathlib import Path

import lpips as lpips_package
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from srgan.evaluation import backbones
from srgan.evaluation.tables import Luma

Pixels = npt.NDArray[np.uint8]
LEAST_PX = 32  # a side of a picture that every metric can judge: AlexNet has no output below 31


def psnr(sr: Pixels, hr: Pixels, *, border: int, y_only: bool, luma: Luma = "studio") -> float:
    """Peak signal-to-noise ratio in dB, as reported by Ledig et al. 2017, section 3.1.

    `sr`, `hr`: (H,W,3) uint8 RGB of the same shape. `border`: pixels shaved from each side, usually the scale.
    `y_only`: compare BT.601 luma, of studio range (MATLAB rgb2ycbcr) unless `luma` says otherwise. The peak is
    255. Identical pictures give inf. Raises ValueError if the shapes differ or nothing is left after shaving.
    """
    a, b = _comparable(sr, hr, border, y_only, luma)
    if np.array_equal(a, b):
        return float("inf")
    return float(peak_signal_noise_ratio(b, a, data_range=255))  # type: ignore[no-untyped-call]


def ssim(sr: Pixels, hr: Pixels, *, border: int, y_only: bool, luma: Luma = "studio") -> float:
    """Structural similarity, at most 1 (Wang et al. 2004: Gaussian window of 11, σ 1.5, no sample covariance).

    Arguments and errors as in `psnr`; also raises ValueError if less than 11 pixels a side are left. RGB is the
    mean over the channels.
    """
    a, b = _comparable(sr, hr, border, y_only, luma)
    if min(a.shape[:2]) < 11:
        raise ValueError(f"SSIM needs 11 pixels a side after shaving, not {a.shape[0]}x{a.shape[1]}")
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            b,
            a,
            data_range=255,
            channel_axis=None if y_only else 2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def lpips(sr: Pixels, hr: Pixels, *, border: int = 0, file: str | Path = "") -> float:
    """Learned perceptual distance, 0 for identical pictures (Zhang et al. 2018, v0.1, AlexNet).

    `sr`, `hr`: (H,W,3) uint8 RGB of the same shape, compared as RGB in [-1,1]. `border`: pixels shaved from each
    side, by default none as in the published tables. `file`: AlexNet's weights, see `backbones.load_features`.
    Raises ValueError as `psnr` does, BackboneError if AlexNet cannot be had.
    """
    a, b = _comparable(sr, hr, border, y_only=False)
    tensors = [torch.from_numpy(x / 127.5 - 1).permute(2, 0, 1)[None].float() for x in (a, b)]
    with torch.inference_mode():
        return float(lpips_network(str(file))(*tensors))


@functools.cache
def lpips_network(file: str = "") -> nn.Module:
    """Return the `lpips` package's AlexNet network, frozen: two (N,3,H,W) pictures in [-1,1] to (N,1,1,1)."""
    features = backbones.load_features("alexnet", file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision by its old argument names
        network: nn.Module = lpips_package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    # The package numbers AlexNet's layers as torchvision does, and stops before the last pooling.
    layers = [layer for name, layer in network.net.named_modules() if name.split(".")[-1].isdigit()]  # type: ignore[union-attr]
    for target, source in zip(layers, features, strict=False):
        target.load_state_dict(source.state_dict())
    return network.eval().requires_grad_(False)


def dists(sr: Pixels, hr: Pixels, *, border: int = 0, file: str | Path = "") -> float:
    """Structure and texture distance, 0 for identical pictures (Ding et al. 2020); whole pictures, not resized.

    `file`: VGG16's weights, see `backbones.load_features`; the channels' weights come with torchmetrics.
    Arguments and errors otherwise as in `lpips`.
    """
    a, b = _comparable(sr, hr, border, y_only=False)
    tensors = [torch.from_numpy(x / 255).permute(2, 0, 1)[None].float() for x in (a, b)]
    with torch.inference_mode():
        return float(dists_network(str(file))(*tensors))


@functools.cache
def dists_network(file: str = "") -> nn.Module:
    """Return the DISTS network with its published weights, frozen: two (N,3,H,W) pictures in [0,1] to (N,)."""
    features = backbones.load_features("vgg16", file)
    path = resources.files("torchmetrics.functional.image").joinpath("dists_models/weights.pt")
    with path.open("rb") as stream:
        weights = torch.load(stream, map_location="cpu", weights_only=True)
    return _Dists(features, weights["alpha"], weights["beta"]).eval().requires_grad_(False)


class _Dists(nn.Module):
    """Ding et al. 2020, eq. 4 to 6, of two (N,3,H,W) pictures in [0,1], as (N,).

    torchmetrics' own class downloads VGG16, dense layers and all, whatever is at hand. `features`: VGG16's;
    `alpha`, `beta`: (1,1475,1,1), how much texture and structure count in each channel.
    """

    alpha: Tensor
    beta: Tensor
    mean: Tensor
    deviation: Tensor
    window: Tensor

    CHANNELS = (3, 64, 128, 256, 512, 512)  # of the picture itself and of five stages
    STAGES = (
        slice(0, 4),
        slice(5, 9),
        slice(10, 16),
        slice(17, 23),
        slice(24, 30),
    )  # of VGG16, between its poolings

    def __init__(self, features: nn.Sequential, alpha: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.stages = nn.ModuleList(features[stage] for stage in self.STAGES)
        hanning = torch.tensor([0.5, 1.0, 0.5])
        window = torch.outer(hanning, hanning)
        for name, values in {
            "alpha": alpha,
            "beta": beta,
            "mean": torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
            "deviation": torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
            "window": window / window.sum(),
        }.items():
            self.register_buffer(name, values)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return 0 for identical pictures, at most 1."""
        total = self.alpha.sum() + self.beta.sum()
        alphas, betas = (
            torch.split(weights / total, list(self.CHANNELS), dim=1) for weights in (self.alpha, self.beta)
        )
        textures = structures = torch.zeros(len(sr), 1, 1, 1, device=sr.device)
        for a, b, alpha, beta in zip(self._maps(sr), self._maps(hr), alphas, betas, strict=True):
            mean_a, mean_b = a.mean((2, 3), keepdim=True), b.mean((2, 3), keepdim=True)
            variance_a = (a - mean_a).square().mean((2, 3), keepdim=True)
            variance_b = (b - mean_b).square().mean((2, 3), keepdim=True)
            covariance = (a * b).mean((2, 3), keepdim=True) - mean_a * mean_b
            texture = (2 * mean_a * mean_b + 1e-6) / (mean_a.square() + mean_b.square() + 1e-6)
            structure = (2 * covariance + 1e-6) / (variance_a + variance_b + 1e-6)
            textures = textures + (alpha * texture).sum(1, keepdim=True)
            structures = structures + (beta * structure).sum(1, keepdim=True)
        return 1 - (textures + structures).flatten()

    def _maps(self, picture: Tensor) -> list[Tensor]:
        """The picture, then what each stage makes of it; L2 pooling stands before all but the first."""
        maps = [picture]
        x = (picture - self.mean) / self.deviation
        for number, stage in enumerate(self.stages):
            if number:
                window = self.window.expand(x.shape[1], 1, 3, 3)
                x = F.conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1])
                x = (x + 1e-12).sqrt()
            x = stage(x)
            maps.append(x)
        return maps


def luma_of(rgb: Pixels, luma: Luma = "studio") -> npt.NDArray[np.float64]:
    """BT.601 luma of (H,W,3) uint8 RGB, (H,W): see `Luma` for the ranges."""
    if luma == "full":
        return np.asarray(rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))
    levels = 16 + rgb.astype(np.float64) @ (np.array([65.481, 128.553, 24.966]) / 255)
    return np.asarray(np.floor(levels + 0.5) if luma == "rounded" else levels)


def _comparable(
    sr: Pixels, hr: Pixels, border: int, y_only: bool, luma: Luma = "studio"
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if sr.shape != hr.shape:
        raise ValueError(f"pictures differ in shape: {sr.shape} and {hr.shape}")
    if sr.ndim != 3 or sr.shape[2] != 3 or sr.dtype != np.uint8 or hr.dtype != np.uint8:
        raise ValueError(f"expected (H,W,3) uint8, not {sr.shape} {sr.dtype} and {hr.dtype}")
    if border < 0 or min(sr.shape[:2]) <= 2 * border:
        raise ValueError(f"nothing is left of {sr.shape[0]}x{sr.shape[1]} after shaving {border} pixels")
    inner = slice(border, -border or None)
    a, b = sr[inner, inner], hr[inner, inner]
    return (luma_of(a, luma), luma_of(b, luma)) if y_only else (a.astype(np.float64), b.astype(np.float64))
