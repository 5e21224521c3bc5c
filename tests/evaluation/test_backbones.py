"""Where VGG and AlexNet come from, and what is said when they cannot be had."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from srgan.errors import BackboneError
from srgan.evaluation import backbones
from srgan.evaluation.backbones import FOLDER_VARIABLE, load_features

WAYS = ("Let torchvision download", f"set {FOLDER_VARIABLE}")


class SmallNet(nn.Module):
    """Stands in for torchvision's AlexNet, whose real size would cost every test half a second."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(inplace=True), nn.Conv2d(width, 2, 3))


def small_alexnet(weights: str | None = None) -> SmallNet:
    if weights is not None:
        raise urllib.error.URLError("no route to host\nafter three attempts")
    return SmallNet()


@pytest.fixture
def alexnet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SmallNet]:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(torchvision.models, "alexnet", small_alexnet)
    return small_alexnet


def save_features(path: Path, network: nn.Module, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    state = {f"features.{k}": v.to(dtype).contiguous() for k, v in network.features.state_dict().items()}  # type: ignore[union-attr]
    save_file(state, path)
    return state


def one_line(error: pytest.ExceptionInfo[BackboneError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert all(way in text for way in WAYS)
    return text


@pytest.mark.usefixtures("alexnet")
def test_a_failed_download_names_the_ways_out() -> None:
    with pytest.raises(BackboneError) as caught:
        load_features("alexnet")
    assert one_line(caught).startswith("alexnet: the download failed (<urlopen error no route to host")


@pytest.mark.parametrize("network", ["vgg16", "vgg19", "alexnet"])
def test_every_network_fails_alike(network: backbones.Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision as it is, with its one door to the internet shut."""

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("offline")

    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setattr("os.path.exists", lambda path: False)
    with torch.device("meta"), pytest.raises(BackboneError) as caught:
        load_features(network)
    assert f"{network}_features.safetensors" in one_line(caught)


@pytest.mark.usefixtures("alexnet")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_file_of_any_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "mine.safetensors"
    state = save_features(path, SmallNet(), dtype)
    features = load_features("alexnet", path)
    assert not features.training
    for name, tensor in features.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[f"features.{name}"].float())
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert features(torch.rand(1, 3, 8, 8)).shape == (1, 2, 4, 4)


@pytest.mark.usefixtures("alexnet")
def test_the_folder_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = save_features(tmp_path / "alexnet_features.safetensors", SmallNet())
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert torch.equal(load_features("alexnet")[0].weight, state["features.0.weight"].float())  # type: ignore[arg-type]


@pytest.mark.usefixtures("alexnet")
def test_a_named_file_comes_before_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_features(tmp_path / "alexnet_features.safetensors", SmallNet())
    named = save_features(tmp_path / "named.safetensors", SmallNet())
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    features = load_features("alexnet", tmp_path / "named.safetensors")
    assert torch.equal(features[0].weight, named["features.0.weight"].float())  # type: ignore[arg-type]


@pytest.mark.usefixtures("alexnet")
def test_a_folder_without_the_file_leaves_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(BackboneError, match="the download failed"):
        load_features("alexnet")


@pytest.mark.usefixtures("alexnet")
def test_a_named_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no file .*gone\.safetensors") as caught:
        load_features("alexnet", tmp_path / "gone.safetensors")
    one_line(caught)


@pytest.mark.usefixtures("alexnet")
def test_a_file_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_features(path, SmallNet(width=7))
    with pytest.raises(BackboneError, match=r"does not hold features\.\* of alexnet") as caught:
        load_features("alexnet", path)
    assert str(path) in one_line(caught)


@pytest.mark.usefixtures("alexnet")
@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_file_that_is_not_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(BackboneError) as caught:
        load_features("alexnet", path)
    assert str(path) in one_line(caught)


@pytest.mark.usefixtures("alexnet")
def test_a_file_that_lacks_a_layer(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    state = save_features(path, SmallNet())
    del state["features.2.bias"]
    save_file(state, path)
    with pytest.raises(BackboneError) as caught:
        load_features("alexnet", path)
    assert str(path) in one_line(caught)


@pytest.mark.parametrize(("network", "convolutions"), [("vgg16", 13), ("alexnet", 5)])
def test_real_files(network: backbones.Network, convolutions: int, shared: Path) -> None:
    features = load_features(network, shared / "backbones" / f"{network}_features.safetensors")
    assert sum(isinstance(layer, nn.Conv2d) for layer in features) == convolutions
    assert all(parameter.isfinite().all() for parameter in features.parameters())


@pytest.mark.parametrize(("network", "has_recipe_key"), [("vgg16", True), ("alexnet", False)])
def test_only_what_helps_is_named(network: backbones.Network, has_recipe_key: bool, tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        load_features(network, tmp_path / "gone.safetensors")
    message = one_line(caught)
    assert f"{network}_features.safetensors" in message
    assert ("losses.perceptual.file" in message) == has_recipe_key


def test_vgg16_is_not_taken_for_vgg19(shared: Path) -> None:
    with pytest.raises(BackboneError, match=r"does not hold features\.\* of vgg19") as caught:
        load_features("vgg19", shared / "backbones" / "vgg16_features.safetensors")
    one_line(caught)
