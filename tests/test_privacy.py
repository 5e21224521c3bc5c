"""Nothing goes out and nothing is left behind: no socket but those asked for, no file but results."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torchvision
from PIL import Image
from safetensors.torch import save_file

from srgan.evaluation.backbones import FOLDER_VARIABLE

# Python imports a module of this name by itself at every start, of child processes too.
WATCHER = """
import json, os, sys

journal = os.open(os.environ["WATCHED_IN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.remove": 0, "os.rmdir": 0}

def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if isinstance(address, tuple):  # else a socket between processes of this machine
            note_down("connect", list(address))
    elif event == "socket.getaddrinfo" and arguments[0] != "127.0.0.1":  # a number is looked up nowhere
        note_down("connect", [str(arguments[0]), arguments[1]])
    elif event == "open" and arguments[2] & WRITES or event in PATHS:
        path = arguments[PATHS.get(event, 0)]
        if isinstance(path, (str, bytes, os.PathLike)):  # else a file that is open already
            note_down("write", os.path.abspath(os.fsdecode(path)))

def note_down(kind, what):
    os.write(journal, (json.dumps([kind, what]) + "\\n").encode())

sys.addaudithook(note)
"""

# What says where files go, or asks others not to send: as on a machine where nobody has set anything. The last is
# set by torch, for this process.
NOT_INHERITED = ("XDG_", "SRGAN_", "CI", "MPLCONFIGDIR", "TORCHINDUCTOR_")


@dataclass
class Watched:
    """A place where programs are watched. `folder` holds what they work on, `home` is a home without anything."""

    folder: Path
    home: Path
    env: dict[str, str]

    def events(self, kind: str) -> list[object]:
        lines = (self.folder.parent / "journal").read_text().splitlines()
        return [what for line in lines for noted, what in [json.loads(line)] if noted == kind]

    def check(self) -> None:
        """No address was asked for or called, and nothing written but in `folder`."""
        assert self.events("connect") == []
        written = {str(path) for path in self.events("write")}
        assert {path for path in written if path.startswith(str(self.folder))}, "the watcher has seen nothing"
        devices = ("/dev/null", "/dev/shm/", "/dev/tty", "/proc/")  # nothing of them outlives a process
        assert {path for path in written if not path.startswith((str(self.folder), *devices))} == set()
        assert list(self.home.iterdir()) == []


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    folder, home, site = (tmp_path / name for name in ("work", "home", "site"))
    for made in (folder, home, site, folder / "tmp"):
        made.mkdir()
    (site / "sitecustomize.py").write_text(WATCHER)
    home.chmod(0o555)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    kept["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    places = {"HOME": home, "TMPDIR": folder / "tmp", "WATCHED_IN": tmp_path / "journal"}
    caches = {"XDG_CACHE_HOME": folder / "cache"}  # of torch, and of matplotlib, which is kept from ~/.config
    set_here = {name: str(path) for name, path in (places | caches).items()}
    yield Watched(folder, home, {**kept, **set_here, "PYTHONDONTWRITEBYTECODE": "1"})
    home.chmod(0o755)


def picture(path: Path, size: tuple[int, int] = (20, 16)) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def srgan(watched: Watched, *arguments: object, before: tuple[str, ...] = ()) -> None:
    command = [*before, sys.executable, "-m", "srgan", *map(str, arguments)]
    done = subprocess.run(command, env=watched.env, cwd=watched.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_watcher_sees_what_it_is_for(watched: Watched) -> None:
    code = (
        "import contextlib, pathlib, socket\n"
        f"pathlib.Path({str(watched.folder)!r}, 'inside').touch()\n"
        f"pathlib.Path({str(watched.folder.parent)!r}, 'outside').write_text('x')\n"
        "with contextlib.suppress(OSError): socket.create_connection(('127.0.0.1', 9), 1)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=watched.env, check=True)
    assert ["127.0.0.1", 9] in watched.events("connect")
    assert str(watched.folder.parent / "outside") in watched.events("write")


def test_an_upscale_of_a_folder(watched: Watched, tiny_model: Path) -> None:
    for name in ("a.png", "b.jpg", "c.webp"):
        picture(watched.folder / "in" / name)
    srgan(watched, "upscale", "in", "-o", "out", "-n", tiny_model)
    assert len(list((watched.folder / "out").glob("*_x4.*"))) == 3
    watched.check()


def test_training_and_export(watched: Watched) -> None:
    train_and_export(watched)
    watched.check()


def train_and_export(watched: Watched, before: tuple[str, ...] = ()) -> None:
    for number in range(6):
        picture(watched.folder / "photos" / f"{number}.png", (72, 64))
    (watched.folder / "recipe.toml").write_text(RECIPE)
    # Else the network of LPIPS is downloaded, which docs/training.md says.
    features = torchvision.models.alexnet(weights=None).features.state_dict()
    save_file(
        {f"features.{name}": value for name, value in features.items()},
        watched.folder / "alexnet_features.safetensors",
    )
    watched.env[FOLDER_VARIABLE] = str(watched.folder)
    srgan(watched, "train", "recipe.toml", "--data", "photos", "--run", "run", before=before)
    assert list((watched.folder / "run").glob("*.onnx"))
    srgan(watched, "export", "run", "--to", "openvino", "-o", "exported", before=before)
    assert list((watched.folder / "exported").glob("*.xml"))


RECIPE = """
generator = { blocks = 1, features = 4 }
discriminator = { features = 2 }
losses = { perceptual = { weight = 0.0 } }
data = { held_out = 1 }
pretrain = { steps = 2, batch_size = 2, patch_hr_px = 32, learning_rate = 1e-3, warmup_steps = 1 }
adversarial = { steps = 2, batch_size = 2, patch_hr_px = 32, discriminator_alone_steps = 1, ramp_steps = 1 }
"""


def test_a_served_request(watched: Watched, tiny_model: Path) -> None:
    serve_a_request(watched, tiny_model)
    watched.check()


def serve_a_request(watched: Watched, tiny_model: Path, before: tuple[str, ...] = ()) -> None:
    source = picture(watched.folder / "a.png")
    env = {**watched.env, "SRGAN_MODEL": str(tiny_model), "SRGAN_DATA_DIR": str(watched.folder / "data")}
    log = watched.folder / "log"
    with log.open("wb") as stream:
        command = [*before, sys.executable, "-m", "srgan", "serve", "--port", "0"]
        server = subprocess.Popen(command, env=env, cwd=watched.folder, stdout=stream, stderr=stream)
    try:
        with httpx.Client(base_url=address(server, log), trust_env=False, timeout=60) as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.05)
            answer = client.post("/v1/upscale", content=source.read_bytes(), headers={"content-type": "image/png"})
            assert answer.status_code == 200, answer.text
    finally:
        # Behind a tracer it is the tracer's child.
        number = int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()) if before else server.pid
        os.kill(number, signal.SIGTERM)
        server.wait(60)


def address(server: subprocess.Popen[bytes], log: Path) -> str:
    """The server's address, once it has logged it."""
    while not (match := re.search(r"http://[\d.]+:\d+", log.read_text())):
        assert server.poll() is None, log.read_text()
        time.sleep(0.05)
    return match[0]


@pytest.fixture
def traced(watched: Watched) -> Iterator[tuple[str, ...]]:
    """What stands before a command, so that the system notes its connections; none of them may be foreign."""
    trace = watched.folder / "trace"
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    before = ("strace", "-f", "-A", "-qq", "--seccomp-bpf", "-e", calls, "-o", str(trace))
    if not shutil.which("strace") or subprocess.run([*before, "true"]).returncode:
        pytest.skip("strace is not here, or may not trace")
    yield before
    outward = [line for line in trace.read_text().splitlines() if "AF_INET" in line]
    assert [line for line in outward if not re.search(r'"(127\.|::1")', line)] == []


def test_the_system_sees_no_connection_of_an_upscale(
    watched: Watched, traced: tuple[str, ...], tiny_model: Path
) -> None:
    picture(watched.folder / "a.png")
    srgan(watched, "upscale", "a.png", "-n", tiny_model, before=traced)
    assert (watched.folder / "a_x4.png").exists()


def test_the_system_sees_no_connection_of_a_served_request(
    watched: Watched, traced: tuple[str, ...], tiny_model: Path
) -> None:
    serve_a_request(watched, tiny_model, before=traced)


@pytest.mark.slow
@pytest.mark.timeout(900)  # torch is imported twice, under a tracer
def test_the_system_sees_no_connection_of_training_and_export(watched: Watched, traced: tuple[str, ...]) -> None:
    train_and_export(watched, before=traced)


def test_the_converter_can_still_be_imported_by_whoever_wants_it() -> None:
    code = (
        "import sys, srgan.engines.runtime; print(sorted(name for name in sys.modules if 'telemetry' in name))\n"
    )
    code += "from openvino.tools.ovc import convert_model; print(callable(convert_model))"
    env = {**os.environ, "CI": "true"}  # where its makers send nothing
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]
