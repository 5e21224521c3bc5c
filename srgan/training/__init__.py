"""Training of SRResNet and SRGAN generators, and the game for any other network; needs the `train` extra (torch).

`adversarialise` is loaded when it is first used: reading recipes must not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from srgan.machine import keep_caches_together

if TYPE_CHECKING:
    from srgan.training.games import adversarialise

__all__ = ["adversarialise"]

keep_caches_together()


def __getattr__(name: str) -> Any:
    if name == "adversarialise":
        from srgan.training.games import adversarialise

        return adversarialise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
