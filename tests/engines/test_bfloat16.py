"""bfloat16 with a sum in float32: near, without bands, the same in pieces, and for models that it suits."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.engines import noise, strips

from srgan.conversion.exporting import onnx_from
from srgan.conversion.loading import load_engine
from srgan.engines import openvino as engine_module
from srgan.engines.bfloat16 import in_bfloat16
from srgan.engines.graphs import read_graph
from srgan.engines.inference import Inference
from srgan.engines.openvino import OpenVinoEngine, precisions
from srgan.engines.runtime import openvino, opset13
from srgan.errors import UsageError
from srgan.networks.layers import deployed
from srgan.networks.residual import Architecture, ResidualNetwork
from srgan.upscale import Upscaler
from srgan.weights import ModelMetadata, find_weights

native = pytest.mark.skipif("bf16" not in precisions(), reason="this processor has no bfloat16")


@pytest.fixture(scope="module")
def halved() -> OpenVinoEngine:
    return OpenVinoEngine(find_weights("srgan-x4").onnx, precision="bf16")


@pytest.fixture(scope="module")
def exact() -> OpenVinoEngine:
    return OpenVinoEngine(find_weights("srgan-x4").onnx)


@native
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (97, 1), (16, 13), (53, 31)])
@pytest.mark.parametrize("rows", [3, 8])
def test_strips_are_the_whole(tiny_model: Path, size: tuple[int, int], rows: int) -> None:
    engine = OpenVinoEngine(tiny_model, precision="bf16")
    lr = noise(*size)
    np.testing.assert_array_equal(strips(engine, lr, rows), engine.run(lr))


@native
def test_pieces_of_the_bundled_model_are_the_whole(halved: OpenVinoEngine) -> None:
    lr = noise(90, 41)
    whole = halved.run(lr)
    np.testing.assert_array_equal(strips(halved, lr, 16), whole)
    np.testing.assert_array_equal(Inference(halved, tile_lr_px=8).array(lr), whole)
    np.testing.assert_array_equal(halved.run(np.concatenate([noise(90, 41, 1), lr]))[1:], whole)


@native
def test_it_is_near_float32_and_keeps_fewer_bytes(halved: OpenVinoEngine, exact: OpenVinoEngine) -> None:
    lr = noise(24, 20)
    error = float(np.square(halved.run(lr) - exact.run(lr)).mean())
    assert 0 < error < 10**-5.3  # noise is the worst there is; on photographs it is 66 dB
    facts = halved.strip_facts, exact.strip_facts
    assert facts[0] is not None
    assert facts[1] is not None
    assert facts[0].bytes_per_column < 0.6 * facts[1].bytes_per_column


def shifts(sr: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How far every column is off on average, in grey levels: what is seen as bands."""
    off: np.ndarray = np.abs((sr - expected).mean(axis=2)) * 255
    return off


@native
def test_ramps_of_all_hues_have_no_bands(halved: OpenVinoEngine, exact: OpenVinoEngine) -> None:
    ramp = np.linspace(0, 255, 120).round() / 255
    hues = [np.array(colorsys.hsv_to_rgb(hue / 6, 1, 1)) for hue in range(6)] + [np.ones(3)]
    lr = np.stack([hue[:, None, None] * ramp.repeat(8).reshape(120, 8).T for hue in hues]).astype(np.float32)
    expected = exact.run(lr)
    assert np.abs(halved.run(lr) - expected).max() * 255 < 0.9  # of single pixels; 0.77 with these weights
    assert shifts(halved.run(lr), expected).max() < 0.15
    whole = read_graph(find_weights("srgan-x4").onnx, "all of it in bfloat16")
    whole.reshape(list(lr.shape))
    banded = openvino.Core().compile_model(whole, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})(lr)[0]
    assert shifts(banded, expected).max() > 0.5


def test_weights_are_rounded_to_the_nearest(tiny_model: Path) -> None:
    names = {tensor.name: tensor for tensor in onnx.load(tiny_model).graph.initializer}
    graph = read_graph(tiny_model, "tiny")
    assert in_bfloat16(graph)
    rounded = [op for op in graph.get_ordered_ops() if op.get_element_type() == openvino.Type.bf16]
    (weight,) = (
        op.input_value(1).get_node() for op in rounded if op.get_friendly_name().startswith("node_conv2d_1/")
    )
    expected = torch.from_numpy(onnx.numpy_helper.to_array(names["blocks.0.conv1.weight"]).copy()).bfloat16()
    np.testing.assert_array_equal(weight.get_data(dtype=np.float32), expected.float().numpy())


# Which models


def without_a_skip(tiny_model: Path) -> bytes:
    model = onnx.load(tiny_model)
    last = model.graph.node[-1]
    assert (last.op_type, list(last.output)) == ("Add", ["sr"])
    (residual,) = (name for name in last.input if "shuffle_1" in name)
    last.CopyFrom(onnx.helper.make_node("Identity", [residual], ["sr"]))
    return bytes(model.SerializeToString())


@native
def test_a_model_without_a_skip_stays_in_float32(tiny_model: Path) -> None:
    content = without_a_skip(tiny_model)
    automatic = OpenVinoEngine(content, precision="auto")
    assert automatic.precision == "fp32"
    np.testing.assert_array_equal(automatic.run(noise(9, 9)), OpenVinoEngine(content).run(noise(9, 9)))
    with pytest.raises(UsageError, match="mine: runs in fp32, not in bf16"):
        OpenVinoEngine(content, precision="bf16", name="mine")


@pytest.mark.parametrize(
    ("changes", "suits"),
    [
        ({"picture_skip": "bilinear"}, True),
        ({"picture_skip": "bilinear", "input": "imagenet", "long_skip": False, "factors": (3,)}, True),
        ({"picture_skip": "bilinear", "activation": "swish", "hr_convolution": True}, True),
        ({"picture_skip": "bilinear", "output": "tanh"}, False),
        ({"picture_skip": "bilinear", "output": "imagenet"}, False),
        ({}, False),
    ],
)
def test_imported_models(changes: dict[str, object], suits: bool) -> None:
    facts = {"layout": "x", "blocks": 1, "features": 4, "factors": (2, 2), "head_kernel": 9, "tail_kernel": 9}
    architecture = Architecture.model_validate(facts | changes)
    content = onnx_from(
        deployed(ResidualNetwork(architecture)),
        ModelMetadata("m", architecture.scale, architecture.halo_lr_px, {}),
    )
    assert in_bfloat16(read_graph(content, "m")) == suits
    if suits and "bf16" in precisions():
        lr, engine = noise(19, 11), OpenVinoEngine(content, precision="bf16")
        np.testing.assert_allclose(engine.run(lr), OpenVinoEngine(content).run(lr), atol=0.02)
        np.testing.assert_array_equal(strips(engine, lr, 4), engine.run(lr))


def graphs() -> Iterator[tuple[str, openvino.Model]]:
    """Sums with the input that hold what is not known to do in bfloat16."""
    x = opset13.parameter([1, 3, -1, -1], np.float32)

    def convolved(y: openvino.Output) -> openvino.Node:
        return opset13.convolution(y, np.ones((3, 3, 3, 3), np.float32), [1, 1], [1, 1], [1, 1], [1, 1])

    deep = convolved(convolved(x))
    mean = opset13.reduce_mean(deep, np.array([2, 3]), keep_dims=True)
    attentive = convolved(opset13.multiply(deep, mean))
    yield "attention", openvino.Model([opset13.add(attentive, x)], [x], "")
    yield (
        "a residual without bounds",
        openvino.Model([opset13.add(opset13.exp(convolved(convolved(x))), x)], [x], ""),
    )
    yield "twice the input", openvino.Model([opset13.add(x, x)], [x], "")
    yield "no sum", openvino.Model([convolved(convolved(x))], [x], "")


@pytest.mark.parametrize(("name", "graph"), [pytest.param(*graph, id=graph[0]) for graph in graphs()])
def test_graphs_that_are_left_as_they_are(name: str, graph: openvino.Model) -> None:
    assert not in_bfloat16(graph)
    assert all(op.get_element_type() != openvino.Type.bf16 for op in graph.get_ordered_ops())


# What is chosen


def test_automatic_is_what_the_processor_computes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, pays, precision in (
        (["FP32", "BF16"], True, "bf16"),
        (["FP32", "BF16"], False, "fp32"),
        (["FP32", "FP16"], True, "fp32"),
    ):
        monkeypatch.setattr(engine_module, "core", lambda given=capabilities: FakeCore({"CPU": given}))
        monkeypatch.setattr(engine_module, "bfloat16_pays", lambda answer=pays: answer)
        assert OpenVinoEngine(tiny_model, precision="auto").precision == precision
        if "BF16" in capabilities:  # asked for, it is taken
            assert OpenVinoEngine(tiny_model, precision="bf16").precision == "bf16"
    with pytest.raises(UsageError, match="the cpu runs in fp32, not in bf16"):
        OpenVinoEngine(tiny_model, precision="bf16")


@native
def test_what_runs_is_said_and_part_of_the_hash(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "bfloat16_pays", lambda: True)
    engines = {
        precision: load_engine(tiny_model, device="cpu", precision=precision)
        for precision in ("auto", "fp32", "bf16")
    }
    assert engines["auto"][1] == engines["bf16"][1] != engines["fp32"][1]
    assert Upscaler(tiny_model).precision == "bf16"
    assert Upscaler(tiny_model, precision="fp32").precision == "fp32"
    between = [load_engine(balance=0.5, device="cpu", precision=precision)[1] for precision in ("bf16", "fp32")]
    assert between[0] != between[1]


# Other devices of OpenVINO


class FakeCore:
    """OpenVINO's core with other devices, for all of which the processor computes."""

    def __init__(self, devices: dict[str, list[str]]) -> None:
        self.available_devices, self._capabilities = list(devices), devices
        self.compiled: list[tuple[str, str]] = []

    def get_property(self, device: str, name: str) -> list[str]:
        assert name == "OPTIMIZATION_CAPABILITIES"
        return self._capabilities.get(device) or self._capabilities[f"{device}.0"]

    def compile_model(
        self, model: openvino.Model, device: str, settings: dict[str, str]
    ) -> openvino.CompiledModel:
        self.compiled.append((device, settings["INFERENCE_PRECISION_HINT"]))
        assert device == "CPU" or "INFERENCE_NUM_THREADS" not in settings
        return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize(
    ("device", "precision", "compiled"),
    [
        ("gpu", "auto", ("GPU", "f32")),
        ("gpu:1", "fp16", ("GPU.1", "f16")),
        ("npu", "auto", ("NPU", "f16")),
        ("cpu", "fp32", ("CPU", "f32")),
    ],
)
def test_devices_that_openvino_lists(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, device: str, precision: str, compiled: tuple[str, str]
) -> None:
    fake = FakeCore(
        {"CPU": ["FP32"], "GPU.0": ["FP32", "FP16"], "GPU.1": ["FP32", "FP16"], "NPU": ["FP16", "INT8"]}
    )
    monkeypatch.setattr(engine_module, "core", lambda: fake)
    engine, _ = load_engine(tiny_model, device=device, precision=precision)
    assert isinstance(engine, OpenVinoEngine)
    assert (engine.strip_facts is None) == (device != "cpu")  # measured on processors alone
    expected = OpenVinoEngine(tiny_model).run(noise(9, 9))
    fake.compiled.clear()
    np.testing.assert_allclose(engine.run(noise(9, 9)), expected, atol=1e-5)
    assert fake.compiled == [compiled]


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("npu", "auto", "there is no device npu that OpenVINO could use; it lists cpu, gpu:0"),
        ("gpu:1", "auto", "there is no device gpu:1 that OpenVINO could use; it lists cpu, gpu:0"),
        ("gpu", "bf16", "the gpu runs in fp32 and fp16, not in bf16"),
    ],
)
def test_devices_and_precisions_that_are_not_there(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, device: str, precision: str, message: str
) -> None:
    fake = FakeCore({"CPU": ["FP32"], "GPU.0": ["FP32", "FP16"]})
    monkeypatch.setattr(engine_module, "core", lambda: fake)
    with pytest.raises(UsageError) as refusal:
        load_engine(tiny_model, device=device, precision=precision)
    assert str(refusal.value) == message
