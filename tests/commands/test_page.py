"""`srgan page`: what it writes, where it gets the runtime from, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import srgan_service
from support.folders import tree

from srgan.commands import page as page_command
from srgan.commands.page import RUNTIME, page
from srgan.errors import UsageError

STATIC = Path(str(srgan_service.__file__)).parent / "static"
CONTENTS = {name: f"// {name}".encode() for name in page_command.RUNTIME_FILES}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as npm leaves it, small, with its hashes expected."""
    expected = {
        name: (target, hashlib.sha256(CONTENTS[name]).hexdigest())
        for name, (target, _) in page_command.RUNTIME_FILES.items()
    }
    monkeypatch.setattr(page_command, "RUNTIME_FILES", expected)
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    for name, content in {**CONTENTS, "ort.all.js": b"not needed"}.items():
        (folder / "dist" / name).write_bytes(content)
    return folder


def packed(package: Path) -> Path:
    path = package.with_suffix(".tgz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(package, "package")
    return path


def npm(folder: Path, script: str) -> Path:
    """An npm that does what `script` says, alone on a path."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program.parent


def test_everything_is_in_the_folder(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "site"
    page(out, package)
    captured = capsys.readouterr()
    assert captured.out == f"{out / 'index.html'}\n"
    assert "python -m http.server" in captured.err
    listed = json.loads((out / "models" / "models.json").read_bytes())
    assert [model["name"] for model in listed["models"] if model["default"]] == ["srgan-x4"]
    assert all((out / "models" / model["file"]).stat().st_size > 2e6 for model in listed["models"])
    assert listed["lossy"]["model"] == "srgan-x4-photo"
    names = {target: CONTENTS[name] for name, (target, _) in page_command.RUNTIME_FILES.items()}
    assert {path.name: path.read_bytes() for path in (out / "runtime").iterdir()} == names
    for path in STATIC.rglob("*.js"):
        assert (out / "static" / path.relative_to(STATIC)).read_bytes() == path.read_bytes()
    html = (out / "index.html").read_text(encoding="utf-8")
    assert "this service and nowhere else" not in html
    assert not re.search(r"https?://", html)
    for name in re.findall(r'(?:href|src)="([^"]+)"', html):
        assert (out / name).is_file()
    (out / "static" / "app.js").unlink()
    page(out, package)  # such a page is renewed
    assert (out / "static" / "app.js").is_file()


def test_a_package_as_one_file_will_do(package: Path, tmp_path: Path) -> None:
    page(tmp_path / "site", package)
    page(tmp_path / "other", packed(package))
    assert tree(tmp_path / "site") == tree(tmp_path / "other")


def test_what_is_no_such_page_is_left_alone(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "index.html").write_text("<h1>Mine</h1>")
    before = tree(tmp_path)
    for target in (out, out / "index.html"):
        with pytest.raises(UsageError, match="holds something else"):
            page(target, package)
    assert tree(tmp_path) == before


def exchanged(package: Path) -> Path:
    (package / "dist" / "ort.wasm.min.mjs").write_bytes(b"// another")
    return package


def absent(package: Path) -> Path:
    (package / "dist" / "ort.wasm.min.mjs").unlink()
    return package


def damaged(package: Path) -> Path:
    path = packed(package)
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (exchanged, "dist/ort.wasm.min.mjs is not that of"),
        (lambda package: packed(exchanged(package)), "dist/ort.wasm.min.mjs is not that of"),
        (absent, "has no dist/ort.wasm.min.mjs"),
        (damaged, "cannot be read as the package"),
        (lambda package: package / "nothing", "cannot be read as the package"),
    ],
)
def test_another_package_is_refused_before_anything_is_written(
    package: Path, tmp_path: Path, spoil: Callable[[Path], Path], told: str
) -> None:
    spoilt = spoil(package)
    with pytest.raises(UsageError, match=told):
        page(tmp_path / "site", spoilt)
    assert not (tmp_path / "site").exists()


def test_without_npm_it_is_said_how_the_package_is_had(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=rf"npm, which .* is not installed.*`npm pack {RUNTIME}`.*--runtime"):
        page(tmp_path / "site")


def test_offline_it_is_said_what_npm_says(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(npm(tmp_path, "echo 'npm error code ENOTFOUND' >&2; exit 1")))
    with pytest.raises(UsageError, match=r"npm could not bring .*ENOTFOUND.*--runtime"):
        page(tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_npm_brings_the_package_and_its_files_are_compared(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = packed(package)
    script = f'[ "$1 $2" = "pack {RUNTIME}" ] && while read -r line; do :; done\nexec /bin/cp {archive} .'
    monkeypatch.setenv("PATH", str(npm(tmp_path, script)))
    page(tmp_path / "site")
    assert f"npm brings {RUNTIME}" in capsys.readouterr().err
    assert (tmp_path / "site" / "runtime" / "ort.wasm.js").read_bytes() == CONTENTS["ort.wasm.min.mjs"]


def test_what_stands_in_for_the_service_has_all_that_is_asked_of_it() -> None:
    exported = r"export (?:async )?(?:const|class|function) (\w+)"
    of_service = set(re.findall(exported, (STATIC / "api.js").read_text(encoding="utf-8")))
    local = (STATIC / "local.js").read_text(encoding="utf-8")
    there = set(re.findall(exported, local)) | set(re.findall(r"\b(\w+) = nothing", local))
    there |= set(re.findall(r"\w+", re.findall(r"export const \{(.*)\} = service", local)[0]))
    assert len(of_service) > 8
    assert of_service <= there
