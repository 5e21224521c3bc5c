"""LR pictures as they are met in the wild, to evaluate on: JPEG files of LR, or the realistic degradation of HR.

    python tools/degrade.py --from Set14/LRx4 --jpeg 40 -o Set14/LRx4-jpeg40
    python tools/degrade.py --from Set14/HR --realistic -o Set14/LRx4-realistic
    srgan evaluate --hr Set14/HR --lr Set14/LRx4-jpeg40 -n srgan-x4 -n srgan-x4-photo
    python tools/degrade.py --from Set14/HR --realistic --scale 2 -o Set14/LRx2-realistic

`--jpeg`: each LR picture through JPEG 4:2:0 of that quality and back. `--realistic`: blur, resizes, noise and JPEG
as recipes draw them by default, seeded by the picture's number, so that every call gives the same files.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from srgan.files import write_atomically
from srgan.networks.generator import STEPS
from srgan.training.config import DegradationRecipe
from srgan.training.data import degradation


def through_jpeg(lr: Image.Image, quality: int) -> Image.Image:
    """Return `lr` as it comes back from a JPEG file."""
    buffer = io.BytesIO()
    lr.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def realistic(hr: Image.Image, number: int, scale: int) -> Image.Image:
    """Return the LR of `hr`, `scale` times smaller, degraded with `number` as the seed."""
    width, height = (side // scale * scale for side in hr.size)
    pixels = np.array(hr.crop((0, 0, width, height)))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    lr = degradation.held_out(DegradationRecipe(kind="realistic"), x, number, scale)
    return Image.fromarray((lr[0].permute(1, 2, 0) * 255).round().byte().numpy())


def degrade(source: Path, out: Path, quality: int | None, scale: int = 4) -> None:
    """Write the LR of every PNG in `source`: its JPEG of `quality`, or None: realistic, `scale` times less."""
    out.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(source.glob("*.png"))):
        picture = Image.open(path).convert("RGB")
        lr = realistic(picture, number, scale) if quality is None else through_jpeg(picture, quality)
        buffer = io.BytesIO()
        lr.save(buffer, "PNG")
        write_atomically(out / path.name, buffer.getvalue())


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder of pictures, PNG")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--jpeg", type=int, metavar="QUALITY", help="1 to 95")
    kind.add_argument("--realistic", action="store_true")
    parser.add_argument("--scale", type=int, choices=STEPS, default=4, help="of --realistic")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the LR pictures, PNG")
    options = parser.parse_args()
    degrade(options.source, options.out, options.jpeg, options.scale)


if __name__ == "__main__":
    main()
