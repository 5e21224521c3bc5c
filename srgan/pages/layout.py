"""Pages that need nothing from outside: one file with its styles, script and pictures, to be mailed and kept.

Whatever a template is given is text and comes out escaped; only what another template made is HTML.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from srgan.errors import SrganError
from srgan.files import write_atomically

_environment = Environment(
    loader=PackageLoader("srgan.pages"),
    autoescape=True,
    undefined=StrictUndefined,  # a name that a template misspells fails instead of showing nothing
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, a note that is small beside it, and whether it is the best of its row."""

    text: str = "–"
    note: str = ""
    best: bool = False


def render(template: str, /, **values: Any) -> Markup:
    """Return what `template`, a file in templates/, makes of `values`, as HTML (or SVG)."""
    return Markup(_environment.get_template(template).render(values))  # noqa: S704 - its values are escaped


def asset(name: str) -> Markup:
    """Return a style sheet or script that lies beside this module, as it is."""
    return Markup(resources.files("srgan.pages").joinpath(name).read_text("utf-8").strip())  # noqa: S704 - our own


def data_uri(data: bytes, format: str) -> str:
    """Return the bytes of a picture of `format` ("png") as the address of an <img>."""
    return f"data:image/{format};base64,{base64.b64encode(data).decode()}"


def write_page(path: Path, text: str) -> None:
    """Write `text` as a file, making its folder. Raises SrganError if that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise SrganError(f"{path} cannot be written: {error.strerror}; choose another place") from error


_environment.globals["asset"] = asset
