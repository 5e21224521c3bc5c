"""Runs that lie among their own pictures: what they write is never trained on."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srgan.commands import data
from srgan.commands.options import TrainOptions
from srgan.commands.train import train
from srgan.errors import UsageError
from srgan.training.data import check as data_check
from srgan.training.data.sources import Source, list_files, parse_source

RECIPE = """
log_steps = 1
generator = { blocks = 1, features = 4 }
discriminator = { features = 2 }
losses = { perceptual = { weight = 0.0 } }
data = { held_out = 1 }
pretrain = { steps = 2, batch_size = 2, patch_hr_px = 16 }
adversarial = { steps = 2, batch_size = 2, patch_hr_px = 16 }
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(noise.integers(0, 256, (64, 72, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def levels_put_back() -> None:
    """The command sets the level of the program's log."""
    logging.getLogger("srgan").setLevel(logging.NOTSET)


def trained(photos: Path, run: Path, *, resume: bool = False) -> None:
    train(TrainOptions(str(photos.parent / "recipe.toml"), [str(photos)], run, resume=resume))
    assert list((run / "samples").iterdir())


@pytest.mark.parametrize("place", ["runs/a", "."])
def test_a_run_among_its_pictures_can_be_resumed(
    photos: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = photos / place
    trained(photos, run)
    assert "written by training runs" not in caplog.text
    trained(photos, run, resume=True)  # with the same pictures: it would be refused with others
    told = [text for record in caplog.records if "written by training runs" in (text := record.getMessage())]
    assert len(told) == 1
    assert str(run if place != "." else run / "samples") in told[0]
    assert [file.path.name for file in list_files([Source(photos)])] == [f"{index}.png" for index in range(6)]


def written_by_a_run(folder: Path) -> None:
    (folder / "samples").mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    (folder / "recipe.json").write_text("{}")
    Image.new("RGB", (64, 64)).save(folder / "samples" / "0-pretrain.png")


def test_runs_are_left_out_at_every_depth_and_named_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(data_check, "measured", lambda *_: None)
    for name in ("runs/a", "b", "below/deep/c"):
        written_by_a_run(photos / name)
    Image.new("RGB", (64, 64)).save(photos / "below" / "deep" / "kept.png")
    names = [file.path.name for file in list_files([Source(photos), Source(photos / "below")])]
    assert names == [*(f"{index}.png" for index in range(6)), "kept.png"]
    assert len(caplog.records) == 1
    for name in ("runs/a", "b", "below/deep/c"):
        assert str(photos / name) in caplog.records[0].getMessage()
    caplog.clear()
    assert data.check([photos], None, None, str(photos.parent / "recipe.toml")) == 0
    assert len(caplog.records) == 1
    caplog.clear()
    data.preview([photos], photos.parent / "sheet.png", str(photos.parent / "recipe.toml"))
    assert len(caplog.records) == 1


def test_runs_among_shipped_lr(photos: Path, tmp_path: Path) -> None:
    lr = tmp_path / "lr"
    lr.mkdir()
    for index in range(6):
        with Image.open(photos / f"{index}.png") as hr:
            hr.reduce(4).save(lr / f"{index}.png")
    written_by_a_run(photos / "runs")
    written_by_a_run(lr / "runs")
    files = list_files([parse_source(f"{photos}:{lr}")])
    assert [file.lr_path for file in files] == [lr / f"{index}.png" for index in range(6)]


def test_samples_can_be_asked_for_by_name(photos: Path) -> None:
    written_by_a_run(photos / "a")
    assert len(list_files([Source(photos / "a" / "samples")])) == 1
    with pytest.raises(UsageError, match="no pictures below"):
        list_files([Source(photos / "a")])
