"""`srgan models`."""

from __future__ import annotations

from srgan.commands.terminal import say
from srgan.errors import SrganError
from srgan.texts import one_line
from srgan.weights import bundled_models, find_weights


def models() -> bool:
    """Print a line for each bundled model, and return whether the files of all are intact."""
    intact = True
    for model in bundled_models():
        state = "intact"
        try:
            find_weights(model.name)
        except SrganError as error:
            intact, state = False, "DAMAGED"
            say("error", str(error))
        default = " (default)" if model.is_default else ""
        faithful = "  faithful" if model.is_faithful else ""
        print(one_line(f"{model.name}{default}  x{model.scale}  {state}{faithful}  {model.description}"))
    return intact
