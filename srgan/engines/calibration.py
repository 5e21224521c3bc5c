"""The ranges of values within a generator, for computing it in eight bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from srgan.engines.bfloat16 import residual_part
from srgan.engines.int8 import LEVELS, Int8Form, activation, inner_convolutions, quantized_weights
from srgan.engines.openvino import core
from srgan.engines.runtime import Node, openvino
from srgan.engines.runtime import opset13 as ops


def calibrated(graph: openvino.Model, sha256: str, crops: Sequence[np.ndarray]) -> Int8Form | None:
    """Return the int8 form of a graph, from what it does with `crops`, each (1,3,h,w) float32 in [0,1], one size.

    `sha256`: of its ONNX file. None if it has no part that could be in eight bits.
    """
    if residual_part(graph) is None:
        return None
    ranges = [
        _around_zero(float(low), float(high))
        for low, high in _means(graph, crops, lambda op, _: [_extreme("min", op), _extreme("max", op)])
    ]

    def lowered(op: Node, number: int) -> list[Node]:
        taken = activation(op.input_value(0), *ranges[number])
        facts = op.get_attributes()
        places = (facts["strides"], facts["pads_begin"], facts["pads_end"], facts["dilations"])
        eight_bits = ops.convolution(taken, quantized_weights(op), *places)
        return [ops.reduce_mean(ops.subtract(op.output(0), eight_bits), np.array([0, 2, 3]), keep_dims=False)]

    shifts = [[float(f"{value:.6g}") for value in shift] for (shift,) in _means(graph, crops, lowered)]
    return Int8Form(sha256, ranges, shifts)


def _means(
    graph: openvino.Model, crops: Sequence[np.ndarray], results: Callable[[Node, int], list[Node]]
) -> list[list[np.ndarray]]:
    """Return the means over the crops of what `results` computes beside each inner convolution."""
    graph = graph.clone()
    residual_part(graph)
    extra = [results(op, number) for number, op in enumerate(inner_convolutions(graph))]
    measured = openvino.Model([ops.result(node) for nodes in extra for node in nodes], graph.get_parameters(), "")
    measured.reshape(list(crops[0].shape))
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    request = core().compile_model(measured, "CPU", settings).create_infer_request()
    values = [[np.array(value, np.float64) for value in request.infer([crop]).values()] for crop in crops]
    means = iter([np.mean(of_all, axis=0) for of_all in zip(*values, strict=True)])
    return [[next(means) for _ in nodes] for nodes in extra]


def _extreme(kind: str, op: Node) -> Node:
    reduce = {"min": ops.reduce_min, "max": ops.reduce_max}[kind]
    return reduce(op.input_value(0), np.array([0, 1, 2, 3]), keep_dims=False)


def _around_zero(low: float, high: float) -> tuple[float, float]:
    """Return a range around 0, which is one of its levels: zeros around a picture are to stay zeros."""
    low, high = min(low, 0.0), max(high, 0.0, low + 1e-6)
    step = (high - low) / (LEVELS - 1)
    zero = round(-low / step)
    if 0 < zero < LEVELS - 1:
        step = max(-low / zero, high / (LEVELS - 1 - zero))
    return -zero * step, (LEVELS - 1 - zero) * step
