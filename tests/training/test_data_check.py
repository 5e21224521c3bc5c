"""What is found in a folder before training: every kind of fault planted, and nothing in a clean one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from srgan import pictures
from srgan.errors import BackboneError, PictureError, UsageError
from srgan.training import check as data_check
from srgan.training import trainer
from srgan.training.check import (
    NEAR_DUPLICATE,
    DataReport,
    StageTiming,
    check,
    check_command,
    near_duplicates,
    preview_command,
    report_of,
    summary,
)
from srgan.training.config import Recipe, load_recipe
from srgan.training.data import build_cache, split
from srgan.training.sources import File, Source, examine

RECIPE = """
[generator]
blocks = 1
features = 4
[discriminator]
features = 4
[losses.perceptual]
weight = 0.0
[data]
held_out = 2
[pretrain]
steps = 1000
batch_size = 4
patch_hr_px = 32
[adversarial]
steps = 500
batch_size = 2
patch_hr_px = 32
"""
PATCH_PX = 32 + 2 * 8  # with the margin of bicubic


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """(H,W,3) uint8: blurred noise, so that each has a look of its own at every size."""
    noise = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)
    return (smooth[0].permute(1, 2, 0) * 255).round().byte().numpy()


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Ten pictures without a fault."""
    folder = tmp_path / "clean"
    folder.mkdir()
    for seed in range(10):
        Image.fromarray(photograph(60 + seed, 80, seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(data_check, "_timing", lambda *_: None)
    return


def held_out_names(folder: Path, recipe: str) -> list[str]:
    names = sorted(path.name for path in folder.iterdir())
    cache = build_cache([folder], folder.parent / "cache")
    assert cache.names == names
    settings = load_recipe(recipe)
    return split(cache, settings.data.held_out, settings.seed)[1].names


def test_a_clean_folder(clean: Path, recipe: str) -> None:
    report = check([Source(clean)], load_recipe(recipe), timed=False)
    held = held_out_names(clean, recipe)
    rows = sum(60 + seed for seed in range(10) if f"{seed}.png" not in held)
    assert report == DataReport(
        pictures=10,
        held_out=2,
        paired=0,
        megapixels=rows * 80 / 1e6,
        patch_hr_px=PATCH_PX,
        left_out=(),
        too_small=(),
        unusual={},
        jpeg_qualities=(),
        leaks=(),
        duplicates=(),
        timing=None,
    )
    assert report.problems == 0


def test_every_fault_is_found(clean: Path, recipe: str) -> None:
    Image.fromarray(photograph(PATCH_PX - 1, 90, 20)).save(clean / "small.png")
    Image.fromarray(photograph(PATCH_PX, PATCH_PX, 21)).save(clean / "just.png")
    Image.fromarray(photograph(60, 60, 22)[..., 0]).save(clean / "grey.png")
    Image.fromarray(np.dstack([photograph(60, 60, 23), np.full((60, 60), 9, np.uint8)])).save(clean / "clear.png")
    (clean / "torn.png").write_bytes((clean / "0.png").read_bytes()[:200])
    (clean / "no.jpg").write_text("nothing")
    for seed, quality in ((30, 60), (31, 74), (32, 75), (33, 95)):
        Image.fromarray(photograph(60, 60, seed)).save(clean / f"q{quality}.jpg", quality=quality)
    report = check([Source(clean)], load_recipe(recipe), timed=False)
    assert report.pictures == 18
    assert sorted(name for name, _ in report.left_out) == ["no.jpg", "torn.png"]
    assert report.too_small == ("small.png",)
    assert report.unusual == {"grey": 1, "transparency left out": 1}
    assert report.jpeg_qualities == ((60, 1), (74, 1), (75, 1), (95, 1))
    assert report.low_quality == 2
    assert report.problems == 3


@pytest.mark.parametrize("quality", [1, 10, 35, 49, 50, 51, 75, 92, 100])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_quality_is_read_from_the_tables(tmp_path: Path, quality: int, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(20, 20, 0)).save(path, quality=quality, progressive=progressive)
    assert pictures.jpeg_quality(path) == quality


def test_other_formats_have_no_jpeg_quality(tmp_path: Path) -> None:
    Image.fromarray(photograph(20, 20, 0)).save(tmp_path / "a.jpg", format="PNG")  # whatever its name says
    assert pictures.jpeg_quality(tmp_path / "a.jpg") is None
    (tmp_path / "b.jpg").write_text("nothing")
    with pytest.raises(PictureError, match=r"b\.jpg"):
        pictures.jpeg_quality(tmp_path / "b.jpg")


def variants(path: Path) -> dict[str, Image.Image]:
    """What happens to one photograph on its way into a folder twice."""
    picture = Image.open(path).convert("RGB")
    return {
        "smaller.png": picture.resize((picture.width // 2, picture.height // 3)),
        "larger.png": picture.resize((picture.width * 2, picture.height * 2)),
        "brighter.png": ImageEnhance.Brightness(picture).enhance(1.1),
        "grey.png": picture.convert("L"),
        "again.jpg": picture,
    }


@pytest.mark.parametrize("name", ["smaller.png", "larger.png", "brighter.png", "grey.png", "again.jpg"])
def test_near_duplicates_are_recognised(tmp_path: Path, name: str) -> None:
    for seed in range(6):
        Image.fromarray(photograph(96, 120, seed)).save(tmp_path / f"{seed}.png")
    if name == "grey.png":
        grey = photograph(96, 120, 3)[..., 1]
        Image.fromarray(np.dstack([grey, grey, grey])).save(tmp_path / "3.png")  # of all colours alike
    variants(tmp_path / "3.png")[name].save(tmp_path / name, quality=30)
    thumbnails = torch.stack(
        [
            torch.from_numpy(examine(File(path, 0)).thumbnail)
            for path in (*(tmp_path / f"{seed}.png" for seed in range(6)), tmp_path / name)
        ]
    )
    ((which, nearest, correlation),) = near_duplicates(thumbnails)
    assert (which, nearest) == (6, 3)
    by_numpy = np.corrcoef(*(thumbnails[index].flatten().numpy() for index in (3, 6)))[0, 1]
    assert correlation == pytest.approx(by_numpy, abs=1e-4)
    assert near_duplicates(thumbnails[6:], thumbnails[:6]) == [(0, 3, pytest.approx(correlation, abs=1e-6))]


def test_near_duplicates_by_brute_force_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    thumbnails = random.integers(0, 256, (50, 16, 16)).astype(np.float64)
    for copy, original in ((7, 2), (30, 7), (49, 1), (20, 19)):
        thumbnails[copy] = thumbnails[original] + random.normal(0, 4, (16, 16))
    thumbnails[[10, 11]] = 77  # flat ones are like no other
    table = np.corrcoef(thumbnails[[i for i in range(50) if i not in (10, 11)]].reshape(48, -1))
    assert (np.triu(table, 1) > NEAR_DUPLICATE).sum() == 5  # 7 and 30 also with 2
    monkeypatch.setattr(data_check, "_ROWS_AT_ONCE", 8)
    found = near_duplicates(torch.from_numpy(thumbnails))
    assert {(which, nearest) for which, nearest, _ in found if which != 30} == {(7, 2), (20, 19), (49, 1)}
    assert sum(which == 30 for which, _, _ in found) == 1
    assert near_duplicates(torch.from_numpy(thumbnails)[:0]) == []
    assert near_duplicates(torch.from_numpy(thumbnails), torch.empty(0, 16, 16)) == []


def test_a_validation_picture_in_training_is_a_problem(clean: Path, recipe: str) -> None:
    for seed in range(10, 40):
        Image.fromarray(photograph(60, 80, seed)).save(clean / f"{seed}.png")
    held = held_out_names(clean, recipe)[0]
    # The copy takes the name and place of a training picture, so that the split stays as it is.
    victim = next(path for path in sorted(clean.iterdir()) if path.name not in held_out_names(clean, recipe))
    Image.open(clean / held).resize((90, 70)).save(victim)
    report = check([Source(clean)], load_recipe(recipe), timed=False)
    assert [(one, other) for one, other, _ in report.leaks] == [(held, victim.name)]
    assert report.duplicates == ()
    assert report.problems == 1
    cache = build_cache([clean], clean.parent / "cache")
    quick = report_of(cache, load_recipe(recipe))
    assert quick == replace(report, duplicates=None)  # what a training run is told is the same
    assert "1 held-out pictures have a near-duplicate in training" in summary(quick)


def test_duplicates_inside_training_are_told_but_no_problem(clean: Path, recipe: str) -> None:
    held = held_out_names(clean, recipe)
    training = [f"{seed}.png" for seed in range(10) if f"{seed}.png" not in held]
    (clean / training[4]).write_bytes((clean / training[1]).read_bytes())
    report = check([Source(clean)], load_recipe(recipe), timed=False)
    assert report.duplicates == ((training[4], training[1], 1.0),)
    assert report.problems == 0


def test_pairs_are_checked(tmp_path: Path, recipe: str, untimed: None, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("hr", "lr"):
        (tmp_path / name).mkdir()
    for seed in range(3):
        Image.fromarray(photograph(64, 80, seed)).save(tmp_path / "hr" / f"{seed}.png")
        Image.fromarray(photograph(16, 20 + (seed == 2), seed)).save(tmp_path / "lr" / f"{seed}x4.png")
    assert check_command([tmp_path / "hr"], tmp_path / "lr", None, recipe) == 1
    said = capsys.readouterr().out
    assert "2 readable" in said
    assert "2 with their own LR" in " ".join(said.split())
    assert "2x4.png of 21x16 px" in said
    pair = f"{tmp_path / 'hr'}:{tmp_path / 'lr'}"
    assert check_command([f"{pair}=2"], None, None, recipe) == 1
    assert capsys.readouterr().out == said
    for folders in ([tmp_path / "hr", tmp_path / "hr"], [pair]):
        with pytest.raises(UsageError, match="--lr belongs to one folder"):
            check_command(folders, tmp_path / "lr", None, recipe)


def test_exit_codes_and_what_is_said(
    clean: Path, recipe: str, tmp_path: Path, untimed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_command([clean], None, None, recipe) == 0
    assert "No problems found" in capsys.readouterr().out
    (clean / "evil[bold]\n\x1b[31m.png").write_bytes(b"no")
    Image.fromarray(photograph(60, 60, 40)).save(clean / "poor.jpg", quality=50)
    assert check_command([clean], None, tmp_path / "report.json", recipe) == 1
    said = capsys.readouterr().out
    assert "evil[bold]\\n\\x1b[31m.png" in said
    assert "\x1b[31m" not in said
    assert "JPEG 50-74" in said
    assert "1 problems" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["problems"] == 1
    assert report["pictures"] == 11
    assert report["jpeg_qualities"] == [[50, 1]]


def test_long_lists_are_cut_on_the_screen_only(
    clean: Path, recipe: str, tmp_path: Path, untimed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(30):
        (clean / f"bad{index:02}.png").write_bytes(b"no")
    check_command([clean], None, tmp_path / "report.json", recipe)
    said = capsys.readouterr().out
    assert "bad19.png" in said
    assert "bad20.png" not in said
    assert "and 10 more" in said
    assert len(json.loads((tmp_path / "report.json").read_text())["left_out"]) == 30


def test_what_cannot_be_checked_is_refused(clean: Path, tmp_path: Path, recipe: str, untimed: None) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        check_command([tmp_path / "absent"], None, None, recipe)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures below"):
        check_command([tmp_path / "empty"], None, None, recipe)
    with pytest.raises(UsageError, match="no recipe"):
        check_command([clean], None, None, "nonsense")
    with pytest.raises(PictureError, match=r"report\.json: cannot be written"):
        check_command([clean], None, tmp_path / "absent" / "report.json", recipe)


def test_a_folder_of_nothing_usable_is_reported(tmp_path: Path, recipe: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no")
    assert check_command([tmp_path / "in"], None, None, recipe) == 1
    Image.fromarray(photograph(20, 20, 0)).save(tmp_path / "in" / "small.png")
    report = check([Source(tmp_path / "in")], load_recipe(recipe))
    assert (report.pictures, report.problems, report.megapixels, report.timing) == (1, 2, 0, None)


def test_a_short_measurement(clean: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = check([Source(clean)], load_recipe(recipe))
    assert report.timing is not None
    assert [stage.stage for stage in report.timing.stages] == ["pretrain", "adversarial"]
    for stage, steps, batch in zip(report.timing.stages, (1000, 500), (4, 2), strict=True):
        assert 0 < stage.loading_s < 60
        assert 0 < stage.computing_s < 60
        assert stage.hours == pytest.approx(steps * (stage.loading_s + stage.computing_s) / 3600)
        assert stage.patches_per_s == pytest.approx(batch / stage.loading_s)
    assert report.timing.notes == ()
    data_check._print(report, "tiny")
    said = " ".join(capsys.readouterr().out.split())
    assert "megapixels/s" in said
    assert "1,000 steps take" in said
    assert "loading takes" in said


def test_verdicts() -> None:
    slow_disk = StageTiming("pretrain", 10, 100.0, loading_s=3.0, computing_s=1.0, hours=1.0)
    assert slow_disk.verdict == "loader-bound: loading takes 75.0 % of a step"
    assert replace(slow_disk, loading_s=0.01).verdict == "compute-bound: loading takes 1.0 % of a step"


def test_a_step_that_cannot_be_measured_is_said(clean: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainer.stage_step

    def without_backbone(name: str, *rest: object) -> object:
        if name == "adversarial":
            raise BackboneError("no VGG here")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "stage_step", without_backbone)
    timing = check([Source(clean)], load_recipe(recipe)).timing
    assert timing is not None
    assert [stage.stage for stage in timing.stages] == ["pretrain"]
    assert timing.notes == ("a step of adversarial was not measured: no VGG here",)


def test_the_summary_is_one_line_of_what_matters(clean: Path, recipe: str) -> None:
    (clean / "no.png").write_bytes(b"no")
    Image.fromarray(photograph(20, 90, 20)).save(clean / "small.jpg", quality=40)
    said = summary(report_of(build_cache([clean], clean.parent / "cache"), load_recipe(recipe)))
    assert "\n" not in said
    for part in ("11 pictures", "2 pictures held out", "1 files left out", "1 smaller than", "1 JPEG files below"):
        assert part in said


def test_the_largest_stage_decides_what_is_too_small(clean: Path) -> None:
    recipe = Recipe.model_validate({"pretrain": {"patch_hr_px": 44}, "adversarial": {"patch_hr_px": 48}})
    report = check([Source(clean)], recipe, timed=False)
    assert report.patch_hr_px == 64
    assert report.too_small == ("0.png", "1.png", "2.png", "3.png")
    wild = Recipe.model_validate(
        {"degradation": {"kind": "realistic"}, "pretrain": {"patch_hr_px": 16}, "adversarial": {"steps": 0}}
    )
    assert check([Source(clean)], wild, timed=False).patch_hr_px == 16 + 2 * 24


# The preview


def test_the_preview_shows_hr_beside_lr(clean: Path, recipe: str, tmp_path: Path) -> None:
    preview_command([clean], tmp_path / "sheet.png", recipe, seed=3, count=5)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    assert sheet.shape == (3 * 36 - 4, 2 * 68 - 4, 3)  # five pairs of 32+32 px in two columns, gaps of 4
    assert (sheet[36:68, 64:68] == 255).all()
    assert (sheet[72:, 68:] == 255).all()  # the sixth place is empty
    sources = [np.asarray(Image.open(path)) for path in clean.iterdir()]
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):
        cell = sheet[36 * row :, 68 * column :][:32, :64]
        hr, lr = cell[:, :32], cell[:, 32:]
        assert (lr == lr[::4, ::4].repeat(4, 0).repeat(4, 1)).all()
        means = hr.reshape(8, 4, 8, 4, 3).mean((1, 3))
        assert np.abs(means - lr[::4, ::4]).mean() < 3  # the same place, reduced
        assert any(occurs(hr, source) for source in sources)


def occurs(patch: np.ndarray, source: np.ndarray) -> bool:
    for turned in (np.rot90(patch, k) for k in range(4)):
        for kind in (turned, turned[:, ::-1]):
            first = np.argwhere((source == kind[0, 0]).all(2))
            for y, x in first:
                window = source[y : y + 32, x : x + 32]
                if window.shape == kind.shape and (window == kind).all():
                    return True
    return False


def test_the_preview_follows_seed_and_recipe(clean: Path, recipe: str, tmp_path: Path) -> None:
    for seed in range(10):  # large enough for the wider margin
        Image.fromarray(photograph(110, 120, seed)).save(clean / f"{seed}.png")
    wild = tmp_path / "wild.toml"
    wild.write_text(RECIPE.replace("patch_hr_px = 32", "patch_hr_px = 16") + '[degradation]\nkind = "realistic"\n')
    plain = tmp_path / "plain.toml"
    plain.write_text(wild.read_text().replace("realistic", "bicubic"))
    sheets = {}
    for name, (which, seed) in {
        "a": (wild, 1),
        "same": (wild, 1),
        "seed": (wild, 2),
        "plain": (plain, 1),
    }.items():
        preview_command([clean], tmp_path / f"{name}.png", str(which), seed, 4)
        sheets[name] = (tmp_path / f"{name}.png").read_bytes()
    assert sheets["a"] == sheets["same"]
    assert len(set(sheets.values())) == 3


def test_the_preview_takes_weights_and_shipped_lr(clean: Path, recipe: str, tmp_path: Path) -> None:
    for name in ("hr", "lr"):
        (tmp_path / name).mkdir()
    for seed in range(3):
        Image.fromarray(photograph(64, 80, seed)).save(tmp_path / "hr" / f"{seed}.png")
        Image.new("RGB", (20, 16), (255, 0, 255)).save(tmp_path / "lr" / f"{seed}x4.png")  # told apart at a glance
    pair = f"{tmp_path / 'hr'}:{tmp_path / 'lr'}"

    def shipped(*sources: str) -> int:
        preview_command(sources, tmp_path / "sheet.png", recipe, seed=1, count=8)
        sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
        cells = [sheet[36 * row, 68 * column + 32] for row in range(4) for column in range(2)]
        return sum(bool((cell == [255, 0, 255]).all()) for cell in cells)

    assert shipped(pair) == 8
    assert shipped(f"{pair}=1e-9", f"{clean}=1") == 0
    assert shipped(f"{pair}=1", f"{clean}=1e-9") == 8


def test_previews_that_cannot_be_are_refused(clean: Path, recipe: str, tmp_path: Path) -> None:
    for out, count, part in (
        (tmp_path / "sheet.txt", 4, "ends in .png"),
        (tmp_path / "sheet.png", 0, "--count 0"),
        (tmp_path / "sheet.png", 10**6, "give 1 to"),
    ):
        with pytest.raises(UsageError, match=part):
            preview_command([clean], out, recipe, 0, count)
    with pytest.raises(PictureError, match="cannot be written"):
        preview_command([clean], tmp_path / "absent" / "sheet.png", recipe, 0, 2)
    with pytest.raises(UsageError, match="is not a folder"):
        preview_command([tmp_path / "absent"], tmp_path / "sheet.png", recipe, 0, 2)
