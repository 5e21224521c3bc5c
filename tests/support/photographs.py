"""Pictures that look like nothing else, and a recipe small enough to be run on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

RECIPE = """
[generator]
blocks = 1
features = 4
[discriminator]
features = 4
[losses.perceptual]
weight = 0.0
[data]
held_out = 2
[pretrain]
steps = 1000
batch_size = 4
patch_hr_px = 32
[adversarial]
steps = 500
batch_size = 2
patch_hr_px = 32
"""


def photograph(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """(H,W,3) uint8: blurred noise, so that each has a look of its own at every size."""
    noise = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)
    return (smooth[0].permute(1, 2, 0) * 255).round().byte().numpy()
