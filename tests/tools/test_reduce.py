"""LR folders of benchmarks: those that are published, to the bit, and bicubic's published figures."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from support.scripts import load_script

from srgan.evaluation.metrics import psnr
from srgan.pictures import Picture, resized


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("tools/reduce.py")


def rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_reduced_pictures_are_the_published_ones(script: ModuleType, shared: Path) -> None:
    benchmark = shared / "data" / "benchmarks" / "Set5"
    paths = sorted((benchmark / "LRx4").glob("*.png"))
    assert len(paths) == 5
    for path in paths:
        assert np.array_equal(script.reduced(rgb(benchmark / "HR" / path.name), 4), rgb(path))


@pytest.mark.parametrize(
    ("name", "scale", "psnr_y"),
    [
        ("Set5", 2, 33.66),  # Dong et al. 2016 (SRCNN) and all after them
        ("Set5", 3, 30.39),
        ("Set5", 8, 24.40),  # Lai et al. 2017 (LapSRN)
        pytest.param("Set14", 2, 30.24, marks=pytest.mark.slow),
        pytest.param("BSD100", 2, 29.56, marks=pytest.mark.slow),
    ],
)
def test_bicubic_has_its_published_figures(
    name: str, scale: int, psnr_y: float, script: ModuleType, shared: Path
) -> None:
    figures = []
    for path in sorted((shared / "data" / "benchmarks" / name / "HR").glob("*.png")):
        hr = rgb(path)
        lr = Picture(script.reduced(hr, scale))
        sr = resized(lr, lr.height * scale, lr.width * scale).pixels
        figures.append(psnr(sr, hr[: sr.shape[0], : sr.shape[1]], border=scale, y_only=True))
    assert np.mean(figures) == pytest.approx(psnr_y, abs=0.1)


def test_folders_are_made_beside_hr_and_left_where_they_are(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    Image.new("RGB", (35, 50), (10, 200, 90)).save(tmp_path / "HR" / "a.png")
    (tmp_path / "LRx4").mkdir()
    script.main([str(tmp_path)])
    assert not list((tmp_path / "LRx4").iterdir())
    for scale in (2, 3, 8):
        made = rgb(tmp_path / f"LRx{scale}" / "a.png")
        assert made.shape == (50 // scale, 35 // scale, 3)
        assert (made == (10, 200, 90)).all()
    with pytest.raises(SystemExit, match="no PNG pictures"):
        script.main([str(tmp_path / "absent"), "--scale", "2"])
