"""Weights between two generators of one ancestry: (1 - share) of the first and share of the second.

    python benchmarks/blend.py srresnet-x4.safetensors RUN/srgan-x4.safetensors 0.8 --data photos -o weights

Interpolating the weights of the pre-trained generator and of the one that played the game removes most of the
game's artifacts at little cost in sharpness (Wang et al. 2018, section 3.4). Writes NAME.safetensors and NAME.onnx
with the second one's name and metadata, the share noted in its recipe.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from srgan.training.checkpoint import fill, load_generator
from srgan.training.data import build_cache, split
from srgan.training.export import export_generator
from srgan.training.sources import parse_source
from srgan.training.validation import validate


def main() -> None:
    """Read the options, blend and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="safetensors of the pre-trained generator")
    parser.add_argument("second", type=Path, help="safetensors of the generator trained from it")
    parser.add_argument("share", type=float, help="of the second one, 0 to 1")
    parser.add_argument("--data", required=True, help="the run's pictures, whose held-out part judges the blend")
    parser.add_argument("-o", "--out", type=Path, default=Path(), help="folder for the files")
    options = parser.parse_args()
    if not 0 <= options.share <= 1:
        parser.error(f"share {options.share} is not between 0 and 1")

    first, pretrained = load_generator(options.first)
    second, metadata = load_generator(options.second)
    if pretrained.architecture != metadata.architecture:
        parser.error(f"{options.first} and {options.second} are of different architectures")
    theirs = second.state_dict()
    blend = {name: value.lerp(theirs[name], options.share) for name, value in first.state_dict().items()}
    fill(second, blend, "the blend")
    note = {"blend": {"with": options.first.stem, "share": options.share}}
    cache = build_cache([parse_source(options.data)], options.second.parent / "cache")
    _, held_out = split(cache, metadata.recipe["data"]["held_out"], metadata.recipe["seed"])
    scores = {key: round(value, 4) for key, value in validate(second, held_out).items()}
    metadata = replace(metadata, recipe=metadata.recipe | note, metrics=scores)
    for path in export_generator(second, metadata, options.out):
        print(path)


if __name__ == "__main__":
    main()
