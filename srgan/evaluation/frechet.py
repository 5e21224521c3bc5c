"""FID, on the features of the original Inception network; needs the torch-fidelity package."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from srgan.errors import BackboneError
from srgan.evaluation import backbones
from srgan.evaluation.metrics import Pixels

_CONV5_3 = 30  # modules of torchvision's VGG16 up to that convolution's activation

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def inception_network() -> nn.Module:
    """Return the Inception network of torch-fidelity, frozen: (N,3,H,W) uint8 to (N,2048) features.

    Its weights are a file of the name `WEIGHTS` in the folder that SRGAN_BACKBONES names, or else their download.
    Raises BackboneError if neither gives them.
    """
    path = Path(os.environ.get(backbones.FOLDER_VARIABLE, "")) / WEIGHTS
    try:
        if path.is_file():
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            state = torch.hub.load_state_dict_from_url(
                URL_INCEPTION_V3, map_location="cpu", progress=False, weights_only=True
            )
        with tempfile.TemporaryDirectory() as folder:
            # torch-fidelity lets the file that it reads run code: it gets one that was written here.
            harmless = Path(folder) / WEIGHTS
            torch.save(state, harmless)
            network: nn.Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(harmless))
    except (OSError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise BackboneError(
            f"FID: the Inception network cannot be had ({reason}). Put {WEIGHTS}, of torch-fidelity's releases, "
            f"into a folder and set {backbones.FOLDER_VARIABLE} to it"
        ) from error
    return network


class VggFeatures(nn.Module):
    """VGG16 to conv5_3, averaged over the picture: for where the Inception network cannot be had.

    (N,3,H,W) uint8 to (N,512) features. Distances on them compare with each other, not with FID of papers.
    Raises BackboneError if the weights cannot be had.
    """

    num_features = 512  # torchmetrics asks for it by this name

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = backbones.load_features("vgg16")[:_CONV5_3]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        features: torch.Tensor = self.features((pictures / 255 - self.mean) / self.deviation)
        return features.mean((2, 3))


class FrechetDistance:
    """FID (Heusel et al. 2017) between all SR and all HR, on the features of `network`.

    With fewer pictures than some thousands it says little: patches are better than whole pictures.
    """

    def __init__(self, network: nn.Module) -> None:
        self._distance = FrechetInceptionDistance(feature=network)

    def add(self, picture: Pixels, *, real: bool) -> None:
        """Take (H,W,3) uint8 RGB, of HR if `real`, else of SR."""
        self._distance.update(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None], real=real)

    def value(self) -> float:
        """Return the distance of what was taken; at least two pictures of each kind are needed."""
        return float(self._distance.compute())
