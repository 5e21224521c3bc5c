"""A run goes on where another ended, whatever ended it, and never takes a file for its own that is not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.engines import METADATA
from support.folders import NearestEngine, job, made, picture, pictures, statuses, temporaries, tree

from srgan import files
from srgan.errors import OutputError
from srgan.folder import manifest
from srgan.folder.batch import run
from srgan.folder.desk import Options
from srgan.folder.manifest import FOLDER, Manifest, Origin
from srgan.folder.planning import Naming, plan
from srgan.pictures import decode
from srgan.upscale import Request, Upscaler

# What counts as finished


def test_finished_files_are_skipped_and_nothing_is_computed(tmp_path: Path) -> None:
    source, out = pictures(tmp_path / "in", 4), tmp_path / "out"
    assert statuses(made(source, out)) == ["written"] * 4
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    engine = NearestEngine()
    reports = made(source, out, engine=engine)
    assert statuses(reports) == ["skipped"] * 4
    assert engine.calls == []
    assert {report.target for report in reports} == set(before)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before
    assert statuses(made(source, out, overwrite=True)) == ["written"] * 4


def test_nothing_lies_beside_a_single_file_but_its_result(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    for target, result in ((None, "a_x4.png"), (tmp_path / "named.png", "named.png")):
        assert statuses(made(source, target)) == ["written"]
        (again,) = made(source, target)
        assert (again.status, f"{tmp_path / result}: exists already" in str(again.error)) == ("failed", True)
        assert statuses(made(source, target, overwrite=True)) == ["written"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a_x4.png", "named.png"]


def test_a_single_file_keeps_to_the_record_that_is_there(tmp_path: Path) -> None:
    source, _ = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    with contextlib.closing(Manifest(tmp_path)) as kept:
        kept.temporary(tmp_path / "any.png")
    assert statuses(made(source, None)) == ["written"]
    assert statuses(made(source, None)) == ["skipped"]


def test_a_folder_of_one_picture_is_gone_on_with(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    for status in ("written", "skipped"):
        assert statuses(made(tmp_path / "in", None)) == [status]


@pytest.mark.parametrize("change", ["source", "touched source", "missing result"])
def test_a_file_is_made_again_if_its_source_has_changed(tmp_path: Path, change: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    path, _ = picture(source / "a.png"), picture(source / "b.png")
    made(source, out)
    if change == "source":
        picture(path, (9, 9, 9))
    elif change == "touched source":
        os.utime(path, (1, 1))  # older than the result, but not what the result was made from
    else:
        (out / "a_x4.png").unlink()
    assert statuses(made(source, out)) == ["written", "skipped"]
    assert statuses(made(source, out)) == ["skipped", "skipped"]


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ("model", {}),
        ("size", {"request": Request(long_side_px=24)}),
        ("strength", {"request": Request(strength=0.5)}),
        ("quality", {"quality": 80}),
    ],
)
def test_what_other_settings_made_is_not_replaced_in_silence(
    tmp_path: Path, change: str, options: dict[str, object]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    picture(source / "a.png"), picture(source / "b.png")
    made(source, out)
    before = tree(out)
    engine = NearestEngine(replace(METADATA, name="another-x4") if change == "model" else METADATA)
    for report in made(source, out, engine=engine, **options):
        assert "another model or other settings made it; give another -o or --name" in (report.error or "")
    assert tree(out) == before
    assert statuses(made(source, out, engine=engine, overwrite=True, **options)) == ["written", "written"]
    assert statuses(made(source, out, engine=engine, **options)) == ["skipped", "skipped"]


def test_a_result_under_another_name_than_planned_is_found_again(tmp_path: Path) -> None:
    source = picture(tmp_path / "in" / "a.png").rename(tmp_path / "in" / "a.jpg")
    assert made(source, tmp_path / "out")[0].target == tmp_path / "out" / "a_x4.png"
    (report,) = made(source, tmp_path / "out")
    assert (report.status, report.target) == ("skipped", tmp_path / "out" / "a_x4.png")


def test_the_inputs_may_be_moved_but_others_do_not_take_their_place(tmp_path: Path) -> None:
    one, out = tmp_path / "one", tmp_path / "out"
    picture(one / "a.bmp", (1, 1, 1))
    made(one, out)
    moved = one.rename(tmp_path / "moved")
    assert statuses(made(moved, out)) == ["skipped"]
    two = tmp_path / "two"
    times = (moved / "a.bmp").stat()
    path = picture(two / "a.bmp", (2, 2, 2))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size  # as alike as two pictures can be
    (report,) = made(two, out)
    assert report.status == "failed"
    assert f"is the result of {tmp_path / 'one' / 'a.bmp'}" in (report.error or "")
    assert decode(out / "a_x4.bmp").pixels[0, 0, 0] == 1
    assert statuses(made(two, out, overwrite=True)) == ["written"]
    assert decode(out / "a_x4.bmp").pixels[0, 0, 0] == 2


# Files that are not ours


def test_a_foreign_file_is_never_replaced_silently(tmp_path: Path) -> None:
    source, out = picture(tmp_path / "in" / "a.png"), tmp_path / "out"
    out.mkdir()
    (out / "a_x4.png").write_bytes(b"precious")
    engine = NearestEngine()
    for _ in range(2):
        (report,) = made(source, out, engine=engine)
        assert report.status == "failed"
        assert "--overwrite" in (report.error or "")
    assert engine.calls == []
    assert (out / "a_x4.png").read_bytes() == b"precious"
    assert statuses(made(source, out, overwrite=True)) == ["written"]
    assert statuses(made(source, out)) == ["skipped"]


def test_a_result_that_was_edited_is_foreign(tmp_path: Path) -> None:
    source, out = picture(tmp_path / "in" / "a.png"), tmp_path / "out"
    made(source, out)
    (out / "a_x4.png").write_bytes(b"retouched")
    assert "not as this program left it" in (made(source, out)[0].error or "")
    assert (out / "a_x4.png").read_bytes() == b"retouched"


def test_a_file_that_appears_during_the_inference_is_kept(tmp_path: Path) -> None:
    source, out = picture(tmp_path / "in" / "a.png"), tmp_path / "out"

    class Slow(NearestEngine):
        def run(self, lr: object) -> object:  # type: ignore[override]
            (out / "a_x4.png").write_bytes(b"precious")
            return super().run(lr)  # type: ignore[arg-type]

    (report,) = made(source, out, engine=Slow())
    assert "not as this program left it" in (report.error or "")
    assert (out / "a_x4.png").read_bytes() == b"precious"
    assert temporaries(out) == []


def test_links_in_the_output_are_refused_and_never_written_through(tmp_path: Path) -> None:
    source, out, outside = tmp_path / "in", tmp_path / "out", tmp_path / "outside"
    picture(source / "a.png"), picture(source / "sub" / "b.png")
    outside.mkdir()
    out.mkdir()
    (outside / "secret").write_bytes(b"precious")
    (out / "a_x4.png").symlink_to(outside / "secret")
    (out / "sub").symlink_to(outside)
    reports = made(source, out)
    assert statuses(reports) == ["failed", "failed"]
    assert "a_x4.png: is a symbolic link" in (reports[0].error or "")
    assert "leads out of" in (reports[1].error or "")
    assert statuses(made(source, out, overwrite=True)) == ["written", "failed"]
    assert not (out / "a_x4.png").is_symlink()
    assert tree(outside) == tree(outside) | {}
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"precious"


def test_a_link_in_place_of_the_records_is_refused(tmp_path: Path) -> None:
    source, out, outside = picture(tmp_path / "in" / "a.png"), tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    out.mkdir()
    (out / FOLDER).symlink_to(outside)
    with pytest.raises(OutputError, match="symbolic link"):
        made(source, out)
    assert list(outside.iterdir()) == []


# The records


def test_records_that_are_damaged_or_too_new_are_refused(tmp_path: Path) -> None:
    source, out = picture(tmp_path / "in" / "a.png"), tmp_path / "out"
    made(source, out)
    database = out / FOLDER / "manifest.sqlite"
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(OutputError, match="update srgan"):
        made(source, out)
    database.write_bytes(b"junk" * 5000)
    with pytest.raises(OutputError, match="remove it and run with --overwrite"):
        made(source, out)
    database.unlink()
    assert statuses(made(source, out, overwrite=True)) == ["written"]


def test_odd_times_and_names_are_recorded_as_they_are(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name, seconds in [("\udcff\n.png", -5), ("b.png", 2**33)]:
        os.utime(picture(source / "x.png").rename(source / name), (seconds, seconds))
    assert statuses(made(source, out)) == ["written"] * 2
    assert statuses(made(source, out)) == ["skipped"] * 2


def test_a_result_is_known_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a process that is killed right after the rename leaves no file that the next one would not know."""
    source, out = picture(tmp_path / "in" / "a.png"), tmp_path / "out"
    really_put = files.put_in_place

    def put_and_die(temporary: Path, target: Path) -> None:
        really_put(temporary, target)
        raise SystemExit

    monkeypatch.setattr(manifest, "put_in_place", put_and_die)
    with pytest.raises(SystemExit):
        made(source, out)
    monkeypatch.undo()
    assert statuses(made(source, out)) == ["skipped"]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_roots_do_not_keep_many_files_open(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{number}" / "a.png") for number in range(40)]
    before = open_files()
    seen = []
    upscaler = Upscaler(engine=NearestEngine())
    for _ in run(plan(paths, None, Naming()), upscaler):
        seen.append(open_files())
    assert max(seen) - before < 70
    assert open_files() <= before + 1
    assert statuses(list(run(plan(paths, None, Naming()), upscaler))) == ["skipped"] * 40


# Runs that were killed, and others that live


def test_temporaries_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    source, out = pictures(tmp_path / "in", 1), tmp_path / "out"
    with contextlib.closing(Manifest(out)) as alive:
        theirs = alive.temporary(out / "1" / "other.png")
        theirs.write_bytes(b"half")
        killed = job(source, out, seconds=60)
        try:
            assert killed.stderr is not None
            assert killed.stderr.readline() == "begun\n"  # so the folder of its result is made and recorded
            (dead_run,) = {lock.stem for lock in (out / FOLDER).glob("*.run")} - {theirs.name[1:9]}
            left = out / "0" / f".{dead_run}0123456789abcdef.srgan-part"
            left.write_bytes(b"half")
        finally:
            killed.kill()
            killed.communicate()
        pictures(source, 3)
        assert statuses(made(source, out)) == ["written"] * 3
        assert temporaries(out) == [theirs]
        assert [lock.stem for lock in (out / FOLDER).glob("*.run")] == [theirs.name[1:9]]
        origin = Origin.of(source / "1" / "00001.png")
        alive.put(theirs, out / "1" / "other.png", out / "1" / "other.png", origin, "settings")
    assert (out / "1" / "other.png").read_bytes() == b"half"
    assert temporaries(out) == []
    assert list((out / FOLDER).glob("*.run")) == []


def test_what_the_records_say_of_dead_runs_is_enough_and_no_command(tmp_path: Path) -> None:
    """The lock of a dead run may be gone; the name of a run is never taken for a path."""
    source, out = picture(tmp_path / "in" / "a.png"), tmp_path / "out"
    made(source, out)
    with contextlib.closing(sqlite3.connect(out / FOLDER / "manifest.sqlite")) as database, database:
        database.executemany("INSERT INTO folders VALUES (?, ?)", [("0123abcd", b"."), ("../../in/a", b".")])
    left = out / ".0123abcd0123456789abcdef.srgan-part"
    left.write_bytes(b"half")
    (tmp_path / "in" / "a.run").write_bytes(b"mine")
    Manifest(out).close()
    assert not left.exists()
    assert (tmp_path / "in" / "a.run").read_bytes() == b"mine"
    assert [path.name for path in (out / FOLDER).iterdir()] == ["manifest.sqlite"]


def killed_until_done(source: Path, out: Path, kills: int, rng: random.Random) -> None:
    for _ in range(kills):
        process = job(source, out, seconds=0.004)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in out.rglob("*_x4.png"):
            assert decode(path).width == 24
    process = job(source, out)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert {line.split()[0] for line in said.splitlines()} <= {"written", "skipped"}
    assert "skipped" in said


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_is_lost_or_half_done(tmp_path: Path, kills: int) -> None:
    source = pictures(tmp_path / "in", 50)
    made(source, tmp_path / "straight")
    killed_until_done(source, tmp_path / "killed", kills, random.Random(kills))
    assert tree(tmp_path / "killed") == tree(tmp_path / "straight")
    assert len(tree(tmp_path / "killed")) == 50
    assert list((tmp_path / "killed" / FOLDER).iterdir()) == [tmp_path / "killed" / FOLDER / "manifest.sqlite"]


def test_four_runs_at_once_do_not_damage_each_other(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 24)
    made(source, tmp_path / "alone")
    processes = [job(source, tmp_path / "out", seconds=0.002) for _ in range(4)]
    for process in processes:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert len(said.splitlines()) == 24
        assert {line.split()[0] for line in said.splitlines()} <= {"written", "skipped"}
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")
    assert statuses(made(source, tmp_path / "out")) == ["skipped"] * 24
    assert [path.name for path in (tmp_path / "out" / FOLDER).iterdir()] == ["manifest.sqlite"]


def test_an_abandoned_run_leaves_no_litter_and_only_whole_files(tmp_path: Path) -> None:
    source, out = pictures(tmp_path / "in", 30), tmp_path / "out"
    of_others = set(threading.enumerate())
    running = run(plan([source], out, Naming()), Upscaler(engine=NearestEngine()))
    next(running), next(running)
    running.close()
    for thread in set(threading.enumerate()) - of_others:
        thread.join()
    assert all(decode(path).width == 24 for path in out.rglob("*_x4.png"))
    assert statuses(made(source, out)).count("skipped") >= 2
    assert temporaries(out) == []


def test_an_interrupt_within_the_work_reaches_the_caller(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 3)

    def interrupt(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(plan([source], tmp_path / "out", Naming()), Upscaler(engine=NearestEngine()), progress=interrupt))
    assert tree(tmp_path / "out") == {}


def test_a_run_that_is_told_to_stop_finishes_what_it_has_begun(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 30)
    stop = threading.Event()
    reports = []
    upscaler = Upscaler(engine=NearestEngine())
    for report in run(plan([source], tmp_path / "out", Naming()), upscaler, Options(), stop=stop):
        reports.append(report)
        stop.set()
    assert statuses(reports) == ["written"] * len(reports)
    assert 1 <= len(reports) < 10
    assert len(tree(tmp_path / "out")) == len(reports)
