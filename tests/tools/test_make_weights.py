"""`make weights`: trains in segments, then bundles; nothing in the bundle changes before."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from support.scripts import ROOT, load_script

from srgan.commands.cli import app
from srgan.networks.reading import load_generator
from srgan.weights import MANIFEST

SMALL = """
[generator]
blocks = 1
features = 4

[discriminator]
features = 2

[losses.perceptual]
weight = 0.0

[data]
held_out = 1

[pretrain]
steps = {pretrain_steps}
batch_size = 2
patch_hr_px = 32

[adversarial]
export_name = "{name}"
batch_size = 2
patch_hr_px = 32
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with networks of a few features in place of the bundled ones."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))  # as a script finds its neighbours
    module = load_script("tools/make_weights.py")
    for recipe, name, steps in (("best", "srgan-x4", 100_000), ("photo", "srgan-x4-photo", 0)):
        (tmp_path / f"{recipe}.toml").write_text(SMALL.format(name=name, pretrain_steps=steps))
    original = module.runs

    def small_runs(folder: Path) -> dict[Path, object]:
        return {
            path: module.Run(str(tmp_path / f"{path.name}.toml"), run.share, run.game, run.after)
            for path, run in original(folder).items()
        }

    monkeypatch.setattr(module, "runs", small_runs)
    return module


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for folder, size in (("photos", 80), ("benchmarks/Four/HR", 64), ("benchmarks/Four/LRx4", 16)):
        (tmp_path / folder).mkdir(parents=True)
        for name in range(4):
            pixels = random.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def test_the_tables_are_of_what_evaluate_writes(
    script: ModuleType, pictures: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hr, lr = pictures / "benchmarks/Four/HR", pictures / "benchmarks/Four/LRx4"
    written = pictures / "four.json"
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", "--hr", str(hr), "--lr", str(lr), "--json", str(written), "-n", str(tiny_model)])
    assert ended.value.code == 0, capsys.readouterr().err
    report = json.loads(written.read_text())
    psnr = [means["psnr_y"]["value"] for means in report["means"].values()]
    head, rule, *rows = script.table({"Four": report, "Again": report}, ("psnr_y", "none")).splitlines()
    assert head == "| | Four | Again |"
    assert rule == "|---|---|---|"
    assert rows[0] == f"| `bicubic` | {psnr[0]:.2f} / – | {psnr[0]:.2f} / – |"
    assert rows[1] == f"| `{tiny_model.stem}` | {psnr[1]:.2f} / – | {psnr[1]:.2f} / – |"


def test_the_best_of_a_game_is_bundled_or_else_the_last(script: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("0-pretrain-000000009", "0-pretrain-best", "1-adversarial-000000004", "1-adversarial-000000007"):
        (folder / f"{name}.pt").touch()
    assert script.best_of_game(folder.parent) == folder / "1-adversarial-000000007.pt"
    (folder / "1-adversarial-best.pt").touch()
    assert script.best_of_game(folder.parent) == folder / "1-adversarial-best.pt"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_segments_lead_to_a_bundle(
    script: ModuleType, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = pictures / "weights"
    out.mkdir()
    (out / "README.md").write_text("before\n<!-- figures -->\nold\n<!-- end -->\nafter\n")
    arguments = ["make_weights.py", "--data", str(pictures / "photos"), "--out", str(out), "--minutes", "1.6"]
    arguments += ["--benchmarks", str(pictures / "benchmarks"), "--run", str(pictures / "run"), "--segment", "0.5"]
    monkeypatch.setattr(sys, "argv", arguments)

    script.main()
    assert "the same command goes on" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["README.md"]
    for _ in range(8):
        script.main()
        if (out / MANIFEST).exists():
            break

    manifest = json.loads((out / MANIFEST).read_text())
    assert list(manifest["models"]) == ["srresnet-x4", "srgan-x4", "srgan-x4-photo"]
    assert manifest["default"] == "srgan-x4"
    card = (out / "README.md").read_text()
    assert card.startswith("before\n<!-- figures -->\n| | Four |\n")
    assert card.endswith("<!-- end -->\nafter\n")
    assert "old" not in card
    assert all(f"| `{name}` | " in card for name in manifest["models"])
    recipe = json.loads((pictures / "run" / "photo" / "recipe.json").read_text())
    _, metadata = load_generator(out / "srgan-x4-photo.safetensors")
    assert metadata.recipe["blend"] == {"with": "srresnet-x4", "share": 0.9}
    assert Path(recipe["start"]).parent == pictures / "run" / "best" / "checkpoints"  # it goes on with the other
