"""What importing loads, seen in a fresh process, and that the contracts about who imports whom are held to.

The contracts themselves are in pyproject.toml.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import srgan

ROOT = Path(__file__).parents[1]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the checkout in `folder`."""
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "service")]),
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_are_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Contracts: \d\d kept, 0 broken", done.stdout)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("srgan.pictures.colour", "srgan.upscale"),
        ("srgan.training.guards", "srgan.folder.planning"),
        ("srgan.files", "torch"),
        ("srgan.folder.manifest", "srgan_service.settings"),
        ("srgan_service.settings", "srgan.training.config"),
    ],
)
def test_an_import_that_is_turned_round_breaks_a_contract(importer: str, imported: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "srgan", tmp_path / "srgan")
    shutil.copytree(ROOT / "service", tmp_path / "service")
    folder = tmp_path / "service" if importer.startswith("srgan_service") else tmp_path
    with (folder / f"{importer.replace('.', '/')}.py").open("a") as module:
        module.write(f"import {imported}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert re.search(rf"{importer} -> {imported} \(l\.\d+\)", done.stdout), done.stdout


def test_the_service_loads_no_torch() -> None:
    assert "torch" not in modules_after("import srgan_service.server")


def test_the_command_line_loads_the_service_only_to_serve() -> None:
    assert "srgan_service" not in modules_after("import srgan.commands.cli")


@pytest.mark.parametrize(
    "statement", ["import srgan", "import srgan.commands.cli", "import srgan.weights, srgan.engines.tiling"]
)
def test_importing_is_light(statement: str) -> None:
    loaded = modules_after(statement)
    assert not loaded & {"numpy", "PIL", "openvino", "torch", "rich", "pydantic", "safetensors"}


def test_a_whole_upscale_loads_no_torch(tmp_path: Path, tiny_model: Path) -> None:
    import numpy as np

    from srgan.pictures import Picture, encode

    (tmp_path / "a.png").write_bytes(encode(Picture(np.zeros((4, 4), np.uint8)), "png"))
    arguments = ["srgan", "upscale", str(tmp_path / "a.png"), "-n", str(tiny_model)]
    loaded = modules_after(
        f"import sys; sys.argv = {arguments!r}",
        "import contextlib, io, srgan.commands.cli",
        "from srgan.commands.cli import main",
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main()",
    )
    assert (tmp_path / "a_x4.png").exists()
    assert "openvino" in loaded
    assert not loaded & {"torch", "torchvision", "lightning", "skimage", "onnx", "scipy", "rich"}


def test_public_names_are_there() -> None:
    for name in srgan.__all__:
        assert getattr(srgan, name).__module__.startswith("srgan")
    assert set(srgan.__all__) <= set(dir(srgan))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = srgan.nonsense


def modules_after(*lines: str) -> set[str]:
    """Names of the top-level modules that a fresh process has loaded after `lines`."""
    report = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, report])], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))
