"""What can be set and where it is told: docs/deployment.md and the files of service/deploy/."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo
from srgan_service.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "deployment.md"
DEPLOY = ROOT / "service" / "deploy"


def shown(name: str, value: object) -> str:
    """A default as a person writes it."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and "bytes" in name:
        power = next(power for power in (3, 2, 1, 0) if value % 1024**power == 0)
        return f"{value // 1024**power} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}" if isinstance(value, float) else str(value)


def row(name: str, field: FieldInfo) -> str:
    return f"| `SRGAN_{name.upper()}` | {shown(name, field.default)} | {field.description} |"


def test_every_setting_is_documented_with_its_default_and_no_other() -> None:
    rows = [row(name, field) for name, field in Settings.model_fields.items()]
    documented = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `SRGAN_")]
    assert documented == rows, "the table of docs/deployment.md is:\n" + "\n".join(rows)


@pytest.mark.parametrize("path", [DOCUMENT, *sorted(DEPLOY.iterdir())], ids=lambda path: path.name)
def test_what_is_set_anywhere_is_a_setting(path: Path) -> None:
    named = set(re.findall(r"\bSRGAN_([A-Z_]+)", path.read_text()))
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


def test_systemd_does_not_start_again_what_cannot_start() -> None:
    lines = (DEPLOY / "srgan.service").read_text().splitlines()
    assert "EnvironmentFile=-/etc/srgan.env" in lines
    assert {"Restart=always", "RestartPreventExitStatus=2 3"} <= set(lines)


def test_compose_puts_its_service_in_the_place_of_nginx_servers() -> None:
    expressions = re.findall(r"-e '([^']*)'", (DEPLOY / "compose.yaml").read_text())
    assert len(expressions) == 2
    arguments = [part for expression in expressions for part in ("-e", expression)]
    done = subprocess.run(["sed", *arguments, DEPLOY / "nginx.conf"], check=True, capture_output=True, text=True)
    assert re.findall(r"^ *server (\S+:\d+)", done.stdout, re.MULTILINE) == ["service:8000"]
