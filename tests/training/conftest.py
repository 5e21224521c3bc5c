"""What the tests of the data check and of the preview share."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.photographs import RECIPE, photograph


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Ten pictures without a fault."""
    folder = tmp_path / "clean"
    folder.mkdir()
    for seed in range(10):
        Image.fromarray(photograph(60 + seed, 80, seed)).save(folder / f"{seed}.png")
    return folder
