"""Who may import whom, read from the source and seen in a fresh process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import srgan

PACKAGE = Path(srgan.__file__).parent
MODULES = {
    ".".join(("srgan", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# Each library's only users. A name stands for the module and, of a package, all below it.
OWNERS = {
    "PIL": {"srgan.pictures"},
    "isal": {"srgan.pictures.png"},
    "typer": {"srgan.commands.cli"},
    "openvino": {"srgan.engines.openvino", "srgan.engines.strips"},
    "lpips": {"srgan.evaluation.metrics"},
    "skimage": {"srgan.evaluation.metrics"},
    "torchmetrics": {"srgan.evaluation.frechet"},
    "torch": {"srgan.training", "srgan.evaluation", "srgan.evaluation.backbones", "srgan.engines.torch"},
    "torchvision": {"srgan.training", "srgan.evaluation", "srgan.evaluation.backbones"},
    "lightning": {"srgan.training"},
    "ray": {"srgan.folder.cluster"},
    "watchfiles": {"srgan.folder.watching"},
    "spandrel": {"srgan.networks.foreign"},
    "onnx": {"srgan.training"},
}

# From the top down: what each module of the upscaling side may use, and no other.
BELOW = {
    "srgan.commands.cli": {
        "srgan.folder.batch",
        "srgan.commands.upscale",
        "srgan.errors",
        "srgan.evaluation",
        "srgan.commands.terminal",
        "srgan.training",
        "srgan.upscale",
        "srgan.weights",
    },
    "srgan.commands.upscale": {
        "srgan.folder.batch",
        "srgan.folder.cluster",
        "srgan.errors",
        "srgan.engines.inference",
        "srgan.interrupts",
        "srgan.folder.planning",
        "srgan.folder.reporting",
        "srgan.folder.streams",
        "srgan.commands.terminal",
        "srgan.upscale",
        "srgan.folder.watching",
    },
    "srgan.folder.streams": {
        "srgan.folder.batch",
        "srgan.errors",
        "srgan.files",
        "srgan.engines.inference",
        "srgan.folder.manifest",
        "srgan.pictures",
        "srgan.folder.planning",
        "srgan.folder.reporting",
        "srgan.upscale",
    },
    "srgan.folder.watching": {"srgan.folder.batch", "srgan.errors", "srgan.folder.planning"},
    "srgan.folder.cluster": {
        "srgan.folder.batch",
        "srgan.errors",
        "srgan.files",
        "srgan.folder.manifest",
        "srgan.pictures",
        "srgan.folder.planning",
        "srgan.folder.reporting",
        "srgan.upscale",
    },
    "srgan.folder.batch": {
        "srgan.pictures.consistency",
        "srgan.errors",
        "srgan.files",
        "srgan.pictures.guarded",
        "srgan.folder.manifest",
        "srgan.pictures",
        "srgan.folder.planning",
        "srgan.folder.reporting",
        "srgan.upscale",
    },
    "srgan.folder.planning": {"srgan.errors", "srgan.pictures"},
    "srgan.folder.manifest": {"srgan.errors", "srgan.files"},
    "srgan.folder.reporting": {"srgan.errors", "srgan.files"},
    "srgan.commands.terminal": {"srgan.folder.reporting"},
    "srgan.interrupts": set(),
    "srgan.pictures.consistency": {"srgan.pictures"},
    "srgan.upscale": {
        "srgan.engines.openvino",
        "srgan.errors",
        "srgan.engines.inference",
        "srgan.conversion.loading",
        "srgan.pictures",
        "srgan.weights",
    },
    "srgan.conversion.loading": {"srgan.engines.openvino", "srgan.engines.torch", "srgan.errors", "srgan.weights"},
    "srgan.engines.torch": {
        "srgan.engines.openvino",
        "srgan.errors",
        "srgan.engines.probing",
        "srgan.training",
        "srgan.weights",
    },
    "srgan.engines.inference": {"srgan.engines.openvino", "srgan.errors", "srgan.engines.tiling"},
    "srgan.pictures.guarded": {"srgan.errors", "srgan.pictures.headers", "srgan.pictures"},
    "srgan.pictures.headers": {"srgan.errors"},
    "srgan.engines.probing": {"srgan.errors", "srgan.weights"},
    "srgan.engines.openvino": {"srgan.errors", "srgan.engines.probing", "srgan.engines.strips", "srgan.weights"},
    "srgan.engines.strips": set(),
    "srgan.pictures": {"srgan.errors", "srgan.pictures"},
    "srgan.weights": {"srgan.errors", "srgan.files"},
    "srgan.engines.tiling": set(),
    "srgan.files": set(),
    "srgan.errors": set(),
}


def imported(path: Path, *, when_running_only: bool = False) -> Iterator[str]:
    """Absolute names of the modules that a file imports, anywhere in it.

    `when_running_only`: without those that only a type checker imports.
    """
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    if when_running_only:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                skipped.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def within(name: str, parents: set[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


@pytest.mark.parametrize("library", OWNERS)
def test_one_owner_for_each_library(library: str) -> None:
    users = {
        name
        for name, path in MODULES.items()
        for module in imported(path, when_running_only=True)
        if within(module, {library})
    }
    assert {name for name in users if not within(name, OWNERS[library])} == set()
    assert users, f"nobody uses {library}: take it out of the list"


@pytest.mark.parametrize("module", BELOW)
def test_imports_point_downwards(module: str) -> None:
    used = {name for name in imported(MODULES[module]) if within(name, {"srgan"})}
    assert {name for name in used if not within(name, BELOW[module])} == set()


def test_upscaling_and_training_meet_only_in_weights_and_below() -> None:
    allowed = {
        "srgan.engines.openvino",
        "srgan.errors",
        "srgan.files",
        "srgan.weights",
        "srgan.pictures",
        "srgan.evaluation.backbones",
    }
    allowed |= {"srgan.training", "srgan.evaluation"}
    for name, path in MODULES.items():
        if within(name, {"srgan.training"}):
            used = {module for module in imported(path) if within(module, {"srgan"})}
            assert {module for module in used if not within(module, allowed)} == set(), name


def test_only_the_command_line_imports_the_service_and_only_to_serve() -> None:
    users = {name for name, path in MODULES.items() for module in imported(path) if within(module, {"service"})}
    assert users == {"srgan.commands.cli"}
    assert "service" not in modules_after("import srgan.commands.cli")


def test_the_service_stands_on_the_upscaling_side_alone() -> None:
    """It never trains, decodes or infers by itself: its pictures are those of the command line."""
    service = PACKAGE.parent / "service"
    used = {module for path in service.glob("*.py") for module in imported(path)}
    assert not {module for module in used if within(module, {"torch", "PIL", "openvino", "srgan.training"})}
    assert {module for module in used if within(module, {"srgan"})}


def test_the_service_loads_no_torch() -> None:
    assert "torch" not in modules_after("import srgan_service.server")


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
