"""The runnable scripts: what they show is there, and they are still true to the library."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import load_script
from torch import Tensor

from srgan.training.adversarial import OBJECTIVES


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("examples/adversarialise.py")


@pytest.fixture(scope="module")
def bars() -> tuple[Tensor, Tensor]:
    """Ten easily learnt "digits": label k has a dark bar at column k + 9, at one of two strengths."""
    labels = torch.arange(10).repeat(20)
    pictures = torch.zeros(200, 1, 28, 28)
    pictures[torch.arange(200), 0, :, labels + 9] = torch.where(torch.arange(200) < 100, 1.0, 0.5)[:, None]
    return pictures, labels


def write_idx(path: Path, array: np.ndarray) -> None:
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def mnist_like(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)


def test_the_script_leaves_a_grid_for_each_objective(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = mnist_like()
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels)
    out = tmp_path / "new" / "digits"
    keys = ["nonsaturating", "lsgan", "relativistic-paired"]
    settings = ["--mnist", str(tmp_path / "mnist.npz"), "--out", str(out), "--steps", "2", "--rows", "3"]
    example.main([*settings, "--objective", *keys])
    printed = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {f"{key}.png" for key in keys} | {"main-loss-alone.png"}
    for key in keys:
        with Image.open(out / f"{key}.png") as grid:
            assert grid.size == (10 * 30 * 2, 3 * 30 * 2)
            assert grid.mode == "L"
            assert np.asarray(grid).std() > 1
        assert f"{key}.png" in printed


def test_a_grid_has_a_column_for_every_label(example: ModuleType, tmp_path: Path) -> None:
    shades = torch.arange(20) / 20  # the first row 0 to 0.45, the second 0.5 to 0.95
    example.save_grid(shades.view(20, 1, 1, 1).expand(20, 1, 28, 28), tmp_path / "grid.png", zoom=1)
    levels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert levels.shape == (60, 300)
    for row in range(2):
        for column in range(10):
            tile = levels[row * 30 : (row + 1) * 30, column * 30 : (column + 1) * 30]
            assert tile[1:-1, 1:-1] == pytest.approx(255 * (1 - (10 * row + column) / 20), abs=0.51)
            assert tile[0].min() == 255  # a margin


@pytest.mark.parametrize("key", OBJECTIVES)
def test_every_objective_trains_the_network(example: ModuleType, bars: tuple[Tensor, Tensor], key: str) -> None:
    settings = {"steps": 3, "main_weight": 1.0, "seed": 0}
    pictures, labels = example.draw(example.train(*bars, key, weight=0.1, **settings), 2, 0)
    assert pictures.shape == (20, 1, 28, 28)
    assert labels.tolist() == list(range(10)) * 2
    assert pictures.min() >= 0
    assert pictures.max() <= 1  # also excludes NaN
    without, _ = example.draw(example.train(*bars, key, weight=0.0, **settings), 2, 0)
    assert not torch.equal(pictures, without)  # its term reaches the generator


def test_with_weight_0_the_judge_changes_nothing(example: ModuleType, bars: tuple[Tensor, Tensor]) -> None:
    settings = {"steps": 5, "main_weight": 1.0, "weight": 0.0, "seed": 0}
    judged, alone = (example.draw(example.train(*bars, key, **settings), 1, 0)[0] for key in ("lsgan", None))
    assert torch.equal(judged, alone)


def test_the_same_seed_gives_the_same_digits(example: ModuleType, bars: tuple[Tensor, Tensor]) -> None:
    settings = {"steps": 3, "main_weight": 1.0, "weight": 0.1}
    first, again, other = (
        example.draw(example.train(*bars, "nonsaturating", seed=seed, **settings), 1, 0)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_main_loss_alone_ends_at_the_average(example: ModuleType, bars: tuple[Tensor, Tensor]) -> None:
    generator = example.train(*bars, None, steps=100, main_weight=1.0, weight=0.0, seed=0, rate=2e-3)
    pictures, labels = example.draw(generator, 4, 0)
    strength = pictures[torch.arange(40), 0, :, labels + 9].mean()
    assert strength == pytest.approx(0.75, abs=0.12)  # between the two strengths that exist
    elsewhere = pictures.sum() - pictures[torch.arange(40), 0, :, labels + 9].sum()
    assert elsewhere / (40 * 27 * 28) < 0.1


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "mnist.npz"])
def test_mnist_is_read_from_local_files(example: ModuleType, tmp_path: Path, name: str) -> None:
    images, labels = mnist_like()
    images[:] = labels[:, None, None] * 20  # a shade for each label
    if name.endswith(".npz"):
        np.savez(tmp_path / name, x_train=images, y_train=labels)
    else:
        write_idx(tmp_path / name, images)
        write_idx(tmp_path / name.replace("images-idx3", "labels-idx1"), labels)
    pictures, read = example.load_digits(tmp_path / name)
    assert read.tolist() == labels.tolist()
    assert pictures.shape == (40, 1, 28, 28)
    assert torch.allclose(pictures.amax((1, 2, 3)), read * 20 / 255, atol=1e-4)


def test_a_file_that_is_not_idx_is_refused(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(SystemExit, match="not an IDX file"):
        example.load_digits(tmp_path / "train-images-idx3-ubyte")


def test_the_bundled_digits_are_digits(example: ModuleType) -> None:
    pictures, labels = example.load_digits(None)
    assert pictures.shape == (1797, 1, 28, 28)
    assert (float(pictures.min()), float(pictures.max())) == (0.0, 1.0)
    assert labels.unique().tolist() == list(range(10))
    # A 0 is hollow, a 1 is not.
    middle = pictures[:, 0, 13:15, 13:15].mean((1, 2))
    assert middle[labels == 0].mean() < 0.1 < 0.5 < middle[labels == 1].mean()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("key", ["nonsaturating", "lsgan"])  # the weight is theirs: docs/games.md
def test_generated_digits_are_recognised_and_varied(example: ModuleType, key: str) -> None:
    from sklearn.linear_model import LogisticRegression

    real, labels = example.load_digits(None)
    reader = LogisticRegression(max_iter=500).fit(real.flatten(1).numpy(), labels.numpy())
    settings = {"main_weight": 1.0, "weight": 1.0, "seed": 0}
    drawn, wanted = example.draw(example.train(real, labels, key, steps=2000, **settings), 20, 1)
    chances = reader.predict_proba(drawn.flatten(1).numpy())
    assert (chances.argmax(1) == wanted.numpy()).mean() > 0.9
    assert set(chances.argmax(1)) == set(range(10))
    assert chances.max(1).mean() > 0.9

    # An average is recognised as well: what the game adds is that no two digits are the same.
    blur, _ = example.draw(example.train(real, labels, None, steps=600, **settings), 20, 1)
    assert _spread(drawn, wanted) > 2 * _spread(blur, wanted)
    assert _spread(drawn, wanted) > 0.4 * _spread(real, labels)
    noise = reader.predict_proba(torch.rand(200, 784, generator=torch.Generator().manual_seed(0)).numpy())
    assert (noise.argmax(1) == wanted.numpy()).mean() < 0.3


def _spread(pictures: Tensor, labels: Tensor) -> float:
    """Mean deviation of a pixel among pictures of the same label."""
    return float(torch.stack([pictures[labels == label].std(0).mean() for label in range(10)]).mean())


def test_the_speed_comparison_still_fits_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("benchmarks/speed_training.py")
    random = np.random.default_rng(0)
    for index in range(2):
        picture = random.integers(0, 256, (60 + 4 * index, 64, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "too small.png")
    smaller = [f"--set={stage}.patch_hr_px=32" for stage in ("pretrain", "adversarial")]
    script.main(
        ["--data", str(tmp_path), "--recipe", "tiny", "--steps", "1", "--rounds", "1", "--workers", "0", *smaller]
    )
    printed = capsys.readouterr().out
    for stage in ("pretrain", "adversarial"):
        assert f"| {stage} | ours |" in printed
        assert f"| {stage} | plain, 0 workers |" in printed
        assert f"| {stage} | drawing and degrading a batch |" in printed


@pytest.mark.slow
def test_the_comparison_of_objectives_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("tools/objectives.py")
    (tmp_path / "photos").mkdir()
    for seed in range(5):
        pixels = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{seed}.png")
    command = [
        "--data",
        str(tmp_path / "photos"),
        "--test",
        str(tmp_path / "photos"),
        "--run",
        str(tmp_path / "run"),
    ]
    command += ["--pretrain-steps", "2", "--steps", "20", "--seeds", "2", "--objective", "lsgan", "began"]
    monkeypatch.setattr(script, "_ALONE_STEPS", 2)
    monkeypatch.setattr(script, "_PILOT_STEPS", 2)
    script.main(command)
    said = capsys.readouterr().out
    assert "| `pre-trained` | 1 |" in said
    assert "| `began` | 2 |" in said
    assert "PSNR-Y dB: means from" in said
    for page in ("objectives.html", "objectives.svg", "objectives.md"):
        assert (tmp_path / "run" / page).is_file()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.onnx")}
    assert len(files) == 5
    script.main(command)
    assert capsys.readouterr().out.splitlines()[-6:] == said.splitlines()[-6:]
    assert {path: path.stat().st_mtime_ns for path in files} == files  # nothing is trained twice
