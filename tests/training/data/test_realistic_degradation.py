"""The realistic degradation: each part against scipy, numpy or Pillow, then the whole."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.special
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import ValidationError

from srgan.errors import RecipeError
from srgan.training.config import DegradationRecipe, PassRecipe, load_recipe
from srgan.training.data.degradation import (
    Bicubic,
    Realistic,
    bicubic,
    blur_kernels,
    even_qualities,
    filtered,
    gaussian_kernels,
    held_out,
    jpeg,
    make,
    noised,
    plateau_kernels,
    sinc_kernels,
)

# Neither blur nor noise nor JPEG nor resizing but the last one: what is left is nearly the plain reduction.
QUIET_PASS = {"blur": 0.0, "noise": 0.0, "resize": (1.0, 1.0)}
QUIET = {"first": QUIET_PASS, "second": QUIET_PASS, "final_sinc": 0.0, "aliased": 0.0, "jpeg_quality": (100, 100)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H,W,3) uint8 with smooth parts, edges, colours and a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    picture = np.stack(
        [
            130 + 90 * np.sin(x / 9.0 + seed) * np.cos(y / 14.0),
            120 + 70 * (((x // 23) + (y // 17)) % 2),
            90 + 60 * np.cos((x + y) / 21.0),
        ],
        axis=2,
    )
    return (picture + random.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8)


def tensor(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def array(picture: torch.Tensor) -> np.ndarray:
    return (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.int64)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


# JPEG


def by_pillow(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer)).astype(np.int64)


@pytest.mark.parametrize("quality", [20, 40, 60, 75, 90, 95, 100])
@pytest.mark.parametrize("size", [(96, 128), (50, 37)])
def test_jpeg_equals_libjpeg_closely(quality: int, size: tuple[int, int]) -> None:
    picture = photograph(*size)
    ours, theirs = array(jpeg(tensor(picture), numbers(quality))[0]), by_pillow(picture, quality)
    assert ours.shape == theirs.shape
    damage = np.abs(theirs - picture).mean()
    difference = np.abs(ours - theirs).mean()
    assert difference < 0.7  # grey levels; roundings inside libjpeg's integer transforms
    assert difference < damage / 3


def test_jpeg_takes_a_quality_for_each_picture() -> None:
    pictures = [photograph(32, 48, seed) for seed in range(3)]
    together = jpeg(tensor(*pictures), numbers(30, 70, 95))
    for index, (picture, quality) in enumerate(zip(pictures, (30, 70, 95), strict=True)):
        # A float matrix product may round otherwise in another batch: a level here and there.
        alone = jpeg(tensor(picture), numbers(quality))[0]
        assert (array(together[index]) != array(alone)).mean() < 0.01


def test_jpeg_of_one_block_by_scipy() -> None:
    """A grey block through an independent transform and the standard's table at quality 50."""
    table = np.array(
        [
            *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
            *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
            *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
        ]
    ).reshape(8, 8)
    block = np.random.default_rng(1).integers(60, 200, (8, 8))
    coefficients = scipy.fft.dctn(block - 128.0, norm="ortho")
    expected = scipy.fft.idctn(np.round(coefficients / table) * table, norm="ortho") + 128
    grey = np.repeat(block[..., None], 3, axis=2).astype(np.uint8)
    ours = array(jpeg(tensor(grey), numbers(50))[0])
    np.testing.assert_allclose(ours, np.repeat(expected.round()[..., None], 3, 2), atol=1)


# Kernels


def test_gaussian_kernels_by_scipy() -> None:
    sigma_y, sigma_x = 0.9, 2.1
    impulse = np.zeros((21, 21))
    impulse[10, 10] = 1
    expected = np.outer(*(np.exp(-(np.arange(-10, 11) ** 2) / (2 * s * s)) for s in (sigma_y, sigma_x)))
    ours = gaussian_kernels(numbers(sigma_x), numbers(sigma_y), numbers(0), numbers(1))[0].numpy()
    np.testing.assert_allclose(ours, expected / expected.sum(), atol=1e-6)
    theirs = scipy.ndimage.gaussian_filter(impulse, (sigma_y, sigma_x), radius=10)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_turned_kernels_have_the_turned_covariance() -> None:
    """Their second moments are those of an ellipse at 30 degrees."""
    sigma, angle = np.array([2.0, 1.0]), math.pi / 6
    kernel = gaussian_kernels(numbers(2), numbers(1), numbers(angle), numbers(1))[0].numpy()
    y, x = np.mgrid[-10:11, -10:11]
    moments = [[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)]
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    np.testing.assert_allclose(moments, turn @ np.diag(sigma**2) @ turn.T, atol=0.01)


@pytest.mark.parametrize("shape", [0.5, 1.0, 3.0])
def test_generalised_and_plateau_kernels_by_their_formula(shape: float) -> None:
    y, x = np.mgrid[-10:11, -10:11] / 1.7
    q = y**2 + x**2
    for ours, formula in (
        (gaussian_kernels, np.exp(-0.5 * q**shape)),
        (plateau_kernels, 1 / (1 + q**shape)),
    ):
        kernel = ours(numbers(1.7), numbers(1.7), numbers(0.4), numbers(shape))[0].numpy()
        np.testing.assert_allclose(kernel, formula / formula.sum(), atol=1e-6)


@pytest.mark.parametrize("cutoff", [math.pi / 3, 2.0, math.pi])
def test_sinc_kernels_cut_off_where_they_say(cutoff: float) -> None:
    kernel = sinc_kernels(numbers(cutoff))[0].double().numpy()
    y, x = np.mgrid[-10:11, -10:11]
    r = np.hypot(y, x)
    r[10, 10] = 1e-6
    expected = cutoff * scipy.special.j1(cutoff * r) / (2 * math.pi * r)
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=1e-6)
    response = np.abs(np.fft.fft2(np.pad(kernel, 60)))
    frequency = np.hypot(*np.meshgrid(*2 * [2 * math.pi * np.fft.fftfreq(141)]))
    assert response[frequency < 0.7 * cutoff].min() > 0.8
    if cutoff < 3:
        assert response[frequency > 1.4 * cutoff].max() < 0.2
    assert kernel.min() < 0  # it rings


def test_drawn_kernels_sum_to_1_and_are_of_all_kinds() -> None:
    kernels = blur_kernels(PassRecipe(), 500, seeded())
    assert kernels.shape == (500, 21, 21)
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(500))
    ringing = (kernels.amin((1, 2)) < -1e-4).float().mean()
    assert 0.05 < float(ringing) < 0.16  # a tenth are sinc, and the widest of those hardly ring
    crosswise = (kernels - kernels.transpose(1, 2)).abs().amax((1, 2)) > 1e-4
    assert 0.25 < float(crosswise.float().mean()) < 0.5  # anisotropic: 0.4 of nine tenths


def test_sigmas_stay_in_their_range() -> None:
    recipe = PassRecipe(sinc=0, generalised=0, plateau=0, anisotropic=0, blur_sigma=(0.8, 1.5))
    kernels = blur_kernels(recipe, 200, seeded())
    y = torch.arange(-10, 11.0).view(-1, 1)
    sigma = (kernels * y**2).sum((1, 2)).sqrt()
    assert float(sigma.min()) > 0.79
    assert float(sigma.max()) < 1.51
    assert float(sigma.std()) > 0.1


def test_filtering_is_convolution_with_mirrored_edges_of_the_chosen() -> None:
    pictures = tensor(photograph(40, 33), photograph(40, 33, 1), photograph(40, 33, 2))
    kernels = blur_kernels(PassRecipe(sinc=0), 3, seeded(4))
    ours = filtered(pictures, kernels, torch.tensor([True, False, True]))
    assert torch.equal(ours[1], pictures[1])
    for index in (0, 2):
        for channel in range(3):
            theirs = scipy.ndimage.correlate(
                pictures[index, channel].numpy(), kernels[index].numpy(), mode="mirror"
            )
            np.testing.assert_allclose(ours[index, channel].numpy(), theirs.clip(0, 1), atol=1e-5)


# Noise


def noise_of(level: float, **settings: float | tuple[float, float]) -> torch.Tensor:
    x = torch.full((4, 3, 100, 100), level)
    return noised(x, PassRecipe(noise=1, **settings), seeded(2), seeded(3)) - x


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_gaussian_noise_has_its_deviation(grey: float) -> None:
    noise = noise_of(0.5, gaussian=1, gaussian_sigma=(6, 6), grey_noise=grey) * 255
    assert abs(float(noise.std()) - 6) < 0.1
    assert abs(float(noise.mean())) < 0.1
    correlation = np.corrcoef(noise[:, 0].flatten(), noise[:, 1].flatten())[0, 1]
    assert abs(correlation - grey) < 0.03


@pytest.mark.parametrize("grey", [0.0, 1.0])
@pytest.mark.parametrize(("level", "scale"), [(0.1, 1.0), (0.6, 1.0), (0.6, 0.25)])
def test_poisson_noise_grows_with_light(level: float, scale: float, grey: float) -> None:
    noise = noise_of(level, gaussian=0, poisson_scale=(scale, scale), grey_noise=grey)
    assert abs(float(noise.mean())) < 0.002
    # A count of n photons deviates by the root of n.
    assert float(noise.std()) == pytest.approx(scale * math.sqrt(255 * level) / 255, rel=0.03)
    third = float(((noise / noise.std()) ** 3).mean())
    assert third == pytest.approx(1 / math.sqrt(255 * level), abs=0.08)  # and leans as Poisson's does


def test_noise_comes_as_often_as_asked() -> None:
    x = torch.full((400, 3, 8, 8), 0.5)
    after = noised(x, PassRecipe(noise=0.3), seeded(), seeded(1))
    share = float((after != x).flatten(1).any(1).float().mean())
    assert abs(share - 0.3) < 6 * math.sqrt(0.21 / 400)


# The whole


def test_bicubic_is_the_default_and_unchanged() -> None:
    made = make(DegradationRecipe(), seeded())
    assert isinstance(made, Bicubic)
    hr = tensor(photograph(64, 64))
    for ours, plain in zip(made(hr), Bicubic()(hr), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("count", [1, 3, 11])
def test_sizes_levels_and_hr(count: int) -> None:
    degrade = make(DegradationRecipe(kind="realistic"), seeded(1))
    m = degrade.margin_hr_px
    outer = tensor(*(photograph(48 + 2 * m, 64 + 2 * m, seed) for seed in range(count)))
    for _ in range(4):
        lr, hr = degrade(outer)
        assert lr.shape == (count, 3, 12, 16)
        assert torch.equal(hr, outer[..., m:-m, m:-m])
        assert torch.equal((lr * 255).round().clamp(0, 255) / 255, lr)
        assert not lr.requires_grad


def test_the_state_of_one_generator_decides_all() -> None:
    outer = tensor(*(photograph(112, 112, seed) for seed in range(10)))
    recipe = DegradationRecipe(kind="realistic")
    random = seeded(7)
    degrade = make(recipe, random)
    degrade(outer)
    state = random.get_state()
    ahead = [degrade(outer)[0] for _ in range(3)]
    resumed = seeded(0)
    resumed.set_state(state)
    global_state = torch.get_rng_state()
    again = make(recipe, resumed)
    assert all(torch.equal(again(outer)[0], lr) for lr in ahead)
    assert not torch.equal(ahead[0], ahead[1])
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("second_order", [0.0, 1.0])
def test_with_everything_off_it_is_close_to_the_plain_reduction(second_order: float) -> None:
    """And so it keeps every pixel in its place: a shift by half an LR pixel would cost some five grey levels."""
    recipe = DegradationRecipe.model_validate({"kind": "realistic", "second_order": second_order, **QUIET})
    y, x = np.mgrid[:160, :160]
    smooth = np.stack([128 + 100 * np.sin((x + 9 * seed) / 12) * np.cos(y / 15) for seed in range(8)]).round()
    outer = tensor(*np.repeat(smooth[..., None], 3, axis=3).astype(np.uint8))
    degrade, seen = Realistic(recipe, seeded(3)), []
    cut = degrade.margin_hr_px - Bicubic().margin_hr_px
    plain = Bicubic()(outer[..., cut:-cut, cut:-cut])[0]
    for _ in range(6):
        seen.append(float((degrade(outer)[0] - plain).abs().mean()) * 255)
    assert max(seen) < 1.5
    half_a_pixel_off = Bicubic()(outer[..., cut:-cut, cut + 2 : 2 - cut])[0]
    assert float((half_a_pixel_off - plain).abs().mean()) * 255 > 4


def test_the_margin_hides_the_edges_of_the_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """LR of a patch equals that of a larger one around it, under the filters that reach furthest.

    Without JPEG: it turns a hundredth of a level into a whole one here and there.
    """
    monkeypatch.setattr(Realistic, "_jpeg", lambda _self, x, _qualities: x)
    ringing = {**QUIET_PASS, "blur": 1.0, "sinc": 1.0, "resize": (0.5, 0.5)}
    recipe = DegradationRecipe.model_validate(
        {
            "kind": "realistic",
            "second_order": 1,
            **QUIET,
            "first": ringing,
            "second": {**ringing, "resize": (1, 1)},
        }
    )
    whole = torch.rand(1, 3, 64, 64, generator=seeded(9)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for seed in range(6):
        small = Realistic(recipe, seeded(seed))(whole[..., 64:-64, 64:-64])[0]
        large = Realistic(recipe, seeded(seed))(whole)[0][..., 16:-16, 16:-16]
        assert float((small - large).abs().max()) * 255 < 3
        assert float((small - large).abs().mean()) * 255 < 0.05


def test_noise_is_new_at_every_call() -> None:
    noise_alone = {**QUIET_PASS, "noise": 1.0, "gaussian": 1.0, "gaussian_sigma": (20, 20), "grey_noise": 0.0}
    recipe = DegradationRecipe.model_validate(
        {"kind": "realistic", "second_order": 0, **QUIET, "first": noise_alone}
    )
    flat = torch.full((8, 3, 192, 192), 0.5)
    degrade = Realistic(recipe, seeded())
    one, two = ((degrade(flat)[0] - 0.5).flatten().numpy() for _ in range(2))
    assert one.std() > 0.005
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05


def test_the_grid_of_jpeg_blocks_begins_anywhere() -> None:
    degrade = Realistic(DegradationRecipe(jpeg_quality=(5, 5), only_jpeg=1.0), seeded())
    side = 80 + degrade.margin_hr_px // 2
    noise = torch.rand(8, 3, side, side, generator=seeded(1))
    noise = torch.nn.functional.interpolate(noise, scale_factor=4)  # pixels that the reduction leaves apart
    begins = set()
    for _ in range(12):
        grey = degrade(noise)[0].mean(1)
        steps = (grey[:, :, 1:] - grey[:, :, :-1]).abs().mean((0, 1))  # largest from block to block
        begins.add(int(torch.stack([steps[phase::8].mean() for phase in range(8)]).argmax()))
    assert len(begins) > 3


def test_each_part_is_harmful() -> None:
    outer = tensor(*(photograph(160, 160, seed) for seed in range(16)))

    def error(**settings: object) -> float:
        recipe = DegradationRecipe.model_validate({"kind": "realistic", "second_order": 0, **QUIET, **settings})
        lr = Realistic(recipe, seeded(5))(outer)[0]
        clean = Realistic(
            DegradationRecipe.model_validate({"kind": "realistic", "second_order": 0, **QUIET}), seeded(5)
        )
        return float((lr - clean(outer)[0]).abs().mean()) * 255

    assert error() == 0
    assert error(first={**QUIET_PASS, "blur": 1.0, "blur_sigma": (2, 4)}) > 2
    assert error(first={**QUIET_PASS, "noise": 1.0, "gaussian": 1.0, "gaussian_sigma": (20, 20)}) > 2
    assert error(first={**QUIET_PASS, "resize": (0.15, 0.15)}) > 2
    assert error(final_sinc=1.0) > 0.3
    assert error(jpeg_quality=(10, 10)) > 2
    assert error(second_order=1.0, second={**QUIET_PASS, "resize": (0.4, 0.4)}) > 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("degradation.first.resize=[1.2, 0.4]", "first.resize must ascend"),
        ("degradation.second.blur_sigma=[0.0, 1.0]", "second.blur_sigma must ascend within 0.05 to 10"),
        ("degradation.jpeg_quality=[0, 50]", "jpeg_quality must ascend within 1 to 100"),
        ("degradation.first.plateau=0.95", "at most 1 together"),
        ("degradation.kind=wild", "degradation.kind"),
        ("degradation.first.nise=1", "unknown key 'degradation.first.nise'"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", [setting])
    assert message in str(caught.value)


def test_one_key_of_the_second_pass_leaves_its_others() -> None:
    changed = load_recipe("tiny", ["degradation.second.blur=0.1"]).degradation.second
    assert changed == DegradationRecipe().second.model_copy(update={"blur": 0.1})
    with pytest.raises(ValidationError):
        DegradationRecipe.model_validate({"kind": "realistic", "second_order": 2})


# What is met with less


def test_a_clean_picture_is_the_plain_reduction() -> None:
    hr = tensor(photograph(176, 208), photograph(176, 208, seed=1))
    degrade = Realistic(DegradationRecipe(kind="realistic", clean=1.0), seeded())
    lr, inner = degrade(hr)
    margin = degrade.margin_hr_px
    assert torch.equal(inner, hr[..., margin:-margin, margin:-margin])
    assert torch.equal(lr, bicubic(hr)[..., margin // 4 : -margin // 4, margin // 4 : -margin // 4])


def test_a_picture_with_jpeg_alone_is_that_of_a_file() -> None:
    hr = photograph(160, 192)
    recipe = DegradationRecipe(kind="realistic", only_jpeg=1.0, jpeg_quality=(60, 60))
    lr, _ = Realistic(recipe, seeded())(tensor(hr))
    inner = (bicubic(tensor(hr))[0].permute(1, 2, 0) * 255).round().byte().numpy()
    file = by_pillow(inner, 60)[6:-6, 6:-6]
    # The grid of blocks lies elsewhere, so the pixels differ, but not the loss.
    ours, files = (np.abs(one - inner[6:-6, 6:-6].astype(np.int64)).mean() for one in (array(lr[0]), file))
    assert files > 1
    assert ours == pytest.approx(files, rel=0.15)


def tables_of_pillow(quality: int) -> list[int]:
    """The 64 quantisation steps of luma in a file of this quality."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as picture:
        assert isinstance(picture, JpegImageFile)
        return list(picture.quantization[0])


def test_plain_jpegs_have_steps_spread_evenly_in_logarithm() -> None:
    qualities = even_qualities((40.0, 95.0), 20_000, seeded())
    assert torch.equal(qualities, qualities.round())
    assert {40.0, 95.0} <= set(qualities.tolist()) <= set(range(40, 96))
    by_quality = {quality: sum(tables_of_pillow(quality)) for quality in range(40, 96)}
    steps = np.array([by_quality[int(quality)] for quality in qualities])
    shares, _ = np.histogram(np.log(steps), bins=4)
    assert shares / len(steps) == pytest.approx(np.full(4, 0.25), abs=0.03)


@pytest.mark.parametrize("quality", [1.0, 49.0, 50.0, 90.0, 100.0])
def test_one_quality_is_kept(quality: float) -> None:
    assert even_qualities((quality, quality), 3, seeded()).tolist() == pytest.approx(3 * [quality], abs=0.5)


def test_the_shares_are_kept() -> None:
    hr = tensor(photograph(112, 112)).expand(400, -1, -1, -1)
    recipe = DegradationRecipe(
        **QUIET | {"kind": "realistic", "jpeg_quality": (30, 30), "clean": 0.5, "only_jpeg": 0.3}
    )
    lr, _ = Realistic(recipe, seeded())(hr)
    plain = bicubic(hr[:1])[..., 6:-6, 6:-6]
    assert 160 < int((lr == plain).all(dim=(1, 2, 3)).sum()) < 240  # four deviations of a binomial


def test_shares_beyond_the_whole_are_refused() -> None:
    with pytest.raises(ValidationError, match="shares of one whole"):
        DegradationRecipe(kind="realistic", clean=0.7, only_jpeg=0.4)


def test_a_held_out_picture_is_degraded_alike_every_time() -> None:
    hr = tensor(photograph(96, 128))
    recipe = DegradationRecipe(kind="realistic")
    assert held_out(recipe, hr, 3).shape == (1, 3, 24, 32)
    assert torch.equal(held_out(recipe, hr, 3), held_out(recipe, hr, 3))
    assert not torch.equal(held_out(recipe, hr, 3), held_out(recipe, hr, 4))
    assert torch.equal(held_out(DegradationRecipe(), hr, 3), bicubic(hr))


def test_is_the_same_where_the_trainer_computes_in_half_precision() -> None:
    """Autocast took the blur to bfloat16: eight bits of 0..1, and some sizes could not be resized at all."""
    degrade = Realistic(DegradationRecipe(kind="realistic"), seeded())
    side = 64 + 2 * degrade.margin_hr_px
    hr = tensor(*(photograph(side, side, seed) for seed in range(4)))
    expected, _ = degrade(hr)
    with torch.autocast("cpu", torch.bfloat16):
        lr, _ = Realistic(DegradationRecipe(kind="realistic"), seeded())(hr)
    assert lr.dtype == torch.float32
    assert torch.equal(lr, expected)
