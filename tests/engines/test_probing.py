"""Networks of unknown make: what they do is measured, and what cannot be tiled is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from srgan.conversion.importing import import_model
from srgan.engines import probing
from srgan.engines.inference import Inference
from srgan.engines.openvino import OpenVinoEngine
from srgan.errors import UsageError, WeightsError
from srgan.installed import remedy
from srgan.pictures import Picture
from srgan.upscale import Upscaler

Sizes = list[int | str]


def foreign(
    *,
    channels: int = 3,
    scale: int = 2,
    sizes: Sizes | None = None,
    type_: int = TensorProto.FLOAT,
    inputs: int = 1,
    before: str = "",
    after: str = "",
    gain: float = 1.0,
) -> bytes:
    """An ONNX network without metadata: a 5×5 and a 3×3 convolution with a ReLU, then sub-pixels.

    Nearly nearest-neighbour interpolation, so that its result looks like a picture. `before`, `after`: an
    operation on its features, on its result.
    """
    random = np.random.default_rng(0)
    features = scale**2 * channels
    weights = [
        random.normal(0, 0.02, (features, channels, 5, 5)).astype(np.float32),
        random.normal(0, 0.02, (features, features, 3, 3)).astype(np.float32),
    ]
    for index in range(features):
        weights[0][index, index // scale**2, 2, 2] += gain
        weights[1][index, index, 1, 1] += 1
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[2] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1] * 4),
    ]
    last = "c"
    if before == "mean":  # depends on the whole picture, as squeeze-and-excitation does
        nodes += [
            helper.make_node("GlobalAveragePool", ["c"], ["m"]),
            helper.make_node("Mul", ["m", "little"], ["l"]),
            helper.make_node("Add", ["c", "l"], ["d"]),
        ]
        last = "d"
    if before == "halves":  # works at half the size within: odd sides fail, and pairs begin where a tile does
        nodes += [
            helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Resize", ["p", "", "twice"], ["d"], mode="nearest", nearest_mode="floor"),
        ]
        last = "d"
    nodes.append(
        helper.make_node("DepthToSpace", [last], ["sr" if not after else "s"], blocksize=scale, mode="CRD")
    )
    if after == "half a scale":
        nodes.append(helper.make_node("Resize", ["s", "", "wider"], ["sr"], mode="nearest"))
    constants: dict[str, float | list[float]] = {"little": 0.05, "twice": [1, 1, 2, 2], "wider": [1, 1, 1, 1.25]}
    initializers = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)]
    used = {name for node in nodes for name in node.input}
    initializers += [
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in constants.items()
        if name in used
    ]
    shape = sizes or ["n", channels, "h", "w"]
    taken = [helper.make_tensor_value_info("x", type_, shape)]
    if inputs == 2:
        taken.append(helper.make_tensor_value_info("strength", TensorProto.FLOAT, [1]))
        nodes[-1].output[0] = "unscaled"
        nodes.append(helper.make_node("Mul", ["unscaled", "strength"], ["sr"]))
    result = helper.make_tensor_value_info("sr", type_, None)
    graph = helper.make_graph(nodes, "foreign", taken, [result], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).random((1, 3, height, width), dtype=np.float32)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_scale_and_halo_are_found(scale: int) -> None:
    engine = OpenVinoEngine(foreign(scale=scale), threads=1, name="folder/theirs.onnx")
    assert engine.metadata.name == "theirs"
    assert engine.metadata.scale == scale
    assert engine.metadata.halo_lr_px == 4  # 2 + 1, and a quarter more
    assert engine.run(noise(7, 5)).shape == (1, 3, 7 * scale, 5 * scale)


def test_a_measured_halo_is_enough_for_our_own_network(tiny_model: Path) -> None:
    """The network of 12 pixels, told nothing; tiles with what is measured show no seam."""
    model = onnx.load(tiny_model)
    del model.metadata_props[:]
    content = bytes(model.SerializeToString())
    told = OpenVinoEngine(content, threads=1, halo_lr_px=12)
    assert (told.metadata.scale, told.metadata.halo_lr_px) == (4, 12)
    measured = OpenVinoEngine(content, threads=1)
    assert 8 <= measured.metadata.halo_lr_px <= 16
    lr = noise(61, 67)
    tiled = Inference(measured, tile_lr_px=8).array(lr)
    np.testing.assert_allclose(tiled, told.run(lr), rtol=0, atol=2e-5)


def test_a_network_for_one_channel_takes_colour_channel_by_channel() -> None:
    engine = OpenVinoEngine(foreign(channels=1), threads=1)
    lr = noise(9, 8)
    sr = engine.run(lr)
    for channel in range(3):
        alone = engine.run(np.repeat(lr[:, [channel]], 3, axis=1))
        np.testing.assert_array_equal(alone[:, 1], sr[:, channel])
        np.testing.assert_array_equal(alone[:, 1], alone[:, 2])
    grey = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)
    assert Upscaler(engine=engine).upscale(Picture(grey)).pixels.shape == (24, 18)
    assert engine.strip_facts is None


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "two inputs": (lambda: foreign(inputs=2), "one input"),
    "one size": (lambda: foreign(sizes=[1, 3, 32, 32]), "one size only"),
    "four channels": (lambda: foreign(channels=4), "1 or 3 channels"),
    "channels last": (lambda: foreign(sizes=["n", "h", "w", 3]), "not a picture|cannot read"),
    "numbers of another kind": (lambda: foreign(type_=TensorProto.DOUBLE), "not both float32|cannot read"),
    "no whole factor": (lambda: foreign(after="half a scale"), "no whole multiple|one whole factor"),
    "another range": (lambda: foreign(gain=255.0), "does not look like"),
    "a mean of the whole picture": (lambda: foreign(before="mean"), "--halo"),
    "windows": (lambda: foreign(before="halves"), "any size|whole multiple|--halo"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_tiled_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_SIDES_LR_PX", (64, 96))
    make, said = REFUSED[kind]
    with pytest.raises(WeightsError, match=said) as caught:
        OpenVinoEngine(make(), threads=1, name="theirs.onnx")
    assert str(caught.value).startswith("theirs.onnx: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_given_halo_overrules(tiny_model: Path) -> None:
    engine = OpenVinoEngine(foreign(before="mean"), threads=1, halo_lr_px=7)
    assert engine.metadata.halo_lr_px == 7
    with pytest.raises(WeightsError, match="not between"):
        OpenVinoEngine(foreign(), threads=1, halo_lr_px=-1)
    with pytest.raises(UsageError, match="leave --halo out"):
        OpenVinoEngine(tiny_model, threads=1, halo_lr_px=7)


def test_importing_writes_down_what_was_measured(tmp_path: Path) -> None:
    source = tmp_path / "theirs.onnx"
    source.write_bytes(foreign(scale=3))
    (path,) = import_model(source, tmp_path / "out", "mine")
    assert path == tmp_path / "out" / "mine.onnx"
    ours, theirs = OpenVinoEngine(path, threads=1), OpenVinoEngine(source, threads=1)
    assert (ours.metadata.name, ours.metadata.scale, ours.metadata.halo_lr_px) == ("mine", 3, 4)
    np.testing.assert_array_equal(ours.run(noise(9, 9)), theirs.run(noise(9, 9)))
    written = onnx.load(path)
    del written.metadata_props[:]
    assert written == onnx.load(source)


def test_an_architecture_that_spandrel_knows(tmp_path: Path) -> None:
    compact = pytest.importorskip("spandrel.architectures.Compact")
    torch.manual_seed(0)
    network = compact.Compact(num_feat=8, num_conv=2, upscale=2).eval()
    torch.save({"params": network.state_dict()}, tmp_path / "compact.pth")
    (path,) = import_model(tmp_path / "compact.pth", tmp_path / "out")
    engine = OpenVinoEngine(path, threads=1)
    assert (engine.metadata.scale, engine.metadata.name) == (2, "compact")
    assert engine.metadata.architecture["layout"] == "RealESRGAN Compact"
    lr = noise(11, 14)
    with torch.inference_mode():
        expected = network(torch.from_numpy(lr)).numpy()
    np.testing.assert_allclose(engine.run(lr), expected, rtol=0, atol=1e-5)
    lr = noise(40, 43)
    tiled = Inference(engine, tile_lr_px=5).array(lr)
    np.testing.assert_allclose(tiled, engine.run(lr), rtol=0, atol=2e-5)


def test_unknown_weights_without_spandrel_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match=re.escape(remedy("models"))):
        import_model(tmp_path / "x.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_weights_with_spandrel(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    for state in ({"layer.weight": torch.zeros(3)}, {"model.0.weight": torch.zeros(3)}):
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(WeightsError, match="nor of any that spandrel knows"):
            import_model(tmp_path / "x.pth", tmp_path / "out")
