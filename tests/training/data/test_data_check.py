"""What is found in a folder before training: every kind of fault planted, and nothing in a clean one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from support.photographs import photograph

from srgan import pictures
from srgan.commands import data
from srgan.errors import BackboneError, PictureError, UsageError
from srgan.training import trainer
from srgan.training.config import Recipe, load_recipe
from srgan.training.data import check as data_check
from srgan.training.data.cache import build_cache, split
from srgan.training.data.check import (
    NEAR_DUPLICATE,
    Findings,
    StageTiming,
    check,
    findings,
    near_duplicates,
    summary,
)
from srgan.training.data.sources import File, Source, examine

PATCH_PX = 32 + 2 * 8  # with the margin of bicubic


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_check, "measured", lambda *_: None)


def held_out_names(folder: Path, recipe: str) -> list[str]:
    names = sorted(path.name for path in folder.iterdir())
    cache = build_cache([folder], folder.parent / "cache")
    assert cache.names == names
    settings = load_recipe(recipe)
    return split(cache, settings.data)[1].names


def test_a_clean_folder(clean: Path, recipe: str) -> None:
    result = check([Source(clean)], load_recipe(recipe), timed=False)
    held = held_out_names(clean, recipe)
    rows = sum(60 + seed for seed in range(10) if f"{seed}.png" not in held)
    assert result == Findings(
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
    assert result.problems == 0


def test_every_fault_is_found(clean: Path, recipe: str) -> None:
    Image.fromarray(photograph(PATCH_PX - 1, 90, 20)).save(clean / "small.png")
    Image.fromarray(photograph(PATCH_PX, PATCH_PX, 21)).save(clean / "just.png")
    Image.fromarray(photograph(60, 60, 22)[..., 0]).save(clean / "grey.png")
    Image.fromarray(np.dstack([photograph(60, 60, 23), np.full((60, 60), 9, np.uint8)])).save(clean / "clear.png")
    (clean / "torn.png").write_bytes((clean / "0.png").read_bytes()[:200])
    (clean / "no.jpg").write_text("nothing")
    for seed, quality in ((30, 60), (31, 74), (32, 75), (33, 95)):
        Image.fromarray(photograph(60, 60, seed)).save(clean / f"q{quality}.jpg", quality=quality)
    result = check([Source(clean)], load_recipe(recipe), timed=False)
    assert result.pictures == 18
    assert sorted(name for name, _ in result.left_out) == ["no.jpg", "torn.png"]
    assert result.too_small == ("small.png",)
    assert result.unusual == {"grey": 1, "transparency laid on white": 1}
    assert result.jpeg_qualities == ((60, 1), (74, 1), (75, 1), (95, 1))
    assert result.low_quality == 2
    assert result.problems == 3


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
    by_numpy = np.corrcoef(thumbnails[3].flatten().numpy(), thumbnails[6].flatten().numpy())[0, 1]
    assert correlation == pytest.approx(by_numpy, abs=1e-4)
    ((*pair, across),) = near_duplicates(thumbnails[6:], thumbnails[:6])
    assert pair == [0, 3]
    assert across == pytest.approx(correlation, abs=1e-6)


def test_near_duplicates_by_brute_force_over_blocks() -> None:
    random = np.random.default_rng(0)
    thumbnails = random.integers(0, 256, (50, 16, 16)).astype(np.float64)
    for copy, original in ((7, 2), (30, 7), (49, 1), (20, 19)):
        thumbnails[copy] = thumbnails[original] + random.normal(0, 4, (16, 16))
    thumbnails[[10, 11]] = 77  # flat ones are like no other
    table = np.corrcoef(thumbnails[[i for i in range(50) if i not in (10, 11)]].reshape(48, -1))
    assert (np.triu(table, 1) > NEAR_DUPLICATE).sum() == 5  # 7 and 30 also with 2
    alike = near_duplicates(torch.from_numpy(thumbnails), rows_at_once=8)
    assert {(which, nearest) for which, nearest, _ in alike if which != 30} == {(7, 2), (20, 19), (49, 1)}
    assert sum(which == 30 for which, _, _ in alike) == 1
    assert near_duplicates(torch.from_numpy(thumbnails)[:0]) == []
    assert near_duplicates(torch.from_numpy(thumbnails), torch.empty(0, 16, 16)) == []


def test_a_validation_picture_in_training_is_a_problem(clean: Path, recipe: str) -> None:
    for seed in range(10, 40):
        Image.fromarray(photograph(60, 80, seed)).save(clean / f"{seed}.png")
    held = held_out_names(clean, recipe)[0]
    # The copy takes the name and place of a training picture, so that the split stays as it is.
    victim = next(path for path in sorted(clean.iterdir()) if path.name not in held_out_names(clean, recipe))
    Image.open(clean / held).resize((90, 70)).save(victim)
    result = check([Source(clean)], load_recipe(recipe), timed=False)
    assert [(name, like) for name, like, _ in result.leaks] == [(held, victim.name)]
    assert result.duplicates == ()
    assert result.problems == 1
    cache = build_cache([clean], clean.parent / "cache")
    quick = findings(cache, load_recipe(recipe))
    assert quick == replace(result, duplicates=None)  # what a training run is told is the same
    assert "1 held-out pictures have a near-duplicate in training" in summary(quick)


def test_duplicates_inside_training_are_told_but_no_problem(clean: Path, recipe: str) -> None:
    held = held_out_names(clean, recipe)
    training = [f"{seed}.png" for seed in range(10) if f"{seed}.png" not in held]
    (clean / training[4]).write_bytes((clean / training[1]).read_bytes())
    result = check([Source(clean)], load_recipe(recipe), timed=False)
    assert result.duplicates == ((training[4], training[1], 1.0),)
    assert result.problems == 0


def test_pairs_are_checked(tmp_path: Path, recipe: str, untimed: None, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("hr", "lr"):
        (tmp_path / name).mkdir()
    for seed in range(3):
        Image.fromarray(photograph(64, 80, seed)).save(tmp_path / "hr" / f"{seed}.png")
        Image.fromarray(photograph(16, 20 + (seed == 2), seed)).save(tmp_path / "lr" / f"{seed}x4.png")
    assert data.check([tmp_path / "hr"], tmp_path / "lr", None, recipe) == 1
    printed = capsys.readouterr().out
    assert "2 readable" in printed
    assert "2 with their own LR" in " ".join(printed.split())
    assert "2x4.png of 21x16 px" in printed
    pair = f"{tmp_path / 'hr'}:{tmp_path / 'lr'}"
    assert data.check([f"{pair}=2"], None, None, recipe) == 1
    assert capsys.readouterr().out == printed
    for folders in ([tmp_path / "hr", tmp_path / "hr"], [pair]):
        with pytest.raises(UsageError, match="--lr belongs to one folder"):
            data.check(folders, tmp_path / "lr", None, recipe)


def test_exit_codes_and_what_is_said(
    clean: Path, recipe: str, tmp_path: Path, untimed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.check([clean], None, None, recipe) == 0
    assert "No problems found" in capsys.readouterr().out
    (clean / "evil[bold]\n\x1b[31m.png").write_bytes(b"no")
    Image.fromarray(photograph(60, 60, 40)).save(clean / "poor.jpg", quality=50)
    assert data.check([clean], None, tmp_path / "report.json", recipe) == 1
    printed = capsys.readouterr().out
    assert "evil[bold]\\n\\x1b[31m.png" in printed
    assert "\x1b[31m" not in printed
    assert "JPEG 50-74" in printed
    assert "1 problems" in printed
    result = json.loads((tmp_path / "report.json").read_text())
    assert result["problems"] == 1
    assert result["pictures"] == 11
    assert result["jpeg_qualities"] == [[50, 1]]


def test_long_lists_are_cut_on_the_screen_only(
    clean: Path, recipe: str, tmp_path: Path, untimed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(30):
        (clean / f"bad{index:02}.png").write_bytes(b"no")
    data.check([clean], None, tmp_path / "report.json", recipe)
    printed = capsys.readouterr().out
    assert "bad19.png" in printed
    assert "bad20.png" not in printed
    assert "and 10 more" in printed
    assert len(json.loads((tmp_path / "report.json").read_text())["left_out"]) == 30


def test_what_cannot_be_checked_is_refused(clean: Path, tmp_path: Path, recipe: str, untimed: None) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        data.check([tmp_path / "absent"], None, None, recipe)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures below"):
        data.check([tmp_path / "empty"], None, None, recipe)
    with pytest.raises(UsageError, match="no recipe"):
        data.check([clean], None, None, "nonsense")
    with pytest.raises(PictureError, match=r"report\.json: cannot be written"):
        data.check([clean], None, tmp_path / "absent" / "report.json", recipe)


def test_a_folder_of_nothing_usable_is_reported(tmp_path: Path, recipe: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no")
    assert data.check([tmp_path / "in"], None, None, recipe) == 1
    Image.fromarray(photograph(20, 20, 0)).save(tmp_path / "in" / "small.png")
    result = check([Source(tmp_path / "in")], load_recipe(recipe))
    assert (result.pictures, result.problems, result.megapixels, result.timing) == (1, 2, 0, None)


def test_a_short_measurement(clean: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = check([Source(clean)], load_recipe(recipe))
    assert result.timing is not None
    assert [stage.stage for stage in result.timing.stages] == ["pretrain", "adversarial"]
    for stage, steps, batch in zip(result.timing.stages, (1000, 500), (4, 2), strict=True):
        assert 0 < stage.loading_s < 60
        assert 0 < stage.computing_s < 60
        assert stage.hours == pytest.approx(steps * (stage.loading_s + stage.computing_s) / 3600)
        assert stage.patches_per_s == pytest.approx(batch / stage.loading_s)
    assert result.timing.notes == ()
    data.show(result, "tiny")
    printed = " ".join(capsys.readouterr().out.split())
    assert "megapixels/s" in printed
    assert "1,000 steps take" in printed
    assert "loading takes" in printed


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
    text = summary(findings(build_cache([clean], clean.parent / "cache"), load_recipe(recipe)))
    assert "\n" not in text
    for part in ("11 pictures", "2 pictures held out", "1 files left out", "1 smaller than", "1 JPEG files below"):
        assert part in text


def test_the_largest_stage_decides_what_is_too_small(clean: Path) -> None:
    recipe = Recipe.model_validate({"pretrain": {"patch_hr_px": 44}, "adversarial": {"patch_hr_px": 48}})
    result = check([Source(clean)], recipe, timed=False)
    assert result.patch_hr_px == 64
    assert result.too_small == ("0.png", "1.png", "2.png", "3.png")
    wild = Recipe.model_validate(
        {"degradation": {"kind": "realistic"}, "pretrain": {"patch_hr_px": 16}, "adversarial": {"steps": 0}}
    )
    assert check([Source(clean)], wild, timed=False).patch_hr_px == 16 + 2 * 24


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, np.rot90, lambda p: np.rot90(np.fliplr(p))])
def test_a_mirrored_copy_in_training_is_a_leak(clean: Path, recipe: str, turn: Callable[..., np.ndarray]) -> None:
    held, *_ = held_out_names(clean, recipe)
    settings = load_recipe(recipe)
    with Image.open(clean / held) as picture:
        copy = turn(np.asarray(picture))
    # A name after all others, so that the same pictures are held out as far as it goes.
    Image.fromarray(np.ascontiguousarray(copy)).save(clean / "zz.png")
    cache = build_cache([clean], clean.parent / "cache")
    index = [cache.names.index(name) for name in (held, "zz.png")]
    alone = replace(
        cache.subset([n for n in range(len(cache)) if n != index[0]]), validation=cache.subset(index[:1])
    )
    assert [leak[:2] for leak in findings(alone, settings).leaks] == [(held, "zz.png")]


def test_the_check_is_of_the_recipe_that_will_run(
    clean: Path, recipe: str, capsys: pytest.CaptureFixture[str], untimed: None
) -> None:
    data.check([clean], recipe=recipe, overrides=["pretrain.patch_hr_px=64", "data.held_out=1"])
    printed = capsys.readouterr().out
    assert "patches of 80 px" in printed
    assert "1 of them held out" in printed
