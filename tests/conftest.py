"""What several tests share: the optional shared folder and a generator small enough to run hundreds of times."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, and for the processes that tests start: two threads on networks this small spend their
# time waiting for one another; and no test may reach the network, so a download is refused at once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["https_proxy"] = os.environ["http_proxy"] = "http://127.0.0.1:1"
os.environ.pop("SRGAN_BACKBONES", None)
os.environ.setdefault("SOURCE_DATE_EPOCH", "1767225600")  # the day that results are labelled with

import hypothesis
import pytest
import torch

from srgan.conversion.exporting import onnx_from
from srgan.engines.openvino import OpenVinoEngine
from srgan.evaluation import metrics
from srgan.evaluation.backbones import FOLDER_VARIABLE
from srgan.networks.generator import Generator
from srgan.networks.layers import deployed
from srgan.weights import ModelMetadata

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("srgan", deadline=None)
hypothesis.settings.load_profile("srgan")


@pytest.fixture(autouse=True)
def _scripts_find_their_neighbours() -> Iterator[None]:
    """A command that was called in this process has said that its children look in no folder at hand."""
    yield
    os.environ.pop("PYTHONSAFEPATH", None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large test data (benchmarks, backbones, odd files), which a checkout does not hold."""
    folder = Path(os.environ.get("SRGAN_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; name its folder in SRGAN_SHARED")
    return folder


@pytest.fixture
def local_backbones(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LPIPS and DISTS with the networks of the shared folder, forgotten again afterwards."""
    networks = (metrics.lpips_network, metrics.dists_network)
    monkeypatch.setenv(FOLDER_VARIABLE, str(shared / "backbones"))
    for network in networks:
        network.cache_clear()
    yield
    for network in networks:
        network.cache_clear()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of a generator with 2 blocks and 8 features whose every layer shows in its output."""
    torch.manual_seed(0)
    generator = Generator(blocks=2, features=8)
    with torch.no_grad():
        # It starts near bicubic, where wrong tiles could hide: undo the tenths, so that its full reach is seen.
        for block in generator.blocks:
            block.get_parameter("conv2.weight").mul_(10)
        generator.tail.weight.mul_(10)
    metadata = ModelMetadata(
        name="tiny-x4",
        scale=4,
        halo_lr_px=generator.halo_lr_px,
        architecture={"blocks": 2, "features": 8, "normalisation": "none"},
    )
    path = tmp_path_factory.mktemp("model") / "tiny-x4.onnx"
    path.write_bytes(onnx_from(deployed(generator), metadata))
    return path


@pytest.fixture(scope="session")
def tiny_engine(tiny_model: Path) -> OpenVinoEngine:
    """The tiny model, loaded."""
    return OpenVinoEngine(tiny_model)
