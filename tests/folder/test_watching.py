"""A watched folder: what lies there first, then what appears, once it is whole; and a quiet end."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles
from support.folders import NearestEngine, picture, tree

from srgan.folder import watching
from srgan.folder.batch import run
from srgan.folder.desk import Options
from srgan.folder.planning import Naming, Plan
from srgan.folder.planning import tree as planned_tree
from srgan.folder.reporting import FileReport
from srgan.upscale import Upscaler


class Watched:
    """A watch in a thread; `next` gives the next report as (name, status)."""

    def __init__(self, source: Path, out: Path, rescan_s: float = 300.0) -> None:
        self.reports: queue.Queue[FileReport | Exception] = queue.Queue()
        self.stop = threading.Event()
        self._tree = planned_tree([source], out, Naming())
        self._rescan_s = rescan_s
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        upscaler = Upscaler(engine=NearestEngine())

        def carry_out(plan: Plan) -> Iterator[FileReport]:
            return run(plan, upscaler, Options(), stop=self.stop)

        try:
            for report in watching.run(self._tree, carry_out, self.stop, settle_s=0.3, rescan_s=self._rescan_s):
                self.reports.put(report)
        except Exception as error:  # noqa: BLE001  # for `next` to raise
            self.reports.put(error)

    def next(self) -> tuple[str, str]:
        report = self.reports.get(timeout=30)
        assert isinstance(report, FileReport), report
        return report.source.name, report.status

    def end(self) -> None:
        self.stop.set()
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()
        assert self.reports.empty()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    picture(tmp_path / "in" / "first.png")
    watched = Watched(tmp_path / "in", tmp_path / "in" / "out")
    assert watched.next() == ("first.png", "written")
    yield watched
    watched.end()


def test_files_and_folders_that_appear_or_change(tmp_path: Path, watched: Watched) -> None:
    picture(tmp_path / "in" / "sub" / "b.png")
    assert watched.next() == ("b.png", "written")
    picture(tmp_path / "aside" / "deep" / "c.png")
    (tmp_path / "aside").rename(tmp_path / "in" / "moved")
    assert watched.next() == ("c.png", "written")
    picture(tmp_path / "in" / "first.png", (1, 2, 3))
    assert watched.next() == ("first.png", "written")
    picture(tmp_path / "in" / ".hidden.png"), (tmp_path / "in" / "notes.txt").write_text("")
    picture(tmp_path / "in" / "last.png")
    assert watched.next() == ("last.png", "written")
    assert set(tree(tmp_path / "in" / "out")) == {
        "first_x4.png",
        "sub/b_x4.png",
        "moved/deep/c_x4.png",
        "last_x4.png",
    }


def test_a_file_is_waited_for_until_it_is_whole(tmp_path: Path, watched: Watched) -> None:
    data = picture(tmp_path / "aside.png").read_bytes()
    with (tmp_path / "in" / "slow.png").open("wb") as file:
        for start in range(0, len(data), 20):
            file.write(data[start : start + 20])
            file.flush()
            time.sleep(0.1)
    assert watched.next() == ("slow.png", "written")


def test_what_failed_is_tried_again_when_it_changes(tmp_path: Path, watched: Watched) -> None:
    (tmp_path / "in" / "bad.png").write_bytes(b"junk")
    assert watched.next() == ("bad.png", "failed")
    picture(tmp_path / "in" / "bad.png")
    assert watched.next() == ("bad.png", "written")
    picture(tmp_path / "x.png").rename(tmp_path / "in" / "first.PNG")  # its result would be that of first.png
    assert watched.next() == ("first.PNG", "failed")


def test_now_and_then_all_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_watch, looks = watchfiles.watch, threading.Semaphore(0)

    def watch_and_tell_nothing(*arguments: Any, **options: Any) -> Iterator[set[Any]]:
        """As on a file system that tells of no change."""
        for _ in really_watch(*arguments, **options):
            looks.release()
            yield set()

    monkeypatch.setattr(watchfiles, "watch", watch_and_tell_nothing)
    picture(tmp_path / "in" / "a.png")
    watched = Watched(tmp_path / "in", tmp_path / "out", rescan_s=0.5)
    assert watched.next() == ("a.png", "written")
    picture(tmp_path / "in" / "b.png")
    assert watched.next() == ("b.png", "written")
    (tmp_path / "in" / "bad.png").write_bytes(b"junk")
    assert watched.next() == ("bad.png", "failed")
    for _ in range(10):  # at which there is nothing to say
        assert looks.acquire(timeout=30)
    watched.end()


def test_an_interrupt_is_the_ordinary_end(tmp_path: Path, tiny_model: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    command = f"upscale in -o out --watch -n {tiny_model}"
    process = subprocess.Popen(
        [sys.executable, "-c", "from srgan.commands.cli import main; main()", *command.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert "a_x4.png" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "1 written, 0 skipped, 0 failed\n", "")


@pytest.mark.parametrize("spelling", ["relative", "dot", "link", "relative link"])
def test_the_folder_may_be_named_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    picture(tmp_path / "in" / "sub" / "first.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in" if spelling == "dot" else tmp_path)
    named = {"relative": "in", "dot": ".", "link": str(tmp_path / "link"), "relative link": "link"}
    watched = Watched(Path(named[spelling]), tmp_path / "out")
    assert watched.next() == ("first.png", "written")
    picture(tmp_path / "in" / "sub" / "second.png")
    assert watched.next() == ("second.png", "written")
    watched.end()
    assert set(tree(tmp_path / "out")) == {"sub/first_x4.png", "sub/second_x4.png"}


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """The system's word is lost then, and all is looked at every now and then."""
    source = tmp_path / "in"
    picture(source / "x.png").rename(source / os.fsdecode(b"\xff.png"))
    (source / os.fsdecode(b"\xfe")).mkdir()
    watched = Watched(source, tmp_path / "out")
    assert watched.next() == (os.fsdecode(b"\xff.png"), "written")
    picture(tmp_path / "y.png").rename(source / os.fsdecode(b"\xfe/\xfd.png"))
    assert watched.next() == (os.fsdecode(b"\xfd.png"), "written")
    picture(source / "z.png")
    assert watched.next() == ("z.png", "written")
    watched.end()
