"""The folder job on a Ray cluster of this machine: the same results, also when an actor dies."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.folders import NearestEngine, made, picture, pictures, statuses, temporaries, tree

from srgan.folder.manifest import FOLDER
from srgan.upscale import Upscaler

if importlib.util.find_spec("ray") is None:  # not imported here: it starts threads and opens files
    pytest.skip("needs the extra cluster", allow_module_level=True)

# A driver in a process of its own: Ray's threads and files go with it, and its own warnings are not ours.
DRIVER = """
import functools, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from srgan.folder.desk import Options
from srgan.folder.planning import Naming, plan
from srgan.upscale import Upscaler
import ray
from srgan.folder import cluster
ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
from test_cluster import SlowEngine, slow_upscaler
source, out = map(Path, sys.argv[2:4])
make = functools.partial(slow_upscaler, float(sys.argv[4]), str(out.parent))
for report in cluster.run(plan([source], out, Naming()), make, make(), Options()):
    print(report.status, report.source.name, report.error, flush=True)
ray.shutdown()
"""


class SlowEngine(NearestEngine):
    """Leaves a note of each picture that it begins, and of the process that does."""

    def __init__(self, seconds: float, notes: str) -> None:
        super().__init__()
        self.seconds, self.notes = seconds, Path(notes)

    def run(self, lr: np.ndarray) -> np.ndarray:
        with (self.notes / "notes").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        return super().run(lr)


def slow_upscaler(seconds: float, notes: str) -> Upscaler:
    return Upscaler(engine=SlowEngine(seconds, notes))


def driver(source: Path, out: Path, seconds: float) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(source), str(out), str(seconds)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        errors="surrogateescape",
    )


@pytest.mark.slow
def test_an_actor_that_dies_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    source, out = pictures(tmp_path / "in", 40), tmp_path / "out"
    (source / "bad.png").write_bytes(b"junk")
    picture(source / "a.png").rename(source / "in truth.jpg")
    made(source, tmp_path / "alone")
    process = driver(source, out, seconds=0.3)
    notes = tmp_path / "notes"
    deadline = time.monotonic() + 120
    while not notes.exists() or len(set(notes.read_text().split())) < 2 or len(notes.read_text().split()) < 8:
        assert time.monotonic() < deadline, process.poll()
        time.sleep(0.05)
    os.kill(int(notes.read_text().split()[-1]), signal.SIGKILL)
    said, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    lines = [line for line in said.splitlines() if line.startswith(("written ", "skipped ", "failed "))]
    assert len(lines) == 42
    assert len({line.split()[1] for line in lines}) == 42
    assert [line.split()[1] for line in lines if not line.startswith("written")] == ["bad.png"]
    assert tree(out) == tree(tmp_path / "alone")
    assert len(set(notes.read_text().split())) >= 3  # another took the place of the dead one
    assert temporaries(out) == []
    assert [path.name for path in (out / FOLDER).iterdir()] == ["manifest.sqlite"]
    # The records are those of the folder job: whichever runs next has nothing to do.
    assert set(statuses(made(source, out))) == {"skipped", "failed"}


@pytest.mark.slow
def test_the_command_on_a_cluster_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    pictures(tmp_path / "in", 4)
    command = f"upscale in -o out -n {tiny_model} --runner ray --json report.json"
    run = [sys.executable, "-c", "from srgan.commands.cli import main; main()", *command.split()]
    for status in ("written", "skipped"):
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # nor does Ray say anything of its own
        report = json.loads((tmp_path / "report.json").read_text())
        assert [file["status"] for file in report["files"]] == [status] * 4
    local = subprocess.run(
        [*run[:3], *f"upscale in -o local -n {tiny_model}".split()], cwd=tmp_path, capture_output=True
    )
    assert local.returncode == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "local")
