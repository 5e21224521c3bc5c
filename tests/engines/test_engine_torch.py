"""The torch engine on the CPU: the same results as OpenVINO, and no failure papered over.

There is no graphics processor here; what only CUDA does (running out of its memory, overflowing in half precision)
is injected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from support.engines import without_levels
from support.threads import at_once
from torch import nn

from srgan.conversion.exporting import export_generator
from srgan.engines import torch as engine_torch
from srgan.engines.inference import Inference
from srgan.engines.openvino import OpenVinoEngine
from srgan.engines.protocol import DeviceEngine, LevelsEngine, Precision
from srgan.engines.torch import TorchEngine
from srgan.errors import EngineError, OutOfMemoryError, PrecisionError, UsageError
from srgan.networks import tails
from srgan.networks.generator import Generator
from srgan.networks.layers import TailForm, deployed
from srgan.networks.tails import Cost
from srgan.pictures import Picture
from srgan.upscale import Upscaler
from srgan.weights import ModelMetadata, bundled_folder, find_weights


def noise(height: int, width: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((batch, 3, height, width), dtype=np.float32)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(blocks=2, features=8)


METADATA = ModelMetadata("tiny-x4", 4, 12, {"blocks": 2, "features": 8, "normalisation": "none"})


@pytest.fixture(scope="module")
def files(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small generator as safetensors and ONNX."""
    assert generator.halo_lr_px == METADATA.halo_lr_px
    return export_generator(generator, METADATA, tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(files: tuple[Path, Path]) -> TorchEngine:
    return TorchEngine(files[0], device="cpu")


def half(files: tuple[Path, Path], precision: Precision = "bf16") -> TorchEngine:
    return TorchEngine(files[0], device="cpu", precision=precision)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 60), (1, 37, 20), (3, 16, 24)])
def test_equals_openvino(files: tuple[Path, Path], engine: TorchEngine, shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    lr = noise(height, width, batch)
    sr = engine.run(lr)
    assert sr.dtype == np.float32
    assert sr.flags.c_contiguous
    np.testing.assert_allclose(sr, OpenVinoEngine(files[1], threads=1).run(lr), rtol=0, atol=1e-5)
    assert engine.metadata == OpenVinoEngine(files[1]).metadata
    assert isinstance(engine, DeviceEngine)


def test_a_bundled_model_equals_openvino() -> None:
    lr = noise(30, 20)
    expected = OpenVinoEngine(find_weights("srgan-x4").onnx).run(lr)
    sr = TorchEngine(bundled_folder() / "srgan-x4.safetensors", device="cpu").run(lr)
    assert np.abs(sr - expected).max() <= 1e-4


def test_tiles_equal_the_whole_and_go_in_batches(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    lr = noise(70, 61)
    whole = engine.run(lr)
    shapes: list[tuple[int, ...]] = []
    run = engine.run

    def seen(tiles: np.ndarray) -> np.ndarray:
        shapes.append(tiles.shape)
        return run(tiles)

    monkeypatch.setattr(TorchEngine, "batch_lr_px", 4 * 40 * 40)
    monkeypatch.setattr(engine, "run", seen)
    tiled = Inference(engine, tile_lr_px=16).array(lr)
    assert np.abs(tiled - whole).max() <= 1e-5
    assert max(shape[0] for shape in shapes) > 1
    assert len({shape[2:] for shape in shapes}) == 1


def test_levels_are_those_of_openvino(files: tuple[Path, Path], engine: TorchEngine) -> None:
    picture = Picture(np.random.default_rng(1).integers(0, 256, (33, 29, 3), np.uint8))
    expected = Upscaler(files[1]).upscale(picture).pixels
    result = Upscaler(engine=engine).upscale(picture).pixels
    assert np.abs(result.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("precision", "levels"), [("fp16", 1), ("bf16", 4)])
def test_half_precision_is_near(
    files: tuple[Path, Path], engine: TorchEngine, precision: Precision, levels: int
) -> None:
    lr = noise(20, 20)
    difference = np.abs(half(files, precision).run(lr) - engine.run(lr)).max()
    assert 0 < difference <= levels / 255


class Broken(nn.Module):
    """The generator with its output changed, where only_half while autocast is on."""

    def __init__(
        self, generator: Generator, change: Callable[[torch.Tensor], torch.Tensor], *, only_half: bool = False
    ) -> None:
        super().__init__()
        self.network, self.change, self.only_half = deployed(generator), change, only_half

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        sr: torch.Tensor = self.network(lr)
        return self.change(sr) if torch.is_autocast_enabled("cpu") or not self.only_half else sr


@pytest.mark.parametrize("change", [lambda sr: sr * torch.inf, lambda sr: sr * 0, lambda sr: sr * 0 + sr.mean()])
def test_a_collapsed_tile_is_run_again_in_float32_and_said(
    generator: Generator, engine: TorchEngine, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    network = Broken(generator, change, only_half=True)
    halved = TorchEngine((network, METADATA), device="cpu", precision="bf16")
    lr = noise(12, 12)
    with pytest.raises(PrecisionError):
        halved.run(lr)
    np.testing.assert_array_equal(halved.run_precisely(lr), engine.run(lr))
    picture = Picture(np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8), warnings=("before",))
    result = Upscaler(engine=halved).upscale(picture)
    np.testing.assert_array_equal(result.pixels, Upscaler(engine=engine).upscale(picture).pixels)
    before, warning = result.warnings
    assert (before, "float32" in warning, "bf16" in warning) == ("before", True, True)


def test_black_and_flat_pictures_have_not_collapsed(files: tuple[Path, Path]) -> None:
    halved = half(files)
    for level in (0.0, 0.5, 1.0):
        halved.run(np.full((1, 3, 16, 16), level, np.float32))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_float32_cannot_do_either_is_an_error(generator: Generator, precision: Precision) -> None:
    network = Broken(generator, lambda sr: sr * torch.nan)
    engine = TorchEngine((network, METADATA), device="cpu", precision=precision)
    with pytest.raises(EngineError, match="not finite"):
        Inference(engine).array(noise(8, 8))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("MPS backend out of memory")]
)
def test_out_of_memory_halves_the_tile_and_goes_on(
    generator: Generator, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    lr = noise(90, 90)
    expected = engine.run(lr)

    def fail(sr: torch.Tensor) -> torch.Tensor:
        if sr.shape[2] * sr.shape[3] > 16 * 3000:
            raise error
        return sr

    small, forgotten = TorchEngine((Broken(generator, fail), METADATA), device="cpu"), []
    monkeypatch.setattr(small, "forget", lambda: forgotten.append(True))
    with pytest.raises(OutOfMemoryError):
        small.run(lr)
    inference = Inference(small)
    assert np.abs(inference.array(lr) - expected).max() <= 1e-5
    assert len(forgotten) == 2
    inference.array(lr)
    assert len(forgotten) == 2  # it is remembered
    levels = np.rint(255 * lr[0]).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(Inference(small).levels(levels), Inference(engine).levels(levels))
    assert len(forgotten) == 4


def test_other_failures_are_errors_of_one_line(generator: Generator) -> None:
    def fail(sr: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered\nmore")

    engine = TorchEngine((Broken(generator, fail), METADATA), device="cpu")
    with pytest.raises(EngineError, match=r"PyTorch failed on a tile .* triggered$"):
        engine.run(noise(8, 8))


def test_another_shape_than_the_metadata_promise_is_an_error(engine: TorchEngine) -> None:
    engine.metadata = replace(engine.metadata, scale=3)
    with pytest.raises(EngineError, match="instead of"):
        engine.run(noise(8, 8))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 8, 8), (1, 3, 0, 8)])
def test_an_input_that_is_no_picture_is_an_error(engine: TorchEngine, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError):
        engine.run(np.zeros(shape, np.float32))


@pytest.mark.parametrize("device", ["cuda:99", "mps"])
def test_devices_that_are_not_there(files: tuple[Path, Path], device: str) -> None:
    with pytest.raises(UsageError, match="no device"):
        TorchEngine(files[0], device=device)


def test_threads_get_their_own_results(engine: TorchEngine) -> None:
    pictures = [np.random.default_rng(seed).random((1, 3, 12, 14), dtype=np.float32) for seed in range(6)]
    expected = [engine.run(lr) for lr in pictures]
    results = at_once(engine.run, pictures)
    for alone, together in zip(expected, results, strict=True):
        np.testing.assert_array_equal(together, alone)


# Levels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [(3,), ()])
@pytest.mark.parametrize("tile", ["off", 16])
def test_levels_are_those_of_the_float_result_rounded(
    engine: TorchEngine, dtype: type, channels: tuple[int, ...], tile: int | Literal["off"]
) -> None:
    random = np.random.default_rng(2)
    levels = random.integers(0, np.iinfo(dtype).max, (61, 45, *channels), dtype, endpoint=True)
    assert isinstance(engine, LevelsEngine)
    result = Inference(engine, tile_lr_px=tile).levels(levels)
    expected = Inference(without_levels(engine), tile_lr_px=tile).levels(levels)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)
    assert len(np.unique(result)) > 100


@pytest.mark.parametrize(
    "levels", [np.zeros((1, 4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((1, 4, 4, 4), np.uint8)]
)
def test_what_are_no_levels_is_an_error(engine: TorchEngine, levels: np.ndarray) -> None:
    with pytest.raises(EngineError, match="expected"):
        engine.submit_levels(levels)


# What CUDA measures


@pytest.mark.parametrize(
    ("costs", "moved", "bytes_per_lr_px"),
    [
        ([Cost(1.0, 512**2 * 5000), Cost(2.0, 512**2 * 4000)], False, 5000),
        ([Cost(2.0, 512**2 * 4000), Cost(1.0, 512**2 * 5000)], True, 5000),
        ([Cost(2.0, 512**2 * 4000), None], False, 4000),
        ([None, None, Cost(2.0, 256**2 * 9000), Cost(1.0, 256**2 * 100_000)], False, 9000),
        ([None] * 6, False, None),
    ],
)
def test_the_tail_and_the_size_of_tiles_are_what_does_best(
    files: tuple[Path, Path],
    engine: TorchEngine,
    monkeypatch: pytest.MonkeyPatch,
    costs: list[Cost | None],
    moved: bool,
    bytes_per_lr_px: float | None,
) -> None:
    left, forms = iter(costs), list[TailForm]()

    def arranged(network: nn.Module, form: TailForm) -> nn.Module:
        forms.append(form)
        return deployed(network, form)

    monkeypatch.setattr(engine_torch, "deployed", arranged)
    monkeypatch.setattr(engine_torch, "_learnt", {})
    monkeypatch.setattr(tails, "is_measurable", lambda _: True)
    monkeypatch.setattr(tails, "cost", lambda run, device: next(left))
    for _ in range(2):  # the second has nothing to measure
        probed = half(files)
        assert forms[-1] == TailForm(moved, 8)
        assert probed.bytes_per_lr_px == bytes_per_lr_px
    lr = noise(20, 20)
    assert np.abs(probed.run(lr) - engine.run(lr)).max() <= 4 / 255
    if bytes_per_lr_px is not None:
        plan = Inference(probed).plan(4000, 6000, 7e9)
        assert 0.8 * 7e9 < plan.needed_bytes == plan.tiles[0].read_px * bytes_per_lr_px <= 7e9
