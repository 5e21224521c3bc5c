"""Other processes import what this one would, and nothing from the folder at hand."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import srgan_service
from PIL import Image

import srgan
from srgan import isolated

POISONED = ("numpy", "onnx", "torch", "openvino", "PIL", "pydantic", "safetensors", "spandrel", "typer", "rich")
SOURCES = sorted(
    path for package in (srgan, srgan_service) for path in Path(str(package.__file__)).parent.rglob("*.py")
)
STARTS = {
    "subprocess.run",
    "subprocess.Popen",
    "subprocess.call",
    "subprocess.check_output",
    "os.system",
    "os.popen",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with modules that nobody should run."""
    for name in POISONED:
        (tmp_path / f"{name}.py").write_text("open('canary', 'w').close()\nraise SystemExit('poisoned')\n")
    Image.fromarray(np.full((8, 9, 3), 99, np.uint8)).save(tmp_path / "p.avif")
    return tmp_path


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    places = os.pathsep.join(place for place in sys.path if place)  # where the tests find this package
    environment = {**os.environ, "PYTHONPATH": places}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_child_finds_what_this_process_finds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    call = "import sys, numpy, srgan; print(numpy.__file__, srgan.__file__, *sys.argv)"
    done = subprocess.run(
        isolated.command(call, "a b"), env=isolated.environment(), capture_output=True, text=True
    )
    assert done.stdout.split(" ", 2) == [str(np.__file__), str(srgan.__file__), "a b\n"], done.stderr


def test_no_command_runs_what_lies_in_the_folder(folder: Path, tiny_model: Path) -> None:
    """A picture is decoded and encoded, and a model tried, in processes of their own; torch is imported here."""
    upscale = [sys.executable, "-m", "srgan", "upscale", "p.avif", "-n", str(tiny_model), "-o", "out.avif"]
    done = run(upscale, folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.avif").exists()
    done = run([sys.executable, "-m", "srgan", "import", "absent.pth"], folder)
    assert "absent.pth: cannot be read" in done.stderr
    assert not (folder / "canary").exists()


def test_the_modules_are_poison(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import numpy"], cwd=folder, capture_output=True, check=False)
    assert done.returncode
    assert (folder / "canary").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_process_is_started_isolated(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in STARTS:
            command = ast.unparse(node.args[0])
            # npm is no Python, and is started in an empty folder.
            assert "isolated.command(" in command or "'-I'" in command or command == "[npm, *arguments]"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
            assert "multiprocessing" not in names
