"""How true a result stays to the picture it was made from: reduced again, it should be that picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from srgan.pictures import Picture, resized


@dataclass(frozen=True)
class Consistency:
    """`lr_psnr_db`: of the result, reduced to the picture's size, against it; inf if they are equal.

    `colour_shift`: by how many grey levels of 255 the mean of the worst channel has moved.
    """

    lr_psnr_db: float
    colour_shift: float


def consistency(picture: Picture, result: Picture) -> Consistency:
    """Compare `result` with the `picture` that it was made from, both with the same channels.

    The reduction is bicubic with antialiasing. Pixels count as much as they are opaque in `picture`; frames and
    pages behind the first are left out. The PSNR is over all channels, with the peak of the picture's depth.
    Raises ValueError if one is grey and the other is not.
    """
    if picture.is_grey != result.is_grey:
        raise ValueError("a grey picture and one in colour cannot be compared")
    again = resized(result, picture.height, picture.width).pixels
    peaks = [np.float32(np.iinfo(levels.dtype).max) for levels in (again, picture.pixels)]
    difference = again / peaks[0] - picture.pixels / peaks[1]
    if difference.ndim == 2:
        difference = difference[..., None]
    weight = None
    if picture.alpha is not None and picture.alpha.any():
        weight = np.broadcast_to(picture.alpha[..., None], difference.shape).astype(np.float64)
    shift = np.average(difference, axis=(0, 1), weights=weight)
    error = float(np.average(np.square(difference, dtype=np.float64), weights=weight))
    return Consistency(-10 * math.log10(error) if error else math.inf, 255 * float(np.abs(shift).max()))
