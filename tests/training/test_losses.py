"""Content losses by hand, and the perceptual loss against torchvision's own structure and weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.numpy import load_file
from torch import Tensor, nn

from srgan.errors import RecipeError
from srgan.evaluation import backbones
from srgan.training.config import PerceptualRecipe
from srgan.training.losses import CONTENT_LOSSES, PerceptualLoss, layer_index

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)


@pytest.fixture
def small_vgg(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """VGG19's structure, 4 to 16 channels, seeded, in the place of the ImageNet weights."""
    torch.manual_seed(0)
    plan: list[int | str] = [4, 4, "M", 8, 8, "M", *[8] * 4, "M", *[16] * 4, "M", *[16] * 4, "M"]
    features: nn.Sequential = torchvision.models.vgg.make_layers(plan).eval().requires_grad_(False)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)  # type: ignore[arg-type]
    monkeypatch.setattr(backbones, "load_features", lambda network, file="": features)
    return features


def pictures(size: int = 32) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    return torch.rand(2, 3, size, size, generator=random), torch.rand(2, 3, size, size, generator=random)


def test_content_losses_by_hand() -> None:
    sr = torch.tensor([[0.0, 0.5], [1.0, 0.25]])
    hr = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    differences = [0.0, 0.5, 0.5, 0.25]
    expected = {
        "mse": sum(d * d for d in differences) / 4,
        "l1": sum(differences) / 4,
        "charbonnier": sum(math.sqrt(d * d + 1e-6) for d in differences) / 4,
    }
    assert expected.keys() == CONTENT_LOSSES.keys()
    for kind, value in expected.items():
        assert CONTENT_LOSSES[kind](sr, hr).item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("kind", sorted(CONTENT_LOSSES))
def test_content_gradients_are_finite_at_equality_and_descend(kind: str) -> None:
    sr, hr = pictures(8)
    sr.requires_grad_()
    CONTENT_LOSSES[kind](sr, hr).backward()
    assert sr.grad is not None
    with torch.no_grad():
        assert CONTENT_LOSSES[kind](sr - 0.1 * sr.grad, hr) < CONTENT_LOSSES[kind](sr, hr)
    same = hr.clone().requires_grad_()
    CONTENT_LOSSES[kind](same, hr).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()


@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_layer_names_follow_torchvisions_structure(network: str) -> None:
    """Walk the real network: J-th convolution since the I-th pooling is convI_J, and a ReLU follows it."""
    with torch.device("meta"):
        features = getattr(torchvision.models, network)(weights=None).features
    block, position, seen = 1, 0, 0
    for index, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            block, position = block + 1, 0
        elif isinstance(layer, nn.Conv2d):
            position, seen = position + 1, seen + 1
            assert layer_index(network, f"conv{block}_{position}") == index
            assert isinstance(features[index + 1], nn.ReLU)
    assert seen == int(network.removeprefix("vgg")) - 3  # all but the dense ones


@pytest.mark.parametrize(("network", "layer"), [("vgg16", "conv5_4"), ("vgg19", "conv6_1"), ("vgg19", "relu5_4")])
def test_unknown_layers_are_refused_with_the_known_ones(network: str, layer: str) -> None:
    with pytest.raises(RecipeError, match=rf"{network} has no '{layer}', only conv1_1, .*conv5_"):
        layer_index(network, layer)


@pytest.mark.parametrize("after", [True, False])
def test_taps_equal_a_walk_through_the_network(small_vgg: nn.Sequential, after: bool) -> None:
    layers = {"conv1_2": 0.25, "conv3_4": 2.0, "conv5_4": 1.0}
    loss = PerceptualLoss(PerceptualRecipe(layers=layers, after_activation=after, feature_scale=1.0))
    sr, hr = pictures()
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    expected = 0.0
    for index, weight in ((2, 0.25), (16, 2.0), (34, 1.0)):  # conv1_2, conv3_4 and conv5_4 of VGG19
        a, b = (small_vgg[: index + 1 + after]((x - MEAN) / deviation) for x in (sr, hr))
        expected += weight * (a - b).square().mean().item()
    assert loss(sr, hr).item() == pytest.approx(expected, rel=1e-5)


def test_before_the_activation_keeps_negative_features(small_vgg: nn.Sequential) -> None:
    """torchvision's ReLUs work in place: a tap before one would be overwritten by it."""
    sr, _ = pictures()
    before = PerceptualLoss(PerceptualRecipe(after_activation=False)).activations(sr)
    after = PerceptualLoss(PerceptualRecipe(after_activation=True)).activations(sr)
    (raw,), (rectified,) = before.values(), after.values()
    assert (raw < 0).any()
    assert torch.equal(raw.clamp(min=0), rectified)


def test_tapping_a_layer_does_not_disturb_deeper_ones(small_vgg: nn.Sequential) -> None:
    recipe = {"after_activation": False, "feature_scale": 1.0}
    sr, hr = pictures()
    apart = [PerceptualLoss(PerceptualRecipe(layers={n: 1.0}, **recipe))(sr, hr) for n in ("conv1_1", "conv4_1")]
    together = PerceptualLoss(PerceptualRecipe(layers={"conv1_1": 1.0, "conv4_1": 1.0}, **recipe))(sr, hr)
    torch.testing.assert_close(together, apart[0] + apart[1])


def test_the_mean_colour_is_the_networks_zero(small_vgg: nn.Sequential) -> None:
    loss = PerceptualLoss(PerceptualRecipe())
    (features,) = loss.activations(MEAN.expand(1, 3, 32, 32)).values()
    torch.testing.assert_close(features, small_vgg[:36](torch.zeros(1, 3, 32, 32)))
    (white,) = loss.activations(torch.ones(1, 3, 32, 32)).values()
    one = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(white, small_vgg[:36](one.expand(1, 3, 32, 32)))


@pytest.mark.parametrize(("kind", "power"), [("mse", 2), ("l1", 1)])
def test_feature_scale_multiplies_the_features(small_vgg: nn.Sequential, kind: str, power: int) -> None:
    sr, hr = pictures()
    one, scaled = (PerceptualLoss(PerceptualRecipe(kind=kind, feature_scale=s))(sr, hr) for s in (1.0, 6.8))
    assert scaled.item() == pytest.approx(one.item() * 6.8**power, rel=1e-5)


def test_equal_pictures_are_at_no_distance(small_vgg: nn.Sequential) -> None:
    sr, hr = pictures()
    loss = PerceptualLoss(PerceptualRecipe())
    assert loss(sr, sr.clone()).item() == 0
    assert loss(sr, hr).item() > 0


def test_the_gradient_reaches_sr_alone(small_vgg: nn.Sequential) -> None:
    sr, hr = pictures()
    sr.requires_grad_()
    hr.requires_grad_()
    loss = PerceptualLoss(PerceptualRecipe(layers={"conv2_2": 1.0, "conv5_4": 1.0}))
    loss(sr, hr).backward()
    assert sr.grad is not None
    assert (sr.grad.flatten(1).norm(dim=1) > 0).all()
    assert hr.grad is None
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())


def test_the_gradient_is_the_losss_slope(small_vgg: nn.Sequential) -> None:
    sr, hr = (x[:1].double() for x in pictures())
    loss = PerceptualLoss(PerceptualRecipe(layers={"conv2_2": 1.0}))
    sr.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(sr, hr), sr)
    direction = gradient / gradient.norm()
    step = 1e-3
    slope = (loss(sr + step * direction, hr) - loss(sr - step * direction, hr)) / (2 * step)
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=1e-2)


def test_under_autocast_the_features_are_halved_and_the_distance_is_not(small_vgg: nn.Sequential) -> None:
    sr, hr = pictures()
    loss = PerceptualLoss(PerceptualRecipe())
    gradients: list[Tensor] = []
    for half in (False, True):
        leaf = sr.detach().clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            distance = loss(leaf, hr)
        assert distance.dtype == torch.float32
        gradients += torch.autograd.grad(distance, leaf)
        assert distance.item() == pytest.approx(loss(sr, hr).item(), rel=0.05)
    assert nn.functional.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.9
    assert not torch.equal(*gradients)


def test_holds_no_more_of_vgg_than_it_needs(small_vgg: nn.Sequential) -> None:
    loss = PerceptualLoss(PerceptualRecipe(layers={"conv2_1": 1.0}, after_activation=False))
    assert len(loss.features) == 6


def numpy_features(weights: dict[str, np.ndarray], picture: np.ndarray, depth: int) -> np.ndarray:
    """The first `depth` convolutions of VGG16 in plain numpy: (3,H,W) normalised to (C,h,w) before activation."""
    x, poolings = picture, (2, 4, 7, 10)
    indices = sorted({int(name.split(".")[1]) for name in weights})
    for number, index in enumerate(indices[:depth]):
        if number:
            x = np.maximum(x, 0)
        if number in poolings:
            x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
            x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2).max(axis=(2, 4))
        kernel = weights[f"features.{index}.weight"].astype(np.float64)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        x = np.einsum("oikl,ihwkl->ohw", kernel, windows, optimize=True)
        x += weights[f"features.{index}.bias"].astype(np.float64)[:, None, None]
    return x


def test_real_vgg16_features(shared: Path) -> None:
    """The real weights, a picture given by formula: features against plain numpy, and a golden value."""
    file = shared / "backbones" / "vgg16_features.safetensors"
    recipe = PerceptualRecipe(
        network="vgg16", file=str(file), layers={"conv3_3": 1.0, "conv5_3": 1.0}, after_activation=False
    )
    y, x = np.mgrid[:32, :32] / 31.0
    picture = np.stack([y, x, (1 + np.sin(9 * x * y)) / 2])
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = (picture - mean[:, None, None]) / deviation[:, None, None]
    loss = PerceptualLoss(recipe)
    with torch.inference_mode():
        tapped = loss.activations(torch.from_numpy(picture).float()[None])
    weights = load_file(file)
    for index, depth in ((14, 7), (28, 13)):
        expected = numpy_features(weights, normalised, depth)
        np.testing.assert_allclose(tapped[index][0].numpy(), expected, rtol=1e-3, atol=1e-3)
    assert tapped[14].clamp(min=0).mean().item() == pytest.approx(2.15505, rel=1e-4)
