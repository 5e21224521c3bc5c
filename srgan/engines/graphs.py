"""ONNX files as OpenVINO's graphs: read, looked into, blended, and written as OpenVINO's own format."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from srgan.engines import contents
from srgan.engines.int8 import Int8Form, in_int8
from srgan.engines.runtime import (
    FrontEndManager,
    compress_quantize_weights_transformation,
    openvino,
    opset13,
)
from srgan.errors import WeightsError
from srgan.weights import METADATA_KEY, ModelMetadata, read_file


def read_graph(model: bytes | Path, source: str) -> openvino.Model:
    """Return the graph in an ONNX file or its bytes; raises WeightsError, which names `source`, if it is none.

    What no generator needs is refused before OpenVINO sees it, as `contents.check` says.
    """
    content = read_file(model) if isinstance(model, Path) else model
    contents.check(content, source)
    try:
        # The ONNX frontend by name: `Core.read_model` would offer the bytes to every other parser too.
        frontend = FrontEndManager().load_by_framework("onnx")
        return frontend.convert(frontend.load(io.BytesIO(content)))
    except Exception as error:  # RuntimeError and, for an operation it does not know, a kind of its own
        raise WeightsError(
            f"{source}: OpenVINO cannot read it as an ONNX model; export it again with `srgan export`"
        ) from error


def metadata_of(graph: openvino.Model, source: str) -> ModelMetadata | None:
    """Return what the file says of itself, or None if it was not written by this package.

    Raises WeightsError if it has not one input and one output, or its metadata cannot be read.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise WeightsError(f"{source}: a generator has one input and one output, this model has more")
    path = ["framework", METADATA_KEY]  # where OpenVINO puts an ONNX file's metadata_props
    return ModelMetadata.from_json(graph.get_rt_info(path).value, source) if graph.has_rt_info(path) else None


def channels_of(graph: openvino.Model, source: str) -> int:
    """Return how many channels the model takes, 1 or 3; raises WeightsError for other inputs than pictures."""
    shape = graph.inputs[0].get_partial_shape() if graph.inputs else None
    if shape is None or shape.rank.is_dynamic or len(shape) != 4 or str(shape[1]) not in ("1", "3"):
        raise WeightsError(f"{source}: its input is not a picture of 1 or 3 channels, (N,C,H,W)")
    return int(str(shape[1]))


def check_foreign(graph: openvino.Model, source: str) -> None:
    """Raise WeightsError if a graph of another program takes pictures of one size only, or is not in float32."""
    shape = graph.inputs[0].get_partial_shape()
    if not (shape[2].is_dynamic and shape[3].is_dynamic):
        raise WeightsError(
            f"{source}: it takes pictures of one size only; export it with dynamic height and width"
        )
    types = {port.get_element_type().get_type_name() for port in (graph.inputs[0], graph.outputs[0])}
    if types != {"f32"}:
        raise WeightsError(f"{source}: its input and output are not both float32")


def interpolate(graph: openvino.Model, other: openvino.Model, share: float) -> None:
    """Move every weight of `graph` towards that of `other` by `share` of the way, 0..1.

    All layers are linear in their weights, so this is the interpolation of the two generators. Raises WeightsError
    if the graphs differ in anything but weights.
    """
    ops, other_ops = graph.get_ordered_ops(), other.get_ordered_ops()
    pairs = list(zip(ops, other_ops, strict=False))
    if len(ops) != len(other_ops) or any(_kind(op) != _kind(twin) for op, twin in pairs):
        raise WeightsError("the two models have different layers, so there is nothing between them")
    for op, twin in pairs:
        if op.get_type_name() != "Constant":
            continue
        before, after = op.get_data(), twin.get_data()
        if (before == after).all():
            continue
        if before.dtype != "float32":
            raise WeightsError("the two models have different layers, so there is nothing between them")
        between = opset13.constant(((1 - share) * before.astype("float64") + share * after).astype("float32"))
        between.set_friendly_name(op.get_friendly_name())
        for target in op.output(0).get_target_inputs():
            target.replace_source_output(between.output(0))


def _kind(op: openvino.Node) -> tuple[object, ...]:
    inputs = [value.get_node().get_type_name() for value in op.input_values()]
    return op.get_type_name(), str(op.get_attributes()), str(op.get_output_partial_shape(0)), inputs


def openvino_ir(model: bytes, *, fp16: bool = False, int8: Int8Form | None = None) -> tuple[bytes, bytes]:
    """Return an ONNX model as OpenVINO's own IR: the content of its .xml and of its .bin file.

    `fp16`: weights stored in half the bytes. `int8`: computed in eight bits, weights in one byte. Raises
    WeightsError if the model cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        graph = read_graph(model, "the model")
        if int8 is not None:
            in_int8(graph, int8, "the model")
            compress_quantize_weights_transformation(graph)
        openvino.save_model(graph, path, compress_to_fp16=fp16)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()
