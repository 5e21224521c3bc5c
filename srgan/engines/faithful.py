"""Back-projection: a generator's result is corrected until, reduced again, it is the picture it was made from.

The result is reduced by the benchmarks' bicubic with antialiasing; what is missing there is enlarged by bicubic
interpolation and added (Irani and Peleg 1991). The rounds are part of what an engine computes, as convolutions of
fixed kernels: so strips and tiles stay exact, and the halo grows by `REACH_LR_PX`. All is computed at the size of
LR, a square of `scale` × `scale` pixels of SR as so many channels.

Plain enlargement takes 9 dB of the difference in a round. Sharpened by the inverse of what enlarging and reducing
do together, cut to five taps, a round takes nearly all. Something is left only where the result is clamped to
black or white: there the rounds go too far on purpose, and the last one, which does not, takes back what was too
much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srgan.engines.runtime import Output, openvino
from srgan.engines.runtime import opset13 as ops

# How much of the sharpened difference is added in each round: measured on Set5 and Set14 (docs/decisions.md).
_STEPS = (1.6, 1.6, 1.6, 1.0)

# Of each kernel, in LR pixels. Reducing what was enlarged reaches three, for of squares two away the nearer half
# alone counts; sharpening two more.
_REACH = 2
REACH_LR_PX = 5 * len(_STEPS) + 1

# A kernel along an axis: its taps as rows, and as columns.
_AXES = ((slice(None), None), (None, slice(None)))

# So little that it changes no float32, and it carries on what is no number.
_NOTHING = np.float32(1e-30)


@dataclass(frozen=True)
class Kernels:
    """Of convolutions, one after the other, float32 (out,in,h,w), of `channels` colours.

    A square of SR is as many channels, in the order of pixel shuffles. `reduce`: squares of SR to LR. `inside`: of
    a picture of ones, the share of that kernel's weights that lies inside it. `corrections`: for each round, the
    difference in LR to what is enlarged. `enlarge`: LR to squares of SR.
    """

    reduce: tuple[np.ndarray, ...]
    inside: tuple[np.ndarray, ...]
    corrections: tuple[tuple[np.ndarray, ...], ...]
    enlarge: tuple[np.ndarray, ...]


def kernels(scale: int, channels: int = 3) -> Kernels:
    """Return the kernels for a model of that scale; those of Pillow's and MATLAB's bicubic (a = -0.5)."""
    down, up = _reduction(scale), _enlargement(scale)
    colours = np.eye(channels)
    inverse = _inverse(down, up)

    def along_both(taps: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(_float(np.einsum("ij,k->ijk", colours, taps))[:, :, *axes] for axes in _AXES)

    # Columns of squares first, all of a colour to one row of them: at once, three outputs would fill few lanes.
    rows = np.einsum("ij,pq,yk->ipjyqk", colours, np.eye(scale), down)
    columns = np.einsum("ij,xk->ijxk", colours, down)
    return Kernels(
        reduce=(
            _float(rows.reshape(channels * scale, channels * scale**2, -1))[:, :, *_AXES[0]],
            _float(columns.reshape(channels, channels * scale, -1))[:, :, *_AXES[1]],
        ),
        inside=along_both(down.sum(axis=0)),
        corrections=tuple(along_both(np.sqrt(step) * inverse) for step in _STEPS),
        enlarge=(
            _float(np.einsum("ij,yk,xl->iyxjkl", colours, up, up)).reshape(
                channels * scale**2, channels, *[up.shape[1]] * 2
            ),
        ),
    )


def made_faithful(graph: openvino.Model, scale: int) -> None:
    """Have `graph`, with one input (N,C,H,W) and one output (N,C,sH,sW), correct its result, in place."""
    result = graph.get_results()[0]
    lr, sr = graph.get_parameters()[0].output(0), result.input_value(0)
    channels = lr.get_partial_shape()[1].get_length()
    kernel = kernels(scale, channels)

    def convolved(tensor: Output, weights: tuple[np.ndarray, ...]) -> Output:
        for weight in weights:
            pads = [side // 2 for side in weight.shape[2:]]
            tensor = ops.convolution(tensor, ops.constant(weight), [1, 1], pads, pads, [1, 1]).output(0)
        return tensor

    def plus_nothing(tensor: Output, other: Output) -> Output:
        return ops.add(ops.multiply(tensor, _NOTHING), other).output(0)

    ones = plus_nothing(lr, ops.constant(np.float32(1)).output(0))
    inside = convolved(ones, kernel.inside)
    uncorrected = ops.space_to_depth(sr, "depth_first", scale).output(0)
    corrected = uncorrected
    for correction in kernel.corrections:
        clamped = ops.clamp(corrected, 0.0, 1.0)
        reduced = ops.clamp(ops.divide(convolved(clamped.output(0), kernel.reduce), inside), 0.0, 1.0)
        missing = convolved(ops.subtract(lr, reduced).output(0), correction)
        corrected = ops.add(clamped, convolved(missing, kernel.enlarge)).output(0)
    # A damaged model must not be clamped into one that works.
    corrected = plus_nothing(uncorrected, corrected)
    enlarged = ops.depth_to_space(corrected, "depth_first", scale)
    result.input(0).replace_source_output(enlarged.output(0))
    graph.validate_nodes_and_infer_types()


def _keys(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """The kernel of bicubic interpolation at the distances `x` in pixels; Keys 1981."""
    x = np.abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    kernel: np.ndarray = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return kernel


def _reduction(scale: int) -> np.ndarray:
    """Return the weights of reducing along an axis, (scale,5): of each pixel in the squares around one of LR."""
    phase, square = np.mgrid[:scale, -_REACH : _REACH + 1]
    weights = _keys(square + (phase + 0.5) / scale - 0.5)
    reduction: np.ndarray = weights / weights.sum()
    return reduction


def _enlargement(scale: int) -> np.ndarray:
    """Return the weights of enlarging along an axis, (scale,5): of the LR pixels around each pixel of a square."""
    phase, offset = np.mgrid[:scale, -_REACH : _REACH + 1]
    return _keys((phase + 0.5) / scale - 0.5 - offset)


def _inverse(down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return the five taps that best undo enlarging by `up` and then reducing by `down`, which sum to 1."""
    side = 65  # the taps fall to nothing within ten
    both = np.sum([np.convolve(*pair) for pair in zip(up, down, strict=True)], axis=0)
    diagonals = [weight * np.eye(side, k=k - 2 * _REACH) for k, weight in enumerate(both)]
    middle = side // 2
    taps = np.linalg.inv(np.sum(diagonals, axis=0))[middle, middle - _REACH : middle + _REACH + 1]
    inverse: np.ndarray = taps / taps.sum()
    return inverse


def _float(kernel: np.ndarray) -> np.ndarray:
    return kernel.astype(np.float32)
