"""Back-projection within the engines: what it reaches, that pieces stay exact, and that it hides nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.engines import noise, strips
from support.photographs import photograph

from srgan.conversion.exporting import onnx_from
from srgan.conversion.loading import load_engine
from srgan.engines.faithful import REACH_LR_PX, kernels
from srgan.engines.inference import Inference
from srgan.engines.openvino import OpenVinoEngine, precisions
from srgan.engines.torch import TorchEngine
from srgan.errors import EngineError
from srgan.networks.residual import Architecture, ResidualNetwork
from srgan.upscale import Upscaler
from srgan.weights import ModelMetadata, bundled_models, bundled_tensors, find_weights


def by_pillow(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))


def convolved(tensor: torch.Tensor, weights: tuple[np.ndarray, ...]) -> torch.Tensor:
    for weight in weights:
        tensor = F.conv2d(tensor, torch.from_numpy(weight), padding="same")
    return tensor


def lacking(engine: OpenVinoEngine | TorchEngine, lr: np.ndarray) -> np.ndarray:
    """What SR as 8-bit levels, reduced by Pillow, differs from `lr`, in grey levels."""
    sr = np.rint(engine.run(lr)[0].clip(0, 1) * 255)
    again = np.stack([by_pillow(plane, *lr.shape[2:]) for plane in sr.astype(np.float32)])
    difference: np.ndarray = again.clip(0, 255) - 255 * lr[0]
    return difference


@pytest.fixture(scope="module")
def sharp() -> OpenVinoEngine:
    return OpenVinoEngine(find_weights("srgan-x4").onnx, faithful=True)


@pytest.fixture(scope="module")
def lr() -> np.ndarray:
    """With room at black and white: plateaus that were cut off there are no reduction of any picture."""
    texture = np.random.default_rng(0).integers(-15, 16, (45, 38, 3))
    levels = np.rint(25 + photograph(45, 38, 3) * 0.8 + texture).astype(np.float32)
    return np.ascontiguousarray(levels.transpose(2, 0, 1)[None] / np.float32(255))


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 8])
def test_the_kernels_are_pillows_bicubic(scale: int) -> None:
    kernel = kernels(scale, channels=1)
    sr = noise(9 * scale, 7 * scale)[0, 0]
    squares = F.pixel_unshuffle(torch.from_numpy(sr)[None, None], scale)
    reduced = convolved(squares, kernel.reduce)
    inside = convolved(torch.ones(1, 1, 9, 7), kernel.inside)
    np.testing.assert_allclose((reduced / inside)[0, 0], by_pillow(sr, 9, 7), atol=1e-6)  # at the edges too
    small = noise(11, 12)[0, 0]
    phases = convolved(torch.from_numpy(small)[None, None], kernel.enlarge)
    enlarged, inner = F.pixel_shuffle(phases, scale)[0, 0].numpy(), slice(2 * scale, -2 * scale)
    expected = by_pillow(small, 11 * scale, 12 * scale)
    np.testing.assert_allclose(enlarged[inner, inner], expected[inner, inner], atol=1e-6)


def test_a_result_reduced_again_is_the_picture(sharp: OpenVinoEngine, lr: np.ndarray) -> None:
    free = OpenVinoEngine(find_weights("srgan-x4").onnx)
    before, after = lacking(free, lr), lacking(sharp, lr)
    assert np.abs(after).max() <= 2
    psnr = [10 * np.log10(255**2 / np.square(difference).mean()) for difference in (before, after)]
    assert psnr[0] < 50
    assert psnr[1] > 60
    assert np.abs(after.mean(axis=(1, 2))).max() < 0.05  # no colour is shifted


@pytest.mark.parametrize("rows", [1, 3, 8, 50])
def test_strips_are_the_whole(sharp: OpenVinoEngine, lr: np.ndarray, rows: int) -> None:
    assert sharp.strip_facts is not None
    assert sharp.strip_facts.lag_lr_px >= sharp.metadata.halo_lr_px == 40 + REACH_LR_PX
    np.testing.assert_array_equal(strips(sharp, lr, rows), sharp.run(lr))


@pytest.mark.skipif("bf16" not in precisions(), reason="this processor has no bfloat16")
def test_strips_are_the_whole_in_bfloat16(lr: np.ndarray) -> None:
    halved = OpenVinoEngine(find_weights("srgan-x4").onnx, precision="bf16", faithful=True)
    np.testing.assert_array_equal(strips(halved, lr, 5), halved.run(lr))
    assert np.abs(lacking(halved, lr)).max() <= 2


def test_tiles_are_the_whole(tiny_model: Path) -> None:
    engine = OpenVinoEngine(tiny_model, faithful=True)
    lr = noise(97, 61)
    whole = engine.run(lr)
    assert engine.metadata.halo_lr_px == 12 + REACH_LR_PX
    np.testing.assert_allclose(Inference(engine, tile_lr_px=9).array(lr), whole, atol=1e-5)
    less = np.pad(lr, ((0, 0), (0, 0), (0, 0), (0, 40)), mode="edge")
    beyond = np.abs(engine.run(less)[..., : whole.shape[3]] - whole).max(axis=(0, 1, 2))
    reach = 4 * engine.metadata.halo_lr_px
    assert beyond[:-reach].max() < 1e-5 < beyond[-reach // 2 :].max()


@pytest.mark.parametrize("factors", [(3,), (2, 2, 2)])
def test_any_scale(factors: tuple[int, ...], lr: np.ndarray) -> None:
    torch.manual_seed(1)
    facts = Architecture(
        **{"layout": "x", "blocks": 1, "features": 4, "factors": factors, "head_kernel": 3, "tail_kernel": 3},
        picture_skip="bilinear",
    )
    metadata = ModelMetadata("any", facts.scale, facts.halo_lr_px, {})
    content = onnx_from(ResidualNetwork(facts).eval(), metadata)
    engine = OpenVinoEngine(content, faithful=True)
    assert np.abs(lacking(OpenVinoEngine(content), lr)).max() > 10
    assert np.abs(lacking(engine, lr)).max() <= 2
    np.testing.assert_array_equal(strips(engine, lr, 7), engine.run(lr))


def test_torch_computes_the_same(sharp: OpenVinoEngine, lr: np.ndarray) -> None:
    engine = TorchEngine(bundled_tensors("srgan-x4"), device="cpu", faithful=True)
    np.testing.assert_allclose(engine.run(lr), sharp.run(lr), atol=2e-5)
    assert engine.metadata.halo_lr_px == sharp.metadata.halo_lr_px
    levels = np.rint(lr * 255).astype(np.uint8)[0].transpose(1, 2, 0)[None]
    taken = engine.submit_levels(levels)().astype(int)
    assert np.abs(taken - np.rint(sharp.run(lr).clip(0, 1) * 255).transpose(0, 2, 3, 1)).max() <= 1


def test_what_is_no_number_is_not_clamped_into_one(sharp: OpenVinoEngine, lr: np.ndarray) -> None:
    damaged = lr.copy()
    damaged[0, 1, 20, 20] = np.inf
    with pytest.raises(EngineError, match="not finite"):
        sharp.run(damaged)


@pytest.mark.parametrize(
    ("model", "expected"), [("srgan-x4", True), ("srresnet-x4", True), ("srgan-x4-photo", False)]
)
def test_models_of_clean_pictures_are_faithful(model: str, expected: bool) -> None:
    engine, sha256 = load_engine(model, device="cpu", precision="fp32")
    assert isinstance(engine, OpenVinoEngine)
    assert engine.faithful is expected
    assert next(entry for entry in bundled_models() if entry.name == model).is_faithful is expected
    other, other_sha256 = load_engine(model, device="cpu", precision="fp32", faithful=not expected)
    assert isinstance(other, OpenVinoEngine)
    assert other.faithful is not expected
    assert sha256 != other_sha256
    assert find_weights(model).sha256 in (sha256, other_sha256)  # that of the network alone


def test_what_lies_between_models_is_faithful() -> None:
    assert Upscaler(balance=0.5).faithful
    assert not Upscaler(balance=0.5, faithful=False).faithful
    assert Upscaler(balance=0.5).model_sha256 != Upscaler(balance=0.5, faithful=False).model_sha256
