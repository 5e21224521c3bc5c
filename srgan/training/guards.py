"""What a run watches for: gradients that are not finite, a discriminator that always wins, progress that ends."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from srgan.training.config import GuardsRecipe


class Watched(Protocol):
    """The part of `state.Position` that the guards keep their counts in, so that a resume knows them."""

    best: float
    validations_since_best: int
    confident_steps: int
    discriminator_rate_scale: float


class Guards:
    """The rules of `GuardsRecipe`."""

    def __init__(self, recipe: GuardsRecipe) -> None:
        self.recipe = recipe
        self._bad_steps = 0

    def went_bad(self, gradient_norm: Tensor) -> bool:
        """Return whether too many steps in a row had gradients that are not finite (each was left out)."""
        self._bad_steps = 0 if gradient_norm.isfinite() else self._bad_steps + 1
        if self._bad_steps < self.recipe.bad_steps:
            return False
        self._bad_steps = 0
        return True

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

    def is_best(self, position: Watched, scores: dict[str, float]) -> bool:
        """Return whether `scores` are the stage's best, by LPIPS, or by PSNR where LPIPS cannot be had."""
        if not scores:
            return False
        score = scores.get("validation/lpips", -scores["validation/psnr_y"])
        position.validations_since_best += 1
        if score >= position.best:
            return False
        position.best, position.validations_since_best = score, 0
        return True

    def out_of_patience(self, validations_since_best: int) -> bool:
        """Return whether the stage should end because it no longer gets better."""
        return 0 < self.recipe.patience <= validations_since_best
