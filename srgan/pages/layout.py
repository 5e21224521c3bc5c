"""Pages that need nothing from outside: one file with its styles, script and pictures, to be mailed and kept."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from srgan.errors import SrganError
from srgan.files import write_atomically


def page(title: str, body: str, *, package: str, name: str) -> str:
    """Return a whole page of `body` (HTML), with the common style and `name`.css and `name`.js of `package`."""
    own = resources.files(package)
    common = resources.files("srgan.pages")
    return Template(common.joinpath("page.html").read_text("utf-8")).substitute(
        title=escape(title),
        style=common.joinpath("page.css").read_text("utf-8") + own.joinpath(f"{name}.css").read_text("utf-8"),
        script=own.joinpath(f"{name}.js").read_text("utf-8"),
        body=body,
    )


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


def wide_table(head: str, rows: Iterable[str]) -> str:
    """Return a card with a table that scrolls sideways where it must; `head`, `rows`: HTML of <tr>."""
    return f'<div class="card wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def table_row(name: str, cells: Iterable[str]) -> str:
    """Return a <tr> that begins with `name`; `cells` are HTML."""
    return f"<tr><th>{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
