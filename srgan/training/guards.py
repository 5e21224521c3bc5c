"""What a run watches for: bad gradients, a game that is none, pictures gone astray, no progress."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from srgan.training.config import AdversarialRecipe, GuardsRecipe
from srgan.training.validation import cost

PERCEPTUAL_TERMS = ("perceptual", "lpips", "structure_texture")
_MOST_EASED = 4.0  # times the recipe's rate, for a discriminator that never woke: beyond, it would break
# Times the recipe's weight, either way. Without a bound the weight went to 10⁵ and the discriminator to sleep.
_MOST_BALANCED = 10.0

_AT_ZERO = (
    "the discriminator's loss has been at 0 ({loss:.1g}) for {steps} steps: it learns nothing more and teaches "
    "nothing. So end BatchNorm, which tells real batches from generated ones by their statistics, and weights "
    "clipped too far: take discriminator.normalisation=none, objective=relativistic-paired or "
    "losses.adversarial.r1_gamma"
)
_SILENT = (
    "the game has pulled at SR with {share:.1g} of the strength of the perceptual terms for {steps} steps, as if "
    "it were not played: raise losses.adversarial.weight or, where the discriminator is not awake, take another "
    "discriminator.kind, discriminator.normalisation=none or objective=relativistic-paired"
)
_ASLEEP = (
    "the discriminator sleeps: for {steps} steps it has ranked {accuracy:.0%} of the pairs rightly, and its loss "
    "has stayed at {loss:.3g}. Lower losses.adversarial.weight or pull, raise "
    "adversarial.discriminator_learning_rate, or take discriminator.normalisation=none or "
    "objective=relativistic-paired"
)


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
    adversarial_scale: float


class Judges(Protocol):
    """The part of `run.Players` that a sleeping discriminator is woken by."""

    discriminator: nn.Module
    discriminator_optimizer: Optimizer


@dataclass
class GameCounts:
    """For how many steps the game has looked like none, as far as it was logged; `first`: it was not logged yet.

    `flat_steps`: the discriminator's loss has stayed beside `flat_loss`; `flat_accuracy`: the sum over them of its
    accuracy. `silent_steps`: its gradient at SR was nothing beside that of the perceptual terms. `zero_steps`: its
    loss was 0.
    """

    first: bool = True
    flat_steps: int = 0
    flat_loss: float = math.inf
    flat_accuracy: float = 0.0
    silent_steps: int = 0
    zero_steps: int = 0


class Guards:
    """The rules of `GuardsRecipe`."""

    def __init__(self, recipe: GuardsRecipe) -> None:
        self.recipe = recipe
        self._game = GameCounts()
        self.awake = True  # by the last log: the discriminator still learns and has something to say
        self._last_awake: dict[str, Any] = {}  # it and its optimiser; kept only where easing is allowed
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

    def watch(
        self, position: Watched, scalars: dict[str, float], steps: int, judges: Judges | None = None
    ) -> list[str]:
        """Return alarms in words: looks at what was logged for the last `steps` steps, the same in all processes.

        `judges`: who is eased if the recipe allows it.
        """
        if "discriminator_accuracy" not in scalars:
            return []
        self._count(scalars, steps)
        alarms = [self._confident(position, scalars, steps), *self._no_game(position, scalars, steps, judges)]
        if judges is not None and self.recipe.ease_discriminator and self.awake:
            self._last_awake = {
                "discriminator": copy.deepcopy(judges.discriminator.state_dict()),
                "optimizer": copy.deepcopy(judges.discriminator_optimizer.state_dict()),
            }
        return [alarm for alarm in alarms if alarm]

    def balance(self, position: Watched, scalars: dict[str, float], rules: AdversarialRecipe) -> None:
        """Let the adversarial weight follow the gradients that `watch` was just given, if `rules.pull` asks so.

        Only while the discriminator is awake. Half of the way is gone at once, in logarithms, since one batch says
        little; never beyond a tenth and ten times the recipe's weight.
        """
        weight = scalars.get("adversarial_weight", 0.0)
        share = share_of_the_game(scalars)
        if not self.awake or not rules.pull or not weight or not 0 < share < math.inf:
            return
        share *= rules.weight * position.adversarial_scale / weight  # what it would be if the ramp were over
        scale = position.adversarial_scale * math.sqrt(rules.pull / share)
        position.adversarial_scale = min(max(scale, 1 / _MOST_BALANCED), _MOST_BALANCED)

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a resume, beside what is counted in the position."""
        return {"game": asdict(self._game), "last_awake": self._last_awake}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` left off; an empty one is that of a run which began before there was any."""
        self._game = GameCounts(**state.get("game", {}))
        self._last_awake = state.get("last_awake", {})

    def _count(self, scalars: dict[str, float], steps: int) -> None:
        game, loss, accuracy = self._game, scalars["discriminator"], scalars["discriminator_accuracy"]
        # The loss of BEGAN's autoencoder, a difference of pixels, is far below 1 while it plays.
        within = max(self.recipe.flat_within * min(1.0, abs(game.flat_loss)), self.recipe.loss_below)
        moved = abs(loss - game.flat_loss) > within
        if moved or not math.isfinite(loss):
            game.flat_steps, game.flat_loss, game.flat_accuracy = 0, loss, 0.0
        else:
            game.flat_steps += steps
            game.flat_accuracy += steps * accuracy
        plays = "gradient/adversarial" in scalars and scalars.get("adversarial_weight", 0.0) > 0
        silent = plays and share_of_the_game(scalars) < self.recipe.share_below
        game.silent_steps = game.silent_steps + steps if silent else 0
        game.zero_steps = game.zero_steps + steps if abs(loss) < self.recipe.loss_below else 0
        ranks = not self._is_chance(game.flat_accuracy / game.flat_steps if game.flat_steps else accuracy)
        self.awake = not game.zero_steps and (ranks or (moved and not game.first))
        game.first = False

    def _is_chance(self, accuracy: float) -> bool:
        return abs(accuracy - 0.5) <= self.recipe.chance_within

    def _confident(self, position: Watched, scalars: dict[str, float], steps: int) -> str:
        accuracy = scalars["discriminator_accuracy"]
        position.confident_steps = position.confident_steps + steps if accuracy > self.recipe.accuracy_above else 0
        if position.confident_steps < self.recipe.accuracy_steps:
            return ""
        position.confident_steps = 0
        text = f"the discriminator has been right more than {self.recipe.accuracy_above:.0%} of the time"
        if not self.recipe.ease_discriminator:
            return f"{text}: consider guards.ease_discriminator, noisier labels or a longer pre-training"
        position.discriminator_rate_scale /= 2
        return f"{text}: its learning rate was halved"

    def _no_game(
        self, position: Watched, scalars: dict[str, float], steps: int, judges: Judges | None
    ) -> list[str]:
        """Return alarms about a discriminator that learns or teaches nothing; each once, or after each easing."""
        game, alarms = self._game, []
        loss, share = scalars["discriminator"], share_of_the_game(scalars)
        easing = judges if self.recipe.ease_discriminator else None

        def due(count: int) -> bool:
            return count - steps < self.recipe.asleep_steps <= count

        if due(game.zero_steps):
            text = _AT_ZERO.format(loss=loss, steps=game.zero_steps)
            if easing is not None:
                position.discriminator_rate_scale /= 2
                game.zero_steps = 0
                text += "; its learning rate was halved"
            alarms.append(text)
        if due(game.silent_steps):
            alarms.append(_SILENT.format(share=share, steps=game.silent_steps))
        accuracy = game.flat_accuracy / max(game.flat_steps, 1)
        if due(game.flat_steps) and not self._is_chance(accuracy):
            game.flat_steps, game.flat_accuracy = 0, 0.0
        elif due(game.flat_steps):
            text = _ASLEEP.format(accuracy=accuracy, loss=loss, steps=game.flat_steps)
            if easing is not None:
                text += f"; {self._wake(position, easing)}"
                self._game = GameCounts()
            alarms.append(text)
        return alarms

    def _wake(self, position: Watched, judges: Judges) -> str:
        """Ease a discriminator that sleeps, and say how: raise the rate of one that never woke, else go back."""
        if not self._last_awake:
            position.discriminator_rate_scale = min(2 * position.discriminator_rate_scale, _MOST_EASED)
            return f"it never woke: its learning rate is {position.discriminator_rate_scale:g} times the recipe's"
        judges.discriminator.load_state_dict(self._last_awake["discriminator"])
        judges.discriminator_optimizer.load_state_dict(self._last_awake["optimizer"])
        position.adversarial_scale = max(position.adversarial_scale / 2, 1 / _MOST_BALANCED)
        return "it is again what it was when last awake, and the adversarial weight was halved"

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


def share_of_the_game(scalars: dict[str, float]) -> float:
    """Return the adversarial gradient at SR over the sum of the perceptual ones, or else over the content's.

    0 where it was not measured, or the game has no weight.
    """
    perceptual = sum(scalars.get(f"gradient/{term}", 0.0) for term in PERCEPTUAL_TERMS)
    beside = perceptual or scalars.get("gradient/content", 0.0)
    return scalars.get("gradient/adversarial", 0.0) / beside if beside else 0.0
