"""One picture through pipes: nothing but the picture on standard output, and a word on standard error."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.folders import picture, tree

from srgan.pictures import Picture, decode, encode

SRGAN = [sys.executable, "-c", "from srgan.commands.cli import main; main()", "upscale"]


def piped(*arguments: str | Path, data: bytes = b"", cwd: Path) -> tuple[int, bytes, str]:
    done = subprocess.run([*SRGAN, *map(str, arguments)], input=data, capture_output=True, cwd=cwd)
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr.decode()


def test_from_pipe_to_pipe(tmp_path: Path, tiny_model: Path) -> None:
    data = picture(tmp_path / "a.jpg").read_bytes()
    code, out, err = piped("-", "-o", "-", "-n", tiny_model, "--json", "report.json", data=data, cwd=tmp_path)
    assert code == 0
    assert decode(out).width == 24
    assert decode(out).format == "jpg"
    assert err.startswith("- -> -  6x5 -> 24x20  ")
    (file,) = json.loads((tmp_path / "report.json").read_text())["files"]
    assert (file["source"], file["target"], file["status"]) == ("-", "-", "written")
    assert set(tree(tmp_path)) == {"a.jpg", "report.json"}
    # The same bytes as through files.
    assert piped("a.jpg", "-n", tiny_model, cwd=tmp_path)[0] == 0
    assert (tmp_path / "a_x4.jpg").read_bytes() == out


def test_between_a_pipe_and_a_file(tmp_path: Path, tiny_model: Path) -> None:
    data = picture(tmp_path / "a.png").read_bytes()
    code, out, _ = piped("a.png", "-o", "-", "-f", "webp", "-n", tiny_model, cwd=tmp_path)
    assert (code, decode(out).format) == (0, "webp")
    code, out, err = piped("-", "-o", "b.tif", "-n", tiny_model, data=data, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith(b"- -> b.tif")
    assert decode(tmp_path / "b.tif").format == "tiff"
    before = tree(tmp_path)
    code, _, err = piped("-", "-o", "b.tif", "-n", tiny_model, data=data, cwd=tmp_path)
    assert code == 1
    assert "b.tif: exists" in err
    assert tree(tmp_path) == before
    assert piped("-", "-o", "b.tif", "-n", tiny_model, "--overwrite", data=data, cwd=tmp_path)[0] == 0


def test_what_cannot_be_read_or_held_leaves_standard_output_empty(tmp_path: Path, tiny_model: Path) -> None:
    clear = encode(Picture(np.zeros((5, 6, 3), np.uint8), np.full((5, 6), 9, np.uint8)), "png")
    for data, options, said in [
        (b"", [], "standard input: is empty"),
        (b"junk", [], "is not a picture of a known format"),
        (clear, ["-f", "jpg"], "transparency"),
    ]:
        code, out, err = piped("-", *options, "-n", tiny_model, data=data, cwd=tmp_path)
        assert (code, out) == (1, b"")
        assert said in err
        assert err.count("\n") == 1


def test_a_reader_that_goes_away_is_an_error(tmp_path: Path, tiny_model: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(encode(Picture(noise), "png"))  # more than a pipe holds
    process = subprocess.Popen(
        [*SRGAN, "a.png", "-o", "-", "-n", str(tiny_model)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as err:
        said = err.read().decode()
    assert process.wait() == 1
    assert said == "srgan: error: standard output: Broken pipe; the picture is not whole\n"


def test_the_report_to_standard_output_is_all_that_goes_there(tmp_path: Path, tiny_model: Path) -> None:
    picture(tmp_path / "a.png")
    code, out, err = piped("a.png", "-n", tiny_model, "--json", "-", cwd=tmp_path)
    assert code == 0
    assert json.loads(out)["files"][0]["size"] == [24, 20]
    assert "a_x4.png" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-", "a.png"], "one input"),
        (["a.png", "in", "-o", "-"], "one input"),
        (["in", "-o", "-"], "one input"),
        (["-", "-o", "in"], "is a folder"),
        (["-", "-o", "x.pbm"], "cannot be written"),
        (["-", "-f", "bogus"], "unknown format"),
        (["-", "--json", "-"], "cannot both"),
        (["-", "--watch"], "leave --watch"),
    ],
)
def test_requests_that_make_no_sense(tmp_path: Path, tiny_model: Path, arguments: list[str], said: str) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "a.png")
    code, out, err = piped(*arguments, "-n", tiny_model, cwd=tmp_path)
    assert (code, out) == (2, b"")
    assert said in err


def test_a_picture_does_not_go_to_a_terminal(tmp_path: Path, tiny_model: Path) -> None:
    source = picture(tmp_path / "a.png")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*SRGAN, str(source), "-o", "-", "-n", str(tiny_model)], stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert b"would go to the terminal" in done.stderr
