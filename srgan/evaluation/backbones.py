"""Pre-trained ImageNet backbones: VGG for the perceptual loss, AlexNet for LPIPS, VGG16 for DISTS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from srgan.errors import BackboneError

Network = Literal["vgg19", "vgg16", "alexnet"]
FOLDER_VARIABLE = "SRGAN_BACKBONES"


def load_features(network: Network, file: str | Path = "") -> nn.Sequential:
    """Return torchvision's `features` of `network` with ImageNet weights, frozen, in evaluation mode.

    The weights come from the first of: `file`, a safetensors file of `features.*` (any float precision);
    NETWORK_features.safetensors in the folder that SRGAN_BACKBONES names; torchvision's own download. Raises
    BackboneError, naming these ways, if none gives them.
    """
    path = _local_file(network, file)
    build = getattr(torchvision.models, network)
    if path is None:
        try:
            features = build(weights="IMAGENET1K_V1").features
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise BackboneError(f"{network}: the download failed ({reason}). {_remedy(network)}") from error
    else:
        with torch.device("meta"):  # the dense layers, half a gigabyte of VGG, are never made
            features = build(weights=None).features
        features = _filled(features.to_empty(device="cpu"), path, network)
    frozen: nn.Sequential = features.eval().requires_grad_(False)
    return frozen


def _local_file(network: Network, file: str | Path) -> Path | None:
    if file:
        path = Path(file)
        if not path.is_file():
            raise BackboneError(f"{network}: no file {path}. {_remedy(network)}")
        return path
    folder = os.environ.get(FOLDER_VARIABLE)
    path = Path(folder or "") / f"{network}_features.safetensors"
    return path if folder and path.is_file() else None


def _filled(features: nn.Sequential, path: Path, network: Network) -> nn.Sequential:
    try:
        state = {name.removeprefix("features."): tensor.float() for name, tensor in load_file(path).items()}
        features.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BackboneError(
            f"{path} does not hold features.* of {network}: {reason}. {_remedy(network)}"
        ) from error
    return features


def _remedy(network: Network) -> str:
    ways = (
        f"Let torchvision download {network} once on a machine with internet, or put "
        f"{network}_features.safetensors into a folder and set {FOLDER_VARIABLE} to it"
    )
    # AlexNet is LPIPS's alone, and no recipe names its file.
    return ways if network == "alexnet" else f"{ways}, or name a file (losses.perceptual.file in the recipe)"
