"""The README's lines for upscaling, one after the other, as a newcomer types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.folders import picture

README = Path(__file__).parents[2] / "README.md"


def lines() -> list[str]:
    """All `srgan upscale` lines of the first screen and of the section about upscaling."""
    above, _, _ = README.read_text(encoding="utf-8").partition("## Train")
    return [line for line in above.splitlines() if line.startswith("srgan upscale ")]


def test_no_line_is_in_the_way_of_another(tmp_path: Path) -> None:
    picture(tmp_path / "photo.jpg", width=200, height=20)
    picture(tmp_path / "faces.png", width=200, height=20)
    picture(tmp_path / "photo.png"), picture(tmp_path / "holiday" / "a.jpg")
    command = tmp_path / "bin" / "srgan"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m srgan "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}
    results = set(tmp_path.iterdir())
    assert len(lines()) >= 9
    for line in lines():
        done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, "error" in done.stderr) == (0, False), (line, done.stderr)
        assert set(tmp_path.iterdir()) > results, f"{line}: no file of its own"
        results = set(tmp_path.iterdir())
