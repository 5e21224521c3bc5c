"""The wheel, installed by itself and used from another folder, which has a package called `service` of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.serving import until

from srgan.pictures import Picture, decode, encode
from srgan.weights import bundled_models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel brings; its dependencies are those of the tests."""
    target = tmp_path_factory.mktemp("site-packages")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
    ]
    subprocess.run([*command, str(wheel)], check=True)
    return target


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    package = tmp_path / "service"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('this is the service of another program')\n")
    return tmp_path


def environment(installed: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed)}


def srgan(installed: Path, folder: Path, *arguments: str) -> str:
    """Run `python -m srgan`, which looks for modules in the working folder first, and return what it prints."""
    command = [sys.executable, "-m", "srgan", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(installed), capture_output=True, text=True, check=True
    )
    return done.stdout


def test_what_it_brings(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"srgan", "srgan_service"}
    for folder in ("srgan", "service/srgan_service"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in {".pyc", ".pyo"}:
                assert str(path.relative_to(ROOT)).removeprefix("service/") in names
    assert {f"srgan/bundled/{path.name}" for path in (ROOT / "weights").iterdir()} <= names


def test_it_upscales(installed: Path, elsewhere: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert srgan(installed, elsewhere, "--version") == f"srgan {version}\n"
    models = srgan(installed, elsewhere, "models")
    assert models.count("intact") == len(models.splitlines()) == len(bundled_models())
    (elsewhere / "a.png").write_bytes(encode(Picture(np.full((6, 8, 3), 120, np.uint8)), "png"))
    assert "8x6 -> 32x24" in srgan(installed, elsewhere, "upscale", "a.png")
    assert decode(elsewhere / "a_x4.png").pixels.shape == (24, 32, 3)


def test_its_script_runs(installed: Path, elsewhere: Path) -> None:
    command = [sys.executable, str(installed / "bin" / "srgan"), "models"]
    done = subprocess.run(
        command, cwd=elsewhere, env=environment(installed), capture_output=True, text=True, check=True
    )
    assert "srgan-x4 (default)" in done.stdout


@pytest.fixture
def served(installed: Path, elsewhere: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "srgan", "serve", "--port", str(port)]
    with (
        subprocess.Popen(command, cwd=elsewhere, env=environment(installed), stderr=subprocess.DEVNULL) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client,
    ):
        try:
            yield client, server
        finally:
            server.kill()


def test_it_serves(served: tuple[httpx.Client, subprocess.Popen[bytes]]) -> None:
    client, server = served

    def answers() -> bool:
        assert server.poll() is None, "the server has ended"
        try:
            return client.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    until(answers, 100)
    assert "text/html" in client.get("/").headers["content-type"]
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0


# Elsewhere


def python_of_all() -> str | None:
    """An interpreter of this version that another user may run: this one may lie in somebody's home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin")):
        with contextlib.suppress(PermissionError):
            if candidate and not subprocess.run([candidate, "-c", ""], user="nobody", group="nogroup").returncode:
                return candidate
    return None


def test_another_user_without_a_home_reads_and_changes_nothing(installed: Path) -> None:
    """The program's folder is read-only; who is not root here is that other user."""
    is_root = os.geteuid() == 0
    python = python_of_all() if is_root else sys.executable
    if python is None:
        pytest.skip("no Python here that another user may run")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(installed, folder / "site", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "work").mkdir()
        (folder / "work" / "a.png").write_bytes(encode(Picture(np.full((6, 8, 3), 120, np.uint8)), "png"))
        before = sorted((folder / "site").rglob("*"))
        for path in (folder, folder / "site", *before):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if is_root:
            os.chown(folder / "work", pwd.getpwnam("nobody").pw_uid, -1)
        command = [python, "-m", "srgan", "upscale", "a.png"]
        libraries = f"{folder / 'site'}{os.pathsep}{sysconfig.get_path('purelib')}"
        variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": libraries}  # and no HOME
        who: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if is_root else {}
        done = subprocess.run(
            command, cwd=folder / "work", env=variables, capture_output=True, text=True, check=False, **who
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(path.name for path in (folder / "work").iterdir()) == ["a.png", "a_x4.png"]
        assert sorted((folder / "site").rglob("*")) == before
        folder.chmod(0o755)
        for path in (folder / "site", *before):
            if path.is_dir():
                path.chmod(0o755)


@pytest.mark.slow
def test_what_the_source_brings(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    """From it comes the same wheel; nothing of this machine is in it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    assert {"README.md", "LICENSE", "Makefile", "docs", "tests", "weights"} <= {
        path.name for path in root.iterdir()
    }
    assert not [path for path in root.rglob("*") if path.name == "__pycache__" or path.name.endswith("_cache")]
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(tmp_path / "dist"),
    ]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (made,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(made) as ours, zipfile.ZipFile(wheel) as theirs:
        assert sorted(ours.namelist()) == sorted(theirs.namelist())


def tried(command: list[str | Path], **variables: str) -> str:
    """Run what needs an index of packages, or skip where there is none; what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)
    if done.returncode and any(text in done.stderr for text in ("No matching", "onnect", "not found in the")):
        pytest.skip(f"no index of packages: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_is_installed_in_a_fresh_environment(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    package: Path = request.getfixturevalue(kind)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    tried([programs / "python", "-m", "pip", "install", "--quiet", package])
    (tmp_path / "a.png").write_bytes(encode(Picture(np.full((6, 8, 3), 120, np.uint8)), "png"))
    assert "8x6 -> 32x24" in tried([programs / "srgan", "upscale", tmp_path / "a.png"])
    told = tried([programs / "srgan", "doctor"])
    assert "engine     works" in told
    assert f'pip install "srgan[service] @ {package.as_uri()}"' in told


@pytest.mark.slow
@pytest.mark.parametrize("line", ["uv tool install", "uvx --from", "pipx install"])
def test_tools_take_the_wheel(line: str, wheel: Path, tmp_path: Path) -> None:
    program, *words = line.split()
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    variables = {
        **{name: str(tmp_path / name) for name in ("UV_CACHE_DIR", "UV_TOOL_DIR", "UV_TOOL_BIN_DIR", "PIPX_HOME")},
        "PIPX_BIN_DIR": str(tmp_path / "UV_TOOL_BIN_DIR"),
        "UV_PYTHON": sys.executable,
        "PIPX_DEFAULT_PYTHON": sys.executable,
    }
    if program == "uvx":
        assert tried([program, *words, wheel, "srgan", "--version"], **variables).startswith("srgan ")
        return
    tried([program, *words, wheel], **variables)
    told = tried([tmp_path / "UV_TOOL_BIN_DIR" / "srgan", "doctor"])
    again = "pipx install --force" if program == "pipx" else line
    assert f'{again} "srgan[service] @ {wheel.as_uri()}"' in told
