"""The guards' rules, alone and in a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import escape
from support.caches import cache_of

from srgan.conversion.exporting import export_generator
from srgan.errors import TrainingError
from srgan.networks.generator import Generator
from srgan.networks.reading import load_checkpoint
from srgan.pages.report import report
from srgan.training import run, trainer
from srgan.training.checkpoint import checkpoint_path, checkpoints, latest_checkpoint
from srgan.training.config import AdversarialRecipe, GuardsRecipe, Recipe, validated
from srgan.training.data.cache import PictureCache
from srgan.training.data.patches import Patches
from srgan.training.guards import Guards, share_of_the_game
from srgan.training.run import Health, Position, after_rollback
from srgan.weights import ModelMetadata

FINITE, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


def noted(health: Health, norm: torch.Tensor, error: float = 0.1) -> Health:
    health.note({"gradient_norm": norm, "pixel_error": torch.tensor(error)})
    return health


def answer(guards: Guards, health: Health) -> str:
    bad_steps, error = health.worst().tolist()
    return guards.went_bad(bad_steps, error, lambda: True)


def test_only_bad_steps_in_a_row_count() -> None:
    guards, health = Guards(GuardsRecipe(bad_steps=3)), Health(torch.device("cpu"))
    norms = (BAD, BAD, FINITE, BAD, BAD, torch.tensor(float("inf")), FINITE)
    answers = [bool(answer(guards, noted(health, norm))) for norm in norms]
    assert answers == [False, False, False, False, False, True, False]


def test_the_host_may_ask_rarely() -> None:
    """What happened between two questions is known at the second."""
    guards, health = Guards(GuardsRecipe(bad_steps=3)), Health(torch.device("cpu"))
    for norm in (FINITE, BAD, BAD, FINITE, BAD, FINITE):
        noted(health, norm)
    assert not answer(guards, health)
    for norm in (FINITE, BAD, BAD, BAD, FINITE):
        noted(health, norm)
    assert answer(guards, health) == "gradients are not finite"
    assert not answer(guards, health)


def test_players_that_a_bad_step_has_spoilt_are_not_waited_for() -> None:
    guards = Guards(GuardsRecipe(bad_steps=3))
    assert not guards.went_bad(1, 0.1, lambda: True)
    assert guards.went_bad(1, 0.1, lambda: False)
    assert not guards.went_bad(0, 0.1, pytest.fail)  # only asked after a bad step, for it takes time


def test_a_divergence_that_stays_finite_is_caught(tmp_path: Path) -> None:
    guards = Guards(GuardsRecipe())
    assert [bool(guards.went_bad(0, error, lambda: True)) for error in (0.0, 1.0, 1.01, 1e15)] == [
        *[False] * 2,
        *[True] * 2,
    ]
    recipe = small_recipe(pretrain={"steps": 6, "batch_size": 2, "patch_hr_px": 32, "learning_rate": 10.0})
    with pytest.raises(TrainingError, match=r"after 3 rollbacks.*the generator diverged: SR is .* away from HR"):
        trainer.train(recipe, noise_cache(), tmp_path)
    state = load_checkpoint(checkpoints(tmp_path)[-1])
    generator = Generator(blocks=1, features=4)
    generator.load_state_dict(state["generator"])
    assert float(generator(torch.rand(1, 3, 8, 8)).abs().max().detach()) < 5  # no checkpoint holds the divergence


def test_alarms_name_what_the_stage_has() -> None:
    bad = {"validation/colour_shift": 9.0, "validation/detail": 9.0}
    for alarm in Guards(GuardsRecipe()).judge(bad, 500, "pretrain"):
        assert "lower pretrain.learning_rate" in alarm
        assert "losses." not in alarm


HEALTHY = {"colour_shift": 0.3, "lr_psnr": 44.0, "detail": 0.5, "sameness": 0.01, "psnr_y": 28.0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"colour_shift": 5.0, "lr_psnr": 28.0, "detail": 2.0, "sameness": 0.3}, []),
        ({"colour_shift": 5.01}, ["colour drift"]),
        ({"lr_psnr": 27.9}, ["no longer shows what LR does"]),
        ({"detail": 0.04}, ["below 0.05"]),
        ({"detail": 2.5}, ["above 2"]),
        ({"sameness": 0.4}, ["mode collapse"]),
        ({"sameness": float("nan")}, ["mode collapse"]),
        ({"colour_shift": 90.0, "lr_psnr": 10.0, "detail": 0.0}, ["colour drift", "LR does", "below 0.05"]),
    ],
)
def test_figures_beyond_their_limits_raise_alarms(change: dict[str, float], expected: list[str]) -> None:
    scores = {f"validation/{key}": value for key, value in (HEALTHY | change).items()}
    alarms = Guards(GuardsRecipe()).judge(scores, 200)
    assert len(alarms) == len(expected)
    assert all(part in alarm for part, alarm in zip(expected, alarms, strict=True))


def test_an_alarm_is_raised_anew_only_after_its_figure_was_back() -> None:
    guards = Guards(GuardsRecipe())
    bad, good = {"validation/colour_shift": 9.0}, {"validation/colour_shift": 0.1}
    assert [len(guards.judge(scores, 500)) for scores in (bad, bad, {}, bad, good, bad)] == [1, 0, 0, 0, 0, 1]


def test_a_stage_is_given_time_to_settle() -> None:
    guards = Guards(GuardsRecipe(settling_steps=100))
    bad = {"validation/colour_shift": 9.0}
    assert [len(guards.judge(bad, step)) for step in (3, 99, 100, 101)] == [0, 0, 1, 0]


def test_detail_limits_must_ascend() -> None:
    with pytest.raises(ValueError, match="detail_within must ascend"):
        GuardsRecipe(detail_within=(1.0, 0.5))


def test_a_confident_discriminator_raises_an_alarm_and_is_eased_only_if_allowed() -> None:
    position = Position()
    guards = Guards(GuardsRecipe(accuracy_steps=300))
    sure, unsure = ({"discriminator": loss, "discriminator_accuracy": a} for loss, a in ((0.5, 0.99), (0.5, 0.9)))
    assert [bool(guards.watch(position, s, 100)) for s in (sure, sure, unsure, sure, sure, sure)] == [
        *[False] * 5,
        True,
    ]
    assert position.discriminator_rate_scale == 1
    easing = Guards(GuardsRecipe(accuracy_steps=100, ease_discriminator=True))
    assert "halved" in easing.watch(position, sure, 100)[0]
    assert position.discriminator_rate_scale == 0.5
    assert easing.watch(position, {"content": 1.0}, 100) == []


def logged(loss: float, accuracy: float, game: float = 0.1, **others: float) -> dict[str, float]:
    """What a step of the game logs, with a gradient of `game` beside a perceptual one of 1."""
    figures = {"discriminator": loss, "discriminator_accuracy": accuracy, "adversarial_weight": 0.5}
    return figures | {"gradient/adversarial": game, "gradient/perceptual": 1.0, "gradient/content": 9.0} | others


ASLEEP, SILENT, AT_ZERO = "the discriminator sleeps", "as if it were not played", "loss has been at 0"


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ([logged(0.693, 0.52)] * 4, [ASLEEP]),
        ([logged(0.693, 0.52)] * 3, []),  # the first log is where it begins to be flat
        ([logged(0.693, 0.52)] * 9, [ASLEEP]),  # once
        ([*[logged(0.693, 0.52)] * 4, logged(0.5, 0.52), *[logged(0.693, 0.52)] * 4], [ASLEEP, ASLEEP]),
        ([logged(loss, 0.52) for loss in (0.69, 0.66, 0.69, 0.66, 0.69)], []),  # it still learns
        ([logged(0.693, 0.75)] * 9, []),  # it still ranks
        ([logged(0.693, accuracy) for accuracy in (0.9, 0.2, 0.9, 0.4)], [ASLEEP]),  # so few pairs say little
        ([logged(1e-14, 0.5)] * 2, []),
        ([logged(1e-14, 0.75)] * 9, [AT_ZERO]),
        ([logged(-3e-9, 0.5)] * 3, [AT_ZERO]),
        ([logged(0.3, 0.8, 1e-8)] * 9, [SILENT]),
        ([logged(0.3, 0.8, 1e-2)] * 9, []),
        ([logged(0.3, 0.8, 0.0)] * 9, [SILENT]),  # a critic that is dead, a sigmoid that is at its end
        ([logged(0.3, 0.8, 0.0, adversarial_weight=0.0)] * 9, []),  # it is not to pull, as its weight says
        ([logged(loss, 0.6) for loss in (2e-3, 3e-3, 1e-3, 4e-3, 2e-3)], []),  # a critic's scores may be small
        ([logged(loss, 0.4) for loss in (0.051, 0.049, 0.052, 0.05)], []),  # and so are an autoencoder's errors
        ([logged(-2e-3, 0.5)] * 4, [ASLEEP]),
        ([logged(2e3 + step, 0.5) for step in range(9)], []),
        ([logged(0.3, 0.8, 8e-4, **{"gradient/lpips": 0.1})] * 9, [SILENT]),
        ([{"discriminator": 0.3, "discriminator_accuracy": 0.8}] * 9, []),  # the discriminator is alone
        ([{"content": 0.3}] * 9, []),  # no game
    ],
)
def test_games_that_are_none_raise_alarms(logs: list[dict[str, float]], expected: list[str]) -> None:
    guards, position = Guards(GuardsRecipe(asleep_steps=300)), Position()
    alarms = [alarm for scalars in logs for alarm in guards.watch(position, scalars, 100)]
    assert len(alarms) == len(expected)
    assert all(part in alarm for part, alarm in zip(expected, alarms, strict=True))
    assert (position.discriminator_rate_scale, position.adversarial_scale) == (1.0, 1.0)  # not to be eased


def test_the_share_of_the_game_is_of_all_perceptual_terms_or_else_of_the_content() -> None:
    both = logged(0.3, 0.8, 0.5, **{"gradient/lpips": 0.75, "gradient/structure_texture": 0.25})
    assert share_of_the_game(both) == pytest.approx(0.25)
    del both["gradient/perceptual"], both["gradient/lpips"], both["gradient/structure_texture"]
    assert share_of_the_game(both) == pytest.approx(0.5 / 9)
    assert share_of_the_game({"discriminator": 0.3}) == 0.0


class Judging:
    """A discriminator of one layer and its optimiser, moved by a step."""

    def __init__(self) -> None:
        self.discriminator: torch.nn.Module = torch.nn.Linear(2, 1)
        self.discriminator_optimizer: torch.optim.Optimizer = torch.optim.Adam(self.discriminator.parameters())

    def move(self) -> None:
        self.discriminator(torch.ones(1, 2)).sum().backward()
        self.discriminator_optimizer.step()

    def weights(self) -> list[float]:
        return torch.cat([p.flatten() for p in self.discriminator.parameters()]).tolist()


def test_a_discriminator_that_fell_asleep_is_what_it_was_when_awake_if_that_is_allowed() -> None:
    judging, position = Judging(), Position()
    guards = Guards(GuardsRecipe(asleep_steps=200, ease_discriminator=True))
    alarms: list[str] = []
    for loss, accuracy in ((0.5, 0.9), (0.4, 0.9), (0.693, 0.5), (0.693, 0.5), (0.693, 0.5)):
        judging.move()
        if loss == 0.4:
            awake = judging.weights()
        alarms += guards.watch(position, logged(loss, accuracy), 100, judging)
        if loss == 0.693 and not alarms:  # another process goes on from here
            state, guards = guards.state_dict(), Guards(GuardsRecipe(asleep_steps=200, ease_discriminator=True))
            guards.load_state_dict(state)
    assert len(alarms) == 1
    assert "again what it was when last awake, and the adversarial weight was halved" in alarms[0]
    assert judging.weights() != awake  # the fall itself was an awake log: its loss moved
    assert position.adversarial_scale == 0.5
    before = judging.weights()
    judging.move()
    assert judging.weights() != before  # it learns on


def test_one_that_never_woke_gets_a_higher_rate_within_bounds() -> None:
    judging, position = Judging(), Position()
    guards = Guards(GuardsRecipe(asleep_steps=100, ease_discriminator=True))
    alarms = [alarm for _ in range(9) for alarm in guards.watch(position, logged(0.693, 0.5), 100, judging)]
    assert [alarm.rpartition(" is ")[2] for alarm in alarms] == [
        f"{scale} times the recipe's" for scale in (2, 4, 4, 4)
    ]
    assert (position.discriminator_rate_scale, position.adversarial_scale) == (4.0, 1.0)


def test_one_whose_loss_is_at_0_gets_a_lower_rate() -> None:
    judging, position = Judging(), Position()
    guards = Guards(GuardsRecipe(asleep_steps=200, ease_discriminator=True))
    alarms = [alarm for _ in range(4) for alarm in guards.watch(position, logged(1e-14, 0.8), 100, judging)]
    assert [alarm.endswith("its learning rate was halved") for alarm in alarms] == [True, True]
    assert position.discriminator_rate_scale == 0.25


def test_guards_of_a_run_that_began_before_there_was_any_state() -> None:
    guards = Guards(GuardsRecipe())
    guards.load_state_dict({})
    assert guards.watch(Position(), logged(0.693, 0.5), 100) == []


def pulled(share: float, pull: float, logs: int = 30, *, asleep: bool = False) -> tuple[float, float]:
    """(times the weight, share) after `logs` of a game whose gradient grows with the weight; `share`: without."""
    guards, position, rules = Guards(GuardsRecipe()), Position(), AdversarialRecipe(weight=0.5, pull=pull)
    for number in range(logs):
        ramp = min(1.0, (number + 1) / 5)
        scale = ramp * position.adversarial_scale
        loss, accuracy = (0.693, 0.5) if asleep else (0.5 + 0.1 * (number % 2), 0.6)
        scalars = logged(loss, accuracy, share * scale, adversarial_weight=0.5 * scale)
        guards.watch(position, scalars, 100)
        guards.balance(position, scalars, rules)
    return position.adversarial_scale, share * position.adversarial_scale


def test_the_weight_follows_the_gradients_to_the_share_that_is_asked_for() -> None:
    assert pulled(0.1, 0.3)[1] == pytest.approx(0.3, rel=1e-3)
    assert pulled(0.9, 0.3)[1] == pytest.approx(0.3, rel=1e-3)
    assert pulled(0.1, 0.3, logs=2)[0] == pytest.approx(
        3**0.5
    )  # the first log, one flat, tells nothing; ramps do not
    assert pulled(0.1, 0.0)[0] == 1.0


def test_the_weight_never_leaves_a_tenth_to_ten_times_the_recipes() -> None:
    assert pulled(1e-5, 0.3)[0] == 10.0
    assert pulled(1e5, 0.3)[0] == 0.1


def test_the_weight_stays_while_the_discriminator_sleeps() -> None:
    assert pulled(1e-5, 0.3, asleep=True)[0] == 1.0


def test_best_is_by_psnr_or_in_the_game_by_lpips_and_patience_ends_a_stage() -> None:
    position, guards = Position("adversarial", step=7, moved=7), Guards(GuardsRecipe(patience=2))
    scores = [{"validation/lpips": value, "validation/psnr_y": 30.0} for value in (0.5, 0.4, 0.45, 0.41)]
    assert [guards.is_best(position, score) for score in scores] == [True, True, False, False]
    assert guards.out_of_patience(position.validations_since_best)
    assert not Guards(GuardsRecipe()).out_of_patience(10**6)
    assert position.best_step == 7
    assert not guards.is_best(position, {})
    assert not guards.is_best(Position("adversarial"), scores[0])  # what a stage begins with is no result of it
    without_lpips = Position("adversarial", moved=1)
    assert all(guards.is_best(without_lpips, {"validation/psnr_y": value}) for value in (30.0, 29.0))  # the last
    by_psnr = Position("pretrain", moved=1)
    assert [guards.is_best(by_psnr, {"validation/psnr_y": value}) for value in (30.0, 29.0, 31.0)] == [
        True,
        False,
        True,
    ]


def test_a_rollback_slows_down_and_gives_up_in_the_end() -> None:
    recipe = Recipe(guards=GuardsRecipe(rollbacks=2, rollback_rate=0.5))
    now = Position(step=50, rate_scale=0.5, rollbacks=1)
    then = after_rollback(Position(step=40), now, recipe, now_s=99.0)
    assert (then.step, then.rollbacks, then.rate_scale, then.elapsed_s) == (40, 2, 0.25, 99.0)
    with pytest.raises(TrainingError, match="learning_rate"):
        after_rollback(Position(step=40), then, recipe, now_s=100.0)


def noise_cache(count: int = 6, size: int = 72) -> PictureCache:
    return cache_of(*np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


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


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_meets_bad_gradients_rolls_back_and_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, poisoned = Patches.pairs, iter([False, False, False, True, True, *[False] * 50])

    def draw(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        lr, hr = real(*arguments)
        return (lr * float("nan") if next(poisoned) else lr), hr

    monkeypatch.setattr(Patches, "pairs", draw)
    recipe = small_recipe(guards={"bad_steps": 2, "rollback_rate": 0.5})
    exported = trainer.train(recipe, noise_cache(), tmp_path)
    assert [path.suffix for path in exported] == [".safetensors", ".onnx"]
    rows = rows_of(tmp_path)
    alarms = [row["alarm"] for row in rows if "alarm" in row]
    assert alarms[0] == "gradients are not finite: rolled back"
    assert all("validation/detail" in alarm or "moved" in alarm for alarm in alarms[1:])  # noise cannot be learnt
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates[-1] < rates[0] / 2
    best = load_checkpoint(checkpoint_path(tmp_path, 0, "pretrain", None))
    assert all(tensor.isfinite().all() for tensor in best["ema"].values())


def test_a_run_that_stays_bad_stops_with_its_checkpoint_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Patches.pairs

    def draw(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        lr, hr = real(*arguments)
        return lr * float("nan"), hr

    monkeypatch.setattr(Patches, "pairs", draw)
    recipe = small_recipe(guards={"bad_steps": 1, "rollbacks": 2})
    with pytest.raises(TrainingError, match="learning_rate"):
        trainer.train(recipe, noise_cache(), tmp_path)
    _, state = latest_checkpoint(tmp_path)
    assert all(tensor.isfinite().all() for tensor in state["generator"].values())


def test_a_step_that_spoils_running_statistics_is_rolled_back_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, poisoned = Patches.pairs, iter([False, False, False, True, *[False] * 50])

    def draw(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        lr, hr = real(*arguments)
        return (lr * float("nan") if next(poisoned) else lr), hr

    monkeypatch.setattr(Patches, "pairs", draw)
    recipe = small_recipe(generator={"blocks": 1, "features": 4, "normalisation": "batch"})
    trainer.train(recipe, noise_cache(), tmp_path)
    alarms = [row["alarm"] for row in rows_of(tmp_path) if "alarm" in row]
    assert alarms[0] == "gradients are not finite: rolled back"
    _, state = latest_checkpoint(tmp_path)
    assert all(tensor.isfinite().all() for tensor in state["generator"].values())


def waves_cache() -> PictureCache:
    grid, pictures = np.arange(96), []
    for index in range(10):
        angle = 0.3 * index
        phase = (np.cos(angle) * grid[:, None] + np.sin(angle) * grid[None]) * (0.15 + 0.03 * index)
        pictures.append(np.stack([np.sin(phase + colour) * 80 + 128 for colour in range(3)], 2).astype(np.uint8))
    return cache_of(*pictures)


def drifted(generator: Generator) -> None:
    with torch.no_grad():
        assert generator.tail.bias is not None
        generator.tail.bias += 0.05


def collapsed(generator: Generator) -> None:
    """One pattern of 4x4 pixels over every picture, as sub-pixel convolutions draw when a game goes wrong."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in generator.upscale.named_parameters():
            if name.endswith("conv.bias"):
                parameter.copy_(3 * torch.randn(parameter.shape, generator=random))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [(None, []), (drifted, ["colour drift"]), (collapsed, ["mode collapse"])],
    ids=["healthy", "drifted", "collapsed"],
)
def test_a_run_gone_astray_says_so_and_a_healthy_one_does_not(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Generator], None] | None,
    expected: list[str],
) -> None:
    torch.manual_seed(0)
    generator = Generator(blocks=1, features=4)
    if spoil:
        spoil(generator)
    metadata = ModelMetadata(
        "start", 4, generator.halo_lr_px, {"blocks": 1, "features": 4, "normalisation": "none"}
    )
    export_generator(generator, metadata, tmp_path)
    recipe = small_recipe(
        start=str(tmp_path / "start.safetensors"),
        data={"held_out": 2},
        guards={"settling_steps": 0},
        pretrain={
            "steps": 2,
            "batch_size": 2,
            "patch_hr_px": 32,
            "learning_rate": 1e-9,
            "final_learning_rate": 1e-9,
        },
    )
    trainer.train(recipe, waves_cache(), tmp_path / "run")
    alarms = [row["alarm"] for row in rows_of(tmp_path / "run") if "alarm" in row]
    assert "hardly moved" in alarms.pop()  # at that learning rate
    assert [any(part in alarm for alarm in alarms) for part in expected] == [True] * len(expected)
    assert bool(alarms) == bool(expected)
    page = report(tmp_path / "run")
    for alarm in alarms:
        assert alarm in caplog.text
        assert str(escape(alarm)) in page


def test_patience_ends_the_stage_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "validate", lambda *_: {"validation/lpips": 0.5, "validation/psnr_y": 20.0})
    recipe = small_recipe(
        guards={"patience": 2},
        validation_minutes=1e-9,
        pretrain={"steps": 10_000, "batch_size": 1, "patch_hr_px": 32},
    )
    trainer.train(recipe, noise_cache(), tmp_path)
    assert max(row["step"] for row in rows_of(tmp_path)) == 3  # one best, then two that were not better
