"""PSNR, SSIM, LPIPS, DISTS and FID as the field takes them: border shaved, BT.601 studio-range luma, 8 bits."""

from __future__ import annotations

import functools
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from srgan.errors import BackboneError, UsageError
from srgan.evaluation import backbones

if TYPE_CHECKING:
    from torch import nn

Pixels = npt.NDArray[np.uint8]
# studio: 16 to 235, as MATLAB's rgb2ycbcr computes it; rounded: to whole levels, as it returns it for 8 bits;
# full: 0 to 255, as JPEG has it, which reads 1.3 dB lower.
Luma = Literal["studio", "rounded", "full"]
LEAST_PX = 32  # a side of a picture that every metric can judge: AlexNet has no output below 31


def psnr(sr: Pixels, hr: Pixels, *, border: int, y_only: bool, luma: Luma = "studio") -> float:
    """Peak signal-to-noise ratio in dB, as reported by Ledig et al. 2017, section 3.1.

    `sr`, `hr`: (H,W,3) uint8 RGB of the same shape. `border`: pixels shaved from each side, usually the scale.
    `y_only`: compare BT.601 luma, of studio range (MATLAB rgb2ycbcr) unless `luma` says otherwise. The peak is
    255. Identical pictures give inf. Raises ValueError if the shapes differ or nothing is left after shaving.
    """
    from skimage.metrics import peak_signal_noise_ratio

    a, b = _comparable(sr, hr, border, y_only, luma)
    if np.array_equal(a, b):
        return float("inf")
    return float(peak_signal_noise_ratio(b, a, data_range=255))  # type: ignore[no-untyped-call]


def ssim(sr: Pixels, hr: Pixels, *, border: int, y_only: bool, luma: Luma = "studio") -> float:
    """Structural similarity, at most 1 (Wang et al. 2004: Gaussian window of 11, σ 1.5, no sample covariance).

    Arguments and errors as in `psnr`; also raises ValueError if less than 11 pixels a side are left. RGB is the
    mean over the channels.
    """
    from skimage.metrics import structural_similarity

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


def dists(sr: Pixels, hr: Pixels, *, border: int = 0, file: str | Path = "") -> float:
    """Structure and texture distance, 0 for identical pictures (Ding et al. 2020); whole pictures, not resized.

    `file`: VGG16's weights, see `backbones.load_features`; the channels' weights come with torchmetrics.
    Arguments and errors otherwise as in `lpips`.
    """
    import torch

    a, b = _comparable(sr, hr, border, y_only=False)
    tensors = [torch.from_numpy(x / 255).permute(2, 0, 1)[None].float() for x in (a, b)]
    with torch.inference_mode():
        return float(dists_network(str(file))(*tensors))


@functools.cache
def dists_network(file: str = "") -> nn.Module:
    """Return torchmetrics' DISTS network, frozen: two (N,3,H,W) pictures in [0,1] to (N,)."""
    from unittest import mock

    from torchmetrics.functional.image import dists as package

    features = backbones.load_features("vgg16", file)
    # It would download VGG16, dense layers and all, whatever is at hand.
    with mock.patch.object(package, "vgg16", return_value=SimpleNamespace(features=features)):
        network: nn.Module = package.DISTSNetwork()
    return network.eval().requires_grad_(False)


class FrechetDistance:
    """FID (Heusel et al. 2017) between all SR and all HR, on the features of the original Inception network.

    Needs the torch-fidelity package, and its Inception weights: a file of that name in the folder that
    SRGAN_BACKBONES names, or their download. Raises UsageError without the first, BackboneError without the
    second. With fewer pictures than some thousands it says little: patches are better than whole pictures.
    """

    WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"

    def __init__(self) -> None:
        from unittest import mock

        import torch
        from torchmetrics.image.fid import FrechetInceptionDistance

        path = Path(os.environ.get(backbones.FOLDER_VARIABLE, "")) / self.WEIGHTS
        known = str(path) if path.is_file() else None
        # torch-fidelity would let a weights file run code.
        safely = functools.partial(torch.load, map_location="cpu")
        try:
            with mock.patch.object(torch, "load", lambda file, **_: safely(file, weights_only=True)):
                self._distance = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=known)
        except ModuleNotFoundError as error:
            raise UsageError("FID needs a package that is not installed: pip install torch-fidelity") from error
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())
            raise BackboneError(
                f"FID: the Inception network cannot be had ({reason}). Put {self.WEIGHTS}, of torch-fidelity's "
                f"releases, into a folder and set {backbones.FOLDER_VARIABLE} to it"
            ) from error

    def add(self, picture: Pixels, *, real: bool) -> None:
        """Take (H,W,3) uint8 RGB, of HR if `real`, else of SR."""
        import torch

        self._distance.update(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None], real=real)

    def value(self) -> float:
        """Return the distance of what was taken; at least two pictures of each kind are needed."""
        return float(self._distance.compute())


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
