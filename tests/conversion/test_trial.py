"""ONNX models that nobody vouches for: refused by name, or tried in a process with limits, in one line."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from srgan.conversion.importing import read_model
from srgan.conversion.loading import load_engine
from srgan.conversion.trial import Limits, tried
from srgan.engines import contents
from srgan.engines.openvino import OpenVinoEngine
from srgan.errors import UsageError, WeightsError
from srgan.weights import bundled_folder

WEIGHTS = np.kron(np.eye(3), np.ones((4, 1))).reshape(12, 3, 1, 1).astype(np.float32)  # each pixel four times


def model(*before: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """A network that doubles both sides; `before` makes its "y" of the input "x"."""
    nodes = [
        *(before or [helper.make_node("Identity", ["x"], ["y"])]),
        helper.make_node("Conv", ["y", "w"], ["c"]),
        helper.make_node("DepthToSpace", ["c"], ["z"], blocksize=2, mode="CRD"),
    ]
    made = {"w": WEIGHTS} | (constants or {})
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w_"])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3, "h2", "w2"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in made.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c0"], ["c1"]),
            helper.make_node("Add", ["v0", "v0"], ["v1"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c0", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v0", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c1", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v1", TensorProto.FLOAT, None),
        ],
    )
    return model(helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body), constants={"yes": np.array(True)})


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    made = model()
    change(made)
    return made


def outside(made: onnx.ModelProto) -> None:
    tensor = made.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    tensor.ClearField("raw_data")


def constant_outside(made: onnx.ModelProto) -> None:
    outside(made)
    tensor = made.graph.initializer.pop()
    made.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))


REFUSED = {
    "the operator 'Loop'": loop(),
    "the operator 'If'": model(helper.make_node("If", ["x"], ["y"])),
    "the operator 'Scan'": model(helper.make_node("Scan", ["x"], ["y"])),
    "the operator 'RandomNormalLike'": model(helper.make_node("RandomNormalLike", ["x"], ["y"])),
    "operators of 'com.example'": model(helper.make_node("Relu", ["x"], ["y"], domain="com.example")),
    "a graph within its graph": model(helper.make_node("Relu", ["x"], ["y"], body=loop().graph)),
    "weights in another file": changed(outside),
    "weights in another file; save": changed(constant_outside),
    "functions of its own": changed(lambda made: made.functions.add(name="f")),
    "sparse weights": changed(lambda made: made.graph.sparse_initializer.add()),
    "training": changed(lambda made: made.training_info.add()),
    "takes what nothing before it makes": model(
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_no_generator_needs_is_refused_by_name(tmp_path: Path, reason: str) -> None:
    """By every way in, before the runtime sees it."""
    path = tmp_path / "x.onnx"
    path.write_bytes(REFUSED[reason].SerializeToString())
    for way in (
        lambda: contents.check(path.read_bytes(), str(path)),
        lambda: OpenVinoEngine(path),
        lambda: load_engine(path),
        lambda: read_model(path, "x"),
    ):
        with pytest.raises(WeightsError, match=reason) as refused:
            way()
        assert str(refused.value).startswith(str(path))
        assert "\n" not in str(refused.value)


def test_what_comes_in_pieces_is_all_of_them() -> None:
    """Protobuf puts messages together that come twice."""
    pieces = model().SerializeToString() + loop().SerializeToString()
    assert [node.op_type for node in onnx.load_model_from_string(pieces).graph.node][3] == "Loop"
    with pytest.raises(WeightsError, match="Loop"):
        contents.check(pieces, "x")


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_refused_or_harmless(seed: int) -> None:
    """Nothing but WeightsError, whatever is cut or changed."""
    random = np.random.default_rng(seed)
    good = model().SerializeToString()
    for _ in range(300):
        content = bytearray(good[: random.integers(1, len(good) + 1)])
        for position in random.integers(0, len(content), 2):
            content[position] = random.integers(0, 256)
        with contextlib.suppress(WeightsError):
            contents.check(bytes(content), "x")


def test_bundled_models_are_let_through_and_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    for path in sorted(bundled_folder().glob("*.onnx")):
        contents.check(path.read_bytes(), str(path))
    load_engine("srgan-x4", device="cpu")
    load_engine(bundled_folder() / "srgan-x4.onnx", device="cpu")


def ask(made: onnx.ModelProto, halo_lr_px: int | None = None, limits: Limits | None = None) -> int | None:
    content = made.SerializeToString()
    return tried(content, hashlib.sha256(content).hexdigest(), "x.onnx", halo_lr_px, limits)


def test_an_unknown_network_is_measured_elsewhere(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(model()) == 0
    assert ask(onnx.load(tiny_model)) is None  # it says so itself
    with pytest.raises(UsageError, match="leave --halo out"):
        ask(onnx.load(tiny_model), 3)
    monkeypatch.setattr(subprocess, "run", None)
    assert ask(model()) == 0  # known by now


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit on memory")
def test_what_unfolds_to_any_size_costs_that_model_alone() -> None:
    shape = np.array([1, 3, 2**20, 2**20])
    grown = model(
        helper.make_node("ConstantOfShape", ["shape"], ["much"]),
        helper.make_node("ReduceMax", ["much"], ["least"]),
        helper.make_node("Add", ["x", "least"], ["y"]),
        constants={"shape": shape},
    )
    with pytest.raises(WeightsError, match=r"^x\.onnx: ") as refused:
        ask(grown)
    assert "\n" not in str(refused.value)


def test_what_takes_too_long_is_ended() -> None:
    weights = np.zeros((400, 400, 9, 9), np.float32)
    head, tail = np.zeros((400, 3, 1, 1), np.float32), np.zeros((3, 400, 1, 1), np.float32)
    convolved = [
        helper.make_node("Conv", [f"a{number}", "m"], [f"a{number + 1}"], pads=[4] * 4) for number in range(9)
    ]
    slow = model(
        helper.make_node("Conv", ["x", "head"], ["a0"]),
        *convolved,
        helper.make_node("Conv", ["a9", "tail"], ["y"]),
        constants={"m": weights, "head": head, "tail": tail},
    )
    with pytest.raises(WeightsError, match=r"^x\.onnx: takes too much time"):
        ask(slow, limits=Limits(first_cpu_s=0))
