"""The adversarial game: what the discriminator is taught and what the generator gains by deceiving it.

Every objective has the same four methods, so the trainer's step does not change when the objective does:

    discriminator_loss(D, hr, sr)   scalar; `sr` is detached by the caller
    generator_loss(D, hr, sr)       scalar whose gradient must reach `sr`
    after_discriminator_step(D)     for objectives that act on D or on their own state after its update
    state_dict(), load_state_dict() what must survive a resume

D maps (N,3,P,P) pictures in [0,1] to (N,1) logits.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srgan.training.config import AdversarialRecipe


class Objective(Protocol):
    """One way to play the game."""

    def discriminator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return what the discriminator minimises."""

    def generator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return what the generator minimises, before its weight."""

    def after_discriminator_step(self, discriminator: nn.Module) -> None:
        """Act after the discriminator's update."""

    def state_dict(self) -> dict[str, Any]:
        """Return the objective's own state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class NonSaturating:
    """Cross-entropy game with noisy soft labels (Goodfellow et al. 2014, section 3; Salimans et al. 2016).

    The discriminator's labels are drawn anew for every picture and step, real from U(0.7, 1.2), fake from
    U(0, 0.3) by default, so it never grows certain; labels above 1 are meant. The generator is judged against 1.
    Random numbers come from `random`, a CPU generator.
    """

    def __init__(self, recipe: AdversarialRecipe, random: torch.Generator) -> None:
        self.real_labels, self.fake_labels = recipe.real_labels, recipe.fake_labels
        self._random = random

    def discriminator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return BCE(D(hr), real labels) + BCE(D(sr), fake labels)."""
        real, fake = discriminator(hr).float(), discriminator(sr).float()
        return F.binary_cross_entropy_with_logits(
            real, self.labels(real, self.real_labels)
        ) + F.binary_cross_entropy_with_logits(fake, self.labels(fake, self.fake_labels))

    def generator_loss(self, discriminator: nn.Module, hr: Tensor, sr: Tensor) -> Tensor:
        """Return -log D(sr) (Ledig et al. 2017, eq. 6)."""
        fake = discriminator(sr).float()
        return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))

    def after_discriminator_step(self, discriminator: nn.Module) -> None:
        """Nothing to do: this game has no constraint on D."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the label noise."""
        return {"random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the label noise where `state` left it."""
        self._random.set_state(state["random"])

    def labels(self, logits: Tensor, bounds: tuple[float, float]) -> Tensor:
        """Return one label for each logit, uniform in `bounds`."""
        low, high = bounds
        noise = torch.rand(logits.shape, generator=self._random)
        return (low + (high - low) * noise).to(logits.device)


OBJECTIVES: dict[str, type[NonSaturating]] = {"nonsaturating": NonSaturating}
