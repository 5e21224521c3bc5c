"""The OpenVINO engine: right, in full precision, from any thread, and never quietly wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from support.threads import at_once

from srgan.engines.compiled import CompiledModels
from srgan.engines.openvino import OpenVinoEngine
from srgan.errors import EngineError, WeightsError
from srgan.machine import available_cores


def noise(height: int, width: int, seed: int = 0, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, 3, height, width), dtype=np.float32)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 500), (1, 37, 20), (3, 16, 24)])
def test_agrees_with_another_runtime(
    tiny_model: Path, tiny_engine: OpenVinoEngine, shape: tuple[int, int, int]
) -> None:
    batch, height, width = shape
    lr = noise(height, width, batch=batch)
    (expected,) = onnxruntime.InferenceSession(tiny_model).run(None, {"lr": lr})
    sr = tiny_engine.run(lr)
    assert sr.dtype == np.float32
    assert sr.shape == (batch, 3, 4 * height, 4 * width)
    np.testing.assert_allclose(sr, expected, atol=1e-5)


def test_reads_bytes_as_well_and_its_metadata(tiny_model: Path, tiny_engine: OpenVinoEngine) -> None:
    other = OpenVinoEngine(tiny_model.read_bytes(), threads=1)
    assert other.metadata == tiny_engine.metadata
    assert (other.metadata.name, other.metadata.scale, other.metadata.halo_lr_px) == ("tiny-x4", 4, 12)
    np.testing.assert_allclose(other.run(noise(9, 9)), tiny_engine.run(noise(9, 9)), atol=1e-5)


def test_output_is_not_clamped(tiny_engine: OpenVinoEngine) -> None:
    sr = tiny_engine.run((noise(16, 16) > 0.5).astype(np.float32))
    assert sr.min() < 0
    assert sr.max() > 1


def test_always_float32(tiny_engine: OpenVinoEngine) -> None:
    compiled = tiny_engine.compiled_for((1, 3, 8, 8))
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == available_cores()


def test_one_model_for_a_shape(tiny_model: Path) -> None:
    engine = OpenVinoEngine(tiny_model, threads=1)
    engine.run(noise(8, 8))
    first = engine.compiled_for((1, 3, 8, 8))
    engine.run(noise(9, 8))
    assert engine.compiled_for((1, 3, 8, 8)) is first
    assert engine.kept_shapes == [(1, 3, 9, 8), (1, 3, 8, 8)]
    engine.forget()
    assert engine.kept_shapes == []


def test_few_models_are_kept() -> None:
    kept = CompiledModels(most=4, most_lr_px=1000)
    first = kept.get((1, 3, 8, 8), object)
    assert kept.get((1, 3, 8, 8), object) is first
    for width in range(9, 12):
        kept.get((1, 3, 8, width), object)
    assert kept.get((1, 3, 8, 8), object) is first  # the fourth; now the most recent
    kept.get((1, 3, 8, 12), object)  # a fifth: the longest unused goes
    assert kept.shapes == [(1, 3, 8, 10), (1, 3, 8, 11), (1, 3, 8, 8), (1, 3, 8, 12)]
    kept.get((1, 3, 30, 30), object)
    assert kept.shapes == [(1, 3, 8, 12), (1, 3, 30, 30)]  # 996 pixels; with 8x8 it were more than 1000
    kept.get((1, 3, 50, 50), object)  # larger than all that may be kept: alone
    assert kept.shapes == [(1, 3, 50, 50)]


def test_threads_get_their_own_results(tiny_engine: OpenVinoEngine) -> None:
    pictures = [noise(10 + index % 3, 12, seed=index) for index in range(12)]
    expected = [tiny_engine.run(lr) for lr in pictures]
    results = at_once(lambda lr: [tiny_engine.run(lr) for _ in range(5)], pictures)
    for alone, together in zip(expected, results, strict=True):
        for sr in together:
            np.testing.assert_array_equal(sr, alone)


def test_a_result_is_not_changed_by_the_next(tiny_engine: OpenVinoEngine) -> None:
    first = tiny_engine.run(noise(8, 8, seed=1))
    copy = first.copy()
    tiny_engine.run(noise(8, 8, seed=2))
    np.testing.assert_array_equal(first, copy)


def changed(tiny_model: Path, change: str) -> bytes:
    """The tiny model with something wrong."""
    model = onnx.load(tiny_model)
    if change == "no metadata":
        del model.metadata_props[:]
    elif change == "junk metadata":
        onnx.helper.set_model_props(model, {"srgan": "{"})
    elif change == "wrong scale":
        text = model.metadata_props[0].value.replace('"scale": 4', '"scale": 3')
        onnx.helper.set_model_props(model, {"srgan": text})
    elif change == "two outputs":
        model.graph.output.append(model.graph.output[0])
        model.graph.node.append(onnx.helper.make_node("Identity", ["sr"], ["again"]))
        model.graph.output[1].name = "again"
    else:
        weight = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
        values = np.array(onnx.numpy_helper.to_array(weight))
        values.flat[0] = float(change)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_values_that_are_not_finite_are_an_error(tiny_model: Path, value: str) -> None:
    broken = OpenVinoEngine(changed(tiny_model, value), threads=1)
    with pytest.raises(EngineError, match="not finite"):
        broken.run(noise(8, 8))


def test_another_shape_than_the_metadata_promise_is_an_error(tiny_model: Path) -> None:
    broken = OpenVinoEngine(changed(tiny_model, "wrong scale"), threads=1)
    with pytest.raises(EngineError, match="instead of"):
        broken.run(noise(8, 8))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3, 8), (3, 8, 8), (1, 3, 0, 8)])
def test_an_input_that_is_no_picture_is_an_error(tiny_engine: OpenVinoEngine, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError):
        tiny_engine.run(np.zeros(shape, np.float32))
    with pytest.raises(EngineError):
        tiny_engine.run(np.zeros((1, 3, 8, 8), np.uint8))
    assert tiny_engine.run(noise(8, 8)).shape == (1, 3, 32, 32)  # and the next one is fine


@pytest.mark.parametrize("change", ["junk metadata", "two outputs"])
def test_a_model_that_is_not_ours(tiny_model: Path, change: str) -> None:
    with pytest.raises(WeightsError):
        OpenVinoEngine(changed(tiny_model, change))


@pytest.mark.parametrize("content", [b"", b"junk", b"\x08\x07", b"<?xml version='1.0'?><net/>"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.onnx"):
        OpenVinoEngine(path)


def test_a_truncated_model(tiny_model: Path) -> None:
    content = tiny_model.read_bytes()
    for length in (10, len(content) // 2, len(content) - 1):
        with pytest.raises(WeightsError):
            OpenVinoEngine(content[:length])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No such file"):
        OpenVinoEngine(tmp_path / "model.onnx")


SIGNALLED = """
import gc, os, signal, sys, threading
import numpy as np
from srgan.engines.openvino import OpenVinoEngine
from pathlib import Path

heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
engines = [OpenVinoEngine(Path(sys.argv[1]))]
engines[0].run(np.zeros((1, 3, 8, 8), np.float32))
ending = threading.Thread(target=lambda: (engines.clear(), gc.collect()))
ending.start()
ending.join()
os.kill(os.getpid(), signal.SIGTERM)
assert heard
"""


def test_signals_arrive_after_an_engine_ended_in_another_thread(tiny_model: Path) -> None:
    subprocess.run([sys.executable, "-X", "faulthandler", "-c", SIGNALLED, str(tiny_model)], check=True)
