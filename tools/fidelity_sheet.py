"""Pictures of what is easy to get wrong, to be looked at: rims, gradients, seams, grey, strength.

python tools/fidelity_sheet.py -o sheets/

rim.png       a hard-edged disc on a transparent ground, upscaled and put on black, grey and white; below each
              the same by a way that does not hide what lies under transparency: bicubic in all four channels
gradient.png  a faint gradient at 40x contrast: upscaled from 8 bits and from 16
seams.png     a photograph in tiles, whole, and 8 times their difference (mid-grey where there is none)
grey.png      a grey photograph as one channel and as three, with 8 times the colour that has crept in
strength.png  a photograph at strength 0 (bicubic), 0.25, 0.5, 0.75 and 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from srgan.files import write_atomically
from srgan.pictures import Picture, decode, encode, resized
from srgan.upscale import Request, Upscaler

EXAMPLES = Path(__file__).parents[1] / "examples"
GAP_PX = 8


def beside(*pictures: np.ndarray) -> np.ndarray:
    """Return (H,W,3) pictures of one height in a row, white between them."""
    gap = np.full((pictures[0].shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


def below(*rows: np.ndarray) -> np.ndarray:
    """Return rows of one width, white between them."""
    gap = np.full((GAP_PX, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def composite(picture: Picture, ground: int) -> np.ndarray:
    """Return `picture` as it is seen on an even grey ground."""
    assert picture.alpha is not None
    opacity = picture.alpha[..., None] / 255
    return np.rint(picture.pixels * opacity + ground * (1 - opacity)).astype(np.uint8)


def rim(upscaler: Upscaler) -> np.ndarray:
    """Discs on three grounds, ours above."""
    rows, columns = np.mgrid[0:48, 0:48] - 23.5
    inside = rows**2 + columns**2 < 18**2
    colours = np.where((rows < 0)[..., None], (230, 120, 30), (40, 90, 200))
    disc = Picture(np.where(inside[..., None], colours, (0, 255, 0)).astype(np.uint8), inside * np.uint8(255))
    careless = resized(disc, 192, 192)
    careful = upscaler.upscale(disc)
    return below(*(beside(*(composite(one, ground) for ground in (0, 128, 255))) for one in (careful, careless)))


def gradient(upscaler: Upscaler) -> np.ndarray:
    """A gradient of five levels of 255, from 8 bits above and from 16 below."""
    ramp = np.linspace(100, 105, 120)[None].repeat(30, axis=0) * 257
    deep = np.rint(ramp).astype(np.uint16)
    shallow = np.rint(ramp / 257).astype(np.uint8)
    shown = [upscaler.upscale(Picture(levels)).pixels for levels in (shallow, deep)]
    levels = [shown[0].astype(float), shown[1] / 257]
    stretched = [((one - 102.5) * 40 + 128).clip(0, 255).astype(np.uint8) for one in levels]
    return below(*(np.repeat(one[..., None], 3, axis=2) for one in stretched))


def seams(upscaler: Upscaler, tiled: Upscaler) -> np.ndarray:
    """Tiled, whole, and their difference."""
    photograph = decode(EXAMPLES / "chelsea.png")
    one, other = tiled.upscale(photograph).pixels, upscaler.upscale(photograph).pixels
    return beside(one, other, magnified(one.astype(float) - other))


def grey(upscaler: Upscaler) -> np.ndarray:
    """A grey photograph in one channel and in three, and the tint of the latter."""
    photograph = decode(EXAMPLES / "camera.png")
    three = np.repeat(photograph.pixels[..., None], 3, axis=2)
    one = np.repeat(upscaler.upscale(photograph).pixels[..., None], 3, axis=2)
    other = upscaler.upscale(Picture(three)).pixels
    return beside(one, other, magnified(other - other.mean(axis=2, keepdims=True)))


def strength(upscaler: Upscaler) -> np.ndarray:
    """From bicubic to the model."""
    photograph = decode(EXAMPLES / "chelsea.png")
    photograph = Picture(photograph.pixels[20:100, 60:140])
    row = [upscaler.upscale(photograph, Request(strength=part / 4)).pixels for part in range(5)]
    return beside(*row)


def magnified(difference: np.ndarray) -> np.ndarray:
    """Return a difference in levels, 8 times, around mid-grey."""
    return (difference * 8 + 128).clip(0, 255).astype(np.uint8)


def main() -> None:
    """Write the sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--model", help="model name or file; default: the bundled default")
    parser.add_argument("-o", "--out", type=Path, default=Path("sheets"), help="folder for the sheets")
    arguments = parser.parse_args()
    upscaler = Upscaler(arguments.model, tile_lr_px="off")
    tiled = Upscaler(arguments.model, tile_lr_px=48)
    sheets: dict[str, Callable[[], np.ndarray]] = {
        "rim": lambda: rim(upscaler),
        "gradient": lambda: gradient(upscaler),
        "seams": lambda: seams(upscaler, tiled),
        "grey": lambda: grey(upscaler),
        "strength": lambda: strength(upscaler),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, draw in sheets.items():
        path = arguments.out / f"{name}.png"
        write_atomically(path, encode(Picture(np.ascontiguousarray(draw())), "png"))
        print(path)


if __name__ == "__main__":
    main()
