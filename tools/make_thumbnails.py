"""The small pictures beside the names of models on the service's page: the input left, what becomes of it right.

    python tools/make_thumbnails.py

All are of `examples/chelsea.png`; what `srgan-x4-photo` is given is a JPEG of it.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from srgan.upscale import Upscaler

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "service/srgan_service/static/thumbs"
FUR, EYE = (
    (60, 60, 80, 80),
    (62, 38, 94, 70),
)  # of the example: hair and an edge tell models apart, an eye is a cat
SIZE = (112, 112)  # 56 px on a screen of two pixels each


def main() -> None:
    """Write the thumbnails."""
    clean = Image.open(ROOT / "examples/chelsea.png").convert("RGB")
    file = io.BytesIO()
    clean.save(file, "JPEG", quality=35)
    sharp, true = enlarged("srgan-x4", clean), enlarged("srresnet-x4", clean)
    blocks = Image.open(file).convert("RGB")
    save("srgan", cut(clean, FUR), cut(sharp, FUR))
    save("srresnet", cut(clean, FUR), cut(true, FUR))
    save("srgan-photo", cut(blocks, FUR), cut(enlarged("srgan-x4-photo", blocks), FUR))
    save("between", cut(true, FUR), cut(sharp, FUR))
    save("auto", cut(clean, EYE), cut(sharp, EYE))


def enlarged(model: str, image: Image.Image) -> Image.Image:
    """Return an image four times larger."""
    return Image.fromarray(Upscaler(model).upscale(np.asarray(image)))


def cut(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Return what lies in `box`, in pixels of the example, as a thumbnail; an input shows its pixels."""
    times = 4 if image.width > 500 else 1
    left, top, right, bottom = (times * side for side in box)
    filter = Image.Resampling.NEAREST if times == 1 else Image.Resampling.BICUBIC
    return image.resize(SIZE, filter, (left, top, right, bottom))


def save(name: str, left: Image.Image, right: Image.Image) -> None:
    """Write the left half of one beside the right half of the other, as WebP, which every browser shows."""
    image, middle = right.copy(), SIZE[0] // 2
    image.paste(left.crop((0, 0, middle, SIZE[1])), (0, 0))
    image.paste((255, 255, 255), (middle - 1, 0, middle + 1, SIZE[1]))
    FOLDER.mkdir(exist_ok=True)
    image.save(FOLDER / f"{name}.webp", quality=80)


if __name__ == "__main__":
    main()
