"""Two processes train as one would on the joined batch."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from srgan.training.checkpoint import latest_checkpoint

SCRIPT = """
import sys
import torch
from lightning.fabric import Fabric
from safetensors.torch import save_file
from srgan.networks.generator import Generator
from srgan.training.processes import agreed, average_gradients, averaged, together
from srgan.training.run import random_streams

fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
with together(fabric):
    torch.manual_seed(0)
    generator = Generator(blocks=1, features=4)
    random = torch.Generator().manual_seed(1)
    lr, hr = torch.rand(4, 3, 8, 8, generator=random), torch.rand(4, 3, 32, 32, generator=random)
    half = slice(2 * fabric.global_rank, 2 * fabric.global_rank + 2)
    torch.nn.functional.mse_loss(generator(lr[half]), hr[half]).backward()
    average_gradients(fabric, generator)
    clock, stopping = agreed(fabric, 1.0 + fabric.global_rank, fabric.global_rank == 1)
    patches, labels = random_streams(3, fabric)
    draws = torch.stack([torch.rand(1, generator=stream) for stream in (patches, labels)])
    everyone = [fabric.broadcast(draws, src=rank) for rank in range(2)]
    out = {name: parameter.grad for name, parameter in generator.named_parameters()}
    out["agreed"] = torch.tensor([clock, float(stopping)])
    out["averaged"] = averaged(fabric, torch.tensor(float(fabric.global_rank)))
    out["draws"] = torch.cat(everyone).flatten()
    save_file(out, f"{sys.argv[1]}/{fabric.global_rank}.safetensors")
"""


def test_gradients_of_two_processes_equal_one_on_the_joined_batch(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, tmp_path], timeout=240, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    from srgan.networks.generator import Generator

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


def test_the_command_line_trains_on_two_processes(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "srgan", "train", str(tmp_path / "recipe.toml"), "--data", str(photos)]
    done = subprocess.run([*command, "--run", run, "--devices", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert trained(run) == ALL_STEPS
    assert (run / "srgan-x4.onnx").is_file()
    # A resume with another number of processes has other random streams, so it is refused.
    alone = subprocess.run([*command, "--run", run, "--resume"], capture_output=True, text=True, check=False)
    assert alone.returncode == 1
    assert "2 processes" in alone.stderr


ASTRAY = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from srgan.training import run, trainer
from srgan.training.config import load_recipe
from srgan.training.data.cache import build_cache
from srgan.training.processes import make_fabric, together

folder, known = Path(sys.argv[1]), []
real = run.make_players
run.make_players = lambda *arguments, **options: known.append(real(*arguments, **options)) or known[0]
# Alarms at every look, so that easing and the choice of the best have every chance to differ.
easing = ["guards.accuracy_above=0.0", "guards.accuracy_steps=2", "guards.ease_discriminator=true"]
steps = ["pretrain.steps=100000", "adversarial.steps=100000", "validation_minutes=1e-9", "checkpoint_minutes=0.01"]
batch = ["generator.normalisation=batch", "guards.patience=40"]
recipe = load_recipe(str(folder / "recipe.toml"), [*easing, *steps, *batch])
fabric = make_fabric(recipe, 2)
with together(fabric):
    cache = build_cache([folder / "photos"], folder / f"cache{fabric.global_rank}")
    trainer.train(recipe, cache, folder / "run", minutes=0.06, fabric=fabric)
    state = {
        f"{name}.{key}": value.contiguous()
        for name, player in (("generator", known[0].generator), ("discriminator", known[0].discriminator))
        for key, value in player.named_parameters()
    }
    save_file(state, folder / f"{fabric.global_rank}.safetensors")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_processes_stay_of_one_mind_by_the_clock(tmp_path: Path) -> None:
    script = tmp_path / "astray.py"
    script.write_text(ASTRAY)
    done = subprocess.run(
        [sys.executable, script, tmp_path], timeout=240, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


RESUMED = """
import signal
import sys
from pathlib import Path
from srgan.training import trainer
from srgan.training.checkpoint import checkpoints
from srgan.training.config import load_recipe
from srgan.training.data.cache import build_cache
from srgan.training.data.patches import Patches
from srgan.training.processes import make_fabric, together

folder, run, objective, stop_at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
changes = ["began_gain=0.5"] if objective == "began" else ["penalty_steps=3"]
changes = [f"objective={objective}", "discriminator.features=8", f"losses.adversarial.{changes[0]}"]
recipe = load_recipe(str(folder / "recipe.toml"), [*changes, "adversarial.steps=8"])
fabric, draw, drawn = make_fabric(recipe, 2), Patches.pairs, []

def counted(*arguments):
    drawn.append(1)
    if len(drawn) == stop_at and fabric.global_rank == 1:
        signal.raise_signal(signal.SIGINT)
    return draw(*arguments)

Patches.pairs = counted
with together(fabric):
    cache = build_cache([folder / "photos"], folder / f"cache{fabric.global_rank}")
    try:
        trainer.train(recipe, cache, run, resume=bool(checkpoints(run)), fabric=fabric)
    except KeyboardInterrupt:
        assert stop_at
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("objective", ["relativistic-paired", "began"])
def test_two_processes_that_resume_end_as_if_never_stopped(tmp_path: Path, objective: str) -> None:
    """Penalties keep their turn and BEGAN its balance, to the last bit."""
    script = tmp_path / "resumed.py"
    script.write_text(RESUMED)

    def sitting(run: Path, stop_at: int) -> None:
        command = [sys.executable, str(script), str(tmp_path), str(run), objective, str(stop_at)]
        done = subprocess.run(command, timeout=240, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    sitting(straight, 0)
    for stop_at in (7, 2, 0):  # in the middle of the game, and once more
        sitting(stopped, stop_at)
    one, other = (latest_checkpoint(run)[1] for run in (straight, stopped))
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
        output = "".join(process.communicate(timeout=240)[0] for process in machines)
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
