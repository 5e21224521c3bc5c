"""Every script tells how it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.scripts import ROOT

SCRIPTS = [
    path
    for folder in ("benchmarks", "tools", "examples")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "argparse" in path.read_text()
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help(script: Path) -> None:
    shown = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(f"usage: {script.name} ")
    assert not shown.stderr


def test_every_tool_is_in_the_list() -> None:
    listed = (ROOT / "tools" / "README.md").read_text()
    assert [path.name for path in (ROOT / "tools").glob("*.py") if f"`{path.name}`" not in listed] == []
