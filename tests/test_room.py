"""Memory that threads share: who finds too little left waits, in the order of coming."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from srgan.room import MachineRoom, Room


def test_who_does_not_fit_waits_and_nobody_overtakes() -> None:
    room, order = Room(10), []
    asked = {name: threading.Event() for name in "bc"}

    def work(name: str, count: int) -> None:
        with room.taken(count, asked[name].set):
            order.append(name)

    threads = []
    with room.taken(6):
        for name, count in (("b", 5), ("c", 1)):  # there would be room for c
            threads.append(threading.Thread(target=work, args=(name, count)))
            threads[-1].start()
            assert asked[name].wait(10)
        order.append("a")
    for thread in threads:
        thread.join(10)
    assert order[0] == "a"
    assert sorted(order) == ["a", "b", "c"]


def test_more_than_there_is_means_all_of_it() -> None:
    with Room(10).taken(1000):
        pass


def test_who_waits_may_leave() -> None:
    class LeftError(Exception):
        pass

    def leave() -> None:
        raise LeftError

    room = Room(10)
    with room.taken(6), pytest.raises(LeftError), room.taken(5, leave):
        pass
    with room.taken(10):  # nothing of it is left behind
        pass


# Tells when it has its bytes, and keeps them until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from srgan.room import MachineRoom
with MachineRoom(100, Path(sys.argv[1])).taken(int(sys.argv[2])):
    print("has them", flush=True)
    time.sleep(600)
"""


def test_processes_of_a_machine_share_what_there_is(tmp_path: Path) -> None:
    """And what a killed one had is free again."""
    room, answered = MachineRoom(100, tmp_path), threading.Event()

    def ask() -> None:
        with room.taken(60):
            answered.set()

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "50"], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "has them\n"
        with room.taken(50):
            pass
        thread = threading.Thread(target=ask)
        thread.start()
        assert not answered.wait(0.3)
        holder.kill()
        assert answered.wait(30)
        thread.join(10)
    with room.taken(1000):
        pass
