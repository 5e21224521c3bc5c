"""PSNR, SSIM and LPIPS in the field's protocol: border shaved, BT.601 studio-range luma, 8-bit pictures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from srgan import backbones

if TYPE_CHECKING:
    from torch import nn

Pixels = npt.NDArray[np.uint8]


def psnr(sr: Pixels, hr: Pixels, *, border: int, y_only: bool) -> float:
    """Peak signal-to-noise ratio in dB, as reported by Ledig et al. 2017, section 3.1.

    `sr`, `hr`: (H,W,3) uint8 RGB of the same shape. `border`: pixels shaved from each side, usually the scale.
    `y_only`: compare BT.601 studio-range luma (MATLAB rgb2ycbcr). The peak is 255. Identical pictures give inf.
    Raises ValueError if the shapes differ or nothing is left after shaving.
    """
    from skimage.metrics import peak_signal_noise_ratio

    a, b = _comparable(sr, hr, border, y_only)
    if np.array_equal(a, b):
        return float("inf")
    return float(peak_signal_noise_ratio(b, a, data_range=255))  # type: ignore[no-untyped-call]


def ssim(sr: Pixels, hr: Pixels, *, border: int, y_only: bool) -> float:
    """Structural similarity, at most 1 (Wang et al. 2004: Gaussian window of 11, σ 1.5, no sample covariance).

    Arguments and errors as in `psnr`; also raises ValueError if less than 11 pixels a side are left. RGB is the
    mean over the channels.
    """
    from skimage.metrics import structural_similarity

    a, b = _comparable(sr, hr, border, y_only)
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
    import torch

    a, b = _comparable(sr, hr, border, y_only=False)
    tensors = [torch.from_numpy(x / 127.5 - 1).permute(2, 0, 1)[None].float() for x in (a, b)]
    with torch.inference_mode():
        return float(lpips_network(str(file))(*tensors))


@functools.cache
def lpips_network(file: str = "") -> nn.Module:
    """Return the `lpips` package's AlexNet network, frozen: two (N,3,H,W) pictures in [-1,1] to (N,1,1,1)."""
    import warnings

    import lpips as package

    features = backbones.load_features("alexnet", file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision by its old argument names
        network: nn.Module = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    own = [layer for name, layer in network.net.named_modules() if name.split(".")[-1].isdigit()]  # type: ignore[union-attr]
    for target, source in zip(own, features, strict=False):  # the package stops before the last pooling
        target.load_state_dict(source.state_dict())
    return network.eval().requires_grad_(False)


def luma(rgb: Pixels) -> npt.NDArray[np.float64]:
    """BT.601 studio-range luma, 16 to 235, of (H,W,3) uint8 RGB, as MATLAB's rgb2ycbcr (without its rounding)."""
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return np.asarray(16 + rgb.astype(np.float64) @ weights)


def _comparable(
    sr: Pixels, hr: Pixels, border: int, y_only: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if sr.shape != hr.shape:
        raise ValueError(f"pictures differ in shape: {sr.shape} and {hr.shape}")
    if sr.ndim != 3 or sr.shape[2] != 3 or sr.dtype != np.uint8 or hr.dtype != np.uint8:
        raise ValueError(f"expected (H,W,3) uint8, not {sr.shape} {sr.dtype} and {hr.dtype}")
    if border < 0 or min(sr.shape[:2]) <= 2 * border:
        raise ValueError(f"nothing is left of {sr.shape[0]}x{sr.shape[1]} after shaving {border} pixels")
    inner = slice(border, -border or None)
    a, b = sr[inner, inner], hr[inner, inner]
    return (luma(a), luma(b)) if y_only else (a.astype(np.float64), b.astype(np.float64))
