"""Every scale: the graph is the network; strips, tiles, half precision, balance and strength are right at it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support.engines import noise, strips

from srgan.conversion.exporting import onnx_from
from srgan.engines.inference import Inference
from srgan.engines.openvino import OpenVinoEngine, precisions
from srgan.networks.generator import Generator
from srgan.pictures import Picture, resized
from srgan.upscale import Request, Upscaler
from srgan.weights import ModelMetadata


@dataclass(frozen=True)
class Case:
    """A generator of a scale, its file, and its engine in float32."""

    scale: int
    generator: Generator
    onnx: bytes
    engine: OpenVinoEngine


def made(scale: int, seed: int) -> tuple[Generator, bytes]:
    """A generator whose every layer shows in its output, and its file."""
    torch.manual_seed(seed)
    generator = Generator(blocks=2, features=8, scale=scale).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            parameter.mul_(10 if name.endswith("conv2.weight") or name == "tail.weight" else 1)
    metadata = ModelMetadata(f"any-x{scale}", scale, generator.halo_lr_px, {"blocks": 2, "scale": scale})
    return generator, onnx_from(generator, metadata)


@pytest.fixture(scope="module", params=[2, 3, 8])  # ×4 is everywhere else
def case(request: pytest.FixtureRequest) -> Case:
    generator, onnx = made(request.param, 0)
    return Case(request.param, generator, onnx, OpenVinoEngine(onnx, threads=1))


def test_the_graph_is_the_network(case: Case) -> None:
    lr = noise(19, 23)
    with torch.inference_mode():
        expected = case.generator(torch.from_numpy(lr)).numpy()
    assert expected.shape == (1, 3, 19 * case.scale, 23 * case.scale)
    np.testing.assert_allclose(case.engine.run(lr), expected, rtol=1e-5, atol=1e-5)
    assert case.engine.metadata.scale == case.scale


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (37, 1), (29, 17)])
@pytest.mark.parametrize("rows", [3, 8])
def test_strips_are_the_whole(case: Case, size: tuple[int, int], rows: int) -> None:
    facts = case.engine.strip_facts
    assert facts is not None
    assert facts.lag_lr_px == case.engine.metadata.halo_lr_px == case.generator.halo_lr_px
    lr = noise(*size)
    assert np.abs(strips(case.engine, lr, rows) - case.engine.run(lr)).max() <= 2e-6


def test_tiles_and_columns_of_strips_are_the_whole(case: Case) -> None:
    lr = noise(43, 38)
    whole = case.engine.run(lr)
    assert np.abs(Inference(case.engine, tile_lr_px=16).array(lr) - whole).max() <= 2e-6
    least = int(Inference(case.engine).plan(43, 38, 1).needed_bytes) + 1
    assert np.abs(Inference(case.engine, memory_bytes=least).array(lr) - whole).max() <= 2e-6


@pytest.mark.skipif("bf16" not in precisions(), reason="this processor has no bfloat16")
def test_half_precision_is_near_and_the_same_in_pieces(case: Case) -> None:
    half = OpenVinoEngine(case.onnx, precision="bf16", threads=1)
    assert half.precision == "bf16"
    lr = noise(29, 17)
    whole = half.run(lr)
    np.testing.assert_array_equal(strips(half, lr, 8), whole)
    np.testing.assert_array_equal(Inference(half, tile_lr_px=8).array(lr), whole)
    exact = case.engine.run(lr)
    assert 0 < np.square(whole - exact).mean() < 1e-4 * np.square(exact).mean()


def test_a_balance_is_the_network_of_mean_weights(case: Case) -> None:
    if case.scale == 8:
        pytest.skip("a second export takes seconds; one and two steps will do")
    other, onnx = made(case.scale, 1)
    torch.manual_seed(0)
    mean = Generator(blocks=2, features=8, scale=case.scale).eval()
    weights = case.generator.state_dict()
    mean.load_state_dict({name: weights[name].lerp(value, 0.25) for name, value in other.state_dict().items()})
    lr = noise(9, 11)
    with torch.inference_mode():
        expected = mean(torch.from_numpy(lr)).numpy()
    blended = OpenVinoEngine(case.onnx, blend=(onnx, 0.25), threads=1)
    np.testing.assert_allclose(blended.run(lr), expected, rtol=1e-4, atol=1e-4)


def test_a_strength_lies_between_bicubic_and_the_model(case: Case) -> None:
    picture = Picture(np.random.default_rng(3).integers(0, 256, (13, 10, 3), dtype=np.uint8))
    upscaler, (height, width) = Upscaler(engine=case.engine), (13 * case.scale, 10 * case.scale)
    full = upscaler.upscale(picture)
    assert (full.height, full.width) == (height, width)
    soft = resized(picture, height, width).pixels.astype(np.float32)
    half = upscaler.upscale(picture, Request(strength=0.5)).pixels
    assert np.abs(half - (soft + full.pixels) / 2).max() <= 0.5


def test_transparency_keeps_its_clear_and_opaque_parts(case: Case) -> None:
    alpha = np.zeros((12, 14), np.uint8)
    alpha[:, 7:] = 255
    levels = np.random.default_rng(3).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    sr = Upscaler(engine=case.engine).upscale(Picture(levels, alpha)).alpha
    assert sr is not None
    assert not sr[:, : 6 * case.scale].any()
    assert (sr[:, 8 * case.scale :] == 255).all()
