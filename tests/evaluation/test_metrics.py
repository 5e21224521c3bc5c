"""PSNR, SSIM and LPIPS against other implementations, and against the field's published bicubic figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import correlate1d

from srgan.errors import BackboneError
from srgan.evaluation import metrics
from srgan.evaluation.metrics import dists, lpips, luma_of, psnr, ssim


def noise(height: int = 24, width: int = 31, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def near(pixels: np.ndarray, levels: int = 6) -> np.ndarray:
    jitter = np.random.default_rng(9).integers(-levels, levels + 1, pixels.shape)
    return (pixels.astype(int) + jitter).clip(0, 255).astype(np.uint8)


def matlab_luma(rgb: np.ndarray) -> np.ndarray:
    """Y of MATLAB's rgb2ycbcr as its manual gives it, for pictures in [0,255]: from the inverse's first row."""
    matrix = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
    offset = np.array([16.0, 128.0, 128.0])
    return np.asarray(np.einsum("ij,hwj->hwi", matrix, rgb / 255.0)[..., 0] + offset[0])


def plain_psnr(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
        total += (float(x) - float(y)) ** 2
    return 10 * math.log10(255.0**2 / (total / a.size))


def plain_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 with an 11×11 Gaussian window, valid positions only, of two (H,W) pictures."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        return np.asarray(correlate1d(correlate1d(x, taps, axis=0), taps, axis=1)[5:-5, 5:-5])

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def test_psnr_of_one_wrong_level_everywhere() -> None:
    hr = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(hr + np.uint8(1), hr, border=0, y_only=False) == pytest.approx(20 * math.log10(255))
    # All three channels one level up is 219/255 of a level in studio-range luma.
    expected = 20 * math.log10(255 / (219 / 255))
    assert psnr(hr + np.uint8(1), hr, border=0, y_only=True) == pytest.approx(expected)


def test_psnrs_peak_is_255_whatever_the_picture_holds() -> None:
    dark = np.full((8, 8, 3), 2, np.uint8)
    assert psnr(dark, dark * 2, border=0, y_only=False) == pytest.approx(20 * math.log10(255 / 2))


def test_black_against_white() -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert psnr(black, white, border=0, y_only=False) == pytest.approx(0.0, abs=1e-12)
    assert psnr(black, white, border=0, y_only=True) == pytest.approx(20 * math.log10(255 / 219))


@pytest.mark.parametrize("border", [0, 1, 4])
def test_psnr_against_a_plain_loop(border: int) -> None:
    hr = noise()
    sr = near(hr)
    kept = slice(border, -border or None)
    a, b = sr[kept, kept], hr[kept, kept]
    assert psnr(sr, hr, border=border, y_only=False) == pytest.approx(plain_psnr(a, b))
    assert psnr(sr, hr, border=border, y_only=True) == pytest.approx(plain_psnr(matlab_luma(a), matlab_luma(b)))


def test_the_border_is_not_looked_at() -> None:
    hr = noise()
    sr = near(hr)
    spoilt = sr.copy()
    spoilt[:4], spoilt[-4:], spoilt[:, :4], spoilt[:, -4:] = 0, 255, 0, 255
    for y_only in (True, False):
        assert psnr(spoilt, hr, border=4, y_only=y_only) == psnr(sr, hr, border=4, y_only=y_only)
        assert psnr(spoilt, hr, border=3, y_only=y_only) < psnr(sr, hr, border=3, y_only=y_only)
        assert ssim(spoilt, hr, border=4, y_only=y_only) == ssim(sr, hr, border=4, y_only=y_only)


def test_luma_at_known_colours() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(luma_of(colours), [[16, 235, 81.481, 144.553, 40.966]])


def test_other_lumas() -> None:
    hr = noise(40, 40)
    sr = near(hr)
    np.testing.assert_array_equal(luma_of(hr, "rounded"), np.floor(matlab_luma(hr) + 0.5))
    np.testing.assert_allclose(luma_of(hr, "full"), np.asarray(Image.fromarray(hr).convert("L")), atol=0.51)
    values = {luma: psnr(sr, hr, border=4, y_only=True, luma=luma) for luma in ("studio", "rounded", "full")}
    assert values["studio"] - values["full"] == pytest.approx(20 * math.log10(255 / 219), abs=1e-3)
    assert values["rounded"] == pytest.approx(values["studio"], abs=0.2)
    assert values["rounded"] != values["studio"]
    studio, full = (ssim(sr, hr, border=4, y_only=True, luma=luma) for luma in ("studio", "full"))
    assert 0 < abs(studio - full) < 0.01


def test_identical_pictures() -> None:
    hr = noise()
    for y_only in (True, False):
        assert psnr(hr, hr.copy(), border=2, y_only=y_only) == math.inf
        assert ssim(hr, hr.copy(), border=2, y_only=y_only) == pytest.approx(1.0)


@pytest.mark.parametrize("border", [0, 4])
def test_ssim_against_plain_filters(border: int) -> None:
    hr = noise(40, 33)
    sr = near(hr, levels=60)
    kept = slice(border, -border or None)
    a, b = sr[kept, kept].astype(float), hr[kept, kept].astype(float)
    by_channel = [plain_ssim(a[..., channel], b[..., channel]) for channel in range(3)]
    assert 0.5 < float(np.mean(by_channel)) < 0.98
    assert ssim(sr, hr, border=border, y_only=False) == pytest.approx(np.mean(by_channel), abs=1e-6)
    expected = plain_ssim(matlab_luma(a), matlab_luma(b))
    assert ssim(sr, hr, border=border, y_only=True) == pytest.approx(expected, abs=1e-6)


def test_ssim_falls_with_damage() -> None:
    hr = noise(40, 40)
    values = [ssim(near(hr, levels), hr, border=4, y_only=True) for levels in (2, 20, 120)]
    assert 1 > values[0] > values[1] > values[2] > 0


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("sr", "hr", "border", "part"),
    [
        (noise(20, 20), noise(20, 21), 0, "differ in shape"),
        (noise(20, 20)[..., :1], noise(20, 20)[..., :1], 0, "uint8"),
        (noise(20, 20)[..., 0], noise(20, 20)[..., 0], 0, "uint8"),
        (noise(20, 20) / 255, noise(20, 20) / 255, 0, "uint8"),
        (noise(20, 20), noise(20, 20).astype(np.uint16), 0, "uint8"),
        (noise(8, 20), noise(8, 20), 4, "nothing is left"),
        (noise(20, 8), noise(20, 8), 4, "nothing is left"),
        (noise(20, 20), noise(20, 20), -1, "shaving -1"),
    ],
)
def test_wrong_pictures_are_refused(
    metric: object, sr: np.ndarray, hr: np.ndarray, border: int, part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        metric(sr, hr, border=border, y_only=True)  # type: ignore[operator]


@pytest.mark.parametrize(("size", "border"), [(10, 0), (18, 4)])
def test_ssim_needs_a_window(size: int, border: int) -> None:
    with pytest.raises(ValueError, match="needs 11 pixels a side after shaving, not 10x10"):
        ssim(noise(size, size), noise(size, size, 1), border=border, y_only=True)
    assert ssim(noise(size + 1, size + 1), noise(size + 1, size + 1, 1), border=border, y_only=True) < 1


def test_lpips_without_alexnet_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no file .*gone\.safetensors"):
        lpips(noise(), noise(), file=tmp_path / "gone.safetensors")


def test_lpips_refuses_what_psnr_refuses() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        lpips(noise(64, 64), noise(64, 65))


@pytest.mark.usefixtures("local_backbones")
def test_lpips_is_a_distance() -> None:
    hr = noise(64, 64)
    sr = near(hr, 40)
    assert lpips(hr, hr) == 0
    assert lpips(sr, hr) > lpips(near(hr, 10), hr) > 0
    assert lpips(sr, hr) == pytest.approx(lpips(hr, sr), rel=1e-6)
    assert lpips(sr, hr, border=8) == lpips(sr[8:-8, 8:-8].copy(), hr[8:-8, 8:-8].copy())


@pytest.mark.usefixtures("local_backbones")
def test_lpips_knows_its_channels() -> None:
    hr = np.zeros((64, 64, 3), np.uint8)
    hr[::8, :, 0] = 255
    assert lpips(hr[..., ::-1].copy(), hr) > 0.01


def plain_lpips(weights: dict[str, np.ndarray], linear: list[np.ndarray], a: np.ndarray, b: np.ndarray) -> float:
    """Zhang et al. 2018, eq. 1, over torch's own functions, with the constants of its published v0.1."""
    import torch
    import torch.nn.functional as F

    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)

    def stages(pixels: np.ndarray) -> list[torch.Tensor]:
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        x, out = (x - shift) / scale, []
        for index, stride, padding, pool in (
            (0, 4, 2, 0),
            (3, 1, 2, 1),
            (6, 1, 1, 1),
            (8, 1, 1, 0),
            (10, 1, 1, 0),
        ):
            x = F.max_pool2d(x, 3, 2) if pool else x
            kernel, bias = (
                torch.from_numpy(weights[f"features.{index}.{part}"].astype(np.float32))
                for part in ("weight", "bias")
            )
            x = F.conv2d(x, kernel, bias, stride, padding).relu()
            out.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    total = 0.0
    for u, v, weight in zip(stages(a), stages(b), linear, strict=True):
        total += float(((u - v).square() * torch.from_numpy(weight)).sum(1).mean())
    return total


def test_lpips_against_its_formula(local_backbones: None, shared: Path) -> None:
    from safetensors.numpy import load_file

    network = metrics.lpips_network()
    linear = [network.state_dict()[f"lin{i}.model.1.weight"].numpy() for i in range(5)]
    assert all(weight.min() >= 0 for weight in linear)  # v0.1's, which are not random ones
    weights = load_file(shared / "backbones" / "alexnet_features.safetensors")
    hr = noise(64, 80)
    sr = near(hr, 50)
    assert lpips(sr, hr) == pytest.approx(plain_lpips(weights, linear, sr, hr), rel=1e-4)


def plain_dists(
    weights: dict[str, np.ndarray], alpha: np.ndarray, beta: np.ndarray, a: np.ndarray, b: np.ndarray
) -> float:
    """Ding et al. 2020, eq. 4 to 6, in float64: VGG16 with L2 pooling by a Hanning window."""
    import torch
    import torch.nn.functional as F

    hanning = np.outer(*2 * [np.hanning(5)[1:-1]])
    window = torch.from_numpy(hanning / hanning.sum())

    def maps(pixels: np.ndarray) -> list[np.ndarray]:
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
        out = [x]
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (x - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
        for stage, convolutions in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))):
            if stage:
                kernel = window.expand(x.shape[1], 1, 3, 3)
                x = (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()
            for index in convolutions:
                kernel, bias = (
                    torch.from_numpy(weights[f"features.{index}.{part}"].astype(np.float64))
                    for part in ("weight", "bias")
                )
                x = F.conv2d(x, kernel, bias, padding=1).relu()
            out.append(x)
        return [values[0].flatten(1).numpy() for values in out]

    total, done = 0.0, 0
    for u, v in zip(maps(a), maps(b), strict=True):
        mean_u, mean_v = u.mean(1), v.mean(1)
        texture = (2 * mean_u * mean_v + 1e-6) / (mean_u**2 + mean_v**2 + 1e-6)
        covariance = ((u - mean_u[:, None]) * (v - mean_v[:, None])).mean(1)
        structure = (2 * covariance + 1e-6) / (u.var(1) + v.var(1) + 1e-6)
        channels = slice(done, done + len(u))
        total += float((alpha[channels] * texture + beta[channels] * structure).sum())
        done += len(u)
    assert done == len(alpha)
    return 1 - total / float((alpha + beta).sum())


@pytest.mark.usefixtures("local_backbones")
def test_dists_against_its_formula(shared: Path) -> None:
    from safetensors.numpy import load_file

    state = metrics.dists_network().state_dict()
    alpha, beta = (state[name].double().flatten().numpy() for name in ("alpha", "beta"))
    assert alpha.min() >= 0
    assert alpha.std() > 0.5 * alpha.mean()  # the learned weights, which are not all alike
    weights = load_file(shared / "backbones" / "vgg16_features.safetensors")
    hr = noise(64, 80)
    sr = near(hr, 50)
    assert dists(sr, hr) == pytest.approx(plain_dists(weights, alpha, beta, sr, hr), abs=1e-4)
    assert dists(hr, hr) == pytest.approx(0, abs=1e-5)
    assert dists(sr, hr, border=8) == dists(sr[8:-8, 8:-8].copy(), hr[8:-8, 8:-8].copy())


def test_dists_without_vgg16_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no file .*gone\.safetensors"):
        dists(noise(), noise(), file=tmp_path / "gone.safetensors")


BICUBIC_PSNR_Y = {"Set5": 28.42, "Set14": 26.09, "BSD100": 25.96}  # the field's, for MATLAB's bicubic LR


def bicubic_pairs(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(bicubic SR, HR) of every picture of a benchmark, HR cropped to what ×4 LR covers."""
    files = sorted((folder / "LRx4").glob("*.png"))
    assert len(files) >= 5
    for lr_path in files:
        (hr_path,) = (p for p in (folder / "HR").glob("*.png") if lr_path.stem.startswith(p.stem))
        lr = Image.open(lr_path).convert("RGB")
        hr = np.asarray(Image.open(hr_path).convert("RGB"))[: 4 * lr.height, : 4 * lr.width]
        sr = np.asarray(lr.resize((4 * lr.width, 4 * lr.height), Image.Resampling.BICUBIC))
        yield sr, hr


@pytest.mark.parametrize("benchmark", sorted(BICUBIC_PSNR_Y))
def test_bicubic_scores_as_published(benchmark: str, shared: Path) -> None:
    pairs = bicubic_pairs(shared / "data" / "benchmarks" / benchmark)
    scores = [psnr(sr, hr, border=4, y_only=True) for sr, hr in pairs]
    assert np.mean(scores) == pytest.approx(BICUBIC_PSNR_Y[benchmark], abs=0.02)


@pytest.mark.usefixtures("local_backbones")
def test_bicubic_lpips_as_published(shared: Path) -> None:
    pairs = bicubic_pairs(shared / "data" / "benchmarks" / "Set5")
    assert np.mean([lpips(sr, hr) for sr, hr in pairs]) == pytest.approx(0.341, abs=0.01)
