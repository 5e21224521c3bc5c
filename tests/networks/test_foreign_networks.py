"""Networks of other architectures: built from their weights alone, run by PyTorch, in tiles as in one piece."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from srgan_service.work.device import Device
from srgan_service.work.models import Models
from support.foreign import leftthomas
from torch import nn

from srgan.conversion.importing import read_model
from srgan.conversion.loading import load_engine
from srgan.engines import tiling
from srgan.engines.inference import Inference
from srgan.engines.openvino import OpenVinoEngine
from srgan.engines.torch import TorchEngine
from srgan.errors import UsageError, WeightsError
from srgan.pictures import Picture
from srgan.upscale import Upscaler
from srgan.weights import ModelMetadata

pytest.importorskip("spandrel.architectures")


def esrgan(scale: int = 4, unshuffle: int | None = None) -> nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN

    channels = 3 * (unshuffle or 1) ** 2
    return ESRGAN(in_nc=channels, num_filters=8, num_blocks=1, scale=scale, shuffle_factor=unshuffle)


def swinir(upsampler: str = "pixelshuffledirect", scale: int = 4) -> nn.Module:
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        img_size=16,
        depths=[2, 2],
        embed_dim=12,
        num_heads=[2, 2],
        window_size=8,
        mlp_ratio=2,
        upscale=scale,
        upsampler=upsampler,
        resi_connection="1conv",
    )


def span() -> nn.Module:
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=12, upscale=4)


def safmn() -> nn.Module:
    from spandrel.architectures.SAFMN import SAFMN

    return SAFMN(dim=12, n_blocks=1, upscaling_factor=2)


def compact() -> nn.Module:
    from spandrel.architectures.Compact import Compact

    return Compact(num_feat=8, num_conv=2, upscale=2)


def rcan() -> nn.Module:
    """Its attention is an average over the whole picture."""
    from spandrel.architectures.RCAN import RCAN

    return RCAN(n_resgroups=1, n_resblocks=1, n_feats=8, reduction=4, scale=2)


def made(make: Callable[[], nn.Module], path: Path, container: str | None = None) -> nn.Module:
    """A network with random weights, saved as its own program does."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their code calls torch by its old argument names
        network = make().eval()
    state = network.state_dict()
    torch.save({container: state} if container else state, path)
    return network


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).random((1, 3, height, width), dtype=np.float32)


@pytest.mark.parametrize(
    ("make", "kind", "multiple"),
    [(esrgan, "ESRGAN", 1), (swinir, "SwinIR", 8), (span, "SPAN", 1), (safmn, "SAFMN", 8)],
)
def test_other_architectures_run_in_tiles_as_in_one_piece(
    tmp_path: Path, make: Callable[[], nn.Module], kind: str, multiple: int
) -> None:
    file = tmp_path / "theirs.pth"
    network = made(make, file, "params_ema")
    engine, sha256 = load_engine(file)
    assert isinstance(engine, TorchEngine)
    metadata = engine.metadata
    assert (metadata.name, metadata.architecture["layout"], metadata.multiple_lr_px) == ("theirs", kind, multiple)

    lr = noise(48, 64)  # whole windows: theirs pads nothing
    with torch.inference_mode():
        expected = network(torch.from_numpy(lr)).clamp(0, 1).numpy()
    assert expected.shape == (1, 3, 48 * metadata.scale, 64 * metadata.scale)
    np.testing.assert_allclose(engine.run(lr), expected, rtol=0, atol=1e-5)

    lr = noise(75, 101)
    whole = Inference(engine, tile_lr_px="off").array(lr)
    for tile in (16, 29):
        tiled = Inference(engine, tile_lr_px=tile).array(lr)
        assert np.abs(tiled - whole).max() <= 0.6 / 255  # nobody sees half a level
    assert load_engine(file)[1] == sha256


@pytest.mark.parametrize(
    ("make", "scale", "kind"),
    [
        (functools.partial(esrgan, 2), 2, "ESRGAN"),
        (functools.partial(esrgan, 4, unshuffle=2), 2, "ESRGAN"),  # as Real-ESRGAN x2 is: LR in blocks of 2x2
        (functools.partial(esrgan, 8), 8, "ESRGAN"),
        *((functools.partial(swinir, scale=scale), scale, "SwinIR") for scale in (2, 3, 8)),
        (functools.partial(swinir, "pixelshuffle", 2), 2, "SwinIR"),
        (functools.partial(swinir, "pixelshuffle", 3), 3, "SwinIR"),
        (functools.partial(swinir, "pixelshuffle", 8), 8, "SwinIR"),
        (compact, 2, "RealESRGAN Compact"),
    ],
)
def test_checkpoints_of_every_scale_are_read(
    tmp_path: Path, make: Callable[[], nn.Module], scale: int, kind: str
) -> None:
    network = made(make, tmp_path / "theirs.pth", "params_ema")
    engine, _ = load_engine(tmp_path / "theirs.pth", halo_lr_px=8)
    assert (engine.metadata.scale, engine.metadata.architecture["layout"]) == (scale, kind)
    lr = noise(16, 24)
    with torch.inference_mode():
        expected = network(torch.from_numpy(lr)).clamp(0, 1).numpy()
    assert expected.shape == (1, 3, 16 * scale, 24 * scale)
    np.testing.assert_allclose(engine.run(lr), expected, rtol=0, atol=1e-5)
    reduced = Upscaler(engine=engine).upscale(Picture(np.zeros((9, 11, 3), np.uint8)), 1.5)
    assert (reduced.height, reduced.width) == (14, 16)


def test_windows_that_fall_elsewhere_would_be_seen(tmp_path: Path) -> None:
    """What the multiple is good for: without it the same tiles differ visibly."""
    made(swinir, tmp_path / "x.pth")
    engine, _ = load_engine(tmp_path / "x.pth", halo_lr_px=9)
    lr = noise(75, 101)
    whole = Inference(engine, tile_lr_px="off").array(lr)
    good = Inference(engine, tile_lr_px=24).array(lr)
    engine.metadata = ModelMetadata("x", 4, 9, {})  # type: ignore[misc]
    bad = Inference(engine, tile_lr_px=24).array(lr)
    assert np.abs(bad - whole).max() > 4 * np.abs(good - whole).max()
    assert np.abs(bad - whole).max() > 2 / 255


@pytest.mark.parametrize(("height", "width", "tile", "halo"), [(75, 101, 3, 2), (8, 300, 1, 1), (5, 7, 4, 1)])
def test_tiles_in_blocks_begin_at_blocks_and_cover_the_picture_once(
    height: int, width: int, tile: int, halo: int
) -> None:
    block = 8
    blocks = tiling.tiles_of_size(-(-height // block), -(-width // block), tile_lr_px=tile, halo_lr_px=halo)
    covered = np.zeros((height, width), int)
    for one in tiling.in_blocks(blocks, block, height, width):
        for span_, length in ((one.rows, height), (one.columns, width)):
            assert span_.read_start % block == 0
            assert span_.read_stop % block == 0 or span_.read_stop == length
            assert 0 <= span_.read_start <= span_.start < span_.stop <= span_.read_stop <= length
        covered[one.target(1)] += 1
    assert (covered == 1).all()


def test_what_depends_on_the_whole_picture_needs_a_halo_from_the_user(tmp_path: Path) -> None:
    file = tmp_path / "rcan.pth"
    made(rcan, file)
    with pytest.raises(WeightsError, match=r"rcan\.pth: its result depends .* --halo N"):
        load_engine(file)
    engine, _ = load_engine(file, halo_lr_px=20)
    assert (engine.metadata.halo_lr_px, engine.metadata.scale) == (20, 2)
    with pytest.raises(WeightsError, match="a halo of -1"):
        load_engine(file, halo_lr_px=-1)


def test_a_known_architecture_given_as_weights_alone_goes_by_openvino(tmp_path: Path) -> None:
    theirs = leftthomas(blocks=1)
    torch.save(theirs.state, tmp_path / "netG.pth")
    engine, _ = load_engine(tmp_path / "netG.pth")
    assert isinstance(engine, OpenVinoEngine)
    with pytest.raises(UsageError, match="leave --halo out"):
        load_engine(tmp_path / "netG.pth", halo_lr_px=3)
    with pytest.raises(UsageError, match=r"fp32.*, not in fp16"):
        load_engine(tmp_path / "netG.pth", device="cpu", precision="fp16")


def test_the_service_takes_any_file_for_its_model(tmp_path: Path, tiny_model: Path) -> None:
    network = made(compact, tmp_path / "theirs.pth")
    with contextlib.closing(Device()) as device:
        models = Models(device, default=str(tmp_path / "theirs.pth"))
        assert (models.default, models.check(None).scale) == ("theirs", 2)
        models.prove()
        assert models.ready
        levels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
        result = models.get().upscale(Picture(levels)).pixels
        assert Models(device, default=str(tiny_model)).default == tiny_model.stem
    with torch.inference_mode():
        sr = network(torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255)
    expected = (sr[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_the_service_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"junk")
    with contextlib.closing(Device()) as device:
        with pytest.raises(WeightsError, match=r"x\.pth holds something else than tensors"):
            Models(device, default=str(tmp_path / "x.pth"))
        with pytest.raises(UsageError, match="no such file"):
            Models(device, default=str(tmp_path / "none.pth"))


def test_without_the_packages_for_it_a_file_of_weights_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(compact, tmp_path / "x.pth")
    modules = __import__("sys").modules
    monkeypatch.delitem(modules, "srgan.conversion.importing")
    monkeypatch.setitem(modules, "torch", None)
    with pytest.raises(UsageError, match=r"need torch, which is not installed: pip install .*\[train\]"):
        Upscaler(tmp_path / "x.pth")


def test_what_has_windows_is_not_made_an_onnx_file(tmp_path: Path) -> None:
    made(swinir, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"SwinIR cannot be made an ONNX file; .* srgan upscale -n"):
        read_model(tmp_path / "x.pth", "x")


@pytest.mark.slow
def test_a_crash_of_the_exporter_is_a_refusal(tmp_path: Path) -> None:
    made(span, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="SPAN cannot be made an ONNX file"):
        read_model(tmp_path / "x.pth", "x")
