"""Folders of small pictures and an engine that needs no model, for the tests of the folder job."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from srgan.errors import EngineError
from srgan.files import TEMPORARY_SUFFIX
from srgan.folder.batch import run
from srgan.folder.desk import Options
from srgan.folder.making import Order
from srgan.folder.manifest import FOLDER
from srgan.folder.planning import Naming, plan
from srgan.folder.reporting import FileReport
from srgan.pictures import Picture, encode
from srgan.upscale import Upscaler
from support import engines


class NearestEngine(engines.NearestEngine):
    """Fails on a picture of 13 columns."""

    def run(self, lr: np.ndarray) -> np.ndarray:
        if lr.shape[3] == 13:
            raise EngineError("out of order")
        return super().run(lr)


def picture(path: Path, colour: tuple[int, int, int] = (10, 200, 90), width: int = 6, height: int = 5) -> Path:
    """Write a small picture of one colour, in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), colour, np.uint8)
    path.write_bytes(encode(Picture(pixels), path.suffix[1:]))
    return path


def pictures(folder: Path, count: int) -> Path:
    """Make `count` pictures that differ, in three folders."""
    for number in range(count):
        picture(folder / f"{number % 3}" / f"{number:05}.png", (number % 256, number // 256, 7))
    return folder


def options_of(**settings: Any) -> Options:
    """Return options with these settings, be they of the run or of each file's order."""
    of_order = {field.name for field in dataclasses.fields(Order)} & settings.keys()
    return Options(Order(**{name: settings.pop(name) for name in of_order}), **settings)


def made(
    source: Path, out: Path | None, *, engine: NearestEngine | None = None, **options: object
) -> list[FileReport]:
    """Upscale a folder or a file in this process."""
    planned = plan([source], out, Naming())
    return list(run(planned, Upscaler(engine=engine or NearestEngine()), options_of(**options)))


def statuses(reports: list[FileReport]) -> list[str]:
    return [report.status for report in reports]


def tree(folder: Path) -> dict[str, str]:
    """Names of all files but the manifest's, with their hashes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != FOLDER
    }


def temporaries(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"*{TEMPORARY_SUFFIX}"))


# A folder job in a process of its own, with the engine above: no model to load, so it starts in no time.
JOB = """
import sys, time
from pathlib import Path
from typing import Any
sys.path.insert(0, sys.argv[1])
from support.folders import Naming, NearestEngine, Upscaler, plan, run
class Engine(NearestEngine):
    def run(self, lr):
        print("begun", file=sys.stderr, flush=True)
        time.sleep(float(sys.argv[4]))
        return super().run(lr)
planned = plan([Path(sys.argv[2])], Path(sys.argv[3]), Naming())
for report in run(planned, Upscaler(engine=Engine())):
    print(report.status, report.error or report.target.name, flush=True)
"""


def job(source: Path, out: Path, *, seconds: float = 0.0) -> subprocess.Popen[str]:
    """Start a folder job whose inference takes `seconds` a picture.

    It prints a line for each file, and to standard error one whenever an inference begins.
    """
    command = [sys.executable, "-c", JOB, str(Path(__file__).parents[1]), str(source), str(out), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
