"""Eight bits between the first convolution and the last: near, and the same in tiles."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srgan.conversion import exporting
from srgan.conversion.calibrating import lr_crops, write_int8_form
from srgan.conversion.loading import load_engine
from srgan.engines.inference import Inference
from srgan.engines.int8 import Int8Form
from srgan.engines.openvino import OpenVinoEngine, run_openvino_ir
from srgan.errors import UsageError, WeightsError
from srgan.networks.generator import Generator
from srgan.weights import Weights, find_weights, int8_of, int8_path

EXAMPLES = Path(__file__).parents[2] / "examples"


def photograph(side: int = 64) -> np.ndarray:
    return lr_crops(EXAMPLES, 4)[0][:, :, :side, :side]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)


def bundled(name: str) -> tuple[Weights, Int8Form]:
    weights = find_weights(name)
    content = int8_of(weights)
    assert content is not None
    return weights, Int8Form.from_json(content, name)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with its int8 form beside it."""
    path = tmp_path_factory.mktemp("int8") / "tiny.onnx"
    path.write_bytes(tiny_model.read_bytes())
    write_int8_form(path, lr_crops(EXAMPLES, 4)[:8])
    return path


@pytest.mark.parametrize("name", ["srgan-x4", "srresnet-x4", "srgan-x4-photo"])
def test_bundled_forms_belong_to_their_models_and_are_near(name: str) -> None:
    weights, form = bundled(name)
    assert form.sha256 == weights.sha256
    assert len(form.ranges) == 35  # of 16 blocks, what ends them and two enlargements; not the first and the last
    engine = OpenVinoEngine(weights.onnx, precision="int8", int8=form)
    assert engine.precision == "int8"
    lr = photograph()
    difference = (engine.run(lr) - OpenVinoEngine(weights.onnx).run(lr)) * 255
    assert abs(difference.mean()) < 0.1
    assert 0 < np.abs(difference).mean() < 2


@pytest.mark.parametrize("tile", [7, 16, 24])
@pytest.mark.parametrize("size", [(53, 31), (1, 60), (40, 40)])
def test_tiles_are_the_whole(tiny: Path, tile: int, size: tuple[int, int]) -> None:
    engine, _ = load_engine(tiny, precision="int8")
    lr = noise(*size)
    np.testing.assert_array_equal(Inference(engine, tile_lr_px=tile).array(lr), engine.run(lr))


def test_what_lies_beside_the_model_is_taken_and_part_of_the_hash(tiny: Path, tmp_path: Path) -> None:
    runs, sha256 = load_engine(tiny, precision="int8")
    exact, exact_sha256 = load_engine(tiny, precision="fp32")
    assert sha256 != exact_sha256
    lr = photograph()
    assert 0 < np.abs(runs.run(lr) - exact.run(lr)).mean() < 0.05
    moved = tmp_path / "tiny.onnx"
    moved.write_bytes(tiny.read_bytes())
    values = json.loads(int8_path(tiny).read_text())
    values["shifts"][0][0] += 1
    int8_path(moved).write_text(json.dumps(values))
    assert load_engine(moved, precision="int8")[1] != sha256


def test_without_a_form_there_is_a_line_that_says_what_there_is(tiny: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(tiny.read_bytes())
    with pytest.raises(
        UsageError, match=r"alone\.onnx: there is no int8 form of it, it runs in fp32[^\n]*--int8 makes"
    ):
        load_engine(alone, precision="int8")
    with pytest.raises(UsageError, match="between two models there is no int8 form"):
        load_engine(balance=0.5, device="cpu", precision="int8")
    with pytest.raises(
        UsageError, match="PyTorch computes in fp32, bf16 and fp16, not in int8; choose --device cpu"
    ):
        load_engine(device="cuda", precision="int8")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values | {"sha256": "0" * 64},
        lambda values: values | {"format": 2},
        lambda values: values | {"ranges": values["ranges"][1:]},
        lambda values: values | {"ranges": [[1, 0]] * len(values["ranges"])},
        lambda values: values | {"ranges": [[float("nan"), 0]] * len(values["ranges"])},
        lambda values: values | {"shifts": [[0.0]] * len(values["shifts"])},
        lambda values: values | {"shifts": 3},
        lambda _: [],
    ],
)
def test_another_or_a_damaged_form_is_refused(tiny: Path, tmp_path: Path, spoil: object) -> None:
    moved = tmp_path / "tiny.onnx"
    moved.write_bytes(tiny.read_bytes())
    int8_path(moved).write_text(json.dumps(spoil(json.loads(int8_path(tiny).read_text()))))  # type: ignore[operator]
    with pytest.raises(WeightsError, match="int8 form") as caught:
        load_engine(moved, precision="int8")
    assert "\n" not in str(caught.value)


def test_exported_for_this_program_and_for_openvino(tiny_model: Path) -> None:
    metadata = OpenVinoEngine(tiny_model).metadata
    crops = lr_crops(EXAMPLES, 4)[:4]
    files = exporting.exported(Generator(2, 8).eval(), metadata, ("onnx", "openvino"), crops=crops)
    assert set(files) == {"onnx", "bin", "xml", "int8.json"}
    form = Int8Form.from_json(files["int8.json"], "it")
    assert form.sha256 == hashlib.sha256(files["onnx"]).hexdigest()
    lr = photograph(48)
    here = OpenVinoEngine(files["onnx"], precision="int8", int8=form).run(lr)
    np.testing.assert_allclose(run_openvino_ir(files["xml"], files["bin"], lr), here, atol=1e-3)
    plain = exporting.exported(Generator(2, 8).eval(), metadata, ("openvino",))
    assert len(files["bin"]) < 0.8 * len(plain["bin"])


def test_the_same_folder_gives_the_same_crops(tmp_path: Path) -> None:
    first, second = lr_crops(EXAMPLES, 4), lr_crops(EXAMPLES, 4)
    assert len(first) == 24  # of five pictures, one of which is large enough
    assert {crop.shape for crop in first} == {(1, 3, 48, 48)}
    np.testing.assert_array_equal(first, second)
    Image.new("RGB", (191, 500)).save(tmp_path / "small.png")
    with pytest.raises(UsageError, match="no picture of 192 pixels a side or more to calibrate with"):
        lr_crops(tmp_path, 4)
