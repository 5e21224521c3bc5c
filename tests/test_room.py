"""Memory that threads share: who finds too little left waits, in the order of coming."""

from __future__ import annotations

import threading

import pytest

from srgan.room import Room


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
