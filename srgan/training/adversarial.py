"""The adversarial game: what the discriminator is taught and what the generator gains by deceiving it.

Every objective has the same methods, so the trainer's step does not change when the objective does:

    discriminator_loss(D, hr, sr)   scalar; `sr` is detached by the caller; one call for each update of D
    generator_loss(D, hr, sr)       scalar whose gradient reaches `sr`
    after_discriminator_step(D)     for objectives that act on D or on their own state after its update
    scores(D, pictures)             (N,) how real D finds each picture, for watching the game
    state_dict(), load_state_dict() what must survive a resume

D maps pictures (N,3,P,P) in [0,1] to logits, (N,1) or a map (N,1,h,w); BEGAN's maps them to pictures. Losses
are means over all logits, in float32. Random numbers come from `random`, a CPU generator. `averaged` gives the
mean of a tensor over all processes that play.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srgan.training.config import AdversarialRecipe
from srgan.training.device import sent

_CLIPPED_INPUTS = 2048  # of the layer that wgan's 0.01 belongs to: 4 × 4 × 128, Radford et al. 2016


class Objective(ABC):
    """Base of all objectives; D's own steps per generator step default to `discriminator_steps`.

    `recipe`: its rules; where nothing was set the objective's own numbers hold. ValueError for a setting that the
    objective does not read. `watched`: scalars of the last update to be logged, "discriminator" (the game's loss
    without penalties) and, once there was one, "penalty".
    """

    key: ClassVar[str]  # in recipes
    discriminator_steps: ClassVar[int] = 1

    def __init__(
        self,
        recipe: AdversarialRecipe,
        random: torch.Generator,
        averaged: Callable[[Tensor], Tensor] = lambda scalar: scalar,
    ) -> None:
        self.recipe, self.random, self.averaged = recipe.of(self.key), random, averaged
        self.watched: dict[str, Tensor] = {}
        self._updates = 0  # of the discriminator

    def discriminator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return what the discriminator minimises, a scalar: the game's loss, and penalties at their turn.

        They are lazy: taken at the first of every `penalty_steps` calls, and as many times as strongly.
        """
        loss, recipe = self.game_loss(discriminator, hr, sr), self.recipe
        self.watched["discriminator"] = loss.detach()
        due = self._updates % recipe.penalty_steps == 0
        self._updates += 1
        if not due or not (recipe.r1_gamma or recipe.r2_gamma):
            return loss
        score = partial(self.scores, discriminator)
        penalty = torch.zeros((), device=hr.device)
        for pictures, gamma in ((hr, recipe.r1_gamma), (sr, recipe.r2_gamma)):
            if gamma:
                penalty = penalty + gamma / 2 * gradients_at(pictures, score).square().sum(1).mean()
        self.watched["penalty"] = penalty.detach()
        return loss + recipe.penalty_steps * penalty

    @abstractmethod
    def game_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return what the discriminator minimises, before the penalties that any objective can have; a scalar."""

    @abstractmethod
    def generator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return what the generator minimises, before its weight; a scalar."""

    def after_discriminator_step(self, discriminator: nn.Module) -> None:  # noqa: B027 - most have nothing to do
        """Act after the discriminator's update."""

    def scores(self, discriminator: nn.Module, pictures: Tensor) -> Tensor:
        """Return (N,) how real each picture looks to the discriminator; higher is more real."""
        return _logits(discriminator, pictures).flatten(1).mean(1)

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a resume, beside `random`, which each process has its own of."""
        return {"updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` left off."""
        self._updates = int(state.get("updates", 0))  # earlier checkpoints had no penalties to count for

    def _uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """One number for each picture of `like`, uniform in [low, high), shaped to broadcast against it."""
        noise = torch.rand(len(like), *[1] * (like.dim() - 1), generator=self.random)
        return sent(low + (high - low) * noise, like.device)


class NonSaturating(Objective):
    """Cross-entropy with noisy soft labels (Goodfellow et al. 2014, section 3; Salimans et al. 2016, 3.4).

    The discriminator's labels are drawn anew for every picture and step, real from U(0.7, 1.2), fake from
    U(0, 0.3), so it never grows certain; labels above 1 are meant. The generator is judged against 1. One-sided
    smoothing is `real_labels = [0.9, 0.9]`, `fake_labels = [0, 0]`.
    """

    key = "nonsaturating"

    def game_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return BCE(D(hr), real labels) + BCE(D(sr), fake labels)."""
        real, fake = _logits(discriminator, hr), _logits(discriminator, sr)
        real_labels = self._uniform(real, *self.recipe.real_labels).expand_as(real)
        fake_labels = self._uniform(fake, *self.recipe.fake_labels).expand_as(fake)
        return F.binary_cross_entropy_with_logits(real, real_labels) + F.binary_cross_entropy_with_logits(
            fake, fake_labels
        )

    def generator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return -log D(sr) (Ledig et al. 2017, eq. 6)."""
        return _against(_logits(discriminator, sr), 1.0)


class Minimax(Objective):
    """The original two-player value (Goodfellow et al. 2014, eq. 1); saturates, for study."""

    key = "minimax"

    def game_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return -log D(hr) - log(1 - D(sr))."""
        return _against(_logits(discriminator, hr), 1.0) + _against(_logits(discriminator, sr), 0.0)

    def generator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return log(1 - D(sr)); its gradient vanishes where D is sure."""
        return -_against(_logits(discriminator, sr), 0.0)


class LeastSquares(Objective):
    """LSGAN (Mao et al. 2017, eq. 9 without its halves)."""

    key = "lsgan"

    def game_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return (D(hr) - 1)² + D(sr)²."""
        return (_logits(discriminator, hr) - 1).square().mean() + _logits(discriminator, sr).square().mean()

    def generator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return (D(sr) - 1)²."""
        return (_logits(discriminator, sr) - 1).square().mean()


class Wasserstein(Objective):
    """WGAN: a critic with clipped weights estimates the earth mover's distance (Arjovsky et al. 2017, alg. 1).

    The paper's 0.01 is that of its critic, a DCGAN whose middle layer has 2,048 inputs. Clipped weights end at
    the bound, so a layer of n inputs passes on bound × √n of what it is given: one with fewer has a wider bound,
    or nothing would come through a slim critic.
    """

    key = "wgan"
    discriminator_steps = 5  # likewise, algorithm 1

    def game_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return mean D(sr) - mean D(hr)."""
        return _logits(discriminator, sr).mean() - _logits(discriminator, hr).mean()

    def generator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return -mean D(sr)."""
        return -_logits(discriminator, sr).mean()

    @torch.no_grad()
    def after_discriminator_step(self, discriminator: nn.Module) -> None:
        """Clip every weight, which bounds how steep the critic can be; spectral norm has bounded its own."""
        for name, parameter in discriminator.named_parameters():
            if "parametrizations" not in name:
                inputs = parameter[0].numel() if parameter.dim() > 1 else _CLIPPED_INPUTS
                bound = self.recipe.clip_weights * math.sqrt(_CLIPPED_INPUTS / inputs)
                parameter.clamp_(-bound, bound)


class WassersteinGradientPenalty(Wasserstein):
    """WGAN-GP: slope 1 asked for between real and generated pictures (Gulrajani et al. 2017, algorithm 1)."""

    key = "wgan-gp"

    def game_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return mean D(sr) - mean D(hr) + λ (slope - 1)²."""
        share = self._uniform(hr)
        mix = share * hr + (1 - share) * sr
        penalty = gradient_penalty(discriminator, mix)
        return super().game_loss(discriminator, hr, sr) + self.recipe.gradient_penalty * penalty

    def after_discriminator_step(self, discriminator: nn.Module) -> None:
        """Nothing to do: the penalty took the clipping's place."""


class Dragan(NonSaturating):
    """DRAGAN: cross-entropy, with slope 1 asked for around real pictures (Kodali et al. 2017, algorithm 1).

    Its labels are 1 and 0, if the recipe does not say otherwise.
    """

    key = "dragan"

    def game_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return the cross-entropy + λ (slope - 1)² at real pictures under noise of half their deviation."""
        # As large as HR, so drawn where HR is, from a seed drawn here.
        seed = int(torch.randint(2**62, (1,), generator=self.random))
        random = torch.Generator(hr.device).manual_seed(seed)
        noise = torch.rand(hr.shape, generator=random, device=hr.device)
        near = hr + self._uniform(hr) * 0.5 * hr.std() * noise
        penalty = gradient_penalty(discriminator, near)
        return super().game_loss(discriminator, hr, sr) + self.recipe.gradient_penalty * penalty


class Began(Objective):
    """BEGAN: D is an autoencoder, its error the loss, k the balance (Berthelot et al. 2017, section 3.4)."""

    key = "began"
    k = torch.zeros(())  # how much of D's attention goes to generated pictures; replaced, never written into
    _errors = torch.zeros(2)  # of the last update, at HR and at SR; likewise

    def game_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return L(hr) - k L(sr), L(v) = |v - D(v)|."""
        real, fake = self._errors_of(discriminator, hr).mean(), self._errors_of(discriminator, sr).mean()
        self._errors = torch.stack([real, fake]).detach()
        self.k = self.k.to(real.device)
        return real - self.k * fake

    def generator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return L(sr)."""
        return self._errors_of(discriminator, sr).mean()

    def after_discriminator_step(self, discriminator: nn.Module) -> None:
        """Move k, the same in all processes, so that L(sr) approaches γ L(hr)."""
        real, fake = self.averaged(self._errors)
        gain = self.recipe.began_gain * (self.recipe.began_gamma * real - fake)
        # A step that was left out says nothing about the balance.
        self.k = torch.where(gain.isfinite(), (self.k + gain).clamp(0, 1), self.k)

    def scores(self, discriminator: nn.Module, pictures: Tensor) -> Tensor:
        """Return (N,) minus the error with which the autoencoder reproduces each picture."""
        return -self._errors_of(discriminator, pictures)

    def state_dict(self) -> dict[str, Any]:
        """Return k and what every objective has."""
        return super().state_dict() | {"k": float(self.k)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` left off."""
        super().load_state_dict(state)
        self.k = torch.tensor(float(state["k"]))

    def _errors_of(self, discriminator: nn.Module, pictures: Tensor) -> Tensor:
        errors: Tensor = (pictures - discriminator(pictures).float()).abs()
        return errors.flatten(1).mean(1)


class RelativisticAverage(Objective):
    """Is a picture more real than the others on average? (Jolicoeur-Martineau 2018; Wang et al. 2018, eq. 1)."""

    key = "relativistic-average"

    def game_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return BCE(D(hr) - mean D(sr), 1) + BCE(D(sr) - mean D(hr), 0), halved."""
        real, fake = _logits(discriminator, hr), _logits(discriminator, sr)
        return (_against(real - fake.mean(), 1.0) + _against(fake - real.mean(), 0.0)) / 2

    def generator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return the reverse; the gradient comes through both terms."""
        real, fake = _logits(discriminator, hr), _logits(discriminator, sr)
        return (_against(real - fake.mean(), 0.0) + _against(fake - real.mean(), 1.0)) / 2


class RelativisticPaired(Objective):
    """Is this picture more real than its twin? (Huang et al. 2024, "The GAN is dead; long live the GAN!", eq. 2).

    A pair is the real and the generated picture of one place, in a map of logits each of its points. With the
    penalties R1 and R2, its own by default, and without normalisation the game converges near its end.
    """

    key = "relativistic-paired"

    def game_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return softplus(D(sr) - D(hr))."""
        return F.softplus(_logits(discriminator, sr) - _logits(discriminator, hr)).mean()

    def generator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return softplus(D(hr) - D(sr))."""
        return F.softplus(_logits(discriminator, hr) - _logits(discriminator, sr)).mean()


OBJECTIVES: dict[str, type[Objective]] = {
    objective.key: objective
    for objective in (
        NonSaturating,
        Minimax,
        LeastSquares,
        Wasserstein,
        WassersteinGradientPenalty,
        Dragan,
        Began,
        RelativisticAverage,
        RelativisticPaired,
    )
}


def gradient_penalty(discriminator: nn.Module, pictures: Tensor) -> Tensor:
    """Return the mean of (‖∇D‖ - 1)² over `pictures` (N,3,P,P), differentiable in D's weights."""
    gradients = gradients_at(pictures, lambda shown: _logits(discriminator, shown).flatten(1).mean(1))
    slopes: Tensor = gradients.norm(dim=1)
    return (slopes - 1).square().mean()


def gradients_at(pictures: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Return (N,3PP), of each of `pictures` (N,3,P,P) the gradient of its score, differentiable in all weights.

    In float32 whatever the precision around it: a gradient of a gradient does not survive bfloat16.
    """
    pictures = pictures.detach().requires_grad_(True)
    with torch.autocast(pictures.device.type, enabled=False):
        (gradients,) = torch.autograd.grad(score(pictures).sum(), pictures, create_graph=True)
    flat: Tensor = gradients.flatten(1)
    return flat


def _logits(discriminator: nn.Module, pictures: Tensor) -> Tensor:
    logits: Tensor = discriminator(pictures).float()
    return logits


def _against(logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
