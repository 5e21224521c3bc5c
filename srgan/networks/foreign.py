"""Networks of other architectures than the SRResNet's, recognised and built by spandrel; they run on PyTorch.

spandrel carries the architectures' code, so of a file nothing but its tensors is used.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from srgan.errors import UsageError, WeightsError
from srgan.installed import remedy
from srgan.networks.layouts import LAYOUTS

MAX_MULTIPLE_LR_PX = 256
_WINDOWS = ("window_size", "split_size", "patch_size")  # what attention within windows calls their sides


class ForeignNetwork(nn.Module):
    """A network by spandrel: LR (N,3,H,W) in [0,1] of any size to SR (N,3,sH,sW) in [0,1].

    `kind`: the architecture's name. `multiple_lr_px`: a part of a picture that begins and ends at multiples of it
    falls into the same windows as in the whole. `half`: whether half precision is said to do. A network for one
    channel is given red, green and blue apart.
    """

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.model = found.model.eval().float().requires_grad_(False)
        self.kind: str = found.architecture.name
        self.scale: int = found.scale
        self.half_will_do: bool = found.supports_half
        self.channels: int = found.input_channels
        self.multiple_lr_px = _multiple(self.model, found.size_requirements.multiple_of)
        self._padding_and_call = found

    def forward(self, lr: Tensor) -> Tensor:
        """Return SR; spandrel pads what the architecture cannot take and cuts the result."""
        n, _, height, width = lr.shape
        planes = lr.reshape(-1, self.channels, height, width)
        sr: Tensor = self._padding_and_call(planes)
        return sr.reshape(n, 3, *sr.shape[2:])


def foreign_network(state: dict[str, Tensor], source: Path) -> ForeignNetwork:
    """Return the network that has the weights `state`; `source` names their file in errors.

    Raises UsageError without spandrel, WeightsError if it knows no such network, or one for something else.
    """
    known = ", ".join(layout.name for layout in LAYOUTS)
    try:
        import spandrel
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{source}: not a generator of {known}; for ESRGAN, SwinIR, SPAN, Compact and others: "
            f"{remedy('models')}"
        ) from error
    try:
        with warnings.catch_warnings():  # their code calls torch by its old argument names
            warnings.simplefilter("ignore")
            found = spandrel.ModelLoader(device="cpu").load_from_state_dict(
                spandrel.canonicalize_state_dict(state)
            )
    # It reads sizes off the tensors before it knows that they belong together, so it may raise anything.
    except Exception as error:
        raise WeightsError(f"{source}: not a generator of {known}, nor of any that spandrel knows") from error
    kind, channels = found.architecture.name, found.input_channels
    if not isinstance(found, spandrel.ImageModelDescriptor) or not channels == found.output_channels in (1, 3):
        raise WeightsError(f"{source}: {kind} is not a network from pictures to pictures")
    network = ForeignNetwork(found)
    if found.size_requirements.square or network.multiple_lr_px > MAX_MULTIPLE_LR_PX:
        raise WeightsError(f"{source}: {kind} does not take pictures of any size")
    return network


def _multiple(model: nn.Module, required: int) -> int:
    """Return the least common multiple of what sizes must be multiples of and the sides of all windows."""
    sides = {required}
    for module in model.modules():
        for name in _WINDOWS:
            found = getattr(module, name, None)
            values = found if isinstance(found, list | tuple) else [found]
            sides |= {value for value in values if isinstance(value, int) and value > 0}
    return math.lcm(*sides)
