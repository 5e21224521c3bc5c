"""The command as users meet it: exit codes, one line for an error, nothing half done."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import pty
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from support.folders import temporaries, tree
from typer.testing import CliRunner

from srgan import weights
from srgan.commands import cli, extras, models
from srgan.commands.extras import needs
from srgan.commands.options import UpscaleOptions
from srgan.commands.terminal import progress_in_words
from srgan.errors import UsageError
from srgan.pictures import Picture, decode, encode
from srgan.weights import ModelMetadata, add_to_manifest, bundled_models

SRGAN = [sys.executable, "-c", "from srgan.commands.cli import main; main()"]
COMMANDS = {
    "compare",
    "completion",
    "doctor",
    "upscale",
    "models",
    "page",
    "report",
    "data",
    "serve",
    "train",
    "export",
    "import",
    "evaluate",
    "recipes",
}


def srgan(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; no run may show a traceback."""
    command = [*SRGAN, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="surrogateescape")
    assert "Traceback" not in done.stderr
    return done


def called(*arguments: str | Path | int, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run the command in this process, through `main`: exit code, standard output, standard error."""
    before = sys.argv
    sys.argv = ["srgan", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def picture(path: Path, width: int = 6, height: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(Picture(np.full((height, width, 3), 90, np.uint8)), "png"))
    return path


@pytest.fixture
def bundled(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of bundled weights that holds the tiny model."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "tiny-x4.onnx").write_bytes(tiny_model.read_bytes())
    metadata = ModelMetadata(name="tiny-x4", scale=4, halo_lr_px=12, architecture={})
    add_to_manifest(folder, "tiny-x4", "For tests.", metadata)
    monkeypatch.setattr(weights, "bundled_folder", lambda: folder)
    return folder


# In a process of its own


def test_one_picture(tmp_path: Path, tiny_model: Path) -> None:
    source = picture(tmp_path / "a.png")
    done = srgan("upscale", source, "-n", tiny_model)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{source} -> {tmp_path / 'a_x4.png'}  6x5 -> 24x20  ")
    assert line.endswith(" MP/s  tiny-x4")
    assert decode(tmp_path / "a_x4.png").width == 24


def test_a_folder_with_bad_files(tmp_path: Path, tiny_model: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "sub" / "c.png")
    (tmp_path / "in" / "b.png").write_bytes(b"junk")
    done = srgan("upscale", "in", "-o", "out", "-n", tiny_model, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 written, 0 skipped, 1 failed"
    (error,) = done.stderr.splitlines()
    assert error.startswith("srgan: error: in/b.png: is not a picture of a known format")
    assert set(tree(tmp_path / "out")) == {"a_x4.png", "sub/c_x4.png"}
    again = srgan("upscale", "in", "-o", "out", "-n", tiny_model, "--json", "-", cwd=tmp_path)
    assert again.returncode == 1
    assert "0 written, 2 skipped, 1 failed" in again.stderr
    assert json.loads(again.stdout)["counts"] == {"written": 0, "skipped": 2, "failed": 1, "left": 0}


# The command with an engine that waits, at a picture of 150 columns, until it is told to go on; the pipe `told`
# hears of that, and of every signal that was taken without an exception.
GATED = """
import signal, sys
from pathlib import Path
from srgan.engines.openvino import OpenVinoEngine
really_run = OpenVinoEngine.run
def run(self, lr):
    if lr.shape[3] == 150:
        tell("begun")
        Path("go").read_text()
    return really_run(self, lr)
OpenVinoEngine.run = run
told = open("told", "w")
def tell(text):
    print(text, file=told, flush=True)
really_signal = signal.signal
def signal_and_tell(number, handler):
    def handle_and_tell(*arguments):
        handler(*arguments)
        tell("taken")
    return really_signal(number, handle_and_tell if callable(handler) else handler)
signal.signal = signal_and_tell
from srgan.commands.cli import main
main()
"""


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_interrupted(tmp_path: Path, tiny_model: Path, number: int, times: int) -> None:
    picture(tmp_path / "in" / "a.png", width=150)
    for other in range(10):
        picture(tmp_path / "in" / f"b{other}.png")
    os.mkfifo(tmp_path / "told")
    os.mkfifo(tmp_path / "go")
    process = subprocess.Popen(
        [sys.executable, "-c", GATED, *f"upscale in -o out -n {tiny_model} --json report.json".split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell passes "ignore" on
    )
    with (tmp_path / "told").open() as told:
        assert told.readline() == "begun\n"
        process.send_signal(number)
        assert told.readline() == "taken\n"  # two at once would be one
    if times == 2:
        process.send_signal(number)
    else:
        (tmp_path / "go").write_text("")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["error"] == "interrupted"
    done = {Path(file["target"]).name for file in report["files"]}
    left = 11 - len(done)
    assert left >= 8  # at most two were quicker than the first
    assert report["counts"] == {"written": len(done), "skipped": 0, "failed": 0, "left": left}
    assert err == f"srgan: interrupted: {left} of 11 not done; the same command goes on\n"
    assert out.splitlines()[-1] == f"{len(done)} written, 0 skipped, 0 failed, {left} left"
    assert ("a_x4.png" in done) == (times == 1)
    if times == 1:
        assert set(tree(tmp_path / "out")) == done
    assert temporaries(tmp_path / "out") == []
    assert all(decode(path).width % 4 == 0 for path in (tmp_path / "out").glob("*.png"))


def test_help_is_quick_and_names_every_command() -> None:
    done = srgan("--help")
    assert done.returncode == 0
    assert {line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line} == COMMANDS


def test_a_terminal_gets_a_bar_and_other_readers_do_not(tmp_path: Path, tiny_model: Path) -> None:
    picture(tmp_path / "a.png")
    ours, theirs = pty.openpty()
    command = [*SRGAN, "upscale", str(tmp_path / "a.png"), "-n", str(tiny_model)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True)
    os.close(theirs)
    drawn = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "100%" in drawn
    assert done.stdout.count(b"\n") == 1  # the report of the file went where it was sent
    assert b"a_x4.png" in done.stdout


def test_a_line_takes_the_place_of_the_bar(tmp_path: Path, tiny_model: Path) -> None:
    for number in range(3):
        picture(tmp_path / "in" / f"{'long' * 40}{number}.png")
    ours, theirs = pty.openpty()
    command = [*SRGAN, "upscale", "in", "-n", str(tiny_model)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60"}
    subprocess.run(command, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path, check=True)
    os.close(theirs)
    drawn = os.read(ours, 100_000).decode()
    os.close(ours)
    before, *results = drawn.split("in/longlong")
    assert len(results) == 3
    for above in (before, *results[:-1]):
        assert "\x1b[2K" in above.rpartition("\u2501")[2]  # the bar's row is erased before the line is printed
    assert all(f"{'long' * 38}{number}.png -> in_x4/{'long' * 40}" in text for number, text in enumerate(results))
    assert "3 of 3 done" in drawn


# Exit codes and messages


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing.png"], 2, "missing.png: no such file or folder"),
        (["empty"], 2, "no pictures in empty"),
        (["a.png", "-s", "0"], 2, "scale 0 is out of range"),
        (["a.png", "-s", "nan"], 2, "scale nan is out of range"),
        (["a.png", "-s", "2", "--width", "90"], 2, "choose one size"),
        (["a.png", "--long-side", "0"], 2, "long side 0 is out of range"),
        (["a.png", "--strength", "2"], 2, "strength 2 is out of range"),
        (["a.png", "-t", "0"], 2, "tile '0' is not understood"),
        (["a.png", "-t", "none"], 2, "tile 'none' is not understood"),
        (["a.png", "--memory", "2"], 2, "memory '2' is not understood"),
        (["a.png", "--memory", "-1G"], 2, "memory '-1G' is not understood"),
        (["a.png", "--memory", "nanG"], 2, "memory 'nanG' is not understood"),
        (["a.png", "--device", "tpu"], 2, "device 'tpu' is not understood"),
        (["a.png", "--precision", "int8"], 2, "there is no int8 form of it"),
        (["a.png", "--balance", "2"], 2, "balance 2 is out of range"),
        (["a.png", "--region", "1,2,3"], 2, "region '1,2,3' is not understood: give X,Y,W,H in pixels"),
        (["a.png", "--region", "20,0,9,9"], 1, "region 20,0,9,9 lies outside the result"),
        (["a.png", "--region", "0,0,9,9", "--map", "m.png"], 2, "a map is of a whole result"),
        (["a.png", "b.png", "--map", "m.png"], 2, "--map is of one picture"),
        (["--watch", "a.png", "--region", "0,0,9,9"], 2, "--region is of one picture"),
        (["a.png", "--map", "m.exe"], 2, "m.exe: .exe cannot be written"),
        (["a.png", "--map", "a.png"], 2, "is the name of another file of this run"),
        (["a.png", "--map", "nowhere/m.png"], 2, "no such folder for the map"),
        (["a.png", "--map", "m.png"], 1, "tiny-x4 has no partner"),
        (["a.png", "--protect", "gone.png"], 2, "--protect: gone.png"),
        (["a.png", "--faithful", "maybe"], 2, "faithful 'maybe' is not understood: choose on or off"),
        (["a.png", "--hdr", "maybe"], 2, "hdr 'maybe' is not understood: choose keep or drop"),
        (["a.png", "--balance", "0.5", "-n", "srgan-x4"], 2, "leave -n srgan-x4 away"),
        (["a.png", "-q", "0"], 2, "quality 0 is out of range"),
        (["a.png", "-q", "best"], 2, "quality 'best' is not understood: choose one from 1 to 100, or lossless"),
        (["a.png", "-q", "lossless", "-f", "jpg"], 2, "JPEG compresses with loss; choose png, webp, avif or tiff"),
        (["a.png", "--background", "whit"], 2, "background 'whit' is not understood: give a colour such as white"),
        (["a.png", "--wrap", "vertical"], 2, "wrap 'vertical' is not understood: choose horizontal or both"),
        (["a.png", "--label", "maybe"], 2, "label 'maybe' is not understood: choose on or off"),
        (["a.png", "-f", "psd"], 2, "unknown format 'psd'"),
        (["a.png", "-n", "unknown"], 2, "no model 'unknown': choose one of tiny-x4"),
        (["a.png", "-n", "unknown.onnx"], 2, "unknown.onnx: no such file"),
        (["a.png", "-n", "some.safetensors"], 2, "no such file"),
        (["a.png", "-n", "junk.onnx"], 1, "junk.onnx: not an ONNX model"),
        (["junk.png"], 1, "junk.png: is not a picture"),
        (["a.png", "-o", "a.png"], 2, "would be overwritten"),
        (["a.png", "-j", "0"], 2, "give -j 1 or more"),
        (["a.png", "--runner", "bogus"], 2, "unknown runner 'bogus'"),
        (["a.png", "--engine", "torch"], 2, "--device says what computes"),
        (["a.png", "-n", "x" * 300 + ".onnx"], 1, "File name too long"),
        (["a.png", "--json", "x" * 300], 2, "File name too long"),
        (["a.png", "-o", "x" * 300], 2, "File name too long"),
        (["-", "-o", "x" * 300 + ".png"], 2, "File name too long"),
        (["a.png", "-o", ".png"], 2, "a suffix without a name"),
        (["a.png", "--address", "auto"], 2, "add --runner ray"),
        (["a.png", "--watch"], 2, "--watch takes one folder"),
    ],
)
@pytest.mark.usefixtures("bundled")
def test_bad_requests(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    work = tmp_path / "work"
    picture(work / "a.png")
    (work / "empty").mkdir()
    (work / "junk.png").write_bytes(b"junk")
    (work / "junk.onnx").write_bytes(b"junk")
    before = sorted(work.rglob("*"))
    monkeypatch.chdir(work)
    exit_code, _, err = called("upscale", *arguments, capsys=capsys)
    assert exit_code == code
    (line,) = err.splitlines()
    assert line.startswith("srgan: error: ")
    assert said in line
    assert sorted(work.rglob("*")) == before


def test_a_file_that_does_not_match_its_hash(
    tmp_path: Path, bundled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = bundled / "tiny-x4.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    source = picture(tmp_path / "a.png")
    for by in ("tiny-x4", model):
        code, _, err = called("upscale", source, "-n", by, capsys=capsys)
        assert code == 1
        assert "sha256" in err
        assert err.count("\n") == 1
    code, out, err = called("models", capsys=capsys)
    assert code == 1
    assert "tiny-x4 (default)  x4  DAMAGED  For tests." in out
    assert "sha256" in err


@pytest.mark.usefixtures("bundled")
def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert called("models", capsys=capsys) == (0, "tiny-x4 (default)  x4  intact  For tests.\n", "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called("--version", capsys=capsys)
    assert code == 0
    assert out.startswith("srgan 0.")


@pytest.mark.parametrize(
    "arguments", [["upscale"], ["bogus"], ["upscale", "a.png", "--bogus"], ["upscale", "a", "-s", "x"]]
)
def test_misspelt_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(*arguments, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--help" in err or "is not a number" in err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("photo.jpg", "photo.jpg is no command; to make a picture or a folder larger: srgan upscale photo.jpg"),
        ("upscal a.png", "srgan has no command 'upscal'; did you mean 'upscale'?"),
        ("bogus", "srgan has no command 'bogus'; srgan --help lists them"),
        ("data chek", "srgan data has no command 'chek'; did you mean 'check'?"),
        ("upscale --modle x a.png", "srgan upscale has no option --modle; did you mean '--model'?"),
        ("upscale a.png -scale 2", "srgan upscale has no option -scale; did you mean '--scale'?"),
        ("upscale a.png -s abc", "-s/--scale: 'abc' is not a number"),
        ("upscale a.png -s 2x", "-s/--scale: '2x' is not a number; did you mean 2?"),
        ("upscale a.png -s 1,5", "-s/--scale: '1,5' is not a number; did you mean 1.5?"),
        ("upscale a.png -j 1.5", "-j/--workers: '1.5' is not a whole number"),
        ("upscale a.png -s", "option '-s' requires an argument; srgan --help says more"),
        ("upscale", "srgan upscale needs INPUT: Pictures, or folders of them (srgan upscale --help says more)"),
        ("upscale a.png --precision fp61", "choose auto, fp32, bf16, fp16, int8; did you mean 'fp16'?"),
        ("upscale a.png --device cdua", "gpu:N or npu; did you mean 'cuda'?"),
        ("upscale a.png -f pgn", "did you mean 'png'?"),
        ("upscale a.png -n tiny-4x", "did you mean 'tiny-x4'?"),
        ("upscale a.png --quiet --verbose", "--quiet and --verbose contradict each other"),
        ("recipes tniy", "did you mean 'tiny'?"),
        ("completion bsh", "choose bash, zsh, fish; did you mean 'bash'?"),
    ],
)
@pytest.mark.usefixtures("bundled")
def test_what_is_misspelt_gets_a_plain_line(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(*line.split(), capsys=capsys)
    assert (code, out) == (2, "")
    (only,) = err.splitlines()
    assert only.startswith("srgan: error: ")
    assert only.endswith(told) or told.startswith("--quiet")


@pytest.mark.usefixtures("bundled")
def test_h_is_help_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("", *COMMANDS, "data check"):
        code, out, _ = called(*command.split(), "-h", capsys=capsys)
        assert (code, out.startswith(f"Usage: srgan {command}".strip())) == (0, True)


@pytest.mark.usefixtures("bundled")
def test_quiet_and_verbose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture(tmp_path / "in" / "a.png").parent
    assert called("upscale", source, "--quiet", capsys=capsys) == (0, "", "")
    (source / "b.png").write_bytes(b"junk")
    code, out, err = called("upscale", source, "--verbose", capsys=capsys)
    assert (code, out) == (1, "0 written, 1 skipped, 1 failed\n")
    first, second, third = err.splitlines()
    assert first.startswith("srgan: note: model tiny-x4 in ")
    assert second == f"srgan: note: {source / 'a.png'}: finished before as {tmp_path / 'in_x4' / 'a_x4.png'}"
    assert third.startswith("srgan: error: ")


def test_progress_in_words() -> None:
    assert progress_in_words(7, 30, 180.4) == "7 of 30 done, about 3 min left"
    assert progress_in_words(0, 30, None) == "0 of 30 done"
    assert progress_in_words(0, 1, 8) == "about 8 s left"


def completed(line: str) -> list[str]:
    """What bash is offered at the end of `line`."""
    words = line.split(" ")
    environment = {"_SRGAN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(SRGAN, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_shells_complete_commands_options_and_models() -> None:
    assert completed("srgan up") == ["upscale"]
    assert completed("srgan upscale --preci") == ["--precision"]
    assert completed("srgan upscale -n srgan") == ["srgan-x4", "srgan-x4-photo"]
    assert completed("srgan --") == ["--version", "--help"]


@pytest.mark.parametrize(
    ("shell", "registers"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete")]
)
def test_completion_is_printed_for(shell: str, registers: str) -> None:
    done = srgan("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert registers in done.stdout
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=done.stdout, text=True, check=False).returncode == 0


def test_doctor_says_what_is_here_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(extras.PACKAGES, "watch", {"no_such_package"})
    code, out, err = called("doctor", capsys=capsys)
    assert (code, err) == (0, "")
    told = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert told["python"].startswith(platform.python_version())
    assert f"openvino {version('openvino')}" in told["packages"]
    assert told["cores"] == str(len(os.sched_getaffinity(0)))
    assert told["engine"].startswith("works: srgan-x4 in ")
    assert out.count(", intact") == len(bundled_models())
    assert re.search(r"missing no_such_package, .*pip install .*\[watch\]", told["watch"])


@pytest.mark.usefixtures("bundled")
def test_doctor_finds_damaged_weights(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundled / "tiny-x4.onnx").write_bytes(b"junk")
    code, _, err = called("doctor", capsys=capsys)
    assert (code, "sha256" in err) == (1, True)


@pytest.mark.usefixtures("bundled")
def test_every_option_has_an_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture(tmp_path / "a.png", width=40)
    out = tmp_path / "out"
    for options, name, width in [
        (["-s", "2"], "a_x2.png", 80),
        (["--scale", "1.5", "--tile", "16", "--format", "webp"], "a_x1.5.webp", 60),
        (["-t", "off", "-f", "jpg", "-q", "30", "-n", "tiny-x4"], "a_x4.jpg", 160),
        (["--long-side", "100"], "a_100px.png", 100),
        (["--width", "90", "--height", "9999", "--strength", "0"], "a_90x9999.png", 90),
    ]:
        code, said, err = called("upscale", source, "-o", out, *options, capsys=capsys)
        assert (code, err) == (0, "")
        assert str(out / name) in said
        assert decode(out / name).width == width


@pytest.mark.usefixtures("bundled")
def test_names_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "in" / "a\nsrgan: error: forged\x1b[31m\u202e\udcff.png")
    (tmp_path / "in" / "b\n\x1b.png").write_bytes(b"junk")
    code, out, err = called("upscale", tmp_path / "in", "-o", tmp_path / "out", capsys=capsys)
    assert code == 1
    assert len(out.splitlines()) == 2
    assert len(err.splitlines()) == 1
    assert "\\n" in out
    assert not {"\x1b", "\u202e", "\udcff"} & set(out + err)


@pytest.mark.usefixtures("bundled")
def test_warnings_are_said_and_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    code, _, err = called("upscale", source, capsys=capsys)
    assert code == 0
    assert err.startswith(f"srgan: warning: {source}: the file is in truth PNG")


# What is invented, protected, or a part


def test_a_map_a_mask_and_a_region(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(60, 200, (14, 12, 3), np.uint8)
    mask = np.zeros((14, 12), np.uint8)
    mask[:, :6] = 255
    for name, levels in (("a", pixels), ("mask", mask)):
        (tmp_path / f"{name}.png").write_bytes(encode(Picture(levels), "png"))
    fixed = ("--precision", "fp32", "-n", "srgan-x4", "--json", tmp_path / "r.json")
    asked = ("upscale", tmp_path / "a.png", *fixed, "--map", tmp_path / "map.png")
    code, out, err = called(*asked, capsys=capsys)
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["faithful"]
    levels_rms = report["files"][0]["invented_levels"]
    assert out.rstrip().endswith(f"invented: {levels_rms:.1f} levels rms")
    assert decode(tmp_path / "map.png").pixels.shape[0] == 14 * 4 + 44
    code, out, err = called(*asked, capsys=capsys)
    assert (code, out) == (2, "")  # the map is in the way
    assert "map.png: exists" in err
    (tmp_path / "map.png").unlink()
    assert called(*asked, "--overwrite", capsys=capsys)[0] == 0
    whole = decode(tmp_path / "a_x4.png").pixels
    assert called("upscale", tmp_path / "a.png", *fixed, "--region", "10,8,20,30", capsys=capsys)[0] == 0
    np.testing.assert_array_equal(decode(tmp_path / "a_x4_20x30+10+8.png").pixels, whole[8:38, 10:30])
    protect = ("--protect", tmp_path / "mask.png", "-o", tmp_path / "p.png")
    assert called("upscale", tmp_path / "a.png", *fixed, *protect, capsys=capsys)[0] == 0
    protected = decode(tmp_path / "p.png").pixels
    np.testing.assert_array_equal(protected[:, 26:], whole[:, 26:])
    assert (protected[:, :22] != whole[:, :22]).any()
    small = ("--protect", tmp_path / "a_x4.png", "-o", tmp_path / "q.png")
    code, _, err = called("upscale", tmp_path / "a.png", *fixed, *small, capsys=capsys)
    assert code == 1
    assert "the mask has 48x56 pixels and the picture 12x14" in err
    assert not (tmp_path / "q.png").exists()


# The report


@pytest.mark.usefixtures("bundled")
def test_the_report_says_what_became_of_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, path = tmp_path / "in", tmp_path / "out", tmp_path / "deep.json"
    picture(source / "a.png")
    (source / "b.png").write_bytes(b"junk")
    picture(source / "c.png").rename(source / "\udcff\n.jpg")
    words = ("upscale", source, "-o", out, "--json", path, "-q", 80, "--precision", "fp32")
    assert called(*words, capsys=capsys)[0] == 1
    report = json.loads(path.read_text())
    assert (report["model"], report["precision"]) == ("tiny-x4", "fp32")
    assert (
        report["model_sha256"] == hashlib.sha256((tmp_path / "weights" / "tiny-x4.onnx").read_bytes()).hexdigest()
    )
    assert report["settings"]["quality"] == 80
    assert report["settings"]["strength"] == 1.0
    assert report["counts"] == {"written": 2, "skipped": 0, "failed": 1, "left": 0}
    assert report["error"] is None
    good, bad, odd = report["files"]
    assert good["source"] == str(source / "a.png")
    assert good["target"] == str(out / "a_x4.png")
    assert (good["status"], good["error"], good["source_size"], good["size"]) == (
        "written",
        None,
        [6, 5],
        [24, 20],
    )
    assert good["seconds"] > 0
    assert good["lr_psnr_db"] > 0
    assert good["colour_shift_levels"] >= 0
    assert (bad["status"], bad["target"]) == ("failed", None)
    assert "is not a picture" in bad["error"]
    assert os.fsencode(odd["source"]).endswith(b"\xff\n.jpg")
    assert "in truth PNG" in odd["warnings"][0]
    called(*words, capsys=capsys)
    again = json.loads(path.read_text())
    assert [file["status"] for file in again["files"]] == ["skipped", "failed", "skipped"]
    assert again["files"][0]["target"] == str(out / "a_x4.png")


@pytest.mark.usefixtures("bundled")
def test_fail_fast_stops_at_the_first_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(20):
        picture(tmp_path / "in" / f"{number:02}.png")
    (tmp_path / "in" / "03.png").write_bytes(b"junk")
    code, out, err = called("upscale", tmp_path / "in", "-o", tmp_path / "out", "--fail-fast", capsys=capsys)
    assert code == 1
    assert "03.png" in err
    assert " left" in out.splitlines()[-1]
    assert len(tree(tmp_path / "out")) < 10


@pytest.mark.usefixtures("bundled")
def test_that_a_report_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = picture(tmp_path / "a.png")
    code, _, err = called("upscale", source, "--json", tmp_path / "no" / "report.json", capsys=capsys)
    assert code == 2
    assert "the report cannot be written" in err
    assert not (tmp_path / "a_x4.png").exists()


@pytest.mark.parametrize("closed", ["2>&-", "2>&- <&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_obstacle(tmp_path: Path, tiny_model: Path, closed: str) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    command = f"exec {sys.executable} -m srgan upscale a.png b.png -o out -n {tiny_model} {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    assert {path.name for path in (tmp_path / "out").glob("*.*g")} == {"a_x4.png", "b_x4.png"}
    assert decode(tmp_path / "out" / "a_x4.png").width == decode(tmp_path / "out" / "b_x4.png").width == 24


def test_a_picture_for_a_closed_output_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    picture(tmp_path / "a.png")
    for options in ("- -o - < a.png", "a.png --json -"):
        command = f"exec {sys.executable} -m srgan upscale -n {tiny_model} {options} >&-"
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, "standard output is closed" in done.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.usefixtures("bundled")
def test_a_report_takes_the_place_of_nothing_but_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, other = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    before = source.read_bytes(), other.read_bytes()
    for taken in (source, other, tmp_path):
        code, _, err = called("upscale", source, "--overwrite", "--json", taken, capsys=capsys)
        assert code == 2
        assert "--json" in err
    assert (source.read_bytes(), other.read_bytes()) == before
    for _ in range(2):
        words = ("upscale", source, "--overwrite", "--json", tmp_path / "report.json")
        assert called(*words, capsys=capsys)[0] == 0


@pytest.mark.usefixtures("bundled")
def test_the_models_own_scale_is_the_same_asked_for_or_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = picture(tmp_path / "in" / "a.png").parent
    assert called("upscale", source, capsys=capsys)[0] == 0
    code, out, _ = called("upscale", source, "-s", "4", capsys=capsys)
    assert (code, out) == (0, "0 written, 1 skipped, 0 failed\n")


def test_an_output_that_cannot_be_written_is_no_folder(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = picture(tmp_path / "a.png")
    for name in ("b.jxl", "b.tga", "b.jpg_large"):
        code, _, err = called("upscale", source, "-o", tmp_path / name, "-n", tiny_model, capsys=capsys)
        assert code == 2
        assert "cannot be written; choose png, jpg" in err
        assert not (tmp_path / name).exists()
    for name in ("v1.2", "holiday"):
        assert called("upscale", source, "-o", tmp_path / name, "-n", tiny_model, capsys=capsys)[0] == 0
        assert (tmp_path / name / "a_x4.png").exists()
    (tmp_path / "made.jxl").mkdir()
    assert called("upscale", source, "-o", tmp_path / "made.jxl", "-n", tiny_model, capsys=capsys)[0] == 0


def test_a_file_that_begins_like_an_option_gets_a_hint(tmp_path: Path) -> None:
    picture(tmp_path / "-dash.png")
    command = [sys.executable, "-m", "srgan", "upscale", "-dash.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "call this file ./-dash.png" in done.stderr


# Training and evaluation


def test_train_export_and_evaluate_hand_their_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from srgan.commands import evaluate, export, import_, train
    from srgan.commands.options import TrainOptions

    seen: list[object] = []
    library = [(train, "train"), (export, "export"), (import_, "import_"), (evaluate, "evaluate_command")]
    for module, name in library:
        monkeypatch.setattr(module, name, lambda *arguments, **named: seen.append((*arguments, *named.values())))
    for line in (
        "train tiny --data a --data b --run r --set x.y=1 --set z=2 --minutes 3 --resume --devices 4 --nodes 5",
        "train tiny --data a --run r",
        "export r -o o --name n",
        "export r --to onnx --to openvino --fp16 --opset 13",
        "import f.pth -o o --name n --halo 5",
        "import f.pth",
        "evaluate --hr h --lr l -n m1 -n m2 --sr a=b --sr c --border 0 --luma full --perceptual-border 4 --fid "
        "--json j --csv c --html p",
        "evaluate --hr h",
    ):
        assert called(*line.split(), capsys=capsys) == (0, "", "")
    assert seen == [
        (
            TrainOptions(
                recipe="tiny",
                data=["a", "b"],
                run=Path("r"),
                overrides=["x.y=1", "z=2"],
                minutes=3.0,
                resume=True,
                devices=4,
                nodes=5,
            ),
        ),
        (TrainOptions(recipe="tiny", data=["a"], run=Path("r")),),
        ("r", Path("o"), "n", [], False, None, None),
        ("r", Path(), None, ["onnx", "openvino"], True, 13, None),
        (Path("f.pth"), Path("o"), "n", 5),
        (Path("f.pth"), Path(), None, None),
        (
            Path("h"),
            Path("l"),
            ["m1", "m2"],
            "auto",
            ["a=b", "c"],
            0,
            "full",
            4,
            True,
            Path("j"),
            Path("c"),
            Path("p"),
        ),
        (Path("h"), None, [], "auto", [], None, "studio", 0, False, None, None, None),
    ]


@pytest.mark.parametrize("line", ["train tiny --data a --run r", "export r"])
def test_without_the_train_extra(line: str) -> None:
    code = "import sys; sys.modules.update(torch=None, lpips=None); from srgan.commands.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search(r"pip install .*\[train\]", done.stderr)


@pytest.mark.parametrize(
    ("extra", "package", "option"), [("watch", "watchfiles", "--watch"), ("cluster", "ray", "--runner=ray")]
)
def test_without_the_extras_of_folders(
    tmp_path: Path, tiny_model: Path, extra: str, package: str, option: str
) -> None:
    picture(tmp_path / "in" / "a.png")
    code = f"import sys; sys.modules['{package}'] = None; from srgan.commands.cli import main; main()"
    arguments = ["upscale", str(tmp_path / "in"), "-n", str(tiny_model), option]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search(rf"pip install .*\[{extra}\]", done.stderr)


def test_a_package_that_is_missing_for_another_reason_is_not_explained_away() -> None:
    with pytest.raises(ModuleNotFoundError), needs("train"):
        raise ModuleNotFoundError("no module", name="srgan.nonsense")
    with pytest.raises(UsageError, match="needs torch"), needs("train"):
        raise ModuleNotFoundError("no module", name="torch.nn")


@pytest.mark.parametrize(
    ("text", "size"),
    [("auto", None), ("2G", 2 * 10**9), ("800m", 8 * 10**8), ("1.5GB", 15 * 10**8), ("1T", 10**12)],
)
def test_sizes_of_memory(text: str, size: int | None) -> None:
    assert UpscaleOptions([Path("a.png")], memory=text).memory_bytes == size


def test_the_runners_old_name_is_understood_with_a_note(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = picture(tmp_path / "a.png")
    code, _, err = called("upscale", source, "-n", tiny_model, "--engine", "local", capsys=capsys)
    assert (code, err) == (0, "srgan: note: --engine local is now called --runner local\n")
    assert (tmp_path / "a_x4.png").exists()


def test_an_interrupt_anywhere_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "bundled_models", interrupt)
    assert called("models", capsys=capsys)[0] == 130


def test_the_runner_sees_the_same_app() -> None:
    result = CliRunner().invoke(cli.app, ["upscale", "--help"])
    assert result.exit_code == 0
    for option in ("-o", "-n", "-s", "-t", "-f", "-q"):
        assert option in result.stdout


# Standard output on a full disk

LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from srgan.commands.cli import main
main()
"""


@pytest.mark.parametrize(
    "line",
    [
        "--version",
        "upscale --help",
        "upscale in -n TINY -o out",
        "upscale in/a.png -n TINY -o -",
        "upscale in -n TINY -o out --json -",
    ],
)
def test_standard_output_that_takes_no_more_is_said_in_a_line(tmp_path: Path, tiny_model: Path, line: str) -> None:
    picture(tmp_path / "in" / "a.png")
    full = tmp_path / "full"
    full.write_bytes(bytes(100_000))  # as large as a file may be, where results have room
    with full.open("ab") as file:
        command = [
            "sh",
            "-c",
            'ulimit -f 100; exec "$0" "$@"',
            *SRGAN,
            *line.replace("TINY", str(tiny_model)).split(),
        ]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            command, cwd=tmp_path, env=buffered, stdout=file, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith("srgan: error: standard output: ")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert full.stat().st_size == 100_000


@pytest.mark.parametrize("arguments", [[""], ["a.png", "-o", ""], ["a.png", "--output="], ["a.png", "--json="]])
def test_an_empty_path_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    code, _, err = called("upscale", *arguments, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "is empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
