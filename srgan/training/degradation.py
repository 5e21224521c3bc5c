"""From HR to LR, on the device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from srgan.training.models import SCALE

# Pixels of HR context on each side that the ×4 bicubic kernel (support 2 LR pixels) needs to be exact.
MARGIN_HR_PX = 2 * SCALE


def bicubic(hr: Tensor) -> Tensor:
    """Reduce (N,3,H,W) in [0,1] four times, rounded to 8-bit levels as an LR file would be.

    Antialiased bicubic with a = -0.5, the kernel of MATLAB's imresize and of Pillow. H and W must be multiples
    of 4. Source of the protocol: Ledig et al. 2017, section 3.2.
    """
    size = (hr.shape[-2] // SCALE, hr.shape[-1] // SCALE)
    lr = F.interpolate(hr, size=size, mode="bicubic", antialias=True, align_corners=False)
    return (lr * 255).round().clamp(0, 255) / 255


def pair(hr_with_margin: Tensor) -> tuple[Tensor, Tensor]:
    """Return (lr, hr) from HR patches that carry `MARGIN_HR_PX` of context on every side.

    (N,3,P+2m,P+2m) to (N,3,P/4,P/4) and (N,3,P,P): without the context the outer LR pixels of every patch would
    be made from a cut kernel, which no picture shows but at its own edges.
    """
    inner = MARGIN_HR_PX // SCALE
    lr = bicubic(hr_with_margin)[..., inner:-inner, inner:-inner]
    hr = hr_with_margin[..., MARGIN_HR_PX:-MARGIN_HR_PX, MARGIN_HR_PX:-MARGIN_HR_PX]
    return lr, hr
