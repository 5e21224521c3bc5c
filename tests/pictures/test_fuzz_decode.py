"""Whatever the bytes are: a picture that can be written again, or an error of ours."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import hostile
from support.hostile import read_and_write

SEEDS = hostile.seeds()

FAST = settings(max_examples=250, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
THOROUGH = settings(max_examples=20_000, suppress_health_check=[HealthCheck.too_slow])

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(60)]

# Where arithmetic goes wrong: none, one, the ends of signed and unsigned numbers, and what overflows when doubled.
EXTREMES = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**30, 2**31 - 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_read_or_refused_by_name(name: str) -> None:
    read_and_write(SEEDS[name])


def test_most_seeds_are_read() -> None:
    assert sum(read_and_write(seed) is not None for seed in SEEDS.values()) > 20


numbers = st.tuples(
    st.sampled_from(EXTREMES) | st.integers(0, 2**32 - 1), st.sampled_from(["<H", ">H", "<L", ">L", "B"])
).map(lambda pair: struct.pack(pair[1], pair[0] % 2 ** (8 * struct.calcsize(pair[1]))))
edits = st.lists(
    st.tuples(st.sampled_from(["replace", "insert", "remove", "repeat"]), st.integers(0, 1 << 20), numbers),
    min_size=1,
    max_size=6,
)


def edited(seed: bytes, changes: list[tuple[str, int, bytes]], reach: int | None = None) -> bytes:
    """Apply `changes` in turn, all within the first `reach` bytes."""
    content = bytearray(seed)
    for kind, place, number in changes:
        place %= max(1, min(len(content), reach or len(content)))
        match kind:
            case "replace":
                content[place : place + len(number)] = number
            case "insert":
                content[place:place] = number
            case "remove":
                del content[place : place + len(number)]
            case _:
                content[place:place] = content[place : place + 40]
    return hostile.mended(bytes(content))


def attempt(name: str, changes: list[tuple[str, int, bytes]], reach: int | None) -> None:
    read_and_write(edited(SEEDS[name], changes, reach))


@FAST
@given(st.sampled_from(sorted(SEEDS)), edits)
def test_damaged_headers(name: str, changes: list[tuple[str, int, bytes]]) -> None:
    attempt(name, changes, reach=120)


@FAST
@given(st.sampled_from(sorted(SEEDS)), edits)
def test_damage_anywhere(name: str, changes: list[tuple[str, int, bytes]]) -> None:
    attempt(name, changes, reach=None)


@FAST
@given(st.sampled_from(sorted(SEEDS)), st.sampled_from(sorted(SEEDS)), st.floats(0, 1), st.floats(0, 1))
def test_two_files_grown_together(first: str, second: str, end: float, start: float) -> None:
    head, tail = SEEDS[first], SEEDS[second]
    read_and_write(head[: int(end * len(head))] + tail[int(start * len(tail)) :])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@THOROUGH
@given(st.sampled_from(sorted(SEEDS)), edits, st.sampled_from([40, 120, 400, None]))
def test_damage_at_length(name: str, changes: list[tuple[str, int, bytes]], reach: int | None) -> None:
    attempt(name, changes, reach)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SEEDS)
def test_every_byte_of_the_header_at_every_extreme(name: str) -> None:
    seed = SEEDS[name]
    values = [*random.Random(0).sample(range(256), 12), 0, 1, 0x7F, 0x80, 0xFF]
    for place in range(min(len(seed), 250)):
        for value in values:
            read_and_write(hostile.mended(seed[:place] + bytes([value]) + seed[place + 1 :]))
