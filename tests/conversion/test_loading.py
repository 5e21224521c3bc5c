"""From names to engines: devices, precisions, and the balance between the bundled models."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.engines import noise

from srgan import engines
from srgan.conversion import loading
from srgan.conversion.loading import load_engine
from srgan.engines import torch as engine_torch
from srgan.engines.openvino import OpenVinoEngine
from srgan.engines.protocol import Precision
from srgan.engines.torch import TorchEngine
from srgan.errors import UnknownModelError, UsageError, WeightsError
from srgan.installed import remedy
from srgan.networks.reading import load_generator
from srgan.weights import balance_models, bundled_folder, find_weights, tensors_of

PAIR = ("srresnet-x4", "srgan-x4")


# Balance


def interpolated(share: float, lr: np.ndarray) -> np.ndarray:
    """What the generator returns whose every parameter lies between those of the bundled two."""
    content, adversarial = (load_generator(bundled_folder() / f"{name}.safetensors")[0] for name in PAIR)
    towards = adversarial.state_dict()
    content.load_state_dict(
        {name: (1 - share) * tensor + share * towards[name] for name, tensor in content.state_dict().items()}
    )
    with torch.inference_mode():
        sr: np.ndarray = content.eval()(torch.from_numpy(lr)).numpy()
    return sr


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_balance_is_the_generator_between(share: float) -> None:
    lr = noise(17, 13)
    engine, _ = load_engine(balance=share, device="cpu", precision="fp32", faithful=False)
    np.testing.assert_allclose(engine.run(lr), interpolated(share, lr), rtol=0, atol=2e-5)
    if share in (0, 1):
        exact = OpenVinoEngine(find_weights(PAIR[int(share)]).onnx)
        np.testing.assert_array_equal(engine.run(lr), exact.run(lr))


def test_every_slope_and_bias_is_interpolated(tiny_model: Path) -> None:
    """Halfway to a model whose every float is one more, every float is a half more."""
    raised, half = onnx.load(tiny_model), onnx.load(tiny_model)
    for model, by in ((raised, 1.0), (half, 0.5)):
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name != "skip.kernel":
                values = onnx.numpy_helper.to_array(tensor) * np.float32(1 + by)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    blended = OpenVinoEngine(tiny_model, blend=(raised.SerializeToString(), 0.5), threads=1)
    expected = OpenVinoEngine(half.SerializeToString(), threads=1)
    np.testing.assert_allclose(blended.run(noise(9, 9)), expected.run(noise(9, 9)), rtol=1e-5)


def test_models_with_other_layers_have_nothing_between(tiny_model: Path) -> None:
    with pytest.raises(WeightsError, match="different layers"):
        OpenVinoEngine(find_weights(PAIR[0]).onnx, blend=(tiny_model.read_bytes(), 0.5))


def test_names_hashes_and_engines_of_balances() -> None:
    first, sha256 = load_engine(balance=0.25, device="cpu")
    again, same = load_engine(balance=0.25, device="cpu")
    other, another = load_engine("srgan-x4", balance=0.26, device="cpu")
    assert first is again  # interpolated and compiled once for all
    assert sha256 == same != another
    assert (first.metadata.name, other.metadata.name) == ("srresnet-x4+srgan-x4@0.25", "srresnet-x4+srgan-x4@0.26")
    plain, plain_sha256 = load_engine("srgan-x4", device="cpu", precision="fp32", faithful=False)
    assert (plain.metadata.name, plain_sha256) == ("srgan-x4", find_weights("srgan-x4").sha256)
    assert balance_models() == PAIR


@pytest.mark.parametrize("balance", [-0.1, 1.1, float("nan")])
def test_balances_out_of_range(balance: float) -> None:
    with pytest.raises(UsageError, match="out of range"):
        load_engine(balance=balance)


def test_balance_is_for_the_bundled_pair_only(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"leave .* away"):
        load_engine(tiny_model, balance=0.5)


# Devices


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "device 'tpu'"),
        ({"device": "cuda:x"}, "device 'cuda:x'"),
        ({"precision": "int9"}, "precision 'int9'"),
        ({"balance": 0.5, "precision": "int8"}, "between two models there is no int8 form"),
        ({"device": "cpu", "precision": "fp16"}, "the cpu runs in fp32.*, not in fp16"),
        ({"device": "gpu:7"}, "no device gpu:7 that OpenVINO could use; it lists cpu"),
        ({"device": "cuda:99"}, "no device cuda:99"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_engine(**settings)  # type: ignore[arg-type]


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "has_graphics_driver", lambda: True)
    monkeypatch.setattr(engine_torch, "accelerator", lambda: None)
    assert isinstance(load_engine()[0], OpenVinoEngine)
    with pytest.raises(UnknownModelError):
        load_engine("nowhere.onnx")


def test_auto_takes_the_accelerator_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graphics processor here: torch's CPU stands in for it."""
    made = TorchEngine

    def on_cpu(
        path: Path, *, device: str, precision: Precision, blend: tuple[Path, float] | None, faithful: bool | None
    ) -> TorchEngine:
        assert (device, precision) == ("cuda", "fp16")
        return made(path, device="cpu", precision="fp32", blend=blend, faithful=faithful)

    monkeypatch.setattr(loading, "has_graphics_driver", lambda: True)
    monkeypatch.setattr(engine_torch, "accelerator", lambda: "cuda")
    monkeypatch.setattr(engine_torch, "TorchEngine", on_cpu)
    engine, sha256 = load_engine("srgan-x4")
    assert isinstance(engine, TorchEngine)
    assert sha256 != find_weights("srgan-x4").sha256  # half precision gives other results
    between, _ = load_engine(balance=0.3, faithful=False)
    lr = noise(11, 9)
    np.testing.assert_allclose(between.run(lr), interpolated(0.3, lr), rtol=0, atol=2e-5)
    assert between.metadata.name == "srresnet-x4+srgan-x4@0.3"


def test_without_torch_a_graphics_processor_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "has_graphics_driver", lambda: True)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "srgan.engines.torch")
    monkeypatch.delattr(engines, "torch")
    with pytest.raises(UsageError, match=re.escape(remedy("cuda"))):
        load_engine(device="cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert isinstance(load_engine()[0], OpenVinoEngine)


def test_tensors_lie_beside_and_are_intact(tmp_path: Path) -> None:
    weights = find_weights("srgan-x4")
    assert tensors_of(weights) == bundled_folder() / "srgan-x4.safetensors"
    (tmp_path / "mine.onnx").write_bytes(weights.onnx)
    with pytest.raises(WeightsError, match="srgan export"):
        tensors_of(find_weights(tmp_path / "mine.onnx"))
