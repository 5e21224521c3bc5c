"""Checkpoints under attack: killed while saving, no room, no permission, and files made to harm."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import srgan
from srgan.errors import WeightsError
from srgan.files import TEMPORARY_SUFFIX
from srgan.networks.generator import Generator
from srgan.networks.reading import fill, load_checkpoint, load_generator
from srgan.training.checkpoint import checkpoint_path, checkpoints, latest_checkpoint, save_checkpoint, sweep
from srgan.weights import METADATA_KEY, ModelMetadata


def state_of(seed: int) -> dict[str, Any]:
    return {"step": seed, "weights": torch.full((1000,), float(seed))}


class DiesAfter:
    """A file that takes so many bytes and then kills its process, as a power cut would."""

    def __init__(self, file: Any, limit: int) -> None:
        self.file, self.limit = file, limit

    def __enter__(self) -> DiesAfter:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: self.limit])
        self.file.flush()
        if len(data) > self.limit:
            os.kill(os.getpid(), signal.SIGKILL)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("limit", [0, 1, 82, 500, 4000])
def test_a_kill_while_saving_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    save_checkpoint(checkpoint_path(tmp_path, 0, "pretrain", 1), state_of(1))
    opened = Path.open

    def dying(path: Path, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        file = opened(path, mode, *arguments, **settings)
        return DiesAfter(file, limit) if "x" in mode else file

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Path, "open", dying)
        save_checkpoint(checkpoint_path(tmp_path, 0, "pretrain", 2), state_of(2))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    path, state = latest_checkpoint(tmp_path)
    assert (path, state["step"]) == (checkpoint_path(tmp_path, 0, "pretrain", 1), 1)
    assert len(checkpoints(tmp_path)) == 1  # nothing torn under a final name
    sweep(tmp_path)
    assert not list(tmp_path.rglob(f".*{TEMPORARY_SUFFIX}"))


SCRIPT = """
import sys
from pathlib import Path
import torch
from srgan.errors import TrainingError
from srgan.training.checkpoint import save_checkpoint
path = Path(sys.argv[1])
try:
    save_checkpoint(path, {"weights": torch.zeros(int(sys.argv[2]))})
except TrainingError as error:
    print(error)
    sys.exit(3)
"""


def in_a_small_filesystem(folder: Path, options: str, commands: str) -> subprocess.CompletedProcess[str]:
    """Run shell `commands` with a tmpfs of `options` mounted on `folder`, in namespaces of their own."""
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    probe = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {probe.stderr.strip()}")
    script = folder.parent / "save.py"
    script.write_text(SCRIPT)
    line = f"mount -t tmpfs -o {options} tmpfs {folder} && cd {folder} && {commands}"
    line = line.replace("SAVE", f"{sys.executable} {script}")
    return subprocess.run(["unshare", "-rm", "sh", "-c", line], capture_output=True, text=True, check=False)


def test_a_full_disk_is_said_and_the_old_checkpoint_survives(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = in_a_small_filesystem(
        folder,
        "size=1m",
        "SAVE last.pt 1000 && cp last.pt before && (SAVE last.pt 1000000; echo rc $?) && "
        "cmp last.pt before && ls -A",
    )
    assert "No space left" in done.stdout
    assert "rc 3" in done.stdout
    assert done.stdout.split()[-2:] == ["before", "last.pt"]  # the same bytes, and no litter
    assert done.returncode == 0


def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = in_a_small_filesystem(
        folder, "size=1m", f"mount -o remount,ro {folder} && cd {folder} && SAVE last.pt 10; echo rc $?"
    )
    assert "Read-only file system" in done.stdout
    assert "--run" in done.stdout
    assert "rc 3" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "error", "said"),
    [("fsync", "EIO", "Input/output error"), ("rename", "EDQUOT", "Disk quota exceeded")],
)
def test_a_failing_disk_is_said_and_the_old_checkpoint_survives(
    tmp_path: Path, call: str, error: str, said: str
) -> None:
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    script = tmp_path / "save.py"
    script.write_text(SCRIPT)
    path = tmp_path / "run" / "last.pt"
    save_checkpoint(path, state_of(1))
    inject = f"inject={call}:error={error}:when=1"
    command = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    done = subprocess.run(
        [*command, sys.executable, script, path, "10"], capture_output=True, text=True, check=False
    )
    if "PTRACE" in done.stderr:
        pytest.skip(f"needs the right to trace: {done.stderr.strip()}")
    assert done.returncode == 3, done.stderr
    assert said in done.stdout
    assert load_checkpoint(path)["step"] == 1
    assert [left.name for left in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.slow
def test_a_run_whose_disk_fills_up_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk, photos = tmp_path / "disk", tmp_path / "photos"
    disk.mkdir()
    photos.mkdir()
    for index in range(5):
        noise = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photos / f"{index}.png")
    settings = "--set pretrain.steps=30 --set adversarial.steps=0 --set pretrain.patch_hr_px=16 "
    settings += "--set checkpoint_minutes=1e-9 --set keep_checkpoints=1000 --set log_steps=1 --set data.held_out=0"
    train = f"{sys.executable} -m srgan train tiny --data {photos} --run {disk}/run {settings}"
    done = in_a_small_filesystem(
        disk,
        "size=1800k",
        f"({train} 2>&1; echo rc $?); mount -o remount,size=60m {disk} && {train} --resume 2>&1",
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    assert "No space left" in done.stdout
    assert "--resume" in done.stdout
    assert "rc 1" in done.stdout
    assert "tiny-srresnet-x4.onnx" in done.stdout


def test_a_torn_last_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        save_checkpoint(checkpoint_path(tmp_path, 0, "pretrain", step), state_of(step))
    last = checkpoint_path(tmp_path, 0, "pretrain", 2)
    whole = last.read_bytes()
    for position in range(0, len(whole), len(whole) // 25):
        for torn in (whole[:position], whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]):
            last.write_bytes(torn)
            caplog.clear()
            assert latest_checkpoint(tmp_path)[1]["step"] == 1
            assert len(caplog.records) == 1
            assert str(last) in caplog.text
    last.write_bytes(whole)
    assert latest_checkpoint(tmp_path)[1]["step"] == 2


def hostile(module: torch.nn.Module) -> dict[str, tuple[str, Any]]:
    weight = module.state_dict()["head.0.weight"]
    return {
        "a stride bomb": ("claims more", torch.zeros(1).expand(weight.shape)),
        "not a number": ("not finite", torch.full_like(weight, float("nan"))),
        "infinite": ("not finite", torch.full_like(weight, float("inf"))),
        "sparse": ("plain tensor", weight.to_sparse()),
        "without values": ("plain tensor", weight.to("meta")),
        "integers": ("shape or type", weight.to(torch.int8)),
        "complex": ("shape or type", weight.to(torch.complex64)),
        "another shape": ("another architecture", weight[:1]),
        "no tensor": ("plain tensor", 3),
    }


@pytest.mark.parametrize("kind", hostile(Generator(1, 4)))
def test_fill_takes_nothing_but_what_fits(kind: str) -> None:
    generator = Generator(1, 4)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    message, tensor = hostile(generator)[kind]
    with pytest.raises(WeightsError, match=message):
        fill(generator, before | {"head.0.weight": tensor}, "file")
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    for other in ({}, before | {"extra": torch.zeros(1)}):
        with pytest.raises(WeightsError, match="another architecture"):
            fill(generator, other, "file")


@pytest.mark.parametrize(
    "architecture",
    [
        {"blocks": 10**9, "features": 64},
        {"blocks": 1, "features": 10**9},
        {"blocks": -4},
        {"blocks": 1, "surprise": 1},
        {"normalisation": "__import__('os')"},
    ],
)
def test_hyper_parameters_are_bounded_before_a_network_is_built(
    tmp_path: Path, architecture: dict[str, Any]
) -> None:
    path = tmp_path / "bomb.safetensors"
    metadata = ModelMetadata("bomb", 4, 40, architecture)
    save_file({"x": torch.zeros(1)}, path, {METADATA_KEY: metadata.to_json()})
    with pytest.raises(WeightsError, match="unknown to this version") as caught:
        load_generator(path)
    assert len(str(caught.value)) < 1000


def test_nothing_in_the_package_unpickles_code() -> None:
    root = Path(srgan.__file__).parent
    calls = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = ast.unparse(node.func)
            assert name not in ("pickle.load", "pickle.loads", "joblib.load", "torch.jit.load"), path
            assert not any(k.arg == "allow_pickle" for k in node.keywords), path
            if name == "torch.load":
                calls.append({k.arg: ast.unparse(k.value) for k in node.keywords})
    assert calls
    assert all(call == {"map_location": "'cpu'", "weights_only": "True"} for call in calls)


def test_foreign_payloads_under_a_valid_header_are_refused(tmp_path: Path) -> None:
    import hashlib

    for payload in (b"", b"not a zip", b"\x80\x04."):
        path = tmp_path / "foreign.pt"
        path.write_bytes(b"srgan-checkpoint 1 " + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        with pytest.raises(WeightsError, match="something else"):
            load_checkpoint(path)
