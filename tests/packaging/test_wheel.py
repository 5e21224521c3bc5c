"""The wheel, installed by itself and used from another folder, which has a package called `service` of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.serving import until

from srgan.pictures import Picture, decode, encode

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
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
    assert models.count("intact") == len(models.splitlines()) == 3
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
