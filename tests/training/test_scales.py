"""Every scale trains: recipes, pairs, patches, validation, export, and a start from weights of another scale."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.caches import cache_of
from support.runs import discs, small

from srgan.conversion.loading import load_engine
from srgan.errors import UsageError, WeightsError
from srgan.networks.reading import load_generator
from srgan.training import validation
from srgan.training.config import Recipe, bundled_recipes, load_recipe, validated
from srgan.training.data import check, degradation, preview
from srgan.training.data.cache import PictureCache, build_cache
from srgan.training.data.patches import Patches
from srgan.training.data.sources import Source
from srgan.training.processes import make_fabric
from srgan.training.run import make_players
from srgan.training.trainer import train
from srgan.training.validation import Bicubic, sample_strip, validate

SCALES = [2, 3, 4, 8]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_alexnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "lpips_available", lambda: False)


def of_scale(scale: int, **changes: object) -> Recipe:
    stage = {"patch_hr_px": 48, "steps": 2}
    values = {"pretrain": stage, "adversarial": stage, "generator": {"scale": scale}} | changes
    return small(**values)


@pytest.fixture
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> PictureCache:
    folder = tmp_path / "hr"
    folder.mkdir()
    for number, picture in enumerate(discs(5, 96)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return build_cache([folder], tmp_path / "cache", request.param)


# --- recipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bundled_recipes())
@pytest.mark.parametrize("scale", SCALES)
def test_a_bundled_recipe_is_one_of_every_scale(name: str, scale: int) -> None:
    recipe = load_recipe(name, [f"generator.scale={scale}"])
    for stage in recipe.stages().values():
        assert f"-x{scale}" in stage.export_name
        assert "-x4" not in stage.export_name or scale == 4
        assert stage.patch_hr_px % scale == 0
    assert validated(recipe.model_dump(mode="json"), "again") == recipe  # as RUN/recipe.json holds it


def test_patches_show_24_lr_pixels_or_more_by_default() -> None:
    for scale, patch_hr_px in ((2, 96), (3, 96), (4, 96), (8, 192)):
        recipe = validated({"generator": {"scale": scale}}, "x")
        assert recipe.pretrain.patch_hr_px == recipe.adversarial.patch_hr_px == patch_hr_px


def test_names_without_a_scale_stay() -> None:
    recipe = validated({"generator": {"scale": 2}, "pretrain": {"export_name": "mine-x42b"}}, "x")
    assert recipe.pretrain.export_name == "mine-x42b"
    assert recipe.adversarial.export_name == "srgan-x2"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generator": {"scale": 5}}, "2, 3, 4 or 8"),
        ({"generator": {"scale": 3}, "pretrain": {"patch_hr_px": 64}}, "64 must be a multiple of 3"),
        ({"generator": {"scale": 8}, "adversarial": {"patch_hr_px": 100}}, "100 must be a multiple of 8"),
    ],
)
def test_what_does_not_fit_the_scale_is_refused_in_a_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        validated(values, "x")
    assert "\n" not in str(caught.value)


# --- pairs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 8])
def test_shipped_lr_is_cut_where_hr_is(scale: int, tmp_path: Path) -> None:
    """Pixels that say where they stand, LR in LR pixels."""
    for folder, side, name in (("hr", 14 * scale, "a.png"), ("lr", 14, f"ax{scale}.png")):
        (tmp_path / folder).mkdir()
        y, x = np.mgrid[:side, :side]
        Image.fromarray(np.stack([y, x, 0 * x], 2).astype(np.uint8)).save(tmp_path / folder / name)
    cache = build_cache([Source(tmp_path / "hr", tmp_path / "lr")], tmp_path / "cache", scale)
    assert cache.lr_offsets[0] >= 0
    degrade = degradation.Bicubic(scale)
    patches = Patches(cache, 4 * scale + 2 * degrade.margin_hr_px, CPU, torch.Generator().manual_seed(0))
    lr, hr = patches.pairs(40, degrade)
    assert lr.shape == (40, 3, 4, 4)
    blocks = (255 * hr).round().long().view(40, 3, 4, scale, 4, scale)
    assert torch.equal(blocks.amin((3, 5)) // scale, (255 * lr).round().long())
    assert torch.equal(blocks.amax((3, 5)) // scale, (255 * lr).round().long())


def test_lr_of_another_scale_is_told_with_the_scale_that_it_is_of(tmp_path: Path) -> None:
    for folder, side, name in (
        ("hr", 48, "a.png"),
        ("lr", 24, "ax2.png"),
        ("hr", 48, "b.png"),
        ("lr", 10, "b.png"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (side, side)).save(tmp_path / folder / name)
    source = Source(tmp_path / "hr", tmp_path / "lr")
    with pytest.raises(UsageError, match="none of the 2 files") as caught:
        build_cache([source], tmp_path / "cache")
    assert "not 4 times its LR picture ax2.png of 24x24 px: for x2 set generator.scale=2" in str(caught.value)
    assert "b.png of 10x10 px; scales are 2, 3, 4, 8" in str(caught.value)
    assert build_cache([source], tmp_path / "cache", 2).names == ["a.png"]  # the same files at their own scale
    findings = check.check([source], of_scale(2), timed=False)
    assert (findings.paired, len(findings.left_out)) == (1, 1)


# --- what a run does -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cache", "scale"), [(scale, scale) for scale in (2, 3, 8)], indirect=["cache"])
def test_both_stages_train_validate_and_export(cache: PictureCache, scale: int, tmp_path: Path) -> None:
    files = train(of_scale(scale), cache, tmp_path / "run")
    assert [path.name for path in files if path.suffix == ".onnx"] == [
        f"srresnet-x{scale}.onnx",
        f"srgan-x{scale}.onnx",
    ]
    generator, metadata = load_generator(tmp_path / "run" / f"srgan-x{scale}.safetensors")
    assert (generator.scale, metadata.scale, metadata.architecture["scale"]) == (scale, scale, scale)
    assert metadata.halo_lr_px == generator.halo_lr_px == 10
    engine, _ = load_engine(tmp_path / "run" / f"srgan-x{scale}.onnx")
    assert engine.run(np.zeros((1, 3, 5, 6), np.float32)).shape == (1, 3, 5 * scale, 6 * scale)
    with pytest.raises(WeightsError, match=rf"is of a x{scale} generator.*generator\.scale = 4"):
        train(of_scale(4), build_cache([tmp_path / "hr"], tmp_path / "cache", 4), tmp_path / "run", resume=True)


@pytest.mark.parametrize("cache", SCALES, indirect=True)
def test_validation_measures_at_the_scale(cache: PictureCache) -> None:
    """What bicubic enlargement leaves of discs, against the same by Pillow."""
    scale, sides = cache.scale, 96 // cache.scale
    psnr = []
    for index in range(len(cache)):
        hr = Image.fromarray(cache.picture(index).numpy())
        lr = hr.resize((sides, sides), Image.Resampling.BICUBIC)
        sr = lr.resize(hr.size, Image.Resampling.BICUBIC)
        # Y of BT.601, studio range, without a border of the scale.
        inner = np.s_[scale:-scale, scale:-scale]
        ours, truth = (np.asarray(p, np.float64)[inner] @ [65.481, 128.553, 24.966] / 255 for p in (sr, hr))
        psnr.append(10 * np.log10(255**2 / np.square(ours - truth).mean()))
    assert validate(Bicubic(scale), cache)["validation/psnr_y"] == pytest.approx(np.mean(psnr), abs=0.05)
    strip = sample_strip(Bicubic(scale), cache)
    assert strip.shape == (4 * 128, 3 * 128, 3)


def test_a_cache_of_another_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="packed for x4, and the recipe is x2"):
        train(of_scale(2), cache_of(*discs(3)), tmp_path / "run")


@pytest.mark.parametrize("scale", SCALES)
def test_a_preview_shows_lr_at_the_size_of_hr(scale: int, tmp_path: Path) -> None:
    for number, picture in enumerate(discs(2, 120)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    sheet = preview.preview([Source(tmp_path)], of_scale(scale), count=2)
    assert sheet.pixels.shape == (48 * 2 + 4, 2 * 48, 3)
    lr = sheet.pixels[:48, 48:96]
    assert np.array_equal(lr, lr[::scale, ::scale].repeat(scale, 0).repeat(scale, 1))


# --- a start from another scale --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "steps"), [(2, {"upscale.0"}), (3, set()), (8, {"upscale.0", "upscale.1"}), (4, None)]
)
def test_a_start_from_x4_takes_the_trunk_and_says_so(
    scale: int, steps: set[str] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "x4"
    train(small(adversarial={"steps": 0}), cache_of(*discs(6)), run)
    recipe = of_scale(scale, start=str(run / "srresnet-x4.safetensors"))
    given = load_generator(run / "srresnet-x4.safetensors")[0].state_dict()
    fabric = make_fabric(recipe)
    with caplog.at_level(logging.INFO, "srgan"):
        players = make_players(recipe, fabric, torch.Generator())
    torch.manual_seed(recipe.seed)
    now = players.generator.state_dict()
    same = {name for name in now if name in given and torch.equal(now[name], given[name])}
    parts = {".".join(name.split(".")[:2]) for name in now if name in same and name.startswith("upscale")}
    assert {name for name in now if not name.startswith(("upscale", "tail"))} <= same
    if steps is None:
        assert same == set(now)
        assert not [text for text in caplog.messages if "trunk" in text]
        return
    assert parts - {"upscale.2"} >= steps
    assert "tail.weight" not in same
    assert f"is x4: its trunk is copied, and the tail is new, for x{scale}" in caplog.text
    checkpoint = str(next((run / "checkpoints").glob("*best.pt")))
    other = make_players(of_scale(scale, start=checkpoint, adversarial={"steps": 0}), fabric, torch.Generator())
    trunk = "blocks.0.conv1.weight"
    assert torch.equal(other.generator.state_dict()[trunk], now[trunk])
