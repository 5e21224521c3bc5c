"""Games that are dead on purpose raise their alarms, and one that lives does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.caches import cache_of
from support.runs import discs

from srgan.training import trainer, validation
from srgan.training.config import DiscriminatorRecipe, Recipe, validated
from srgan.training.data.cache import PictureCache
from srgan.training.run import Run

ASLEEP, SILENT, AT_ZERO = "the discriminator sleeps", "as if it were not played", "loss has been at 0"


@pytest.fixture(scope="module")
def pictures() -> PictureCache:
    return cache_of(*discs(6))


def game(objective: str, *, weight: float = 1e-2, pull: float = 0.0, **stage: Any) -> Recipe:
    return validated(
        {
            "precision": "fp32",
            "objective": objective,
            "generator": {"blocks": 1, "features": 4},
            "discriminator": {"features": 8},
            "losses": {
                "content": {"kind": "l1"},
                "perceptual": {"weight": 0.0},
                "adversarial": {"weight": weight, "pull": pull},
            },
            "data": {"held_out": 1},
            "pretrain": {"steps": 0},
            "adversarial": {"steps": 12, "batch_size": 4, "patch_hr_px": 32, "discriminator_steps": 1} | stage,
            "guards": {"asleep_steps": 6},
            "log_steps": 2,
        },
        "test",
    )


def judged_by(recipe: Recipe, **judge: Any) -> Recipe:
    """The recipe with a discriminator that it may be refused with."""
    return recipe.model_copy(update={"discriminator": DiscriminatorRecipe(features=8, **judge)})


def rows_of(recipe: Recipe, cache: PictureCache, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(validation, "lpips_available", lambda: False)
    monkeypatch.setattr(Run, "export", lambda *_: [])
    trainer.train(recipe, cache, folder)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def alarms_in(rows: list[Any]) -> str:
    return "\n".join(row["alarm"] for row in rows if "alarm" in row)


def test_wgan_with_a_batchnorm_critic(
    pictures: PictureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = game("wgan", weight=1.0, discriminator_learning_rate=1e-3)
    dead = rows_of(judged_by(recipe, normalisation="batch"), pictures, tmp_path / "dead", monkeypatch)
    assert AT_ZERO in alarms_in(dead)
    assert ASLEEP in alarms_in(dead)
    alive = rows_of(recipe, pictures, tmp_path / "alive", monkeypatch)
    assert alarms_in(alive) == ""


def test_a_game_of_hardly_any_weight(
    pictures: PictureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(game("wgan", weight=1e-9, discriminator_learning_rate=1e-3), pictures, tmp_path, monkeypatch)
    assert SILENT in alarms_in(rows)


def test_batchnorm_judged_apart_with_the_relativistic_average(
    pictures: PictureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = game(
        "relativistic-average",
        batch_size=16,
        steps=36,
        discriminator_alone_steps=34,
        discriminator_learning_rate=3e-3,
    )
    recipe = recipe.model_copy(update={"guards": recipe.guards.model_copy(update={"loss_below": 1e-3})})
    assert recipe.discriminator.normalisation == "batch"
    assert AT_ZERO in alarms_in(rows_of(recipe, pictures, tmp_path, monkeypatch))


def test_a_raised_pull_on_spectral_norm(
    pictures: PictureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weight stays, however much is asked for, since nobody is awake."""
    recipe = judged_by(
        game("relativistic-average", weight=1.0, pull=100.0, batch_size=8), normalisation="spectral"
    )
    recipe = recipe.model_copy(update={"guards": recipe.guards.model_copy(update={"chance_within": 0.3})})
    rows = rows_of(recipe, pictures, tmp_path, monkeypatch)
    assert ASLEEP in alarms_in(rows)
    assert {row["adversarial_weight"] for row in rows if "adversarial_weight" in row} == {1.0}
