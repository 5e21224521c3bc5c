"""Two processes train as one would on the joined batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

SCRIPT = """
import sys
import torch
from lightning.fabric import Fabric
from safetensors.torch import save_file
from srgan.training.models import Generator
from srgan.training.processes import agreed, average_gradients, together
from srgan.training.state import random_streams

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

    from srgan.training.models import Generator

    torch.manual_seed(0)
    generator = Generator(blocks=1, features=4)
    random = torch.Generator().manual_seed(1)
    lr, hr = torch.rand(4, 3, 8, 8, generator=random), torch.rand(4, 3, 32, 32, generator=random)
    torch.nn.functional.mse_loss(generator(lr), hr).backward()
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for name, parameter in generator.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)
        # The first process's clock and anyone's wish to stop hold for all.
        assert found["agreed"].tolist() == [1.0, 1.0]
        assert len(found["draws"].unique()) == 4  # every process, patches and labels: streams of their own


RECIPE = """
log_steps = 2
generator = { blocks = 1, features = 4 }
discriminator = { features = 2 }
losses = { perceptual = { weight = 0.0 } }
data = { held_out = 1 }
pretrain = { steps = 4, batch_size = 2, patch_hr_px = 32 }
adversarial = { steps = 4, batch_size = 2, patch_hr_px = 32 }
"""


def test_the_command_line_trains_on_two_processes(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        noise = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "srgan", "train", str(tmp_path / "recipe.toml"), "--data", str(folder)]
    done = subprocess.run([*command, "--run", run, "--devices", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [(row["stage"], row["step"]) for row in rows if "learning_rate" in row]
    assert trained == [("pretrain", 2), ("pretrain", 4), ("adversarial", 2), ("adversarial", 4)]  # one journal
    assert (run / "srgan-x4.onnx").is_file()
    # A resume with another number of processes has other random streams, so it is refused.
    alone = subprocess.run([*command, "--run", run, "--resume"], capture_output=True, text=True, check=False)
    assert alone.returncode == 1
    assert "2 processes" in alone.stderr
