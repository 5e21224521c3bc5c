"""The sheet of patches as a run will see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.photographs import RECIPE, photograph

from srgan.commands.data import preview
from srgan.errors import PictureError, UsageError


def test_the_preview_shows_hr_beside_lr(clean: Path, recipe: str, tmp_path: Path) -> None:
    preview([clean], tmp_path / "sheet.png", recipe, seed=3, count=5)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    assert sheet.shape == (3 * 36 - 4, 2 * 68 - 4, 3)  # five pairs of 32+32 px in two columns, gaps of 4
    assert (sheet[36:68, 64:68] == 255).all()
    assert (sheet[72:, 68:] == 255).all()  # the sixth place is empty
    sources = [np.asarray(Image.open(path)) for path in clean.iterdir()]
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):
        cell = sheet[36 * row :, 68 * column :][:32, :64]
        hr, lr = cell[:, :32], cell[:, 32:]
        assert (lr == lr[::4, ::4].repeat(4, 0).repeat(4, 1)).all()
        means = hr.reshape(8, 4, 8, 4, 3).mean((1, 3))
        assert np.abs(means - lr[::4, ::4]).mean() < 3  # the same place, reduced
        assert any(occurs(hr, source) for source in sources)


def occurs(patch: np.ndarray, source: np.ndarray) -> bool:
    for turned in (np.rot90(patch, k) for k in range(4)):
        for kind in (turned, turned[:, ::-1]):
            first = np.argwhere((source == kind[0, 0]).all(2))
            for y, x in first:
                window = source[y : y + 32, x : x + 32]
                if window.shape == kind.shape and (window == kind).all():
                    return True
    return False


def test_the_preview_follows_seed_and_recipe(clean: Path, recipe: str, tmp_path: Path) -> None:
    for seed in range(10):  # large enough for the wider margin
        Image.fromarray(photograph(110, 120, seed)).save(clean / f"{seed}.png")
    wild = tmp_path / "wild.toml"
    wild.write_text(RECIPE.replace("patch_hr_px = 32", "patch_hr_px = 16") + '[degradation]\nkind = "realistic"\n')
    plain = tmp_path / "plain.toml"
    plain.write_text(wild.read_text().replace("realistic", "bicubic"))
    sheets = {}
    for name, (which, seed) in {
        "a": (wild, 1),
        "same": (wild, 1),
        "seed": (wild, 2),
        "plain": (plain, 1),
    }.items():
        preview([clean], tmp_path / f"{name}.png", str(which), seed=seed, count=4)
        sheets[name] = (tmp_path / f"{name}.png").read_bytes()
    assert sheets["a"] == sheets["same"]
    assert len(set(sheets.values())) == 3


def test_the_preview_takes_weights_and_shipped_lr(clean: Path, recipe: str, tmp_path: Path) -> None:
    for name in ("hr", "lr"):
        (tmp_path / name).mkdir()
    for seed in range(3):
        Image.fromarray(photograph(64, 80, seed)).save(tmp_path / "hr" / f"{seed}.png")
        Image.new("RGB", (20, 16), (255, 0, 255)).save(tmp_path / "lr" / f"{seed}x4.png")  # told apart at a glance
    pair = f"{tmp_path / 'hr'}:{tmp_path / 'lr'}"

    def shipped(*sources: str) -> int:
        preview(sources, tmp_path / "sheet.png", recipe, seed=1, count=8)
        sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
        cells = [sheet[36 * row, 68 * column + 32] for row in range(4) for column in range(2)]
        return sum(bool((cell == [255, 0, 255]).all()) for cell in cells)

    assert shipped(pair) == 8
    assert shipped(f"{pair}=1e-9", f"{clean}=1") == 0
    assert shipped(f"{pair}=1", f"{clean}=1e-9") == 8


def test_previews_that_cannot_be_are_refused(clean: Path, recipe: str, tmp_path: Path) -> None:
    for out, count, part in (
        (tmp_path / "sheet.txt", 4, "ends in .png"),
        (tmp_path / "sheet.png", 0, "--count 0"),
        (tmp_path / "sheet.png", 10**6, "give 1 to"),
    ):
        with pytest.raises(UsageError, match=part):
            preview([clean], out, recipe, count=count)
    with pytest.raises(PictureError, match="cannot be written"):
        preview([clean], tmp_path / "absent" / "sheet.png", recipe, count=2)
    with pytest.raises(UsageError, match="is not a folder"):
        preview([tmp_path / "absent"], tmp_path / "sheet.png", recipe, count=2)
