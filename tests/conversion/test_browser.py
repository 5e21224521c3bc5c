"""Models for browsers, run by ONNX Runtime, against what the program itself makes."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest

from srgan import Upscaler
from srgan.conversion.browser import for_browser
from srgan.engines.faithful import REACH_LR_PX
from srgan.weights import ModelMetadata, bundled_models, find_weights

FAITHFUL = {model.name: model.is_faithful for model in bundled_models()}


@cache
def made(name: str) -> tuple[bytes, ModelMetadata]:
    return for_browser(find_weights(name), faithful=FAITHFUL[name])


def run(name: str, lr: np.ndarray) -> np.ndarray:
    """What ONNX Runtime makes of (H,W,3) uint8, (sH,sW,3) float32, not rounded."""
    session = onnxruntime.InferenceSession(made(name)[0], providers=["CPUExecutionProvider"])
    (sr,) = session.run(None, {"lr": np.moveaxis(lr, -1, 0)[None] / np.float32(255)})
    return np.moveaxis(np.asarray(sr)[0], 0, -1)


def photograph(height: int = 21, width: int = 26) -> np.ndarray:
    """A picture with slopes, an edge, and both ends of the range, where results are clamped."""
    y, x = np.mgrid[:height, :width] / 8
    waves = np.stack([np.sin(x + y), np.cos(2 * x - y), np.sin(3 * y)], axis=-1)
    levels = np.where(x[..., None] > width / 16, waves * 160 + 128, 255 * (waves > 0))
    return levels.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", FAITHFUL)
def test_it_is_half_as_large_and_within_a_level_of_the_program(name: str) -> None:
    lr = photograph()
    expected = Upscaler(name, precision="fp32").upscale(lr)
    levels = np.rint(run(name, lr).clip(0, 1) * 255)
    assert np.abs(levels - expected).max() <= 1
    assert len(made(name)[0]) < 0.55 * len(find_weights(name).onnx)


@pytest.mark.parametrize("name", ["srgan-x4", "srgan-x4-photo"])
def test_pieces_with_the_halo_that_is_told_are_the_whole(name: str) -> None:
    metadata = made(name)[1]
    halo, scale = metadata.halo_lr_px, metadata.scale
    assert halo == 40 + REACH_LR_PX * FAITHFUL[name]
    lr = photograph(halo + 12, 9)
    whole, above = run(name, lr), run(name, lr[: halo + 5])
    kept = 5 * scale  # of the piece above, what has a whole halo below
    assert np.abs(whole[:kept] - above[:kept]).max() < 1e-4
    assert np.abs(whole - np.concatenate([above, whole[len(above) :]])).max() > 1e-4


def test_nothing_in_it_needs_more_than_graphics_processors_have() -> None:
    graph = onnx.load_model_from_string(made("srgan-x4")[0]).graph
    kinds = {node.op_type for node in graph.node}
    assert kinds <= {"Add", "Cast", "Clip", "Conv", "DepthToSpace", "Div", "Mul", "PRelu", "Pad", "Sub"}
    casts = {node.input[0] for node in graph.node if node.op_type == "Cast"}
    assert casts <= {tensor.name for tensor in graph.initializer}  # done once, when it is loaded
