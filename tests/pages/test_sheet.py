"""The page that compares models on one picture: its places, its texts, and what it refuses."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from srgan.commands.cli import main
from srgan.pages.sheet import Contender, differing_places, sheet_page
from srgan.pictures import Picture, decode, encode


def test_places_are_where_results_differ_most() -> None:
    one = np.full((300, 400, 3), 100, np.uint8)
    other = one.copy()
    other[150:160, 320:330] += 40
    other[20:24, 30:34] += 20
    first, second = differing_places([one, other], 128, 6)
    for place, (top, left) in ((first, (150, 320)), (second, (20, 30))):
        assert place.top <= top < place.top + 128
        assert place.left <= left < place.left + 128
        assert (place.of(one) != place.of(other)).any()
    # Two results 40 apart have a standard deviation of 20, here in 100 of 128 x 128 pixels.
    assert first.levels_rms == pytest.approx(20 * 10 / 128)
    assert differing_places([one, one], 128, 6) == []


@pytest.mark.parametrize(("height", "width"), [(5, 7), (16, 300), (129, 131)])
def test_places_of_small_pictures_lie_within(height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    places = differing_places(list(noise), 128, 20)
    assert places
    for place in places:
        assert place.of(noise[0]).shape == (min(128, height), min(128, width), 3)


def test_all_that_is_given_is_text() -> None:
    evil = '<script>alert("1")</script>'
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), np.uint8)
    contenders = [Contender(f"{evil}{number}", levels, 0.5, 40.0) for number, levels in enumerate(noise)]
    page = sheet_page(evil, Picture(noise[0, :8, :10]), contenders, [evil])
    assert page.count("<script") == 1
    assert page.count("&lt;script&gt;") > 10
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)


def test_of_large_results_a_part_is_shown_and_told() -> None:
    one = np.zeros((40, 2000, 3), np.uint8)
    other = one.copy()
    other[10:30, 1900:1950] = 9
    page = sheet_page("a.png", None, [Contender("one", one, 1.0), Contender("other", other, 2.0)], [])
    assert "the 1600×40 pixels from 400,0 on" in page
    assert "<b>1.00</b>" in page  # the faster


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(encode(Picture(noise), "png"))
    for name in ("one.onnx", "other.onnx"):
        (tmp_path / name).write_bytes(tiny_model.read_bytes())
    (tmp_path / "there.html").write_text("")
    return tmp_path


def called(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    before = sys.argv
    sys.argv = ["srgan", "upscale", *arguments]
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_a_sheet_is_one_file_of_all_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ("-n", "one.onnx", "-n", "other.onnx")  # which call themselves the same
    code, out, err = called("a.png", *models, "--sheet", "s.html", "-s", "2", capsys=capsys)
    assert (code, out, err) == (0, "a.png -> s.html  one.onnx, other.onnx, bicubic side by side\n", "")
    page = (folder / "s.html").read_text()
    for name in ("one.onnx", "other.onnx", "bicubic"):
        assert f'data-name="{name}"' in page
    assert "3 results of 32×24 pixels" in page
    assert "They are equal." in page
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.png",
        "one.onnx",
        "other.onnx",
        "s.html",
        "there.html",
    ]


def test_a_region_and_one_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("a.png", "-n", "one.onnx", "--sheet", "there.html", "--overwrite", "--region", "8,4,30,20")
    assert called(*asked, capsys=capsys)[0] == 0
    page = (folder / "there.html").read_text()
    assert "2 results of 30×20 pixels" in page
    assert "model and bicubic differ by" in page
    assert "the picture itself" not in page


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.png", "-n", "one.onnx", "-n", "other.onnx"], 2, "several with --sheet: leave -n other.onnx away"),
        (["a.png", "a.png", "--sheet", "s.html"], 2, "--sheet is of one picture"),
        ([".", "--sheet", "s.html"], 2, "--sheet is of one picture"),
        (["-", "--sheet", "s.html"], 2, "leave - away"),
        (["a.png", "--sheet", "-"], 2, "leave - away"),
        (["a.png", "--sheet", "s.html", "-o", "b.png"], 2, "writes a page and no result: leave -o away"),
        (["a.png", "--sheet", "s.html", "--map", "m.png"], 2, "leave --map away"),
        (["a.png", "--sheet", "s.html", "--balance", "0.5"], 2, "leave --balance away"),
        (["a.png", "--sheet", "s.html", "--json", "r.json"], 2, "leave --json away"),
        (["a.png", "--sheet", "s.html", "-f", "jpg"], 2, "leave -f away"),
        (["a.png", "--sheet", "s.html", "-q", "90"], 2, "leave -q away"),
        (["a.png", "--sheet", "s.png"], 2, "choose a name that ends in .html"),
        (["a.png", "--sheet", "there.html"], 2, "there.html: exists"),
        (["a.png", "--sheet", "nowhere/s.html"], 2, "no such folder for the sheet"),
        (["there.html", "--overwrite", "--sheet", "there.html"], 2, "is the name of another file of this run"),
        (["a.png", "-n", "one.onnx", "-n", "one.onnx", "--sheet", "s.html"], 2, "-n one.onnx is given twice"),
        (["a.png", "-n", "one.onnx", "-n", "gone.onnx", "--sheet", "s.html"], 2, "gone.onnx: no such file"),
        (["there.html", "-n", "one.onnx", "--sheet", "s.html"], 1, "there.html: is empty"),
        (["a.png", "-n", "one.onnx", "--sheet", "s.html", "--region", "60,0,9,9"], 2, "lies outside the result"),
    ],
)
def test_nonsense_is_refused_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    before = sorted(folder.iterdir())
    ended, out, err = called(*arguments, capsys=capsys)
    assert (ended, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_a_picture_with_transparency_is_shown_on_white(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clear = Picture(np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 128, np.uint8))
    (folder / "c.png").write_bytes(encode(clear, "png"))
    assert called("c.png", "-n", "one.onnx", "--sheet", "s.html", capsys=capsys)[0] == 0
    assert "Shown: transparency laid on white." in (folder / "s.html").read_text()
    assert decode(folder / "c.png").alpha is not None
