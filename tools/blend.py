"""Weights between two generators of one ancestry: (1 - share) of the first and share of the second.

    python tools/blend.py srresnet-x4.safetensors RUN/srgan-x4.safetensors 0.8 --data photos -o weights

Interpolating the weights of the pre-trained generator and of the one that played the game removes most of the
game's artifacts at little cost in sharpness (Wang et al. 2018, section 3.4). Writes NAME.safetensors and NAME.onnx
with the second one's name and metadata, the share noted in its recipe.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from srgan.conversion.exporting import export_generator
from srgan.networks.reading import fill, load_generator
from srgan.training.config import DataRecipe, DegradationRecipe
from srgan.training.data.cache import build_cache, split
from srgan.training.data.sources import parse_source
from srgan.training.validation import validate


def blended(first: Path, second: Path, share: float, *, data: list[str], cache: Path, out: Path) -> list[Path]:
    """Write the blend of two safetensors files to `out`, with figures of the held-out part of `data`.

    Raises WeightsError for different architectures.
    """
    pretrained, _ = load_generator(first)
    generator, metadata = load_generator(second)
    theirs, recipe = generator.state_dict(), metadata.recipe
    ours = pretrained.state_dict()
    fill(generator, {name: value.lerp(theirs[name], share) for name, value in ours.items()}, str(first))
    pictures = build_cache([parse_source(source) for source in data], cache)
    _, held_out = split(pictures, DataRecipe(**recipe["data"]))
    scores = validate(generator, held_out, DegradationRecipe(**recipe["degradation"]))
    note = {"blend": {"with": first.stem, "share": share}}
    metrics = {key: round(value, 4) for key, value in scores.items()}
    return list(export_generator(generator, replace(metadata, recipe=recipe | note, metrics=metrics), out))


def main() -> None:
    """Read the options, blend and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="safetensors of the pre-trained generator")
    parser.add_argument("second", type=Path, help="safetensors of the generator trained from it")
    parser.add_argument("share", type=float, help="of the second one, 0 to 1")
    parser.add_argument("--data", action="append", required=True, help="its pictures; the held-out part judges")
    parser.add_argument("-o", "--out", type=Path, default=Path(), help="folder for the files")
    options = parser.parse_args()
    if not 0 <= options.share <= 1:
        parser.error(f"share {options.share} is not between 0 and 1")
    cache = options.second.parent / "cache"
    for path in blended(
        options.first, options.second, options.share, data=options.data, cache=cache, out=options.out
    ):
        print(path)


if __name__ == "__main__":
    main()
