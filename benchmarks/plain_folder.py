"""A folder through SRGAN as the test scripts of SRGAN repositories do it: PyTorch and Pillow, file by file.

    python benchmarks/plain_folder.py PICTURES RESULTS

What `srgan upscale` is measured against, in good faith: the model is loaded once, runs on all cores and keeps no
gradients; each picture goes through whole, whatever its size. The network is the bundled one with its layers in
the published order (Ledig et al. 2017, figure 4).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from srgan.networks.generator import Generator

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "srgan-x4.safetensors"


class PublishedGenerator(Generator):
    """The same function with activation and last convolution after the shuffles, as published."""

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """Return SR, not clamped."""
        shallow = self.head(lr)
        x = shallow + self.trunk(self.blocks(shallow))
        step: Any
        for step in self.upscale:
            x = step.act(step.shuffle(step.conv(x)))
        sr: torch.Tensor = F.conv2d(x, self.tail.weight, self.tail.bias, padding=4) + self.skip(lr)
        return sr


def load() -> PublishedGenerator:
    """Return the bundled generator, ready to upscale."""
    generator = PublishedGenerator()
    generator.load_state_dict(load_file(WEIGHTS))
    return generator.eval()


@torch.no_grad()
def upscale(generator: PublishedGenerator, picture: Image.Image) -> Image.Image:
    """Return `picture` four times as large."""
    lr = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float().div(255).unsqueeze(0)
    sr = generator(lr).squeeze(0).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(sr.permute(1, 2, 0).numpy())


def main() -> None:
    """Upscale every file of a folder into another one, as PNG."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    generator = load()
    for path in sorted(options.pictures.iterdir()):
        with Image.open(path) as picture:
            upscale(generator, picture).save(options.results / f"{path.stem}.png")


if __name__ == "__main__":
    main()
