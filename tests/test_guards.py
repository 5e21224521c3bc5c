"""The guards' rules, alone and in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srgan.errors import TrainingError
from srgan.training import trainer
from srgan.training.checkpoint import checkpoint_path, latest_checkpoint, load_checkpoint
from srgan.training.config import GuardsRecipe, Recipe, validated
from srgan.training.data import PictureCache
from srgan.training.guards import Guards
from srgan.training.trainer import Position, roll_back

FINITE, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


def test_only_bad_steps_in_a_row_count() -> None:
    guards = Guards(GuardsRecipe(bad_steps=3))
    answers = [guards.went_bad(norm) for norm in (BAD, BAD, FINITE, BAD, BAD, torch.tensor(float("inf")), BAD)]
    assert answers == [False, False, False, False, False, True, False]


def test_a_confident_discriminator_raises_an_alarm_and_is_eased_only_if_allowed() -> None:
    position = Position()
    guards = Guards(GuardsRecipe(accuracy_steps=300))
    sure, unsure = {"discriminator_accuracy": 0.99}, {"discriminator_accuracy": 0.9}
    assert [bool(guards.watch(position, s, 100)) for s in (sure, sure, unsure, sure, sure, sure)] == [
        *[False] * 5,
        True,
    ]
    assert position.discriminator_rate_scale == 1
    easing = Guards(GuardsRecipe(accuracy_steps=100, ease_discriminator=True))
    assert "halved" in easing.watch(position, sure, 100)
    assert position.discriminator_rate_scale == 0.5
    assert easing.watch(position, {"content": 1.0}, 100) == ""


def test_best_is_by_lpips_or_else_by_psnr_and_patience_ends_a_stage() -> None:
    position, guards = Position(), Guards(GuardsRecipe(patience=2))
    scores = [{"validation/lpips": value, "validation/psnr_y": 30.0} for value in (0.5, 0.4, 0.45, 0.41)]
    assert [guards.is_best(position, score) for score in scores] == [True, True, False, False]
    assert guards.out_of_patience(position.validations_since_best)
    assert not Guards(GuardsRecipe()).out_of_patience(10**6)
    assert not guards.is_best(position, {})
    by_psnr = Position()
    assert [guards.is_best(by_psnr, {"validation/psnr_y": value}) for value in (30.0, 29.0, 31.0)] == [
        True,
        False,
        True,
    ]


def test_a_rollback_slows_down_and_gives_up_in_the_end() -> None:
    recipe = Recipe(guards=GuardsRecipe(rollbacks=2, rollback_rate=0.5))
    now = Position(step=50, rate_scale=0.5, rollbacks=1)
    then = roll_back(Position(step=40), now, recipe, now_s=99.0)
    assert (then.step, then.rollbacks, then.rate_scale, then.elapsed_s) == (40, 2, 0.25, 99.0)
    with pytest.raises(TrainingError, match="learning_rate"):
        roll_back(Position(step=40), then, recipe, now_s=100.0)


def noise_cache(count: int = 6, size: int = 72) -> PictureCache:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    sizes = torch.full((count,), size)
    offsets = torch.arange(count) * size * size * 3
    names = [f"{index}.png" for index in range(count)]
    return PictureCache(torch.from_numpy(pixels.reshape(-1)), offsets, sizes, sizes.clone(), names, "sha")


def small_recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "generator": {"blocks": 1, "features": 4},
        "discriminator": {"features": 2, "normalisation": "none"},
        "losses": {"perceptual": {"weight": 0.0}},
        "data": {"held_out": 1},
        "pretrain": {"steps": 6, "batch_size": 2, "patch_hr_px": 32},
        "adversarial": {"steps": 0, "batch_size": 2, "patch_hr_px": 32},
        "log_steps": 2,
        "checkpoint_minutes": 1e-9,
    }
    return validated(values | changes, "test")


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_meets_bad_gradients_rolls_back_and_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, poisoned = trainer.draw_pair, iter([False, False, False, True, True, *[False] * 50])

    def draw(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        lr, hr = real(*arguments)
        return (lr * float("nan") if next(poisoned) else lr), hr

    monkeypatch.setattr(trainer, "draw_pair", draw)
    recipe = small_recipe(guards={"bad_steps": 2, "rollback_rate": 0.5})
    exported = trainer.train(recipe, noise_cache(), tmp_path)
    assert [path.suffix for path in exported] == [".safetensors", ".onnx"]
    rows = rows_of(tmp_path)
    assert [row["alarm"] for row in rows if "alarm" in row] == ["gradients are not finite: rolled back"]
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates[-1] < rates[0] / 2
    best = load_checkpoint(checkpoint_path(tmp_path, 0, "pretrain", None))
    assert all(tensor.isfinite().all() for tensor in best["ema"].values())


def test_a_run_that_stays_bad_stops_with_its_checkpoint_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.draw_pair

    def draw(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        lr, hr = real(*arguments)
        return lr * float("nan"), hr

    monkeypatch.setattr(trainer, "draw_pair", draw)
    recipe = small_recipe(guards={"bad_steps": 1, "rollbacks": 2})
    with pytest.raises(TrainingError, match="learning_rate"):
        trainer.train(recipe, noise_cache(), tmp_path)
    _, state = latest_checkpoint(tmp_path)
    assert all(tensor.isfinite().all() for tensor in state["generator"].values())


def test_patience_ends_the_stage_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "validate", lambda *_: {"validation/lpips": 0.5, "validation/psnr_y": 20.0})
    recipe = small_recipe(
        guards={"patience": 2},
        validation_minutes=1e-9,
        pretrain={"steps": 10_000, "batch_size": 1, "patch_hr_px": 32},
    )
    trainer.train(recipe, noise_cache(), tmp_path)
    assert max(row["step"] for row in rows_of(tmp_path)) == 3  # one best, then two that were not better
