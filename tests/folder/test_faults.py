"""What can go wrong outside: full and read-only disks, files that are none, names that nobody would choose."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support import engines
from support.folders import NearestEngine, made, picture, pictures, statuses, temporaries, tree

from srgan.errors import OutputError
from srgan.folder import planning
from srgan.folder.batch import run
from srgan.folder.planning import Naming, plan
from srgan.folder.reporting import FileReport, JsonReport
from srgan.pictures import Picture, decode, encode
from srgan.upscale import Upscaler

# Disks


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = pictures(tmp_path / "in", 30), tmp_path / "out"
    written = 0
    really_sync = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written > 12:
            raise OSError(28, "No space left on device")
        really_sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    running = run(plan([source], out, Naming()), Upscaler(engine=NearestEngine()))
    reports: list[FileReport] = []
    with pytest.raises(OutputError, match="No space left on device; make room and run again"):
        reports.extend(running)
    monkeypatch.undo()
    assert set(statuses(reports)) <= {"written"}
    assert temporaries(out) == []
    assert all(decode(path).width == 24 for path in out.rglob("*.png"))
    again = made(source, out)
    assert statuses(again).count("skipped") >= len(reports) > 0
    assert len(tree(out)) == 30


# Runs the command in a file system of 400 KiB of its own, twice: the second time there is room.
TMPFS = """
mount -t tmpfs -o size={size} tmpfs out || exit 99
"$@" --json first.json; echo $? > first
find out -name '*.png' | sort > first-files
mount -o remount,size=50m out
"$@" --json second.json; echo $? > second
find out -name '*.png' -o -name '*.srgan-part' | sort > second-files
mount -o remount,ro out
"$@" --json third.json; echo $? > third
"$@" --overwrite --json fourth.json; echo $? > fourth
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="needs unshare -rm for a small file system",
)
def test_a_file_system_that_fills_up_and_one_that_is_read_only(tmp_path: Path, tiny_model: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(12):
        noise = rng.integers(0, 256, (40, 40, 3), np.uint8)
        (tmp_path / "in" / f"{number:02}.png").write_bytes(encode(Picture(noise), "png"))
    (tmp_path / "out").mkdir()
    srgan = [sys.executable, "-c", "from srgan.commands.cli import main; main()"]
    command = [*srgan, *f"upscale in -o out -n {tiny_model}".split()]
    script = TMPFS.format(size="400k")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 99, done.stderr
    assert "Traceback" not in done.stderr
    codes = [int((tmp_path / name).read_text()) for name in ("first", "second", "third", "fourth")]
    assert codes == [1, 0, 0, 1], done.stderr
    first, second, third, fourth = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second", "third", "fourth")
    )
    assert "No space left on device" in first["error"]
    assert first["counts"]["failed"] == 0
    assert 0 < first["counts"]["written"] < 12
    assert len((tmp_path / "first-files").read_text().split()) >= first["counts"]["written"]
    assert second["counts"]["written"] + second["counts"]["skipped"] == 12
    assert second["counts"]["skipped"] >= first["counts"]["written"]
    assert (tmp_path / "second-files").read_text().count("part") == 0
    assert third["counts"] == {
        "written": 0,
        "skipped": 12,
        "failed": 0,
        "left": 0,
    }
    assert "Read-only file system" in fourth["error"]
    assert fourth["counts"]["written"] == 0


# Files


def test_what_is_no_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    source = tmp_path / "in"
    picture(source / "good.png")
    os.mkfifo(source / "pipe.png")
    (source / "pipe link.png").symlink_to("pipe.png")
    (source / "loop.png").symlink_to("loop.png")
    (source / "dangling.png").symlink_to("nowhere.png")
    with (source / "huge.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff\xe0")  # begins as a picture
        file.truncate(5 * 10**12)
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(source)  # the path of a socket has to be short
        listening.bind("socket.png")
        os.chdir(here)
        reports = made(source, tmp_path / "out")
    errors = {report.source.name: report.error or "" for report in reports if report.status == "failed"}
    assert set(errors) == {path.name for path in source.iterdir()} - {"good.png"}
    for name, said in [("pipe.png", "pipe"), ("pipe link.png", "pipe"), ("socket.png", "socket")]:
        assert said in errors[name].removeprefix(str(source / name))
    assert "more than a picture" in errors["huge.jpg"]
    assert set(tree(tmp_path / "out")) == {"good_x4.png"}


def test_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "zero.png").symlink_to("/dev/zero")
    assert list(plan([tmp_path / "in" / "zero.png"], tmp_path / "out", Naming()))
    (report,) = made(tmp_path / "in" / "zero.png", tmp_path / "out")
    assert "device" in (report.error or "")


def test_files_that_vanish_midway(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 20)
    planned = plan([source], tmp_path / "out", Naming())
    running = run(planned, Upscaler(engine=NearestEngine()))
    reports = [next(running)]
    shutil.rmtree(source / "2")
    reports += running
    assert statuses(reports).count("written") >= 7
    gone = [report for report in reports if report.status == "failed"]
    assert gone
    assert all("No such file" in (report.error or "") for report in gone)


# Names


def test_names_that_are_too_long_for_the_result_are_refused_before_the_work(tmp_path: Path) -> None:
    source = tmp_path / "in"
    picture(source / "a.png").rename(source / ("x" * 251 + ".png"))
    picture(source / "b.png")
    engine = NearestEngine()
    reports = made(source, tmp_path / "out", engine=engine)
    assert sorted(statuses(reports)) == ["failed", "written"]
    (failed,) = (report for report in reports if report.error)
    assert "File name too long" in (failed.error or "")
    assert len(engine.calls) == 1


def test_a_name_that_is_too_long_is_refused_before_the_work_in_a_new_folder_too(tmp_path: Path) -> None:
    source = tmp_path / "in"
    picture(source / "a.png").rename(source / ("x" * 251 + ".png"))
    engine = NearestEngine()
    (failed,) = made(source, tmp_path / "out", engine=engine)
    assert "File name too long" in (failed.error or "")
    assert engine.calls == []


def test_composed_and_decomposed_names_are_two(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name, colour in [("\u00e9.png", (1, 1, 1)), ("e\u0301.png", (2, 2, 2))]:  # the same é for a reader
        picture(source / "x.png", colour).rename(source / name)
    if len(list(source.iterdir())) < 2:
        pytest.skip("this file system takes both forms for one")
    assert statuses(made(source, tmp_path / "out")) == ["written", "written"]
    assert len(tree(tmp_path / "out")) == 2


def test_where_case_is_ignored_names_that_differ_in_case_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    picture(source / "a.png"), picture(source / "A.png")
    assert len(plan([source], tmp_path / "out", Naming())) == 2
    monkeypatch.setattr(planning, "ignores_case", lambda folder: True)
    planned = plan([source], tmp_path / "out", Naming())
    assert [job.source.name for job in planned] == ["A.png"]
    assert [path.name for path, _ in planned.refused()] == ["a.png"]


def test_whether_case_is_ignored_is_seen_from_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Folder" / "b").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "Folder", tmp_path / "new" / "er", Path("/")):
        assert not planning.ignores_case(folder)
    really = os.lstat

    def lstat(path: object, **options: object) -> os.stat_result:
        """Answer as a file system would that knows names in either case."""
        folder, name = os.path.split(str(path))
        found = {known.lower(): known for known in os.listdir(folder)}  # noqa: PTH208
        return really(os.path.join(folder, found.get(name.lower(), name)), **options)  # type: ignore[arg-type]  # noqa: PTH118

    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr(Path, "lstat", lambda self: lstat(self))
    assert planning.ignores_case(tmp_path)
    assert planning.ignores_case(tmp_path / "new" / "er")


# Links


def test_links_are_followed_if_asked_for_and_never_in_circles(tmp_path: Path) -> None:
    outside = picture(tmp_path / "outside" / "o.png")
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "link.png").symlink_to(outside)
    (tmp_path / "in" / "folder").symlink_to(outside.parent)
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "in")
    left = plan([tmp_path / "in"], tmp_path / "out", Naming())
    assert [job.source.name for job in left] == ["a.png"]
    assert left.links_left == 3
    followed = plan([tmp_path / "in"], tmp_path / "out", Naming(), follow_links=True)
    found = [str(job.source.relative_to(tmp_path / "in")) for job in followed]
    assert found == ["a.png", "link.png", "folder/o.png"]
    assert followed.links_left == 0


# Many files


def many(folder: Path, count: int) -> Path:
    data = picture(folder / "first.png").read_bytes()
    for number in range(count - 1):
        (folder / f"{number:06}.png").write_bytes(data)
    return folder


def held_bytes(source: Path, out: Path, *, really: bool) -> int:
    """Return what Python's allocators hold when a folder has been planned, gone through and reported."""
    upscaler = Upscaler(engine=NearestEngine())
    tracemalloc.start()
    planned = plan([source], out, Naming())
    log = JsonReport(out.with_suffix(".json"), {})
    pretended = (FileReport(job.source, job.target, "skipped") for job in planned)
    for report in run(planned, upscaler) if really else pretended:
        log.add(report)
        if log.counts.total() == len(planned):
            gc.collect()
            # The interpreter's own table of names, which pathlib makes grow, and which shrinks again; and what the
            # engine of tests notes of each call.
            beside = [tracemalloc.Filter(False, module.__file__ or "") for module in (pathlib, engines)]
            snapshot = tracemalloc.take_snapshot().filter_traces(beside)
    tracemalloc.stop()
    log.close(left=0, passed_over={})
    return sum(trace.size for trace in snapshot.traces)


def test_memory_of_plan_and_report_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    few = held_bytes(many(tmp_path / "few", 200), tmp_path / "few out", really=False)
    lot = held_bytes(many(tmp_path / "lot", 3000), tmp_path / "lot out", really=False)
    assert lot - few < 50_000  # a list of the jobs would take 1.7 MB


@pytest.mark.slow
@pytest.mark.timeout(900)  # 1,300 files under tracemalloc, whatever else the machine does
def test_memory_of_a_run_does_not_grow_with_the_number_of_files() -> None:
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as name:
        folder = Path(name)  # not on a disk: each file waits for it five times
        few = held_bytes(many(folder / "few", 300), folder / "few out", really=True)
        lot = held_bytes(many(folder / "lot", 1000), folder / "lot out", really=True)
    assert lot - few < 100_000  # a list of the jobs would take 0.4 MB


# What the system calls a process's peak is never less than what its parent held at its start, and tests hold
# torch: so a small process starts it, and says what it was told.
MEASURED = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)
"""

# The program itself, as docs/upscaling.md says, and a fifth above, for libraries differ.
PROGRAM_BYTES = 1.2 * 140e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts in kilobytes there")
@pytest.mark.parametrize(("width", "height"), [(100, 12_000), (12_000, 100)])
def test_a_bound_on_memory_is_kept(width: int, height: int, tmp_path: Path, tiny_model: Path) -> None:
    source = picture(tmp_path / "a.png", width=width, height=height)

    def run_within(megabytes: int) -> tuple[int, int, str]:
        command = [sys.executable, "-m", "srgan", "upscale", source, "-n", tiny_model, "--overwrite"]
        command += ["--memory", f"{megabytes}M"]
        measured = [sys.executable, "-c", MEASURED, *map(str, command)]
        done = subprocess.run(measured, capture_output=True, text=True)
        code, peak_bytes = map(int, done.stdout.split())
        return code, peak_bytes, done.stderr

    code, peak_bytes, told = run_within(250)
    assert code == 0, told
    assert peak_bytes < 250e6 + PROGRAM_BYTES
    code, peak_bytes, told = run_within(40)
    assert (code, "Traceback" in told) == (1, False), told
    assert "memory" in told
    assert peak_bytes < PROGRAM_BYTES
