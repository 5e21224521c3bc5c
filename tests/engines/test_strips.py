"""Strips: exactly the whole picture, whatever its size, and no picture's rows in another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.threads import at_once

from srgan.conversion.exporting import onnx_from
from srgan.engines import openvino as engine_module
from srgan.engines.compiled import CompiledModels
from srgan.engines.openvino import OpenVinoEngine
from srgan.engines.protocol import StripEngine
from srgan.engines.runtime import openvino, opset13
from srgan.engines.strips import StripGraph, UnsuitableGraphError, strip_graph
from srgan.errors import EngineError, OutOfMemoryError
from srgan.networks.generator import Generator
from srgan.weights import ModelMetadata, find_weights


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((1, 3, height, width), dtype=np.float32)


def strips(engine: OpenVinoEngine, lr: np.ndarray, rows: int) -> np.ndarray:
    """All strips of `lr`, each row of the result asserted to come once and in order."""
    sr = np.full((1, 3, 4 * lr.shape[2], 4 * lr.shape[3]), np.nan, np.float32)
    finished = 0
    for part, piece in engine.strips(lr.shape[2], lr.shape[3], rows, lambda start, stop: lr[:, :, start:stop]):
        assert part.start == finished < part.stop
        finished = part.stop
        sr[:, :, part] = piece
    assert finished == sr.shape[2]
    return sr


@settings(max_examples=15)
@given(height=st.integers(1, 70), width=st.integers(1, 50), rows=st.integers(1, 40))
def test_strips_equal_the_whole(tiny_engine: OpenVinoEngine, height: int, width: int, rows: int) -> None:
    lr = noise(height, width)
    assert np.abs(strips(tiny_engine, lr, rows) - tiny_engine.run(lr)).max() <= 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (97, 1), (8, 13), (16, 13), (17, 11), (53, 31)])
def test_strips_equal_the_whole_in_odd_sizes(tiny_engine: OpenVinoEngine, size: tuple[int, int]) -> None:
    lr = noise(*size)
    assert np.abs(strips(tiny_engine, lr, 8) - tiny_engine.run(lr)).max() <= 1e-6


@pytest.mark.parametrize("normalisation", ["none", "batch"])
def test_any_generator_of_ours(normalisation: str) -> None:
    """As trained, with another width, with and without batch statistics that are not 0 and 1."""
    torch.manual_seed(3)
    generator = Generator(1, 5, normalisation).eval()
    with torch.no_grad():
        for tensor in (
            *generator.parameters(),
            *(b for name, b in generator.named_buffers() if "running" in name),
        ):
            tensor.add_(0.05 * torch.rand_like(tensor))
    engine = OpenVinoEngine(onnx_from(generator, ModelMetadata("any-x4", 4, 12, {})), threads=1)
    lr = noise(29, 17)
    with torch.inference_mode():
        expected = generator(torch.from_numpy(lr)).numpy()
    np.testing.assert_allclose(strips(engine, lr, 6), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["srresnet-x4", "srgan-x4"])
def test_the_bundled_models(name: str) -> None:
    engine = OpenVinoEngine(find_weights(name).onnx)
    assert isinstance(engine, StripEngine)
    assert engine.strip_facts is not None
    assert engine.strip_facts.lag_lr_px == engine.metadata.halo_lr_px
    lr = noise(45, 19)
    assert np.abs(strips(engine, lr, 8) - engine.run(lr)).max() <= 1e-6


def test_what_lies_outside_the_picture_matters(
    tiny_engine: OpenVinoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above can fail: without masks, rows outside the picture are no zeros."""
    lr = noise(40, 20)
    whole = tiny_engine.run(lr)
    mask = StripGraph.mask
    monkeypatch.setattr(StripGraph, "mask", lambda *arguments: np.ones_like(mask(*arguments)))
    difference = np.abs(strips(tiny_engine, lr, 8) - whole)
    assert difference[:, :, 80].max() < 1e-6 < 1e-3 < difference[:, :, 0].max()
    assert difference[:, :, -1].max() > 1e-3


def test_pictures_in_strips_at_once_never_meet(tiny_engine: OpenVinoEngine) -> None:
    pictures = [noise(40, 20, seed) for seed in range(6)]
    expected = [tiny_engine.run(lr) for lr in pictures]
    results = at_once(lambda lr: [strips(tiny_engine, lr, 8) for _ in range(3)], pictures)
    for alone, together in zip(expected, results, strict=True):
        assert all(np.abs(sr - alone).max() <= 1e-6 for sr in together)


def test_one_graph_for_a_width_among_the_few_that_are_kept(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OpenVinoEngine(tiny_model, threads=1)
    made: list[tuple[int, int]] = []

    def counted(model: openvino.Model, rows: int, width: int) -> StripGraph:
        made.append((rows, width))
        return strip_graph(model, rows, width)

    monkeypatch.setattr(engine_module, "strip_graph", counted)
    for height in (5, 30):
        assert strips(engine, noise(height, 20), 8).shape == (1, 3, 4 * height, 80)
    engine.run(noise(8, 8))
    assert engine.kept_shapes == [(8, 20), (1, 3, 8, 8)]
    engine.forget()
    assert engine.kept_shapes == []
    assert strips(engine, noise(5, 20), 8).shape == (1, 3, 20, 80)
    assert made == [(8, 20), (8, 20)]


def test_values_that_are_not_finite_are_an_error(tiny_engine: OpenVinoEngine) -> None:
    lr = noise(40, 9)
    lr[0, 1, 30, 4] = np.nan
    parts = tiny_engine.strips(40, 9, 8, lambda start, stop: lr[:, :, start:stop])
    assert next(parts)[0].stop <= 4 * 30
    with pytest.raises(EngineError, match="not finite"):
        list(parts)


def test_what_reading_raises_comes_through(tiny_engine: OpenVinoEngine) -> None:
    def read(start: int, stop: int) -> np.ndarray:
        raise RuntimeError("the reader's own")

    with pytest.raises(RuntimeError, match="the reader's own"):
        next(tiny_engine.strips(9, 9, 8, read))


def test_a_model_whose_metadata_are_wrong_has_no_strips(tiny_engine: OpenVinoEngine, tiny_model: Path) -> None:
    engine = OpenVinoEngine(tiny_model, threads=1)
    engine.metadata = replace(engine.metadata, scale=3)
    assert engine.strip_facts is None


# Graphs that cannot be cut


def graphs() -> Iterator[tuple[str, openvino.Model]]:
    """Small models, each with something that strips do not know or would get wrong."""

    def weights(*shape: int) -> np.ndarray:
        return np.ones(shape, np.float32)

    def convolved(x: openvino.Output, **change: list[int]) -> openvino.Node:
        said = {"strides": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1], "dilations": [1, 1]} | change
        return opset13.convolution(x, weights(3, 3, 3, 3), **said)

    changes = {
        "stride": {"strides": [2, 2]},
        "dilation": {"dilations": [2, 2], "pads_begin": [2, 2], "pads_end": [2, 2]},
        "one-sided padding": {"pads_begin": [2, 2], "pads_end": [0, 0]},
        "no padding": {"pads_begin": [0, 0], "pads_end": [0, 0]},
    }
    x = opset13.parameter([1, 3, -1, -1], np.float32)
    for name, change in changes.items():
        yield name, openvino.Model([convolved(x, **change)], [x], name)
    mean = opset13.reduce_mean(x, np.array([2, 3]), keep_dims=True)
    yield "mean of the picture", openvino.Model([opset13.add(x, mean)], [x], "")
    even = opset13.convolution(x, weights(3, 3, 2, 2), [1, 1], [0, 0], [1, 1], [1, 1])
    yield "even kernel", openvino.Model([even], [x], "")
    gradient = np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1)
    fixed = opset13.parameter([1, 3, 8, -1], np.float32)
    yield "rows of their own", openvino.Model([opset13.multiply(fixed, gradient)], [fixed], "")
    ends = np.array([0, 0, 2, 2])
    for mode, source in (("reflect", x), ("edge", convolved(x))):
        padded = opset13.pad(source, ends, ends, mode)
        yield (
            f"{mode} padding",
            openvino.Model(
                [opset13.convolution(padded, weights(3, 3, 5, 5), [1, 1], [0, 0], [0, 0], [1, 1])], [x], ""
            ),
        )


@pytest.mark.parametrize(("name", "model"), [pytest.param(*graph, id=graph[0]) for graph in graphs()])
def test_graphs_that_cannot_be_cut(name: str, model: openvino.Model) -> None:
    with pytest.raises(UnsuitableGraphError):
        strip_graph(model, rows=8, width=6)


def test_a_model_that_cannot_be_cut_still_runs(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UnsuitableGraphError("Elsewhere")

    monkeypatch.setattr(engine_module, "strip_graph", refuse)
    engine = OpenVinoEngine(tiny_model, threads=1)
    assert engine.strip_facts is None
    assert engine.run(noise(4, 4)).shape == (1, 3, 16, 16)


# Out of memory


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Exception from x.cpp:\nstd::bad_alloc")])
def test_failed_allocations_are_told_from_other_failures(
    tiny_engine: OpenVinoEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(CompiledModels, "get", fail)
    with pytest.raises(OutOfMemoryError, match="not enough memory for a tile"):
        tiny_engine.run(noise(4, 4))
    with pytest.raises(OutOfMemoryError, match="not enough memory for strips"):
        strips(tiny_engine, noise(4, 4), 4)
