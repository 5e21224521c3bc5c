"""What a run exports, what it says of that, and what a resume goes on with."""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from support.caches import cache_of
from support.runs import discs, rows_of, small

from srgan.commands.export import export
from srgan.commands.recipes import recipes
from srgan.errors import UsageError
from srgan.networks.reading import load_checkpoint, load_generator
from srgan.pages.compare import compare, differences_of_data
from srgan.training import run as run_module
from srgan.training import trainer, validation
from srgan.training.checkpoint import checkpoint_path, checkpoints, drop_after, save_checkpoint
from srgan.training.config import bundled_recipes, load_recipe
from srgan.training.data.cache import PictureCache, split
from srgan.training.data.patches import Patches
from srgan.training.trainer import train


@pytest.fixture(autouse=True)
def no_alexnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation here goes without LPIPS: no test fetches or loads AlexNet."""
    monkeypatch.setattr(validation, "lpips_available", lambda: False)


@pytest.fixture(scope="module")
def cache() -> PictureCache:
    return cache_of(*discs(6))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Validations give these PSNRs, one after the other, bicubic's first; the last one for ever."""
    values = [20.0]

    def scores(*_: object) -> dict[str, float]:
        return {"validation/psnr_y": values.pop(0) if len(values) > 1 else values[0]}

    monkeypatch.setattr(run_module, "validate", scores)
    return values


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Exports are only noted, as (generator, metadata)."""
    exported: list[Any] = []

    def note(generator: Any, metadata: Any, _: Path) -> list[Path]:
        exported.append((generator, metadata))
        return []

    monkeypatch.setattr(run_module, "export_generator", note)
    return exported


ALONE: dict[str, Any] = {"adversarial": {"steps": 0}}
LOOKING: dict[str, Any] = {"validation_minutes": 1e-9}


def alarms_of(run: Path) -> list[str]:
    return [row["alarm"] for row in rows_of(run) if "alarm" in row]


# --- what is exported ------------------------------------------------------------------------------------------


def test_the_best_is_exported_and_not_the_last(
    cache: PictureCache, tmp_path: Path, judged: list[float], no_onnx: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    judged[:] = [18.0, 19.0, 20.0, 22.0, 21.0, 20.5, 20.5]  # bicubic, step 0, steps 1 to 4, the end
    caplog.set_level(logging.INFO)
    train(small(**ALONE, **LOOKING, keep_checkpoints=1), cache, tmp_path)
    ((generator, metadata),) = no_onnx
    best = load_checkpoint(checkpoint_path(tmp_path, 0, "pretrain", None))
    assert best["position"]["step"] == metadata.run["best_step"] == 2
    assert metadata.metrics == {"validation/psnr_y": 22.0}
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, best["ema"][f"module.{name}"])
    assert (
        "srresnet-x4: the average at step 2 of 4; PSNR-Y 22.00, 19.00 at step 0, 18.00 of bicubic" in caplog.text
    )
    assert alarms_of(tmp_path) == []


def test_export_of_a_run_is_of_its_best_and_says_so(
    cache: PictureCache,
    tmp_path: Path,
    judged: list[float],
    no_onnx: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    judged[:] = [18.0, 19.0, 20.0, 22.0, 21.0, 20.5, 20.5]
    train(small(**ALONE, **LOOKING), cache, tmp_path / "run")
    export(str(tmp_path / "run"), tmp_path, kinds=["safetensors"])
    assert "srresnet-x4 is the average at step 2 of pretrain, the best" in capsys.readouterr().err
    exported = load_generator(tmp_path / "srresnet-x4.safetensors")[0].state_dict()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in no_onnx[0][0].state_dict().items())


def test_a_stage_that_was_no_gain_is_told(
    cache: PictureCache, tmp_path: Path, judged: list[float], no_onnx: list[Any]
) -> None:
    judged[:] = [18.0, 21.0, 20.5]
    train(small(**ALONE), cache, tmp_path)
    assert alarms_of(tmp_path) == ["the stage did not get better than it began, by PSNR-Y: srresnet-x4 is no gain"]


def test_a_generator_that_hardly_moved_is_told(cache: PictureCache, tmp_path: Path, no_onnx: list[Any]) -> None:
    slow = {"learning_rate": 1e-9, "final_learning_rate": 1e-9, "steps": 2}
    train(small(**ALONE, pretrain=slow), cache, tmp_path)
    (alarm,) = alarms_of(tmp_path)
    assert "hardly moved, so srresnet-x4 draws what the stage began with" in alarm


def test_a_run_says_whether_it_beats_bicubic_and_its_start(
    cache: PictureCache, tmp_path: Path, no_onnx: list[Any]
) -> None:
    train(small(**ALONE), cache, tmp_path)
    yardstick, start, *_ = rows_of(tmp_path)
    held_out = split(cache, small().data)[1]
    by_hand = validation.validate(validation.Bicubic(), held_out)
    assert yardstick["bicubic/psnr_y"] == by_hand["validation/psnr_y"]
    assert (start["step"], start["validation/psnr_y"] > 0) == (0, True)
    assert len([row for row in rows_of(tmp_path) if "bicubic/psnr_y" in row]) == 1


# --- who judges ------------------------------------------------------------------------------------------------


def test_the_same_pictures_judge_whatever_the_seed(cache: PictureCache) -> None:
    names = {tuple(split(cache, small(seed=seed).data)[1].names) for seed in range(5)}
    assert len(names) == 1


def test_pictures_of_their_own_may_judge(cache: PictureCache, tmp_path: Path, no_onnx: list[Any]) -> None:
    judges = cache_of(*discs(2, size=72), sha256="b" * 64)
    train(small(**ALONE), replace(cache, validation=judges), tmp_path)
    state = load_checkpoint(checkpoint_path(tmp_path, 0, "pretrain", None))
    assert state["held_out"] == {"names": judges.names, "sha256": judges.sha256}
    assert len(split(replace(cache, validation=judges), small().data)[0]) == len(cache)


# --- going on --------------------------------------------------------------------------------------------------


def stopped_at(step: int, recipe: Any, cache: PictureCache, folder: Path, **options: Any) -> None:
    """Train until Ctrl-C comes in step number `step`."""
    drawn, draw = [0], Patches.pairs

    def counted(*arguments: Any) -> Any:
        drawn[0] += 1
        if drawn[0] == step:
            signal.raise_signal(signal.SIGINT)
        return draw(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Patches, "pairs", counted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, cache, folder, **options)


def test_a_resume_says_from_where_and_what_has_changed(
    cache: PictureCache, tmp_path: Path, no_onnx: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    stopped_at(2, small(**ALONE), cache, tmp_path)
    caplog.set_level(logging.INFO)
    train(small(**ALONE, pretrain={"steps": 3}), cache, tmp_path, resume=True)
    assert f"going on from {checkpoint_path(tmp_path, 0, 'pretrain', 2)}, pretrain step 2" in caplog.text
    assert "changed since: pretrain.steps = 3 was 4" in caplog.text
    assert caplog.text.count("changed since") == 1


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"losses": {"content": {"kind": "l1"}, "perceptual": {"weight": 0.0}}},
            "losses.content.kind = 'l1' was 'mse'",
        ),
        ({"pretrain": {"content": "l1"}}, "pretrain.content = 'l1' was 'mse'"),
        ({"degradation": {"kind": "realistic"}}, "degradation.kind = 'realistic' was 'bicubic'"),
        ({"data": {"split_seed": 3}}, "data.split_seed = 3 was 0"),
        ({"data": {"held_out": 0}}, "data.held_out = 0 was 1"),
    ],
)
def test_a_resume_with_other_rules_must_be_told(
    cache: PictureCache, tmp_path: Path, no_onnx: list[Any], change: dict[str, Any], part: str
) -> None:
    stopped_at(2, small(**ALONE), cache, tmp_path)
    with pytest.raises(UsageError, match="--allow-changes") as caught:
        train(small(**ALONE, **change), cache, tmp_path, resume=True)
    assert part in str(caught.value)
    train(small(**ALONE, **change), cache, tmp_path, resume="changed")
    assert checkpoints(tmp_path)[-1].stem.endswith("004")


def test_a_resume_with_other_judges_must_be_told(cache: PictureCache, tmp_path: Path) -> None:
    stopped_at(2, small(**ALONE), cache, tmp_path)
    with pytest.raises(UsageError, match="the pictures that judge are others"):
        train(small(**ALONE), replace(cache, validation=cache_of(*discs(2))), tmp_path, resume=True)


def test_minutes_hold_on(cache: PictureCache, tmp_path: Path) -> None:
    stopped_at(2, small(**ALONE), cache, tmp_path, minutes=50)
    assert load_checkpoint(checkpoints(tmp_path)[-1])["minutes"] == 50
    stopped_at(2, small(**ALONE), cache, tmp_path, resume=True)  # by steps it would have ended
    state = load_checkpoint(checkpoints(tmp_path)[-1])
    assert (state["minutes"], state["position"]["step"]) == (50, 4)
    stopped_at(2, small(**ALONE), cache, tmp_path, resume=True, minutes=60)
    state = load_checkpoint(checkpoints(tmp_path)[-1])
    assert (state["minutes"], state["position"]["step"]) == (60, 6)


def test_the_best_is_known_whatever_was_killed(
    cache: PictureCache, tmp_path: Path, judged: list[float], no_onnx: list[Any]
) -> None:
    judged[:] = [18.0, 19.0, 23.0, 21.0]
    recipe = small(**ALONE, **LOOKING, keep_checkpoints=9)
    stopped_at(3, recipe, cache, tmp_path)
    best, first = (checkpoint_path(tmp_path, 0, "pretrain", step) for step in (None, 1))
    assert load_checkpoint(best)["position"]["step"] == 1
    # Killed before the file of the best was written: its numbered twin is there, for that one is written first.
    for path in checkpoints(tmp_path):
        if path != first:
            path.unlink()
    best.unlink()
    judged[:] = [22.0]
    train(recipe, cache, tmp_path, resume=True)
    assert no_onnx[-1][1].metrics == {"validation/psnr_y": 23.0}
    # Back at a checkpoint that knows nothing of the best: the file does.
    for path in checkpoints(tmp_path):
        path.unlink()
    state = load_checkpoint(best)
    state["position"] |= {"best": float("inf"), "best_step": 0, "step": 0}
    save_checkpoint(checkpoint_path(tmp_path, 0, "pretrain", 0), state)
    train(recipe, cache, tmp_path, resume=True)
    assert no_onnx[-1][1].metrics == {"validation/psnr_y": 23.0}


def test_what_was_written_after_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    paths = {
        (number, step): checkpoint_path(tmp_path, number, ("pretrain", "adversarial")[number], step)
        for number in (0, 1)
        for step in (10, 20, None)
    }
    for path in paths.values():
        save_checkpoint(path, {})
    drop_after(paths[0, 10])
    assert [place for place, path in paths.items() if path.exists()] == [(0, 10), (0, None)]


def test_a_run_that_begins_keeps_nothing_of_one_that_was_killed_before_its_first_checkpoint(
    cache: PictureCache, tmp_path: Path, no_onnx: list[Any], judged: list[float]
) -> None:
    left = [{"stage": stage, "step": step, "elapsed_s": 0.0, "bicubic/psnr_y": 1.0} for stage, step in LEFT]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
    train(small(**ALONE), cache, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["bicubic/psnr_y"] for row in rows if "bicubic/psnr_y" in row] == [20.0]
    assert {row["stage"] for row in rows} == {"pretrain"}


LEFT = (("pretrain", 0), ("pretrain", 0), ("adversarial", 0))


def test_one_process_trains_a_run_at_a_time(cache: PictureCache, tmp_path: Path) -> None:
    stopped_at(2, small(**ALONE), cache, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with FileLock(tmp_path / ".lock"), pytest.raises(UsageError, match="is being trained by another process"):
        train(small(**ALONE), cache, tmp_path, resume=True)
    with FileLock(tmp_path / ".lock"), pytest.raises(UsageError, match="is being trained by another process"):
        train(small(**ALONE), cache, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_discriminator_alone_makes_no_best(cache: PictureCache, tmp_path: Path, judged: list[float]) -> None:
    judged[:] = [18.0, 19.0, 30.0, 20.0]
    recipe = small(pretrain={"steps": 0}, adversarial={"discriminator_alone_steps": 2}, **LOOKING)
    stopped_at(2, recipe, cache, tmp_path)
    assert not checkpoint_path(tmp_path, 1, "adversarial", None).exists()
    assert trainer.pace_of(recipe.adversarial, run_module.Position(step=2), 0.5, by_clock=False).alone is False
    assert np.isinf(load_checkpoint(checkpoints(tmp_path)[-1])["position"]["best"])


# --- what is recorded ------------------------------------------------------------------------------------------


def test_a_run_says_on_what_and_how_far_it_was_trained(
    cache: PictureCache, tmp_path: Path, no_onnx: list[Any], judged: list[float]
) -> None:
    judged[:] = [18.0, 19.0, 20.0, 22.0, 21.0, 20.5, 20.5]
    train(small(**ALONE, **LOOKING), replace(cache, folders=("photos",)), tmp_path, minutes=None)
    record = json.loads((tmp_path / "recipe.json").read_text())["run"]
    assert record["stages"] == {"pretrain": {"steps": 4, "best_step": 2}}
    assert (record["minutes"], record["precision"], record["device"]) == (None, "fp32", "cpu")
    assert (record["data"], record["data_sha256"]) == (["photos"], cache.sha256)
    assert record["held_out"] == split(cache, small().data)[1].names
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert (record["training_pictures"], record["held_out_pictures"]) == (len(cache) - 1, 1)
    ((_, metadata),) = no_onnx
    assert metadata.run == record | {"stage": "pretrain", "best_step": 2}


def test_judges_are_known_by_what_they_show() -> None:
    first, second = discs(2)
    same = replace(cache_of(second, first), names=["b.png", "a.png"])
    assert cache_of(first, second).contents_sha256() == same.contents_sha256()
    assert cache_of(first, second[:, ::-1]).contents_sha256() != same.contents_sha256()
    assert cache_of(first).contents_sha256() != same.contents_sha256()


def test_a_comparison_warns_of_different_data(tmp_path: Path) -> None:
    runs = {
        "a": {"data_sha256": "1", "held_out_sha256": "x"},
        "b": {"data_sha256": "1", "held_out_sha256": "x"},
        "other": {"data_sha256": "2", "held_out_sha256": "y"},
        "old": None,
    }
    for name, record in runs.items():
        (tmp_path / name).mkdir()
        recipe = {"seed": 0} if record is None else {"seed": 0, "run": record}
        (tmp_path / name / "recipe.json").write_text(json.dumps(recipe))
        row = {"stage": "pretrain", "step": 1, "elapsed_s": 1.0, "content": 1.0}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert differences_of_data([tmp_path / "a", tmp_path / "b", tmp_path / "old"]) == []
    trained, judged = differences_of_data([tmp_path / "a", tmp_path / "other"])
    assert "trained on different pictures" in trained
    page = compare([tmp_path / "a", tmp_path / "other"])
    assert trained in page
    assert judged in page
    assert "All runs have the same recipe" in page
    for change, text in (
        ({"degradation": {"kind": "realistic"}}, "degraded LR"),
        ({"generator": {"scale": 2}}, "scales"),
    ):
        (tmp_path / "b" / "recipe.json").write_text(small(**change).model_dump_json())
        (tmp_path / "a" / "recipe.json").write_text(small().model_dump_json())
        (warning,) = differences_of_data([tmp_path / "a", tmp_path / "b"])
        assert text in warning


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipes(None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == bundled_recipes()
    assert all(len(line.split()) > 4 for line in lines)
    recipes("tiny")
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out)
    assert load_recipe(str(tmp_path / "mine.toml")) == load_recipe("tiny")
    with pytest.raises(UsageError, match="one of srgan_x4"):
        recipes("none")
