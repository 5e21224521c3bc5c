"""The sheet that pictures are judged by: the same crops for all, where most is to be seen."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from support.engines import METADATA, NearestEngine
from support.scripts import load_script

from srgan.pictures import Picture
from srgan.upscale import Upscaler


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("tools/contact_sheet.py")


def test_the_busiest_window_is_where_the_detail_is(script: ModuleType) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[21:29, 33:41] = 255 * (np.indices((8, 8)).sum(0) % 2)[..., None]
    assert script.busiest_window(picture, 9) == (20, 32)  # the checks with the edges around them
    top, left = script.busiest_window(picture, 12, 4)
    assert top % 4 == left % 4 == 0
    assert top <= 20 < 29 <= top + 12
    assert left <= 32 < 41 <= left + 12


@pytest.mark.parametrize(("scale", "has_truth"), [(4, True), (4, False), (2, True)])
def test_every_column_shows_the_same_window(script: ModuleType, scale: int, has_truth: bool) -> None:
    lr = np.full((20, 30, 3), 90, np.uint8)
    lr[11, 17] = 200
    hr = Picture(lr.repeat(scale, 0).repeat(scale, 1))
    upscalers = {"nearest": Upscaler(engine=NearestEngine(replace(METADATA, scale=scale)))}
    row = script.row_of(Picture(lr), hr if has_truth else None, upscalers, 32, scale)
    columns = [row[:, start : start + 32] for start in range(0, row.shape[1], 32 + script.GAP_PX)]
    assert len(columns) == 3 + has_truth
    for column in (columns[0], *columns[2:]):
        assert np.array_equal(column, columns[0])
        assert (column == 200).all(axis=2).sum() == scale**2
    assert 90 < columns[1].max() <= 200  # bicubic, in the same place
    assert (
        np.unravel_index(columns[1][..., 0].argmax(), (32, 32))[0] // scale
        == np.argmax(columns[0][..., 0]) // 32 // scale
    )


def test_a_small_picture_makes_a_small_row(script: ModuleType) -> None:
    small, large = (script.row_of(Picture(np.zeros((n, n, 3), np.uint8)), None, {}, 64) for n in (5, 50))
    assert small.shape == (20, 2 * (20 + 4), 3)
    assert script.sheet([small, large]).pixels.shape == (20 + 64 + 2 * 4, 2 * (64 + 4), 3)


def test_the_script_writes_what_its_name_says(
    script: ModuleType,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 4), np.uint8)
    Image.fromarray(noise[..., :3]).save(folder / "a.png")
    Image.fromarray(noise[..., 0]).save(folder / "grey.png")  # these two would need another column
    Image.fromarray(noise, "RGBA").save(folder / "clear.png")
    out = tmp_path / "sheet.webp"
    arguments = ["contact_sheet.py", "--lr", str(folder), "-n", str(tiny_model), "-o", str(out), "--side", "48"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    assert capsys.readouterr().out.endswith(f"nearest, bicubic, {tiny_model}; a.png\n")
    with Image.open(out) as picture:
        assert picture.format == "WEBP"
        assert picture.size == (3 * (48 + 4), 48 + 4)
    monkeypatch.setattr(sys, "argv", ["contact_sheet.py"])
    with pytest.raises(SystemExit):
        script.main()
