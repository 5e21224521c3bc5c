"""What a run says of itself: validation figures against other implementations, and a record without gaps."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.caches import cache_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from srgan.errors import TrainingError
from srgan.training.config import DegradationRecipe, GuardsRecipe, PassRecipe, Recipe
from srgan.training.guards import Guards
from srgan.training.journal import Journal
from srgan.training.validation import Bicubic, cost, sameness, sample_strip, validate


class Enlarge(nn.Module):
    """Stands in for a generator: bicubic, times `gain`."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, lr: Tensor) -> Tensor:
        return self.gain * F.interpolate(lr, scale_factor=4, mode="bicubic", antialias=True)


def smooth_noise(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(40, 200, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def test_figures_equal_those_computed_with_pillow_and_numpy() -> None:
    hr = smooth_noise(96, 120, 0)
    scores = validate(Enlarge(), cache_of(hr))
    lr = Image.fromarray(hr).resize((30, 24), Image.Resampling.BICUBIC)
    sr = np.asarray(lr.resize((120, 96), Image.Resampling.BICUBIC)).astype(float)
    luma = np.array([65.481, 128.553, 24.966]) / 255
    error = ((sr - hr)[4:-4, 4:-4] @ luma) ** 2
    assert scores["validation/psnr_y"] == pytest.approx(10 * np.log10(255**2 / error.mean()), abs=0.05)
    again = np.asarray(Image.fromarray(sr.astype(np.uint8)).resize((30, 24), Image.Resampling.BICUBIC))
    lr_error = (again.astype(float) - np.asarray(lr).astype(float)) ** 2
    assert scores["validation/lr_psnr"] == pytest.approx(10 * np.log10(255**2 / lr_error.mean()), abs=1)
    assert scores["validation/colour_shift"] < 0.2
    assert 0.2 < scores["validation/detail"] < 1  # enlargement blurs


def test_the_lr_that_was_shipped_is_the_one_that_is_judged_from() -> None:
    """A shipped LR of another kernel: made anew by bicubic, a generator of that kernel would be judged wrongly."""
    hr = smooth_noise(96, 120, 7)
    lr = hr[::4, ::4].copy()  # every fourth pixel
    plain = cache_of(hr)
    shipped = replace(
        plain,
        pixels=torch.cat([plain.pixels, torch.from_numpy(lr).reshape(-1)]),
        lr_offsets=torch.tensor([hr.size]),
    )

    class Seen(Enlarge):
        def forward(self, lr: Tensor) -> Tensor:
            seen.append(lr)
            return super().forward(lr)

    seen: list[Tensor] = []
    validate(Seen(), shipped)
    assert np.array_equal(seen[0][0].permute(1, 2, 0).mul(255).round().byte().numpy(), lr)
    strip = sample_strip(Enlarge(), shipped)
    assert np.array_equal(strip[:96:4, :120:4], lr)


def test_crops_are_where_the_texture_is_and_one_flat_one_is_no_alarm() -> None:
    """A photograph of sky with a busy corner, and one of nothing but sky."""
    picture = np.full((448, 448, 3), 200, np.uint8)
    picture[256:, 256:] = smooth_noise(192, 192, 8)
    cache = cache_of(picture, np.full((96, 96, 3), 90, np.uint8))
    energy = torch.cat([torch.from_numpy(examine_energy(p)) for p in (picture, picture[:96, :96])])
    cache = replace(cache, energy=energy)
    drawn: list[Tensor] = []

    class Watched(Enlarge):
        def forward(self, lr: Tensor) -> Tensor:
            sr = super().forward(lr)
            drawn.append(sr)
            return sr + 1.0 / 255 * torch.rand(sr.shape, generator=torch.Generator().manual_seed(1))

    scores = validate(Watched(), cache)
    assert [tuple(sr.shape[2:]) for sr in drawn] == [(192, 192)] * 3 + [(96, 96)]
    lr = F.interpolate(
        torch.from_numpy(picture[256:, 256:]).permute(2, 0, 1)[None].float() / 255,
        size=(48, 48),
        mode="bicubic",
        antialias=True,
    )
    torch.testing.assert_close(drawn[0], Enlarge()(lr), atol=0.02, rtol=0)
    assert 0.05 < scores["validation/detail"] < 2  # a mean of ratios would be in the hundreds
    assert Guards(GuardsRecipe(lr_psnr_below=0)).judge(scores, 500) == []
    flat = validate(Watched(), cache.subset([1]))
    assert "validation/detail" not in flat


def test_what_is_exact_has_a_mean() -> None:
    flat, busy = np.full((64, 64, 3), 128, np.uint8), smooth_noise(64, 64, 2)
    psnr = [validate(Bicubic(), cache_of(p))["validation/psnr_y"] for p in (flat, busy)]
    assert psnr[0] == 99
    assert validate(Bicubic(), cache_of(flat, busy))["validation/psnr_y"] == pytest.approx(np.mean(psnr))


def test_bicubic_is_pillows() -> None:
    lr = smooth_noise(16, 20, 3)
    pillow = np.asarray(Image.fromarray(lr).resize((80, 64), Image.Resampling.BICUBIC)).astype(float)
    ours = Bicubic()(torch.from_numpy(lr.copy()).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0) * 255
    assert np.abs(ours.numpy() - pillow).max() <= 1.1


def test_a_stage_is_judged_by_what_it_is_for() -> None:
    scores = {"validation/psnr_y": 30.0, "validation/lpips": 0.25}
    assert (cost(scores, "pretrain"), cost(scores, "adversarial")) == (-30, 0.25)
    assert cost({"validation/psnr_y": 30.0}, "adversarial") is None


def test_a_darkening_generator_shows_as_colour_shift() -> None:
    hr = smooth_noise(64, 64, 1)
    shift = validate(Enlarge(0.9), cache_of(hr))["validation/colour_shift"]
    assert shift == pytest.approx(0.1 * hr.mean((0, 1)).max(), rel=0.05)


def test_means_are_over_pictures_and_nothing_held_out_gives_nothing() -> None:
    one, other = smooth_noise(64, 64, 2), smooth_noise(80, 72, 3)
    apart = [validate(Enlarge(), cache_of(picture))["validation/psnr_y"] for picture in (one, other)]
    together = validate(Enlarge(), cache_of(one, other))["validation/psnr_y"]
    assert together == pytest.approx(np.mean(apart))
    assert validate(Enlarge(), cache_of(one).subset([])) == {}


def test_the_strip_shows_lr_sr_and_hr_side_by_side() -> None:
    large, small = smooth_noise(200, 200, 4), smooth_noise(64, 100, 5)
    strip = sample_strip(Enlarge(), cache_of(large, small))
    assert strip.shape == (256, 384, 3)
    np.testing.assert_array_equal(strip[:128, 256:], large[32:160, 32:160])  # HR
    blocks = strip[:128, :128].reshape(32, 4, 32, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()  # LR by its pixels
    np.testing.assert_array_equal(strip[128 : 128 + 64, 200:300], small)
    assert (strip[192:] == 255).all()  # a smaller picture leaves the rest white


def examine_energy(picture: np.ndarray) -> np.ndarray:
    """The mean gradient of each block of 32 px, row by row, roughly as `Examined.energy` has it."""
    grey = picture[..., 1].astype(np.float32)
    change = np.zeros_like(grey)
    change[:, 1:] += np.abs(np.diff(grey, axis=1))
    rows, columns = grey.shape[0] // 32, grey.shape[1] // 32
    blocks = change[: 32 * rows, : 32 * columns].reshape(rows, 32, columns, 32).mean((1, 3))
    return np.asarray(blocks.reshape(-1), np.float32)


class Shows(nn.Module):
    """Stands in for a generator that draws `picture`, (3,H,W), whatever it is shown."""

    def __init__(self, picture: Tensor) -> None:
        super().__init__()
        self.picture = nn.Parameter(picture)

    def forward(self, lr: Tensor) -> Tensor:
        return self.picture[None, :, : 4 * lr.shape[2], : 4 * lr.shape[3]]


def test_pictures_are_degraded_as_the_recipe_says() -> None:
    picture = smooth_noise(96, 96, 0)
    recipe = DegradationRecipe(kind="realistic", first=PassRecipe(gaussian_sigma=(60, 60), noise=1.0))
    clean = validate(Enlarge(), cache_of(picture))
    noisy = validate(Enlarge(), cache_of(picture), recipe)
    assert noisy["validation/psnr_y"] < clean["validation/psnr_y"] - 3
    assert noisy == validate(Enlarge(), cache_of(picture), recipe)
    assert np.any(sample_strip(Enlarge(), cache_of(picture), recipe) != sample_strip(Enlarge(), cache_of(picture)))


def test_sameness_is_the_mean_correlation_of_details() -> None:
    pictures = [smooth_noise(70, 66, seed) for seed in range(3)]
    cut = [pictures[0].copy(), pictures[1][:66].copy(), pictures[2][:, :64].copy()]
    grey = [picture.astype(float).mean(2)[:66, :64] for picture in cut]
    laplacians = [g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1] for g in grey]
    cosines = [
        (laplacians[i] * laplacians[j]).sum() / np.linalg.norm(laplacians[i]) / np.linalg.norm(laplacians[j])
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert sameness(cut) == pytest.approx(np.mean(cosines), abs=1e-4)
    assert sameness(cut[:1] * 3) == pytest.approx(1)
    assert sameness([cut[0], np.full((70, 66, 3), 9, np.uint8)]) == 0


def test_a_generator_that_draws_one_picture_is_found_out() -> None:
    cache = cache_of(*(smooth_noise(96, 96, seed) for seed in range(4)))
    healthy = validate(Enlarge(), cache)
    assert abs(healthy["validation/sameness"]) < 0.15
    assert Guards(GuardsRecipe()).judge(healthy, 200) == []
    pattern = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    same = validate(Shows(pattern), cache)
    assert same["validation/sameness"] == pytest.approx(1, abs=1e-6)
    assert any("mode collapse" in alarm for alarm in Guards(GuardsRecipe()).judge(same, 200))
    flat = validate(Shows(torch.full((3, 96, 96), 0.5)), cache)
    assert any("flat" in alarm for alarm in Guards(GuardsRecipe()).judge(flat, 200))
    assert "validation/sameness" not in validate(Enlarge(), cache.subset([0]))


def journal(run: Path, stages: tuple[str, ...] = ("pretrain",), step: int = 0, *, speaks: bool = True) -> Journal:
    return Journal(run, Recipe(), speaks=speaks, since=(stages, step))


def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_rows_alarms_and_samples_are_kept(tmp_path: Path) -> None:
    with journal(tmp_path) as book:
        book.write("pretrain", 10, 1.23, 60.0, {"content": 0.5, "gradient_norm": float("nan")})
        book.alarm("pretrain", 11, 2.0, "something")
        book.sample("pretrain", 12, np.zeros((8, 8, 3), np.uint8))
    assert rows(tmp_path) == [
        {"stage": "pretrain", "step": 10, "elapsed_s": 1.2, "content": 0.5, "gradient_norm": None},
        {"stage": "pretrain", "step": 11, "elapsed_s": 2.0, "alarm": "something"},
    ]
    with Image.open(tmp_path / "samples" / "pretrain-000000012.png") as sample:
        assert sample.size == (8, 8)
    assert Recipe.model_validate_json((tmp_path / "recipe.json").read_text()) == Recipe()


def test_a_resumed_journal_forgets_what_happened_after_the_checkpoint(tmp_path: Path) -> None:
    with journal(tmp_path) as book:
        for step in (10, 20, 30):
            book.write("pretrain", step, 1.0, None, {"content": 1.0})
        book.write("adversarial", 10, 1.0, None, {"content": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "adversarial", "st')  # torn by a kill
    with journal(tmp_path, ("pretrain",), 20):
        assert [(row["stage"], row["step"]) for row in rows(tmp_path)] == [("pretrain", 10), ("pretrain", 20)]
    with journal(tmp_path) as book:
        book.write("pretrain", 30, 1.0, None, {"content": 1.0})
    assert len(rows(tmp_path)) == 1


def test_samples_of_a_sitting_that_was_killed_are_dropped(tmp_path: Path) -> None:
    with journal(tmp_path) as book:
        for stage, step in (("pretrain", 20), ("pretrain", 30), ("adversarial", 5)):
            book.sample(stage, step, np.zeros((8, 8, 3), np.uint8))
    with journal(tmp_path, ("pretrain",), 20):
        assert [path.name for path in (tmp_path / "samples").iterdir()] == ["pretrain-000000020.png"]


def test_later_stages_keep_all_rows_of_earlier_ones(tmp_path: Path) -> None:
    with journal(tmp_path) as book:
        book.write("pretrain", 900, 1.0, None, {})
        for step in (5, 15):
            book.write("adversarial", step, 1.0, None, {})
    with journal(tmp_path, ("pretrain", "adversarial"), 5):
        assert [row["step"] for row in rows(tmp_path)] == [900, 5]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with journal(tmp_path / "run", speaks=False) as book:
        book.write("pretrain", 1, 1.0, None, {"content": 1.0})
        book.alarm("pretrain", 1, 1.0, "x")
        book.sample("pretrain", 1, np.zeros((8, 8, 3), np.uint8))
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="--run"):
        journal(tmp_path / "file" / "run")


def curve(run: Path, stage: str, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard" / stage)).Reload()
    return [(event.step, round(event.value, 3)) for event in events.Scalars(tag)]


def test_curves_read_as_those_of_a_run_that_never_stopped(tmp_path: Path) -> None:
    with journal(tmp_path) as book:
        for step in (10, 20, 30):
            book.write("pretrain", step, 1.0, None, {"content": 1.0, "validation/psnr_y": 20.0})
        book.sample("pretrain", 30, np.zeros((8, 8, 3), np.uint8))
        book.write("adversarial", 10, 1.0, None, {"adversarial": 1.0})
        book.write("adversarial", 20, 1.0, None, {"adversarial": 1.0})
    with journal(tmp_path, ("pretrain", "adversarial"), 10) as book:
        book.write("adversarial", 15, 1.0, None, {"adversarial": 2.0})
    assert curve(tmp_path, "pretrain", "content") == [(10, 1), (20, 1), (30, 1)]
    assert curve(tmp_path, "pretrain", "validation/psnr_y") == [(10, 20), (20, 20), (30, 20)]
    assert curve(tmp_path, "adversarial", "adversarial") == [(10, 1), (15, 2)]
    images = EventAccumulator(str(tmp_path / "tensorboard" / "pretrain")).Reload().Tags()["images"]
    assert images == ["samples"]
    with journal(tmp_path, ("pretrain",), 20) as book:  # back into the first stage: the second begins anew
        book.write("adversarial", 5, 1.0, None, {"adversarial": 3.0})
    assert curve(tmp_path, "adversarial", "adversarial") == [(5, 3)]


def fill_disk_under(path: Path) -> None:
    """Make what this process has open at `path` a device that is always full."""
    full = os.open("/dev/full", os.O_WRONLY)
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's, gone by now
            if link.readlink() == path:
                os.dup2(full, int(link.name))
    os.close(full)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with journal(tmp_path) as book:
        fill_disk_under(tmp_path / "metrics.jsonl")
        with pytest.raises(TrainingError, match=r"No space left.*--resume"):
            book.write("pretrain", 10, 1.0, None, {"content": 1.0})


def test_a_terminal_shows_progress_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "140")
        with journal(tmp_path) as book:
            book.write("pretrain", 100, 1.0, 60.0, {"content": 0.125, "validation/psnr_y": 28.5})
            book.alarm("pretrain", 100, 1.0, "colours [drift]")
            book.progress("pretrain", 101, 0.5, 120.0)
        drawn = ""
        while select.select([ours], [], [], 0)[0]:
            drawn += os.read(ours, 100_000).decode()
    os.close(ours)
    shown = ("pretrain 101", "50%", "2 min left", "content 0.125", "psnr_y 28.5", "ALARMS 1")
    for part in (*shown, "ALARM  pretrain 100: colours [drift]"):
        assert part in drawn
