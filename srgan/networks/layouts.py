"""How others name the weights of their SRResNet, and what their code does beside the convolutions.

Names, shapes and conventions are read off the repositories named below; a file is recognised by its names alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from srgan.errors import WeightsError
from srgan.networks.reading import fill
from srgan.networks.residual import Architecture, ResidualNetwork

_BATCH_NORM_EPSILON = 1e-5  # torch's default, which all of them keep


@dataclass(frozen=True)
class Layout:
    """One repository's names and conventions.

    `names`: theirs to ours, where # is a number and * the last part of the name; {after}, {end} and {steps} are
    numbers of layers behind the blocks where blocks are counted among the other layers, from `first_block` on;
    steps are counted from `first_step` on, by `step_stride`.
    `slopes`: of activations without weights. `facts`: for `Architecture`, where the shapes do not tell.
    """

    name: str
    names: Mapping[str, str]
    first_block: int = 0
    first_step: int = 0
    step_stride: int = 1
    slopes: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


_LORNATANG_BLOCKS = {
    "trunk.#.rcb.0.*": "blocks.#.conv1.*",
    "trunk.#.rcb.1.*": "blocks.#.norm1.*",
    "trunk.#.rcb.2.*": "blocks.#.act.*",
    "trunk.#.rcb.3.*": "blocks.#.conv2.*",
    "trunk.#.rcb.4.*": "blocks.#.norm2.*",
    "upsampling.#.upsample_block.0.*": "steps.#.conv.*",
    "upsampling.#.upsample_block.2.*": "steps.#.act.*",
}
_MODIFIED = {"long_skip": False, "hr_convolution": True, "picture_skip": "bilinear"}

_LEFTTHOMAS = {
    "block1.0.*": "head.*",
    "block1.1.*": "head_act.*",
    "block#.conv1.*": "blocks.#.conv1.*",
    "block#.bn1.*": "blocks.#.norm1.*",
    "block#.prelu.*": "blocks.#.act.*",
    "block#.conv2.*": "blocks.#.conv2.*",
    "block#.bn2.*": "blocks.#.norm2.*",
    "block{after}.0.*": "trunk.*",
    "block{end}.#.conv.*": "steps.#.conv.*",
    "block{end}.#.prelu.*": "steps.#.act.*",
    "block{end}.{steps}.*": "tail.*",
}

LAYOUTS = (
    Layout(  # its published netG_epoch_*_100.pth; before the layout of today, whose names hold all of these
        "leftthomas/SRGAN (until 2019)",
        {**_LEFTTHOMAS, "block{after}.1.weight": "trunk_act.weight"},
        first_block=2,
        facts={"output": "tanh", "trunk_activation": True},
    ),
    Layout(
        "leftthomas/SRGAN",
        {**_LEFTTHOMAS, "block{after}.1.*": "trunk_norm.*"},
        first_block=2,
        facts={"output": "tanh"},
    ),
    Layout(
        "aitorzip/PyTorch-SRGAN",
        {
            "conv1.*": "head.*",
            "residual_block#.conv1.*": "blocks.#.conv1.*",
            "residual_block#.bn1.*": "blocks.#.norm1.*",
            "residual_block#.conv2.*": "blocks.#.conv2.*",
            "residual_block#.bn2.*": "blocks.#.norm2.*",
            "conv2.*": "trunk.*",
            "bn2.*": "trunk_norm.*",
            "upsample#.conv.*": "steps.#.conv.*",
            "conv3.*": "tail.*",
        },
        first_block=1,
        first_step=1,
        facts={"activation": "swish", "input": "imagenet", "output": "imagenet"},
    ),
    Layout(
        "Lornatang/SRGAN-PyTorch",
        {
            "conv1.0.*": "head.*",
            "conv1.1.*": "head_act.*",
            "conv2.0.*": "trunk.*",
            "conv2.1.*": "trunk_norm.*",
            "conv3.*": "tail.*",
            **_LORNATANG_BLOCKS,
        },
    ),
    Layout(
        "Lornatang/SRGAN-PyTorch (2022)",
        {
            "conv_block1.0.*": "head.*",
            "conv_block1.1.*": "head_act.*",
            "conv_block2.0.*": "trunk.*",
            "conv_block2.1.*": "trunk_norm.*",
            "conv_block3.*": "tail.*",
            **_LORNATANG_BLOCKS,
        },
    ),
    Layout(
        "BasicSR MSRResNet",
        {
            "conv_first.*": "head.*",
            "body.#.conv1.*": "blocks.#.conv1.*",
            "body.#.conv2.*": "blocks.#.conv2.*",
            "upconv1.*": "steps.0.conv.*",
            "upconv2.*": "steps.1.conv.*",
            "conv_hr.*": "hr.*",
            "conv_last.*": "tail.*",
        },
        slopes={"head_act": 0.1, "act": 0.0, "steps": 0.1, "hr_act": 0.1},
        facts=_MODIFIED,
    ),
    Layout(
        "mmagic MSRResNet",
        {
            "conv_first.*": "head.*",
            "trunk_net.#.conv1.*": "blocks.#.conv1.*",
            "trunk_net.#.conv2.*": "blocks.#.conv2.*",
            "upsample1.upsample_conv.*": "steps.0.conv.*",
            "upsample2.upsample_conv.*": "steps.1.conv.*",
            "conv_hr.*": "hr.*",
            "conv_last.*": "tail.*",
        },
        # Unlike BasicSR's, its steps are not activated.
        slopes={"head_act": 0.1, "act": 0.0, "steps": 1.0, "hr_act": 0.1},
        facts=_MODIFIED,
    ),
    Layout(
        "sgrvinod's tutorial",
        {
            "conv_block1.conv_block.0.*": "head.*",
            "conv_block1.conv_block.1.*": "head_act.*",
            "residual_blocks.#.conv_block1.conv_block.0.*": "blocks.#.conv1.*",
            "residual_blocks.#.conv_block1.conv_block.1.*": "blocks.#.norm1.*",
            "residual_blocks.#.conv_block1.conv_block.2.*": "blocks.#.act.*",
            "residual_blocks.#.conv_block2.conv_block.0.*": "blocks.#.conv2.*",
            "residual_blocks.#.conv_block2.conv_block.1.*": "blocks.#.norm2.*",
            "conv_block2.conv_block.0.*": "trunk.*",
            "conv_block2.conv_block.1.*": "trunk_norm.*",
            "subpixel_convolutional_blocks.#.conv.*": "steps.#.conv.*",
            "subpixel_convolutional_blocks.#.prelu.*": "steps.#.act.*",
            "conv_block3.conv_block.0.*": "tail.*",
        },
        facts={"input": "imagenet", "output": "tanh"},
    ),
    Layout(
        "twtygqyy/pytorch-SRResNet",
        {
            "conv_input.*": "head.*",
            "residual.#.conv1.*": "blocks.#.conv1.*",
            "residual.#.bn1.*": "blocks.#.norm1.*",
            "residual.#.conv2.*": "blocks.#.conv2.*",
            "residual.#.bn2.*": "blocks.#.norm2.*",
            "conv_mid.*": "trunk.*",
            "bn_mid.*": "trunk_norm.*",
            "upscale4x.#.*": "steps.#.conv.*",
            "conv_output.*": "tail.*",
        },
        step_stride=3,
        slopes={"head_act": 0.2, "act": 0.2, "steps": 0.2},
    ),
)


def network_from(state: Mapping[str, Tensor], source: str) -> ResidualNetwork | None:
    """Return the network whose weights `state` holds, under the names of one of `LAYOUTS`, or None if of none.

    `state`: plain finite tensors. Raises WeightsError if the names are of a layout but the shapes are not.
    """
    for layout in LAYOUTS:
        ours = _renamed(state, layout)
        if ours is not None:
            try:
                return _built(ours, layout, source)
            except (LookupError, ArithmeticError, ValidationError, RuntimeError) as error:
                raise WeightsError(
                    f"{source}: its names are those of {layout.name}, its shapes are not those of a generator"
                ) from error
    return None


def _renamed(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor] | None:
    """Return `state` under our names, or None if a name is not of `layout`."""
    blocks = sum(re.fullmatch(r"block\d+\.conv1\.weight", name) is not None for name in state)
    after = layout.first_block + blocks
    steps = sum(re.fullmatch(rf"block{after + 1}\.\d+\.conv\.weight", name) is not None for name in state)
    numbers = {"{after}": after, "{end}": after + 1, "{steps}": steps}
    rules = []
    for theirs, ours in layout.names.items():
        for placeholder, number in numbers.items():
            theirs = theirs.replace(placeholder, str(number))
        pattern = re.escape(theirs).replace(r"\#", r"(?P<number>\d{1,4})").replace(r"\*", r"(?P<last>\w{1,20})")
        rules.append((re.compile(pattern, re.ASCII), ours))
    renamed = {}
    for name, tensor in state.items():
        for pattern_, ours in rules:
            match = pattern_.fullmatch(name)
            if match:
                renamed[_our_name(ours, match.groupdict(), layout)] = tensor
                break
        else:
            return None
    return renamed


def _our_name(ours: str, parts: dict[str, str | Any], layout: Layout) -> str:
    if "number" in parts:
        number = int(parts["number"])
        if ours.startswith("blocks"):
            number -= layout.first_block
        elif (number - layout.first_step) % layout.step_stride == 0:
            number = (number - layout.first_step) // layout.step_stride
        ours = ours.replace("#", str(number))
    return ours.replace("*", parts.get("last", ""))


def _built(state: dict[str, Tensor], layout: Layout, source: str) -> ResidualNetwork:
    state = _folded({name: tensor.double() for name, tensor in state.items()})
    steps = sorted(name for name in state if re.fullmatch(r"steps\.\d+\.conv\.weight", name))
    architecture = Architecture(
        layout=layout.name,
        blocks=sum(name.endswith(".conv1.weight") for name in state),
        features=state["head.weight"].shape[0],
        factors=tuple(_factor(state[name]) for name in steps),
        head_kernel=state["head.weight"].shape[-1],
        tail_kernel=state["tail.weight"].shape[-1],
        **layout.facts,
    )
    with torch.device("meta"):  # nothing is allocated for what a few small tensors claim to be
        wanted = {name: value.shape for name, value in ResidualNetwork(architecture).state_dict().items()}
    for name, shape in wanted.items():
        if name not in state:
            kind = "act" if name.startswith("blocks") else name.partition(".")[0]
            fallback = 0.0 if name.endswith("bias") else layout.slopes[kind]  # a convolution may have no bias
            state[name] = torch.full(shape, fallback)
    if {name: tensor.shape for name, tensor in state.items()} != wanted:
        raise LookupError("other names or shapes")
    network = ResidualNetwork(architecture)
    fill(network, {name: tensor.float().contiguous() for name, tensor in state.items()}, source)
    return network.eval()


def _factor(weight: Tensor) -> int:
    """Return the factor of the sub-pixel step with this convolution."""
    return math.isqrt(weight.shape[0] // weight.shape[1])


def _folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with every batch normalisation put into the convolution before it."""
    folded = {name: tensor for name, tensor in state.items() if "norm" not in name}
    for norm in sorted({name.rpartition(".")[0] for name in state if "norm" in name}):
        conv = "trunk" if norm == "trunk_norm" else norm.replace("norm", "conv")
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
        bias = state.get(f"{conv}.bias", torch.zeros_like(gain))
        folded[f"{conv}.weight"] = state[f"{conv}.weight"] * gain.reshape(-1, 1, 1, 1)
        folded[f"{conv}.bias"] = (bias - state[f"{norm}.running_mean"]) * gain + state[f"{norm}.bias"]
    return folded
