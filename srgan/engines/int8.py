"""A generator's graph computed in eight bits between its first convolution and its last.

What each convolution in between takes, and its weights, become whole numbers of eight bits; sums of blocks stay in
float32, as do the first convolution, the last one and the sum with the enlarged input, which hold the picture. The
sums within a convolution are of whole numbers, exact in any order. What eight bits take from the mean of a channel
is given back (`shifts`).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import numpy as np

from srgan.engines.bfloat16 import residual_part
from srgan.engines.runtime import Node, Output, openvino
from srgan.engines.runtime import opset13 as ops
from srgan.errors import WeightsError
from srgan.texts import first_line

LEVELS = 256  # of what a convolution takes; of its weights one less, so that they lie evenly around 0


@dataclass(frozen=True)
class Int8Form:
    """What a model needs to be computed in eight bits, for each of its inner convolutions in order.

    `sha256`: of the ONNX file that it belongs to. `ranges`: the least and the greatest value that the convolution
    takes. `shifts`: by how much eight bits lower the mean of each channel of its result.
    """

    sha256: str
    ranges: list[tuple[float, float]]
    shifts: list[list[float]]

    def to_json(self) -> str:
        """Return the form as one line of JSON."""
        return json.dumps({"format": 1} | asdict(self))

    @classmethod
    def from_json(cls, text: bytes, source: str) -> Int8Form:
        """Read what `to_json` wrote; raises WeightsError, which names `source`, for anything else."""
        try:
            values = json.loads(text)
            if values.pop("format") != 1:
                raise ValueError("its format is newer than this program")
            form = cls(
                str(values["sha256"]),
                [(float(low), float(high)) for low, high in values["ranges"]],
                [[float(value) for value in shift] for shift in values["shifts"]],
            )
            if len(form.ranges) != len(form.shifts) or not all(
                math.isfinite(low) and math.isfinite(high) and low < high for low, high in form.ranges
            ):
                raise ValueError("its ranges are none")
        except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
            raise WeightsError(f"{source}: no int8 form of a model ({first_line(error)})") from error
        return form


def in_int8(graph: openvino.Model, form: Int8Form, source: str) -> None:
    """Have `graph` compute its inner convolutions in eight bits, as `form` says.

    Raises WeightsError, which names `source`, if the form is that of another graph.
    """
    convolutions = inner_convolutions(graph)
    if [len(shift) for shift in form.shifts] != [_weights(op).shape[0] for op in convolutions]:
        raise WeightsError(f"{source}: its int8 form is of another model")
    quantized: dict[tuple[str, int], Output] = {}
    for op, (low, high), shift in zip(convolutions, form.ranges, form.shifts, strict=True):
        taker = _before_shuffle(op)
        value = taker.input_value(0)
        key = value.get_node().get_name(), value.get_index()
        if key not in quantized:
            quantized[key] = activation(value, low, high)
        taker.input(0).replace_source_output(quantized[key])
        op.input(1).replace_source_output(quantized_weights(op))
        _shift(op, np.asarray(shift, np.float32).reshape(1, -1, 1, 1))
    graph.validate_nodes_and_infer_types()


def inner_convolutions(graph: openvino.Model) -> list[Node]:
    """Return the convolutions between the first and the last, in order."""
    part = residual_part(graph)
    inner = [] if part is None else [op for op in part[0] if op.get_type_name() == "Convolution"]
    return inner[:-1]


def _before_shuffle(op: Node) -> Node:
    """Return what takes the values of a convolution before they are shuffled, where they can be joined with it."""
    source = op.input_value(0).get_node()
    is_for_it_alone = len(op.input_value(0).get_target_inputs()) == 1
    return source if is_for_it_alone and source.get_type_name() == "DepthToSpace" else op


def activation(value: Output, low: float, high: float) -> Output:
    """Return `value` in eight bits between `low` and `high`."""
    bounds = [np.float32(bound) for bound in (low, high, low, high)]
    return ops.fake_quantize(value, *bounds, LEVELS).output(0)


def _weights(op: Node) -> np.ndarray:
    return np.asarray(op.input_value(1).get_node().get_data())


def quantized_weights(op: Node) -> Output:
    """Return the weights of a convolution in eight bits, each output channel in a range of its own around 0."""
    weights = _weights(op)
    most = np.maximum(np.abs(weights).max(axis=(1, 2, 3), keepdims=True), np.float32(1e-9))
    return ops.fake_quantize(op.input_value(1), -most, most, -most, most, LEVELS - 1).output(0)


def _shift(op: Node, shift: np.ndarray) -> None:
    """Add `shift` to the result of a convolution: to its bias, where it has one."""
    targets = list(op.output(0).get_target_inputs())
    add = targets[0].get_node()
    if len(targets) == 1 and add.get_type_name() == "Add":
        bias = add.input(1 - targets[0].get_index())
        constant = bias.get_source_output().get_node()
        if constant.get_type_name() == "Constant":
            bias.replace_source_output(ops.constant(constant.get_data() + shift).output(0))
            return
    shifted = ops.add(op.output(0), ops.constant(shift)).output(0)
    for target in targets:
        target.replace_source_output(shifted)
