"""The benchmark: whom it compares, what it refuses, and that its figures and files say what was measured."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srgan import pictures
from srgan.commands import evaluate as command
from srgan.commands.evaluate import evaluate_command
from srgan.errors import BackboneError, SrganError, UnknownModelError, UsageError
from srgan.evaluation import benchmark, frechet, metrics
from srgan.evaluation.backbones import FOLDER_VARIABLE, load_features
from srgan.evaluation.benchmark import evaluate, pairs
from srgan.evaluation.measures import MEASURES, logged_measure
from srgan.evaluation.tables import Protocol, Table, bootstrap
from srgan.pages.gallery import Gallery, worst_window
from srgan.upscale import Upscaler

Evaluate = Callable[..., None]


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def bicubic(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(autouse=True)
def without_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here needs LPIPS or DISTS, whose networks take a second to load each."""
    monkeypatch.setattr(benchmark, "perceptual_metrics", lambda notes: {})


@pytest.fixture
def hr(tmp_path: Path) -> Path:
    """Three pictures; the second is no multiple of 4 on either side."""
    folder = tmp_path / "set" / "HR"
    folder.mkdir(parents=True)
    for name, (height, width, seed) in {"a": (64, 80, 0), "b": (67, 50, 1), "c": (48, 64, 2)}.items():
        Image.fromarray(photograph(height, width, seed)).save(folder / f"{name}.png")
    return folder


def shipped(hr: Path, ending: str = "") -> Path:
    folder = hr.parent / f"LR{ending}"
    folder.mkdir()
    for path in sorted(hr.iterdir()):
        pixels = np.asarray(Image.open(path))
        height, width = (size // 4 for size in pixels.shape[:2])
        lr = bicubic(pixels[: 4 * height, : 4 * width], height, width)
        Image.fromarray(lr).save(folder / f"{path.stem}{ending}.bmp")
    return folder


# --- pairs and contenders ------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "x4"])
def test_lr_is_found_by_name_and_hr_cut_to_whole_multiples(hr: Path, ending: str) -> None:
    by_name = list(pairs(hr, shipped(hr, ending)))
    assert [(pair.name, pair.hr.pixels.shape) for pair in by_name] == [
        ("a.png", (64, 80, 3)),
        ("b.png", (64, 48, 3)),
        ("c.png", (48, 64, 3)),
    ]
    for pair, made in zip(by_name, pairs(hr), strict=True):
        np.testing.assert_array_equal(pair.lr.pixels, made.lr.pixels)


def test_grey_pictures_count_as_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(photograph(40, 40, 0)[..., 0]).save(tmp_path / "a.png")
    (pair,) = pairs(tmp_path)
    assert pair.hr.pixels.shape == (40, 40, 3)
    assert (pair.hr.pixels == pair.hr.pixels[..., :1]).all()


def test_figures_of_a_picture_are_those_of_the_metrics(hr: Path, tiny_model: Path) -> None:
    upscaler = Upscaler(tiny_model)
    for measured in evaluate({"tiny": upscaler.upscale}, hr):
        truth, lr = measured.pair.hr.pixels, measured.pair.lr
        sr = {"bicubic": bicubic(lr.pixels, *truth.shape[:2]), "tiny": upscaler.upscale(lr).pixels}
        assert measured.results.keys() == sr.keys()
        for name, pixels in sr.items():
            np.testing.assert_array_equal(measured.results[name].pixels, pixels)
            scores = measured.scores[name]
            assert scores["psnr_y"] == metrics.psnr(pixels, truth, border=4, y_only=True)
            assert scores["ssim_y"] == metrics.ssim(pixels, truth, border=4, y_only=True)
            assert scores["psnr_rgb"] == metrics.psnr(pixels, truth, border=4, y_only=False)
            assert scores["ssim_rgb"] == metrics.ssim(pixels, truth, border=4, y_only=False)
            again = bicubic(pixels, lr.height, lr.width).astype(float) - lr.pixels
            assert scores["lr_psnr"] == pytest.approx(10 * np.log10(255**2 / np.mean(again**2)))
            assert scores["colour_shift"] == pytest.approx(np.abs(again.mean((0, 1))).max(), abs=1e-5)
        assert measured.scores["tiny"]["seconds_per_megapixel"] > 0
        assert "seconds_per_megapixel" not in measured.scores["bicubic"]  # nobody's work to compare with


def test_the_protocol_can_be_chosen(hr: Path) -> None:
    chosen = Protocol(border_px=1, luma="full", perceptual_border_px=2)
    for measured in evaluate({}, hr, protocol=chosen):
        sr, truth = measured.results["bicubic"].pixels, measured.pair.hr.pixels
        scores = measured.scores["bicubic"]
        assert scores["psnr_y"] == metrics.psnr(sr, truth, border=1, y_only=True, luma="full")
        assert scores["ssim_rgb"] == metrics.ssim(sr, truth, border=1, y_only=False)
    assert "full range, border 1 for PSNR and SSIM and 2 for LPIPS" in str(chosen)


@pytest.mark.parametrize("ending", ["", "_x4", "x4", "_out", "_SR"])
def test_pictures_of_other_programs_are_measured_too(hr: Path, tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for path in hr.iterdir():  # of HR's own size, or of four times LR's
        pixels = np.asarray(Image.open(path))
        cut = pixels if path.stem == "a" else pixels[: pixels.shape[0] // 4 * 4, : pixels.shape[1] // 4 * 4]
        Image.fromarray(cut).save(folder / f"{path.stem}{ending}.png")
    for measured in evaluate({}, hr, sr_folders={"theirs": folder}):
        assert measured.scores["theirs"]["psnr_y"] == math.inf
        assert measured.scores["theirs"]["ssim_rgb"] == pytest.approx(1)
        assert "seconds_per_megapixel" not in measured.scores["theirs"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda hr, lr, sr: (lr / "b.bmp").unlink(), r"no picture for b\.png in .*LR, which --lr names"),
        (lambda hr, lr, sr: (sr / "c.png").unlink(), r"no picture for c\.png in .*SR, which --sr names"),
        (lambda hr, lr, sr: Image.new("RGB", (19, 16)).save(lr / "a.bmp"), r"a\.png: HR is 80x64 and LR 19x16"),
        (
            lambda hr, lr, sr: Image.new("RGB", (80, 60)).save(sr / "a.png"),
            r"a\.png is 80x60 px, and its HR 80x64",
        ),
        (
            lambda hr, lr, sr: Image.new("RGB", (84, 64)).save(sr / "a.png"),
            r"a\.png is 84x64 px, and its HR 80x64",
        ),
        (lambda hr, lr, sr: Image.new("RGB", (31, 90)).save(hr / "a.png"), "pictures below 32 px"),
        (lambda hr, lr, sr: (hr / "a.png").write_bytes(b"no picture"), r"a\.png"),
        (lambda hr, lr, sr: [path.unlink() for path in hr.iterdir()], "no pictures in"),
        (lambda hr, lr, sr: [path.unlink() for path in (*sr.iterdir(), sr)[:-1]], "no pictures in"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(
    hr: Path, spoil: Callable[[Path, Path, Path], object], message: str
) -> None:
    lr, sr = shipped(hr), hr.parent / "SR"
    sr.mkdir()
    for path in hr.iterdir():
        (sr / path.name).write_bytes(path.read_bytes())
    spoil(hr, lr, sr)
    with pytest.raises(SrganError, match=message) as caught:
        list(evaluate({}, hr, lr, {"sr": sr}))
    assert "\n" not in str(caught.value)


def test_what_is_no_contender_is_refused(hr: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="nonsense"):
        evaluate_command(hr, None, ["nonsense"], [])
    with pytest.raises(UsageError, match=r"precision 'fp64' is not understood: choose auto, fp32, "):
        evaluate_command(hr, None, ["srgan-x4"], [], precision="fp64")
    with pytest.raises(UsageError, match="is not a folder: give --sr"):
        list(evaluate({}, hr, sr_folders={"x": tmp_path / "absent"}))
    with pytest.raises(UsageError, match="two contenders are called bicubic"):
        list(evaluate({}, hr, sr_folders={"bicubic": hr}))
    with pytest.raises(UsageError, match="cannot be judged with these borders"):
        list(evaluate({}, hr, protocol=Protocol(border_px=30)))


class Nearest:
    """Repeats pixels; stands in for a model of any scale."""

    precision = "fp32"

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def upscale(self, picture: pictures.Picture, request: int | None = None) -> pictures.Picture:
        sr = pictures.Picture(picture.pixels.repeat(self.scale, axis=0).repeat(self.scale, axis=1))
        return pictures.resized(sr, picture.height * request, picture.width * request) if request else sr


@pytest.fixture
def of_any_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models called "x2", "x3" and so on."""
    monkeypatch.setattr(command, "Upscaler", lambda name, precision: Nearest(int(name[1:])))


def reduced(hr: Path, scale: int, ending: str = "") -> Path:
    folder = hr.parent / f"LRx{scale}"
    folder.mkdir()
    for path in sorted(hr.iterdir()):
        pixels = np.asarray(Image.open(path))
        height, width = (size // scale for size in pixels.shape[:2])
        lr = bicubic(pixels[: scale * height, : scale * width], height, width)
        Image.fromarray(lr).save(folder / f"{path.stem}{ending}.png")
    return folder


@pytest.mark.usefixtures("of_any_scale")
@pytest.mark.parametrize("scale", [2, 3, 8])
@pytest.mark.parametrize("told_by", ["model", "lr", "both", "ending"])
def test_any_scale_by_the_model_or_by_lr(
    hr: Path, tmp_path: Path, scale: int, told_by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lr = None if told_by == "model" else reduced(hr, scale, f"x{scale}" if told_by == "ending" else "")
    models = [f"x{scale}"] if told_by in ("model", "both") else []
    evaluate_command(hr, lr, models, [], json_path=tmp_path / "e.json")
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["protocol"]["scale"] == report["protocol"]["border_px"] == scale
    assert f"×{scale}, 8 bits" in " ".join(capsys.readouterr().out.split())
    for row in report["pictures"]:
        truth = np.asarray(Image.open(hr / row["picture"]))
        height, width = (size // scale for size in truth.shape[:2])
        truth = truth[: scale * height, : scale * width]
        small = bicubic(truth, height, width)
        sr = bicubic(small, *truth.shape[:2])
        if row["contender"] != "bicubic":
            sr = small.repeat(scale, axis=0).repeat(scale, axis=1)
        assert row["psnr_y"] == metrics.psnr(sr, truth, border=scale, y_only=True)


@pytest.mark.usefixtures("of_any_scale")
def test_a_model_of_another_scale_is_refused_in_a_line(hr: Path) -> None:
    lr = reduced(hr, 4)
    with pytest.raises(UsageError, match=r"x2 enlarges 2 times, and the pictures in .*LRx4 were reduced 4 times"):
        evaluate_command(hr, lr, ["x2"], [])
    with pytest.raises(UsageError, match=r"reduced 2 times, or name a model of ×4"):
        evaluate_command(hr, lr, ["x4", "x2"], [])
    Image.new("RGB", (80, 64)).save(lr / "a.png")
    with pytest.raises(UsageError, match="HR is 80x64 and LR 80x64, not a whole number of times less"):
        evaluate_command(hr, lr, [], [])


@pytest.mark.usefixtures("of_any_scale")
@pytest.mark.parametrize("given", ["lr", ""])
def test_a_larger_model_is_reduced_to_the_scale_and_it_is_said(
    hr: Path, tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lr = reduced(hr, 2) if given else None
    evaluate_command(hr, lr, ["x4", "x2"], [], json_path=tmp_path / "e.json")
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["protocol"]["scale"] == report["protocol"]["border_px"] == 2
    assert "x4 enlarges 4 times: its results were reduced to ×2" in " ".join(capsys.readouterr().out.split())
    row = next(row for row in report["pictures"] if row["contender"] == "x4")
    truth = np.asarray(Image.open(hr / row["picture"]))
    height, width = (size // 2 for size in truth.shape[:2])
    truth = truth[: 2 * height, : 2 * width]
    small = bicubic(truth, height, width)
    sr = bicubic(small.repeat(4, axis=0).repeat(4, axis=1), *truth.shape[:2])
    assert row["psnr_y"] == pytest.approx(metrics.psnr(sr, truth, border=2, y_only=True), abs=0.01)


@pytest.mark.usefixtures("of_any_scale")
def test_lr_in_several_sizes_is_taken_in_that_of_the_model(hr: Path, tmp_path: Path) -> None:
    both = reduced(hr, 2, "x2")
    for path in reduced(hr, 4, "x4").iterdir():
        path.rename(both / path.name)
    for models, scale in ((["x2"], 2), (["x4"], 4), ([], 4)):
        evaluate_command(hr, both, models, [], json_path=tmp_path / "e.json")
        assert json.loads((tmp_path / "e.json").read_text())["protocol"]["scale"] == scale


def test_a_scale_that_nothing_tells_is_said(hr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_command(hr, None, [], [str(hr)])
    assert "×4 by default: neither a model nor --lr" in " ".join(capsys.readouterr().out.split())


def test_hidden_colours_are_not_measured_and_it_is_said(hr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours = photograph(64, 80, 5)
    alpha = np.full((64, 80), 255, np.uint8)
    alpha[:, 40:] = 0
    Image.fromarray(np.dstack([colours, alpha])).save(hr / "d.png")
    pair = next(pair for pair in pairs(hr) if pair.name == "d.png")
    assert np.array_equal(pair.hr.pixels, np.where(alpha[..., None] == 255, colours, 255))
    evaluate_command(hr, None, [], [])
    assert "1 pictures: transparency laid on white" in capsys.readouterr().out


def test_networks_that_cannot_be_had_are_noted_and_left_out(
    hr: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()  # the real question, with folders that answer it
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    for name in ("alexnet", "vgg16"):
        (tmp_path / f"{name}_features.safetensors").write_bytes(b"no weights")
    metrics.lpips_network.cache_clear()
    metrics.dists_network.cache_clear()
    notes: list[str] = []
    measured = list(evaluate({}, hr, notes=notes))
    assert [note.partition(":")[0] for note in notes] == ["without LPIPS", "without DISTS"]
    assert all("does not hold features" in note for note in notes)
    assert not {"lpips", "dists"} & measured[0].scores["bicubic"].keys()


# --- means ---------------------------------------------------------------------------


def test_the_bootstrap_covers_as_promised() -> None:
    random, hits = np.random.default_rng(1), 0
    for _ in range(150):
        mean = bootstrap(random.normal(3.0, 2.0, 40).tolist())
        assert mean.low < mean.value < mean.high
        hits += mean.low < 3.0 < mean.high
    assert 0.88 < hits / 150 < 0.99  # of intervals at 95 %


def test_the_bootstrap_by_enumeration() -> None:
    values = [0.0, 1.0, 5.0]
    every = np.repeat([np.mean(chosen) for chosen in itertools.product(values, repeat=3)], 1000)
    mean = bootstrap(values)
    assert (mean.value, mean.low, mean.high) == (2, np.percentile(every, 2.5), np.percentile(every, 97.5))
    assert bootstrap(values) == mean


def test_what_has_no_interval() -> None:
    for values in ([4.0], [1.0, math.inf]):
        mean = bootstrap(values)
        assert mean.value == np.mean(values)
        assert math.isnan(mean.low)


def test_advantages_are_of_pairs_and_positive_for_the_better_one() -> None:
    table = Table(Protocol(), ["a", "b"])
    table.rows = {
        "one": {"psnr_y": [20.0, 40.0], "lpips": [0.5, 0.1]},
        "other": {"psnr_y": [21.0, 41.0], "lpips": [0.4, 0.0]},
        "third": {"psnr_y": [1.0, 2.0]},
    }
    better = table.advantage("other", "one", "psnr_y")
    assert better is not None
    assert (better.value, better.low, better.high) == (1, 1, 1)  # both means are far apart, their pairs are not
    closer = table.advantage("other", "one", "lpips")
    assert closer is not None
    assert closer.value == pytest.approx(0.1)
    assert table.advantage("third", "one", "lpips") is None
    assert table.known_keys() == ["psnr_y", "lpips"]


def test_the_smallest_cost_is_the_best_value() -> None:
    best_first = {
        "psnr_y": [math.inf, 30.0, 20.0],
        "lpips": [0.0, 0.2, 0.9],
        "colour_shift": [0.0, -1.0, 2.0, -3.0],
        "detail": [1.0, 1.5, 0.5, 0.01, 0.0],
    }
    for key, values in best_first.items():
        costs = [MEASURES[key].cost(value) for value in values]
        assert costs == sorted(set(costs))


def test_measures_are_known_by_what_a_run_logs() -> None:
    assert logged_measure("validation/lr_psnr") is MEASURES["lr_psnr"]
    assert logged_measure("lr_psnr") is logged_measure("validation/unheard_of") is None
    assert MEASURES["lr_psnr"].hint == "dB, SR reduced against LR"
    assert [MEASURES["psnr_y"].text(value) for value in (27.984, math.inf, math.nan)] == [
        "27.98",
        "inf",
        "not finite",
    ]


# --- the command and its files -------------------------------------------------------


def test_the_command_prints_and_writes_what_was_measured(
    hr: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "their <b>pictures"
    theirs.mkdir()
    for path in hr.iterdir():
        (theirs / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    evaluate_command(
        hr,
        None,
        [str(tiny_model)],
        [str(theirs), f"named={theirs}"],
        json_path=out / "e.json",
        csv_path=out / "e.csv",
        html_path=out / "e.html",
    )
    printed = capsys.readouterr().out
    expected: dict[str, list[float]] = {name: [] for name in ("bicubic", tiny_model.name, theirs.name, "named")}
    for measured in evaluate({tiny_model.name: Upscaler(tiny_model).upscale}, hr, sr_folders={"named": theirs}):
        for name, scores in measured.scores.items():
            expected[name].append(scores["psnr_y"])
    assert f"{np.mean(expected['bicubic']):.2f} ±" in printed
    assert "PSNR-Y" in printed
    assert "studio range, border 4" in " ".join(printed.split())

    report = json.loads((out / "e.json").read_text())
    assert report["protocol"] == {"scale": 4, "border_px": 4, "luma": "studio", "perceptual_border_px": 0}
    assert report["means"].keys() == expected.keys()
    means = report["means"]
    assert means["bicubic"]["psnr_y"]["value"] == pytest.approx(np.mean(expected["bicubic"]))
    assert means["named"]["psnr_y"]["value"] is None  # identical pictures: JSON has no infinity
    assert report[f"better than {tiny_model.name} by"]["bicubic"]["psnr_y"]["value"] == pytest.approx(
        np.mean(expected["bicubic"]) - np.mean(expected[tiny_model.name])
    )

    with (out / "e.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["picture"], row["contender"]) for row in rows] == [
        (name, contender) for name in ("a.png", "b.png", "c.png") for contender in expected
    ]
    assert [float(row["psnr_y"]) for row in rows if row["contender"] == "bicubic"] == expected["bicubic"]
    assert {row["seconds_per_megapixel"] for row in rows if row["contender"] == "named"} == {""}

    page = (out / "e.html").read_text()
    assert "<b>pictures" not in page  # names are text
    assert page.count('<section class="card exhibit"') == 3
    assert page.count("data:image/webp;base64,") == 3 * 5
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"luma": "bt709"}, "--luma 'bt709': choose studio, rounded, full"),
        ({"border": -1}, "0 or more"),
        ({"sr": ["same", "same"]}, "same name"),
    ],
)
def test_options_that_make_no_sense(hr: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_command(hr, None, [], **({"sr": []} | options))  # type: ignore[arg-type]


def test_a_file_that_cannot_be_written_is_said(hr: Path) -> None:
    for name in ("json_path", "csv_path", "html_path"):
        with pytest.raises(SrganError, match="cannot be written"):
            evaluate_command(hr, None, [], [], **{name: hr / "a.png" / "out"})  # type: ignore[arg-type]


def test_a_single_picture_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "HR").mkdir()
    Image.fromarray(photograph(40, 40, 0)).save(tmp_path / "HR" / "a.png")
    evaluate_command(tmp_path / "HR", None, [], [], html_path=tmp_path / "e.html")
    assert "±" not in capsys.readouterr().out
    assert "Better than" not in (tmp_path / "e.html").read_text()


# --- the gallery ---------------------------------------------------------------------


def test_the_worst_window_by_brute_force() -> None:
    hr = photograph(30, 41, 0)
    sr = photograph(30, 41, 1)
    error = np.square(sr.astype(float) - hr).mean(2)
    every = {(top, left): error[top : top + 8, left : left + 8].sum() for top in range(23) for left in range(34)}
    top, left, side = worst_window(sr, hr, 8)
    assert side == 8
    assert every[top, left] == max(every.values())
    assert worst_window(sr, hr, 64) == (*worst_window(sr, hr, 30)[:2], 30)


def test_the_gallery_keeps_the_worst(hr: Path) -> None:
    kept, figures = Gallery(most=2), {}
    for measured in evaluate({}, hr):
        kept.offer(measured)
        figures[measured.pair.name] = measured.scores["bicubic"]["psnr_y"]
    worst = sorted(figures, key=lambda name: figures[name])[:2]
    assert [exhibit.name for exhibit in kept.exhibits()] == worst
    exhibit = kept.exhibits()[0]
    assert exhibit.shown.keys() == {"bicubic", "HR"}
    truth = next(pair for pair in pairs(hr) if pair.name == exhibit.name).hr.pixels
    decoded = pictures.decode(exhibit.shown["HR"]).pixels
    assert np.abs(decoded.mean(2) - truth.mean(2)).mean() < 4  # WebP halves the colours
    assert pictures.decode(exhibit.crops["HR"]).pixels.shape == (min(64, *truth.shape[:2]),) * 2 + (3,)


def test_of_large_pictures_the_centre_is_shown(tmp_path: Path) -> None:
    Image.fromarray(photograph(64, 80, 0)).save(tmp_path / "a.png")
    kept = Gallery(most_px=40)
    for measured in evaluate({}, tmp_path):
        kept.offer(measured)
    (exhibit,) = kept.exhibits()
    assert exhibit.cut
    shown = pictures.decode(exhibit.shown["HR"]).pixels
    assert np.abs(shown.mean(2) - photograph(64, 80, 0)[12:52, 20:60].mean(2)).mean() < 4


# --- FID -----------------------------------------------------------------------------


@pytest.mark.slow  # where torch-fidelity is installed it builds a whole Inception network first
def test_fid_says_what_it_needs(hr: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    try:
        import torch_fidelity  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(UsageError, match="pip install torch-fidelity"):
            evaluate_command(hr, None, [], [], fid=True)
    else:
        with pytest.raises(BackboneError, match=frechet.WEIGHTS):
            evaluate_command(hr, None, [], [], fid=True)


def test_fid_is_of_all_pictures_of_a_contender(
    hr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Counts:
        """Stands in for the network: the distance of the mean colours."""

        def __init__(self, network: None) -> None:
            self.seen: dict[bool, list[np.ndarray]] = {True: [], False: []}

        def add(self, picture: np.ndarray, *, real: bool) -> None:
            self.seen[real].append(picture.mean((0, 1)))

        def value(self) -> float:
            assert len(self.seen[True]) == len(self.seen[False]) == 3
            return float(np.square(np.mean(self.seen[True], 0) - np.mean(self.seen[False], 0)).sum())

    monkeypatch.setattr(frechet, "inception_network", lambda: None)
    monkeypatch.setattr(frechet, "FrechetDistance", Counts)
    evaluate_command(
        hr, None, [], [f"same={hr}"], fid=True, json_path=tmp_path / "e.json", html_path=tmp_path / "p"
    )
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["fid"]["same"] == 0
    assert report["fid"]["bicubic"] > 0
    assert "FID of 3 pictures says little" in capsys.readouterr().out
    assert ">FID</th>" in (tmp_path / "p").read_text()


@pytest.mark.usefixtures("local_backbones")
def test_the_features_for_want_of_inception_are_vgg16s() -> None:
    import torch

    picture = torch.tensor(photograph(64, 64, 0)).permute(2, 0, 1)[None]
    normalised = torch.from_numpy(
        ((photograph(64, 64, 0) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
    )
    expected = load_features("vgg16")[:30](normalised.permute(2, 0, 1)[None]).mean((2, 3))
    features = frechet.VggFeatures()(picture)
    assert features.shape == (1, frechet.VggFeatures.num_features)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_fid_against_its_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an Inception network of random weights, since the real ones are a download."""
    package = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    import torch

    torch.manual_seed(0)
    extractor = package.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:  # as it is built before weights are loaded into it
        patch.setattr(package, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(extractor, "load_state_dict", lambda self, state: None)
        network = extractor("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), tmp_path / frechet.WEIGHTS)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    distance = frechet.FrechetDistance(frechet.inception_network())
    real = [photograph(64, 64, seed) for seed in range(4)]
    fake = [bicubic(bicubic(picture, 16, 16), 64, 64) for picture in real]
    for pictures_of, is_real in ((real, True), (fake, False)):
        for picture in pictures_of:
            distance.add(picture, real=is_real)

    def features(of: list[np.ndarray]) -> np.ndarray:
        stack = torch.from_numpy(np.stack(of)).permute(0, 3, 1, 2)
        return np.asarray(network(stack)[0], dtype=np.float64)

    a, b = features(real), features(fake)
    centred = [(values - values.mean(0)) / np.sqrt(len(values) - 1) for values in (a, b)]
    # The trace of the root of the covariances' product, by singular values: the matrices are far from full rank.
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    variances = sum(np.square(values).sum() for values in centred)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + variances - 2 * root
    assert distance.value() == pytest.approx(expected, rel=0.02)
    assert expected > 0


@pytest.mark.slow
def test_a_weights_file_for_fid_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'canary')!r}, 'w')",))

    (tmp_path / frechet.WEIGHTS).write_bytes(pickle.dumps(Trap(), protocol=2))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(BackboneError, match="Inception network cannot be had"):
        frechet.inception_network()
    assert not (tmp_path / "canary").exists()


def test_files_are_called_by_their_names_unless_two_have_the_same(
    hr: Path, tmp_path: Path, tiny_model: Path
) -> None:
    other = tmp_path / "elsewhere" / tiny_model.name
    other.parent.mkdir()
    other.write_bytes(tiny_model.read_bytes())
    for models, called in (([other], [other.name]), ([other, tiny_model], [str(other), str(tiny_model)])):
        evaluate_command(hr, None, [str(model) for model in models], [], json_path=tmp_path / "e.json")
        assert list(json.loads((tmp_path / "e.json").read_text())["means"]) == ["bicubic", *called]
