"""`srgan recipes`."""

from __future__ import annotations

import itertools

from srgan.training.config import bundled_recipes, recipe_text


def recipes(name: str | None) -> None:
    """Print the bundled recipes, each with the line that it begins with, or the TOML of the one called `name`."""
    if name is not None:
        print(recipe_text(name), end="")
        return
    for known in bundled_recipes():
        comment = itertools.takewhile(lambda line: line.startswith("#"), recipe_text(known).splitlines())
        words = " ".join(line.removeprefix("# ") for line in comment)
        print(f"{known:15} {words.partition(': ')[0]}")
