"""The names of variables `SRGAN_*`: the list is complete, and no command goes on with a misspelt one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from srgan_service.settings import Settings

from srgan.commands import cli
from srgan.environment import KNOWN, OF_SERVICE, refuse_misspelt
from srgan.errors import UsageError

ROOT = Path(__file__).parents[1]
TEXTS = (".py", ".md", ".toml", ".yaml", ".conf", ".service", ".js", ".html", ".cff", ".sh")
# Examples of names in texts.
NO_NAMES = {"SRGAN_NAME"}


def texts() -> list[Path]:
    """All that is ours and may read a variable; of tests what several share, since others hold misspelt names."""
    places = ("srgan", "service", "tools", "benchmarks", "docs", "weights", "examples", "tests/support")
    files = [path for place in places for path in (ROOT / place).rglob("*") if path.suffix in TEXTS]
    named = ("Makefile", "README.md", "CONTRIBUTING.md", "service/deploy/Dockerfile", "tests/conftest.py")
    return [*files, *(ROOT / name for name in named)]


def test_every_name_that_is_read_anywhere_is_known_and_no_other() -> None:
    found = {
        name: path
        for path in texts()
        for name in re.findall(r"(?<![\w])SRGAN_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8"))
    }
    assert {name: path for name, path in found.items() if name not in KNOWN and name not in NO_NAMES} == {}
    assert {name for name in KNOWN if name not in found} == set()


def test_the_service_has_these_settings_and_no_others() -> None:
    assert [name.lower() for name in OF_SERVICE] == list(Settings.model_fields)


def test_known_names_and_those_of_others_pass() -> None:
    refuse_misspelt([*KNOWN, "srgan_port", "SRGANX", "PATH", "SRGAN", "_SRGAN_COMPLETE"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("srgan_key_file", "SRGAN_KEY_FILE is no setting: did you mean SRGAN_KEYS_FILE?"),
        ("SRGAN_BACKBONE", "SRGAN_BACKBONE is no setting: did you mean SRGAN_BACKBONES?"),
        ("SRGAN_ZZZ", "SRGAN_ZZZ is no setting: docs/deployment.md lists them; unset it"),
    ],
)
def test_others_are_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        refuse_misspelt(["PATH", name])
    assert str(refused.value) == message


COMMANDS = [name for name in cli.command().commands if name != "data"]


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), ["data", "check"], ["data", "preview"]])
def test_every_command_refuses_a_misspelt_one(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SRGAN_BACKBONE", "folder")
    monkeypatch.setattr(sys, "argv", ["srgan", *command, "nothing.png"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "srgan: error: SRGAN_BACKBONE is no setting: did you mean SRGAN_BACKBONES?\n"
    )
