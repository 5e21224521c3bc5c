"""The weights that come with the package: intact, and on the benchmarks at least as good as was promised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.scripts import load_script

from srgan import pictures
from srgan.conversion.exporting import PARITY_TOLERANCE, parity
from srgan.engines.openvino import OpenVinoEngine
from srgan.evaluation.metrics import lpips, psnr
from srgan.networks.reading import load_generator
from srgan.training.data.degradation import bicubic
from srgan.upscale import Upscaler
from srgan.weights import bundled_folder, bundled_models, find_weights

MODELS = ("srresnet-x4", "srgan-x4", "srgan-x4-photo")
ALL = {**dict.fromkeys(MODELS, 4), "srresnet-x2": 2}  # with their scales

FLOOR_PSNR_Y_X2 = 37.3  # dB, of srresnet-x2 on Set5: what srresnet-x4 has, reduced to x2

# What the bundled weights must beat, by benchmark: PSNR-Y (dB) of srresnet-x4, LPIPS of srgan-x4.
FLOOR_PSNR_Y = {"Set5": 31.2, "Set14": 27.9, "BSD100": 27.1}
CEILING_LPIPS = {"Set5": 0.105, "Set14": 0.18, "BSD100": 0.23}

# How far SR's mean colour may be from LR's, in levels, and how close SR reduced again must come to LR, in dB. Less
# is asked of the model that takes LR for a degraded picture.
MOST_SHIFT = {"srresnet-x4": 1.0, "srgan-x4": 1.0, "srgan-x4-photo": 1.5}
LEAST_LR_PSNR = {"srresnet-x4": 34, "srgan-x4": 34, "srgan-x4-photo": 32}

BENCHMARKS = ["Set5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Set14", "BSD100"))]


def results(model: str, benchmark: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(LR, SR, HR) of every picture of a benchmark."""
    upscaler = Upscaler(model)
    paths = sorted((benchmark / "LRx4").glob("*.png"))
    assert len(paths) >= 5
    for path in paths:
        lr, hr = (pictures.decode(folder / path.name) for folder in (path.parent, benchmark / "HR"))
        sr = upscaler.upscale(lr)
        lr_rgb, sr_rgb, hr_rgb = (
            p.pixels if p.pixels.ndim == 3 else np.repeat(p.pixels[..., None], 3, axis=2) for p in (lr, sr, hr)
        )
        yield lr_rgb, sr_rgb, hr_rgb[: sr_rgb.shape[0], : sr_rgb.shape[1]]


def test_the_manifest_lists_the_models_and_one_is_the_default() -> None:
    models = {model.name: model for model in bundled_models()}
    assert ALL.keys() <= models.keys()
    assert sum(model.is_default for model in models.values()) == 1
    assert all(models[name].scale == scale and models[name].description for name, scale in ALL.items())


@pytest.mark.parametrize("name", ALL)
def test_files_are_intact_and_say_what_they_are(name: str) -> None:
    weights = find_weights(name)  # compares the hash
    metadata = OpenVinoEngine(weights.onnx).metadata
    assert (metadata.name, metadata.scale, metadata.halo_lr_px) == (name, ALL[name], 40)
    expected = {"scale": 4, "blocks": 16, "features": 64, "normalisation": "none"}
    assert {**expected, **metadata.architecture} == {**expected, "scale": ALL[name]}
    assert metadata.recipe
    assert len(metadata.data_sha256) == 64
    assert metadata.metrics["validation/psnr_y"] > 20


@pytest.mark.parametrize("name", ALL)
def test_both_files_of_a_model_hold_the_same_generator(name: str) -> None:
    generator, metadata = load_generator(bundled_folder() / f"{name}.safetensors")
    onnx = find_weights(name).onnx
    assert parity(generator.eval(), onnx) <= PARITY_TOLERANCE
    assert OpenVinoEngine(onnx).metadata == metadata
    expected = {2: 1.40e6, 4: 1.55e6}[ALL[name]]
    assert sum(parameter.numel() for parameter in generator.parameters()) == pytest.approx(expected, rel=0.01)


def test_the_model_card_names_all() -> None:
    card = (bundled_folder() / "README.md").read_text(encoding="utf-8")
    assert all(name in card for name in ALL)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_srresnet_is_faithful(benchmark: str, shared: Path) -> None:
    pairs = results("srresnet-x4", shared / "data" / "benchmarks" / benchmark)
    assert np.mean([psnr(sr, hr, border=4, y_only=True) for _, sr, hr in pairs]) > FLOOR_PSNR_Y[benchmark]


def test_srresnet_x2_is_faithful(shared: Path) -> None:
    reduced, figures = load_script("tools/reduce.py").reduced, []
    upscaler = Upscaler("srresnet-x2")
    for path in sorted((shared / "data" / "benchmarks" / "Set5" / "HR").glob("*.png")):
        hr = pictures.decode(path).pixels
        sr = upscaler.upscale(pictures.Picture(reduced(hr, 2))).pixels
        figures.append(psnr(sr, hr[: sr.shape[0], : sr.shape[1]], border=2, y_only=True))
    assert np.mean(figures) > FLOOR_PSNR_Y_X2


@pytest.mark.usefixtures("local_backbones")
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_srgan_is_close_to_the_eye(benchmark: str, shared: Path) -> None:
    pairs = results("srgan-x4", shared / "data" / "benchmarks" / benchmark)
    assert np.mean([lpips(sr, hr) for _, sr, hr in pairs]) < CEILING_LPIPS[benchmark]


@pytest.mark.parametrize("name", MODELS)
def test_no_colour_shift_and_no_invention_at_lr(name: str, shared: Path) -> None:
    """SR reduced again is LR: its mean within a level, its pixels within noise; the game may not drift."""
    import torch

    for lr, sr, _ in results(name, shared / "data" / "benchmarks" / "Set5"):
        again = bicubic(torch.from_numpy(sr).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0) * 255
        reduced = again.round().byte().numpy()
        assert np.abs(reduced.mean((0, 1)) - lr.mean((0, 1))).max() < MOST_SHIFT[name]
        assert psnr(reduced, lr, border=0, y_only=False) > LEAST_LR_PSNR[name]


@pytest.mark.slow
@pytest.mark.usefixtures("local_backbones")
@pytest.mark.parametrize(("quality", "gain"), [(40, 0.9), (75, 0.9), (90, 0.95), (None, 0.9)])
def test_photo_is_closer_to_the_eye_on_degraded_pictures(
    quality: int | None, gain: float, shared: Path, tmp_path: Path
) -> None:
    """LPIPS on Set14 as JPEG files of a quality, or with blur, noise and JPEG, against srgan-x4."""
    benchmark = shared / "data" / "benchmarks" / "Set14"
    source = benchmark / ("LRx4" if quality else "HR")
    load_script("tools/degrade.py").degrade(source, tmp_path / "LRx4", quality)
    (tmp_path / "HR").symlink_to(benchmark / "HR")
    photo, plain = (
        np.mean([lpips(sr, hr) for _, sr, hr in results(name, tmp_path)])
        for name in ("srgan-x4-photo", "srgan-x4")
    )
    assert photo < gain * plain
