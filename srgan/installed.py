"""How this program was installed, and so how more of it is."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


def remedy(extra: str) -> str:
    """Return the line that installs what `extra` brings: from where this program came, if that is still there.

    Else, as from an index of packages that somebody keeps, it names the packages themselves.
    """
    try:
        program = distribution("srgan")
        origin = json.loads(program.read_text("direct_url.json") or "{}")  # PEP 610
    except (PackageNotFoundError, ValueError, OSError):
        program, origin = None, {}
    url = origin.get("url", "")
    place = Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else None
    if program is None and (Path(__file__).parents[1] / "pyproject.toml").exists():
        place, origin = Path(__file__).parents[1], {"dir_info": {"editable": True}}
    if place is not None and place.exists():
        if origin.get("dir_info", {}).get("editable"):
            return f'pip install -e "{place}[{extra}]"'
        return f'{_installer()} "srgan[{extra}] @ {url}"'
    return " ".join(["pip install", *(f'"{entry}"' for entry in _requirements(program, extra))])


def _installer() -> str:
    """Return what installs into the environment of this process: of a tool, it makes that anew."""
    if (Path(sys.prefix) / "uv-receipt.toml").exists():
        return "uv tool install"
    return "pipx install --force" if (Path(sys.prefix) / "pipx_metadata.json").exists() else "pip install"


def _requirements(program: Distribution | None, extra: str) -> list[str]:
    """Return what `extra` asks for beside the program itself."""
    packages: list[str] = []
    for entry in (program.requires if program else None) or []:
        requirement, _, marker = (part.strip() for part in entry.partition(";"))
        if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", marker):
            inner = re.fullmatch(r"srgan\[(\w+)\]", requirement)
            packages += _requirements(program, inner[1]) if inner else [requirement]
    return packages
