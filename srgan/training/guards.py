"""What a run watches for: bad gradients, a discriminator that always wins, pictures gone astray, no progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from srgan.training.config import GuardsRecipe
from srgan.training.validation import cost


class Watched(Protocol):
    """The part of `state.Position` that the guards keep their counts in, so that a resume knows them."""

    stage: str
    step: int
    moved: int
    best: float
    best_step: int
    validations_since_best: int
    confident_steps: int
    discriminator_rate_scale: float


class Guards:
    """The rules of `GuardsRecipe`."""

    def __init__(self, recipe: GuardsRecipe) -> None:
        self.recipe = recipe
        self._astray: set[str] = set()  # figures that were beyond their limits at the last validation

    def went_bad(self, bad_steps: float, error: float, players_are_finite: Callable[[], bool]) -> str:
        """Return why to go back, or "".

        `bad_steps`: in a row, whose gradients were not finite; each was left out. `error`: mean |SR - HR| of the
        last step, in [0,1] for anything that is a picture. `players_are_finite` is asked after a bad step: a
        forward pass moves running statistics, which no later step would mend.
        """
        if bad_steps and (bad_steps >= self.recipe.bad_steps or not players_are_finite()):
            return "gradients are not finite"
        if 1 < error < math.inf:  # farther from HR than black is from white
            return f"the generator diverged: SR is {error:.3g} away from HR, whose range is 1"
        return ""

    def watch(self, position: Watched, scalars: dict[str, float], steps: int) -> str:
        """Return an alarm in words, or "": looks at what was logged for the last `steps` steps."""
        accuracy = scalars.get("discriminator_accuracy")
        if accuracy is None:
            return ""
        position.confident_steps = position.confident_steps + steps if accuracy > self.recipe.accuracy_above else 0
        if position.confident_steps < self.recipe.accuracy_steps:
            return ""
        position.confident_steps = 0
        text = f"the discriminator has been right more than {self.recipe.accuracy_above:.0%} of the time"
        if not self.recipe.ease_discriminator:
            return f"{text}: consider guards.ease_discriminator, noisier labels or a longer pre-training"
        position.discriminator_rate_scale /= 2
        return f"{text}: its learning rate was halved"

    def judge(self, scores: dict[str, float], step: int, stage: str = "adversarial") -> list[str]:
        """Return alarms in words for the validation figures that went beyond their limits since the last look."""
        if step < self.recipe.settling_steps:
            return []
        recipe, alarms, astray = self.recipe, [], set()
        raise_content = "raise losses.content.weight"
        lower_game = "lower losses.adversarial.weight or go back to the best checkpoint"
        if stage == "pretrain":  # where there are neither weights nor a game
            raise_content = lower_game = "lower pretrain.learning_rate, and look at the pictures in samples"
        limits = {
            "colour_shift": (0.0, recipe.colour_shift_above, "colour drift (grey levels)", raise_content),
            "lr_psnr": (recipe.lr_psnr_below, math.inf, "SR no longer shows what LR does (dB)", raise_content),
            "detail": (*recipe.detail_within, "SR is flat or noisy (detail, times HR's)", lower_game),
            "sameness": (-1.0, recipe.sameness_above, "mode collapse: one pattern in every picture", lower_game),
        }
        for key, (low, high, meaning, remedy) in limits.items():
            value = scores.get(f"validation/{key}")
            if value is None or low <= value <= high:
                continue
            astray.add(key)
            if key not in self._astray:
                beyond = f"below {low:g}" if value < low else f"above {high:g}"
                alarms.append(f"{meaning}: validation/{key} is {value:.3g}, {beyond}; {remedy}")
        if scores:
            self._astray = astray
        return alarms

    def is_best(self, position: Watched, scores: dict[str, float]) -> bool:
        """Return whether `scores` are the stage's best by `validation.cost`, or the last where that is mute."""
        if not scores or not position.moved:  # what the stage began with is no result of it
            return False
        score = cost(scores, position.stage)
        position.validations_since_best += 1
        if score is not None and score >= position.best:
            return False
        position.best, position.best_step, position.validations_since_best = score or 0.0, position.step, 0
        return True

    def out_of_patience(self, validations_since_best: int) -> bool:
        """Return whether the stage should end because it no longer gets better."""
        return 0 < self.recipe.patience <= validations_since_best
