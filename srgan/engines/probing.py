"""What a network of unknown make does, found by running it: its scale, and how much context a tile needs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from srgan.errors import EngineError, WeightsError
from srgan.weights import ModelMetadata

Run = Callable[[np.ndarray], np.ndarray]

MAX_SCALE, MAX_HALO_LR_PX = 16, 1024

# Two results that differ by less are the same: far below a grey level, and above what float rounding makes.
_TOLERANCE = 1e-5

# What PyTorch runs may be large, deep and faintly dependent on everything: there less than a quarter of a grey
# level is no difference, and what is not settled in a picture of 256 pixels would take minutes to find.
_UNSEEN = 0.25 / 255
_FEWER_SIDES_LR_PX = (64, 128, 256)

# Sides of the pictures that are cut out of larger ones, in turn until the middle shows nothing of the cut.
_SIDES_LR_PX = (64, 128, 256, 400)

# How far inside the larger picture the cut lies: above, left, below, right. Odd and different, since a network
# that works in windows, or at half the size, gives other results where its windows fall on other pixels.
_MARGINS_LR_PX = (13, 11, 9, 7)

# How far a result, reduced again, may be from what it was made from, on average, in units of [0,1].
_LIKENESS = 0.15


def measured(run: Run, name: str, source: str, halo_lr_px: int | None = None) -> ModelMetadata:
    """Return what `run`, which takes (1,3,H,W) float32 in [0,1] to (1,3,sH,sW), shows of itself.

    `halo_lr_px`: known context, instead of measuring it. `source` names the file in errors. Raises WeightsError if
    it does not take pictures of any size to larger pictures that look like them, or tiles would show.
    """
    _check_halo(halo_lr_px, source)
    try:
        scale = _scale(run, source)
    except EngineError as error:
        raise WeightsError(f"{source}: it does not take pictures of any size ({error})") from error
    if likeness(run, scale) > _LIKENESS:
        raise WeightsError(
            f"{source}: its result does not look like the picture it is made from; it takes or returns "
            "something else than RGB in [0,1]"
        )
    halo = measured_halo(run, scale, source) if halo_lr_px is None else halo_lr_px
    return ModelMetadata(name, scale, halo, {"network": "foreign"})


def measured_part(
    run: Run, name: str, source: str, halo_lr_px: int | None, *, scale: int, multiple: int, kind: str
) -> ModelMetadata:
    """Return what is to be known of a network of the architecture `kind`, all but its halo known already."""
    _check_halo(halo_lr_px, source)
    if halo_lr_px is None:
        halo_lr_px = measured_halo(run, scale, source, multiple=multiple, exactly=False)
    architecture = {"network": "foreign", "layout": kind}
    return ModelMetadata(name, scale, halo_lr_px, architecture, multiple_lr_px=multiple)


def likeness(run: Run, scale: int) -> float:
    """Return how far the result for a smooth picture, reduced again, is from it; mean, in units of [0,1]."""
    lr = _smooth(48, 40)
    sr = run(lr)
    reduced = sr.reshape((1, 3, 48, scale, 40, scale)).mean(axis=(3, 5))
    return float(np.abs(reduced - lr).mean())


def measured_halo(run: Run, scale: int, source: str, *, multiple: int = 1, exactly: bool = True) -> int:
    """Return the context, in LR pixels, with which tiles show no seam.

    A picture is run once as a part of a larger one and once by itself: the depth to which the results differ is
    the context that a tile must have. A quarter is added, for pictures that reach deeper than those tried.
    `multiple`: of what tiles begin at. `exactly`: else differences that nobody can see are none.
    Raises WeightsError if the results differ everywhere.
    """
    sides, tolerance = (_SIDES_LR_PX, _TOLERANCE) if exactly else (_FEWER_SIDES_LR_PX, _UNSEEN)
    for side in sides:
        depth = max(_depth(run, lr, scale, multiple, tolerance) for lr in _pictures(side, multiple))
        if depth <= side * 3 // 8:
            return depth + math.ceil(depth / 4)
    raise WeightsError(
        f"{source}: its result depends on where a tile lies, or on more than {sides[-1] * 3 // 8} pixels "
        "around; --halo N, in pixels of the input, overrules this, and seams may show"
    )


def _check_halo(halo_lr_px: int | None, source: str) -> None:
    if halo_lr_px is not None and not 0 <= halo_lr_px <= MAX_HALO_LR_PX:
        raise WeightsError(f"{source}: a halo of {halo_lr_px} is not between 0 and {MAX_HALO_LR_PX}")


def _scale(run: Run, source: str) -> int:
    scales: set[int] = set()
    for height, width in ((24, 31), (37, 16)):
        shape = run(_smooth(height, width)).shape
        if len(shape) != 4 or shape[:2] != (1, 3) or shape[2] % height or shape[3] % width:
            raise WeightsError(
                f"{source}: it makes {shape} of a picture of {width}x{height} pixels, which is no whole multiple"
            )
        scales |= {shape[2] // height, shape[3] // width}
    scale = scales.pop()
    if scales or not 1 <= scale <= MAX_SCALE:
        raise WeightsError(f"{source}: it does not enlarge both sides by one whole factor up to {MAX_SCALE}")
    return scale


def _depth(run: Run, lr: np.ndarray, scale: int, multiple: int, tolerance: float) -> int:
    """Return how many LR pixels from its edges a part of `lr` differs when it is run by itself."""
    top, left, bottom, right = _margins(multiple)
    rows, columns = slice(top, -bottom), slice(left, -right)
    inside = run(lr)[:, :, top * scale : -bottom * scale, left * scale : -right * scale]
    alone = run(np.ascontiguousarray(lr[:, :, rows, columns]))
    y, x = np.nonzero(np.abs(inside - alone).max(axis=(0, 1)) > tolerance)
    if not len(y):
        return 0
    height, width = alone.shape[2:]
    from_edge = np.minimum(np.minimum(y, height - 1 - y), np.minimum(x, width - 1 - x))
    return int(from_edge.max()) // scale + 1


def _margins(multiple: int) -> tuple[int, ...]:
    return tuple(math.ceil(margin / multiple) * multiple for margin in _MARGINS_LR_PX)


def _pictures(side: int, multiple: int) -> list[np.ndarray]:
    """Return pictures that a square of `side` pixels can be cut from: noise, soft noise, black and white."""
    random = np.random.default_rng(0)
    top, left, bottom, right = _margins(multiple)
    noise = random.random((1, 3, side + top + bottom, side + left + right), dtype=np.float32)
    return [noise, 0.4 + 0.2 * noise, np.rint(noise)]


def _smooth(height: int, width: int) -> np.ndarray:
    """Return a picture of slow waves, (1,3,H,W), that uses most of [0,1]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(y / 7 + phase) * np.cos(x / 9 + phase) for phase in (0, 1, 2)]
    smooth: np.ndarray = (0.5 + 0.4 * np.stack(waves)[None]).astype(np.float32)
    return smooth
