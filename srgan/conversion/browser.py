"""A bundled model's ONNX file as the page without a server runs it: half as large, and faithful by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from srgan.engines.faithful import REACH_LR_PX, kernels
from srgan.weights import METADATA_KEY, ModelMetadata, Weights

# Weights of more values are halved. Smaller ones save nothing and decide grey levels: biases, slopes, the skip.
_LEAST_HALVED = 4096


def for_browser(weights: Weights, *, faithful: bool) -> tuple[bytes, ModelMetadata]:
    """Return a model of this program for ONNX Runtime in a browser, and what is true of it.

    Weights are stored in float16 and computed with in float32, which every device has. With `faithful` the graph
    ends with the rounds of `engines.faithful`, and the halo is larger by what they reach. Input and output are as
    `exporting.exported` has them. Raises WeightsError if the file says nothing of itself.
    """
    model = onnx.load_model_from_string(weights.onnx)
    texts = {prop.key: prop.value for prop in model.metadata_props}
    metadata = ModelMetadata.from_json(texts.get(METADATA_KEY, ""), str(weights.path))
    _halve(model.graph)
    if faithful:
        _make_faithful(model.graph, metadata.scale)
        metadata = replace(metadata, halo_lr_px=metadata.halo_lr_px + REACH_LR_PX)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString()), metadata


def _halve(graph: onnx.GraphProto) -> None:
    """Store large weights in float16; a runtime turns them back once, when it loads the model."""
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > _LEAST_HALVED:
            name, stored = tensor.name, f"{tensor.name}.half"
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
            casts.append(helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _make_faithful(graph: onnx.GraphProto, scale: int) -> None:
    """Append the rounds of `engines.faithful`: the same, but in SR, not in squares of it.

    ONNX has no SpaceToDepth in the order of pixel shuffles, and few runtimes have any on graphics processors;
    convolutions with a stride reduce as well.
    """
    kernel = kernels(scale)
    # Of the first colour, by phase and square: (scale,1,5) to the taps from the first pixel of SR to the last.
    taps = kernel.reduce[1][0, :scale, 0].T.reshape(-1)
    reach = len(taps) // 2 - scale // 2

    def value(name: str, array: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(array, np.float32), name))
        return name

    def node(kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"faithful.{len(graph.node)}"
        graph.node.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def along_both(picture: str, weights: tuple[str, str], pad: int, stride: int = 1) -> str:
        down = node("Conv", picture, weights[0], pads=[pad, 0, pad, 0], strides=[stride, 1], group=3)
        return node("Conv", down, weights[1], pads=[0, pad, 0, pad], strides=[1, stride], group=3)

    def pair(name: str, along: tuple[np.ndarray, np.ndarray]) -> tuple[str, str]:
        (down, across), shape = along, (3, 1, -1)
        return (
            value(f"{name}.down", np.broadcast_to(down, (3, len(down))).reshape(*shape, 1)),
            value(f"{name}.across", np.broadcast_to(across, (3, len(across))).reshape(3, 1, *shape[1:])),
        )

    def of_first(weights: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        return weights[0][0, 0].ravel(), weights[1][0, 0].ravel()

    (sr,), lr = (output.name for output in graph.output), graph.input[0].name
    graph.node[-1].output[0] = result = f"{sr}.uncorrected"
    zero, whole = value("faithful.zero", np.zeros(())), value("faithful.one", np.ones(()))
    reduce, enlarge = pair("faithful.reduce", (taps, taps)), value("faithful.enlarge", kernel.enlarge[0])
    ones = node("Add", node("Mul", lr, zero), whole)
    inside = along_both(ones, pair("faithful.inside", of_first(kernel.inside)), 2)
    for number, correction in enumerate(kernel.corrections):
        is_last = number + 1 == len(kernel.corrections)
        clamped = node("Clip", result, zero, whole)
        reduced = node("Clip", node("Div", along_both(clamped, reduce, reach, scale), inside), zero, whole)
        missing = along_both(node("Sub", lr, reduced), pair(f"faithful.{number}", of_first(correction)), 2)
        enlarged = node("DepthToSpace", node("Conv", missing, enlarge, pads=[2] * 4), blocksize=scale, mode="CRD")
        result = node("Add", clamped, enlarged, out=sr if is_last else "")
