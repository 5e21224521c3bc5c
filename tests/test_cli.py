"""The command as users meet it: exit codes, one line for an error, nothing half done."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from srgan import cli, weights
from srgan.errors import UsageError
from srgan.pictures import Picture, decode, encode
from srgan.weights import ModelMetadata, add_to_manifest

SRGAN = [sys.executable, "-c", "from srgan.cli import main; main()"]
COMMANDS = {"upscale", "models", "report", "data", "serve", "train", "export", "evaluate"}


def srgan(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; no run may show a traceback."""
    command = [*SRGAN, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="surrogateescape")
    assert "Traceback" not in done.stderr
    return done


def called(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
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
    assert line.endswith(" MP/s")
    assert decode(tmp_path / "a_x4.png").width == 24


def test_a_folder_with_bad_files(tmp_path: Path, tiny_model: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "sub" / "c.png")
    (tmp_path / "in" / "b.png").write_bytes(b"junk")
    done = srgan("upscale", "in", "-o", "out", "-n", tiny_model, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 written, 1 failed"
    (error,) = done.stderr.splitlines()
    assert error.startswith("srgan: error: in/b.png: is not a picture of a known format")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert written == {"a_x4.png", "sub/c_x4.png"}


def test_interrupted(tmp_path: Path, tiny_model: Path) -> None:
    """The signal comes while a picture of a hundred tiles is at work."""
    picture(tmp_path / "a.png", width=300, height=300)
    picture(tmp_path / "b.png")
    process = subprocess.Popen(
        [*SRGAN, "upscale", "b.png", "a.png", "-n", tiny_model, "-t", "4"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell passes "ignore" on
    )
    assert process.stdout is not None
    assert "b_x4.png" in process.stdout.readline()  # now the other one is being worked on
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "srgan: interrupted: 1 of 2 not done\n"
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "b_x4.png"]


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
    assert "1/1" in drawn
    assert "100%" in drawn
    assert done.stdout.count(b"\n") == 1  # the report of the file went where it was sent
    assert b"a_x4.png" in done.stdout


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
        (["a.png", "-q", "0"], 2, "quality 0 is out of range"),
        (["a.png", "-f", "gif"], 2, "unknown format 'gif'"),
        (["a.png", "-n", "unknown"], 2, "no model 'unknown': choose one of tiny-x4"),
        (["a.png", "-n", "unknown.onnx"], 2, "unknown.onnx: no such file"),
        (["a.png", "-n", "some.safetensors"], 2, "srgan export"),
        (["a.png", "-n", "junk.onnx"], 1, "junk.onnx: OpenVINO cannot read it"),
        (["junk.png"], 1, "junk.png: is not a picture"),
        (["a.png", "-o", "a.png"], 2, "would be overwritten"),
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
    assert code == 2
    assert out == ""
    assert "--help" in err


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


# Training and evaluation


def test_train_export_and_evaluate_hand_their_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from srgan.evaluation import benchmark
    from srgan.training import commands

    seen: list[object] = []
    for module, name in [(commands, "train"), (commands, "export"), (benchmark, "evaluate_command")]:
        monkeypatch.setattr(module, name, lambda *arguments: seen.append(arguments))
    for line in (
        "train tiny --data a --data b --run r --set x.y=1 --set z=2 --minutes 3 --resume --devices 4 --nodes 5",
        "train tiny --data a --run r",
        "export r -o o --name n",
        "export r",
        "evaluate --hr h --lr l -n m1 -n m2 --json j",
        "evaluate --hr h",
    ):
        assert called(*line.split(), capsys=capsys) == (0, "", "")
    assert seen == [
        ("tiny", ["a", "b"], Path("r"), ["x.y=1", "z=2"], 3.0, True, 4, 5),
        ("tiny", ["a"], Path("r"), [], None, False, 1, 1),
        (Path("r"), Path("o"), "n"),
        (Path("r"), Path(), None),
        (Path("h"), Path("l"), ["m1", "m2"], Path("j")),
        (Path("h"), None, [], None),
    ]


@pytest.mark.parametrize("line", ["train tiny --data a --run r", "export r"])
def test_without_the_train_extra(line: str) -> None:
    code = "import sys; sys.modules.update(torch=None, lpips=None); from srgan.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'pip install "srgan[train]"' in done.stderr


def test_a_package_that_is_missing_for_another_reason_is_not_explained_away() -> None:
    with pytest.raises(ModuleNotFoundError), cli._extra("train"):
        raise ModuleNotFoundError("no module", name="srgan.nonsense")
    with pytest.raises(UsageError, match="needs torch"), cli._extra("train"):
        raise ModuleNotFoundError("no module", name="torch.nn")


def test_an_interrupt_anywhere_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "bundled_models", interrupt)
    assert called("models", capsys=capsys)[0] == 130


def test_the_runner_sees_the_same_app() -> None:
    result = CliRunner().invoke(cli.app, ["upscale", "--help"])
    assert result.exit_code == 0
    for option in ("-o", "-n", "-s", "-t", "-f", "-q"):
        assert option in result.stdout
