"""The documents against the program: their Python runs, their commands parse, and nothing is left out of them."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from support.scripts import load_script
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from srgan.commands.cli import app
from srgan.pictures import Picture, encode
from srgan.training.config import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for folder in (".", "docs", "benchmarks", "weights", "examples", "service")
    for path in (ROOT / folder).glob("*.md")
)
WRITTEN_BY_HAND = "\n".join(path.read_text(encoding="utf-8") for path in PAGES if path.name != "commands.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RECIPES = sorted(path.stem for path in (ROOT / "srgan" / "training" / "recipes").glob("*.toml"))
make_docs = load_script("tools/make_docs.py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Python


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=name_of)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block in its turn, in a folder that has a small photo.jpg."""
    monkeypatch.chdir(tmp_path)
    ramp = np.linspace(0, 255, 16 * 12 * 3).reshape(12, 16, 3).astype(np.uint8)
    Path("photo.jpg").write_bytes(encode(Picture(ramp), "jpg"))
    examples = list(Sybil(parsers=[PythonCodeBlockParser()]).parse(page).examples())
    assert len(examples) == page.read_text().count("```python")
    for example in examples:
        example.evaluate()


# Command lines


def command_lines() -> list[tuple[str, list[str]]]:
    """Where a `srgan ...` of a block of shell stands, and its words after `srgan`, up to a pipe or redirection."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                while words and "=" in words[0]:  # settings in front of the command
                    words = words[1:]
                if words[:1] == ["srgan"]:
                    end = next((index for index, word in enumerate(words) if word in {"<", ">", ">>", "|"}), None)
                    lines.append((f"{name_of(page)}: {line.partition('#')[0].strip()}", words[1:end]))
    return lines


@pytest.mark.parametrize("words", [pytest.param(words, id=line) for line, words in command_lines()])
def test_command_lines_are_understood(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands
        command, words = command.commands[words[0]], words[1:]
    command.make_context("srgan", words)  # parses, and calls nothing


@pytest.mark.parametrize("page", make_docs.pages(), ids=name_of)
def test_what_is_made_is_current(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == make_docs.pages()[page], "run `make docs`"


# Nothing is left out


COMMANDS = [path for path, _ in make_docs.help_texts(typer.main.get_command(app), "srgan")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"\b{command}\b", WRITTEN_BY_HAND)
    assert f"\n## {command}\n" in (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_documented(recipe: str) -> None:
    assert f"| `{recipe}` |" in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    text = dict(make_docs.help_texts(typer.main.get_command(app), "srgan"))["srgan train"]
    assert re.search(rf"\b{recipe}\b", text), "`srgan train --help` does not name it"


def test_every_extra_is_documented_and_none_else() -> None:
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(
        PROJECT["project"]["optional-dependencies"]
    )
    for extras in re.findall(r"\[([a-z,]+)\]\"", WRITTEN_BY_HAND):
        assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("objective", Recipe.model_fields["objective"].annotation.__args__)  # type: ignore[union-attr]
def test_every_objective_is_documented(objective: str) -> None:
    assert f"`{objective}`" in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def test_nothing_is_installed_by_a_name_that_no_registry_has() -> None:
    assert re.findall(r"pip install [\"']?srgan\b(?!\[\w+\] @ file:)", WRITTEN_BY_HAND) == []


def test_every_folder_of_the_package_is_in_the_tree() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("```text\nsrgan/")[2].partition("```")[0]
    folders = [path.parent.name for path in (ROOT / "srgan").glob("*/__init__.py")]
    assert len(folders) > 6
    assert [folder for folder in folders if f"\n  {folder}/ " not in tree] == []


def test_every_document_is_in_both_lists() -> None:
    names = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    readme, index = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/README.md"))
    assert set(re.findall(r"^\| \[docs/(\w+\.md)\]", readme, re.MULTILINE)) == names
    assert set(re.findall(r"^- \[(\w+\.md)\]", index, re.MULTILINE)) == names


# What is said in several places


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if fragment:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(make_docs.anchor, headings), link


def test_one_version() -> None:
    version = PROJECT["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == version
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", headings[1][1])


def test_the_lock_has_all_that_is_needed_and_names_no_host() -> None:
    lock = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    assert "--" not in lock
    locked = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    groups = [
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
        *PROJECT["dependency-groups"].values(),
    ]
    needed = {re.split(r"[\[<>=]", requirement)[0].strip() for group in groups for requirement in group} - {
        "srgan"
    }
    assert sorted(needed - locked) == [], "run `make lock`"
