"""Two processes train as one would on the joined batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.forked import together as two_processes
from support.two_processes import by_the_clock, gradients_of_half, sittings
from typer.testing import CliRunner

from srgan.commands.cli import app
from srgan.errors import WeightsError
from srgan.networks.generator import Generator
from srgan.training.checkpoint import latest_checkpoint


def test_gradients_of_two_processes_equal_one_on_the_joined_batch(tmp_path: Path) -> None:
    two_processes(gradients_of_half, tmp_path / "log", tmp_path)
    torch.manual_seed(0)
    generator = Generator(blocks=1, features=4)
    random = torch.Generator().manual_seed(1)
    lr, hr = torch.rand(4, 3, 8, 8, generator=random), torch.rand(4, 3, 32, 32, generator=random)
    torch.nn.functional.mse_loss(generator(lr), hr).backward()
    for rank in range(2):
        results = load_file(tmp_path / f"{rank}.safetensors")
        for name, parameter in generator.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(results[name], parameter.grad, rtol=1e-4, atol=1e-7)
        # The first process's clock and anyone's wish to stop hold for all.
        assert results["agreed"].tolist() == [1.0, 1.0]
        assert float(results["averaged"]) == 0.5
        assert len(results["draws"].unique()) == 4  # every process, patches and labels: streams of their own


RECIPE = """
log_steps = 2
generator = { blocks = 1, features = 4 }
discriminator = { features = 2 }
losses.perceptual.weight = 0.0
data = { held_out = 1 }
pretrain = { steps = 4, batch_size = 2, patch_hr_px = 32 }
adversarial = { steps = 4, batch_size = 2, patch_hr_px = 32 }
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        noise = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return folder


def trained(run: Path) -> list[tuple[str, int]]:
    """Stage and step of every row that the one journal of all processes has of the training."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in rows if "learning_rate" in row]


ALL_STEPS = [("pretrain", 2), ("pretrain", 4), ("adversarial", 2), ("adversarial", 4)]


SRGAN = """
from support.forked import without_graphs
without_graphs()
from srgan.commands.cli import main
main()
"""


def test_the_command_line_trains_on_two_processes(photos: Path, tmp_path: Path) -> None:
    run, script = tmp_path / "run", tmp_path / "begin.py"
    script.write_text(SRGAN)
    arguments = ["train", str(tmp_path / "recipe.toml"), "--data", str(photos), "--run", str(run)]
    done = subprocess.run(
        [sys.executable, script, *arguments, "--devices", "2"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert trained(run) == ALL_STEPS
    assert (run / "srgan-x4.safetensors").is_file()
    # A resume with another number of processes has other random streams, so it is refused.
    alone = CliRunner().invoke(app, [*arguments, "--resume"])
    assert isinstance(alone.exception, WeightsError)
    assert "2 processes" in str(alone.exception)


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_processes_stay_of_one_mind_by_the_clock(tmp_path: Path) -> None:
    two_processes(by_the_clock, tmp_path / "log", tmp_path)
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("objective", ["relativistic-paired", "began"])
def test_two_processes_that_resume_end_as_if_never_stopped(tmp_path: Path, objective: str) -> None:
    """Penalties keep their turn and BEGAN its balance, to the last bit."""
    stops = {"straight": [0], "stopped": [7, 2, 0]}  # in the middle of the game, and once more
    two_processes(sittings, tmp_path / "log", tmp_path, objective, stops)
    one, other = (latest_checkpoint(tmp_path / name)[1] for name in stops)
    assert one["objective"] == other["objective"]
    assert one["objective"]["updates"] == 8
    assert objective != "began" or one["objective"]["k"] > 0
    for player in ("generator", "ema", "discriminator"):
        assert all(torch.equal(value, other[player][name]) for name, value in one[player].items())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_starts_the_processes(photos: Path, tmp_path: Path, nodes: int) -> None:
    run, port = tmp_path / "run", str(free_port())
    srgan = ["srgan", "train", str(tmp_path / "recipe.toml"), "--data", str(photos), "--run", str(run)]

    def machine(rank: int, *more: str) -> subprocess.Popen[str]:
        place = ["--nnodes", str(nodes), "--node-rank", str(rank), "--nproc-per-node", "2"]
        at = ["--master-addr", "127.0.0.1", "--master-port", port]
        command = [sys.executable, "-m", "torch.distributed.run", *place, *at, "-m", "--", *srgan, *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def outcome(*more: str) -> tuple[set[int], str]:
        machines = [machine(rank, *more) for rank in range(nodes)]
        output = "".join(process.communicate(timeout=600)[0] for process in machines)
        return {process.returncode for process in machines}, output

    codes, output = outcome()
    assert codes == {0}, output
    assert output.count("srgan-x4.onnx") == 1
    assert trained(run) == ALL_STEPS
    codes, output = outcome("--resume", "--set", "adversarial.steps=6")
    assert codes == {0}, output
    assert trained(run) == [*ALL_STEPS, ("adversarial", 6)]
    codes, output = outcome("--resume", "--devices", "3")
    assert codes == {1}
    assert "leave both options out" in output
