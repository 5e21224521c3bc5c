"""A generator's graph computed in bfloat16 between its first convolution and its last sum.

bfloat16 has eight binary digits: where it holds a picture, grey levels are lost, and seen as bands. So what is
picture stays in float32: the first convolution, and the sum of the residual with the enlarged input. In between
types are written into the graph, so that neither OpenVINO's choice of what to fuse nor the cut into strips changes
where values are rounded: behind every convolution with its bias and activation, and behind every sum.
"""

from __future__ import annotations

import numpy as np

from srgan.engines.runtime import ConstantFolding, Input, Manager, Node, Output, openvino
from srgan.engines.runtime import opset13 as ops

# What may lie between the first convolution and the last sum: what strips can be cut from, but for padding.
_INNER = {"Convolution", "Add", "Subtract", "Multiply", "PRelu", "Relu", "Sigmoid", "Clamp", "DepthToSpace"}

# What may enlarge the input on its way to the last sum, with one convolution at most.
_ENLARGING = {"Convolution", "Pad", "DepthToSpace", "Interpolate"}

# Veltkamp's splitting: with this factor, 24 binary digits are rounded to the nearest 8. OpenVINO cuts them off.
_SPLIT = np.float32(2**16 + 1)


def in_bfloat16(graph: openvino.Model) -> bool:
    """Have `graph` compute its inner part in bfloat16; return whether it can be, else it is left as it is.

    It can if it ends in the sum of an enlarged input and a convolution's result, with nothing between the first
    convolution and that one but convolutions and what works on each pixel alone.
    """
    if (part := residual_part(graph)) is None:
        return False
    inner, into_sum = part
    _Rewriting().retype(inner)
    into_sum.replace_source_output(ops.convert(into_sum.get_source_output(), "f32").output(0))
    graph.validate_nodes_and_infer_types()
    return True


def residual_part(graph: openvino.Model) -> tuple[list[Node], Input] | None:
    """Return what `graph` computes between its first convolution and its last sum, and where the sum takes it.

    The operations come in order. None if there is no such sum, or something that may not be between.
    """
    folding = Manager()  # biases are reshaped by what the graph computes from its own shapes
    folding.register_pass(ConstantFolding())
    folding.run_passes(graph)
    last = graph.get_results()[0].input_value(0).get_node()
    if last.get_type_name() != "Add":
        return None
    skips = [port for port in (0, 1) if _is_enlarged_input(last.input_value(port).get_node())]
    if len(skips) != 1:
        return None
    residual = last.input_value(1 - skips[0]).get_node()
    inner = _inner(graph, residual)
    if not _ends_in_convolution(residual) or not {op.get_type_name() for op in inner} <= _INNER:
        return None
    return inner, last.input(1 - skips[0])


def _is_enlarged_input(op: Node) -> bool:
    convolutions = 0
    while op.get_type_name() in _ENLARGING:
        convolutions += op.get_type_name() == "Convolution"
        op = op.input_value(0).get_node()
    return op.get_type_name() == "Parameter" and convolutions <= 1


def _ends_in_convolution(op: Node) -> bool:
    """Return whether `op` is a convolution with its bias, shuffled or not: its result lies around 0."""
    if op.get_type_name() == "DepthToSpace":
        op = op.input_value(0).get_node()
    if op.get_type_name() == "Add":
        op = op.input_value(0).get_node()
    return bool(op.get_type_name() == "Convolution")


def _pictures(op: Node) -> list[int]:
    """Return the ports of `op` that take no constants."""
    return [port for port, value in enumerate(op.input_values()) if value.get_node().get_type_name() != "Constant"]


def _inner(graph: openvino.Model, residual: Node) -> list[Node]:
    """Return the convolutions behind the first one, and all that is between them and `residual`, in order."""
    needed, waiting = set(), [residual]
    while waiting:
        op = waiting.pop()
        if op.get_name() not in needed:
            needed.add(op.get_name())
            waiting += [value.get_node() for value in op.input_values()]
    convolved: set[str] = set()
    inner: dict[str, Node] = {}
    for op in graph.get_ordered_ops():
        sources = {op.input_value(port).get_node().get_name() for port in _pictures(op)}
        is_convolution = op.get_type_name() == "Convolution"
        if op.get_name() in needed and (sources & inner.keys() or (is_convolution and sources & convolved)):
            inner[op.get_name()] = op
        if is_convolution or sources & convolved:
            convolved.add(op.get_name())
    return list(inner.values())


class _Rewriting:
    """The inner part of one graph while its types are changed, operation by operation."""

    def __init__(self) -> None:
        self._converted: dict[tuple[str, int, str], Output] = {}

    def retype(self, inner: list[Node]) -> None:
        """Have each of the operations take and return bfloat16."""
        for op in inner:
            pictures = _pictures(op)
            # A sum is computed in float32: as such it cannot be fused with a convolution, whose result then would
            # be rounded in one place and not in another.
            kind = "bf16" if len(pictures) == 1 else "f32"
            for port in range(op.get_input_size()):
                source = op.input_value(port)
                if port in pictures:
                    source = self._as(kind, self._as("bf16", source))
                else:
                    source = _rounded(source.get_node())
                op.input(port).replace_source_output(source)
            op.validate_and_infer_types()
            if kind == "f32":
                targets = op.output(0).get_target_inputs()
                result = self._as("bf16", op.output(0))
                for target in targets:
                    target.replace_source_output(result)

    def _as(self, kind: str, source: Output) -> Output:
        """Return `source` converted to `kind`, once for all that take it."""
        if source.get_element_type().to_string() == kind:
            return source
        key = source.get_node().get_name(), source.get_index(), kind
        if key not in self._converted:
            self._converted[key] = ops.convert(source, kind).output(0)
        return self._converted[key]


def _rounded(constant: Node) -> Output:
    """Return the numbers of `constant` in bfloat16, rounded to the nearest."""
    values = constant.get_data()
    if values.dtype != "float32":
        return constant.output(0)
    split = values * _SPLIT
    nearest: np.ndarray = split - (split - values)
    rounded = openvino.Tensor(openvino.Type.bf16, openvino.Shape(values.shape))
    rounded.data.view(np.uint16)[...] = nearest.view(np.uint32) >> 16  # the upper half is the number in bfloat16
    return ops.constant(rounded).output(0)
