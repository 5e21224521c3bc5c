"""What can be set and where it is told: docs/deployment.md and the files of service/deploy/."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic.fields import FieldInfo
from srgan_service.settings import Settings
from srgan_service.work.service import room_bytes, working_bytes
from support.engines import NearestEngine

from srgan.folder.making import Order, decide
from srgan.pictures import FORMATS, Picture
from srgan.upscale import Upscaler

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


SIZES = {"0.5 MP": (613, 816), "3 MP": (1500, 2000), "12 MP": (3000, 4000)}


def flat(height: int, width: int, format: str, frames: int = 1) -> Picture:
    """A picture of that size that takes no memory."""
    frame = Picture(np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3)), format=format)
    if frames == 1:
        return frame
    frame = replace(frame, duration_ms=100.0)
    return replace(frame, further=(frame,) * (frames - 1))


def held_mb(picture: Picture, format: str) -> str:
    decision = decide(picture, Order(format=format, quality=90), Upscaler(engine=NearestEngine()))
    return f"{decision.memory.held / 1e6:,.0f} MB"


def test_the_table_of_memory_is_what_is_counted() -> None:
    """And that is measured: benchmarks/encoding_memory.py, test_encoders_take_what_the_table_says."""
    rows = []
    for format, facts in FORMATS.items():
        still = [held_mb(flat(*size, format), format) for size in SIZES.values()]
        moving = held_mb(flat(480, 640, format, 10), format) if "animation" in facts.holds else ""
        rows.append(f"| {facts.pillow} | {' | '.join(still)} | {moving} |")
    head = f"| result as | {' | '.join(f'from {size}' for size in SIZES)} | 10 frames of 640×480 |"
    expected = "\n".join([head, "|---|---|---|---|---|", *rows])
    assert expected in DOCUMENT.read_text(), "the table of docs/deployment.md is:\n" + expected


def test_what_the_service_may_take_fits_the_machine() -> None:
    """Of 4 GiB, with the default settings: a photograph of 12 megapixels is done in every format but two."""
    settings = Settings()
    room = room_bytes(settings, 4 * 2**30)
    assert room + 2 * working_bytes(settings, 4 * 2**30) + settings.queue_bytes < 3.5 * 2**30
    for format in sorted(set(FORMATS) - {"webp", "gif"}):
        picture = flat(3000, 4000, format)
        held = decide(picture, Order(format=format, quality=90), Upscaler(engine=NearestEngine())).memory.held
        assert held <= 0.8 * room, format
    assert working_bytes(settings, 64 * 2**30) == settings.memory_bytes
    assert room_bytes(settings, 2**28) == 0
