"""Odd and hostile files of the test suites of image libraries: each is read or refused, and the next one works."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does")

READER = """
import json, resource, sys
from pathlib import Path
from srgan.errors import SrganError
from srgan.pictures.guarded import GuardedDecoder, Limits
own, strangers = (
    GuardedDecoder(Limits.of_own_pictures(200)) if kind == "own" else GuardedDecoder(always=True)
    for kind in ("own", "strangers")
)
start_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (start_bytes + (700 << 20), resource.RLIM_INFINITY))
for line in sys.stdin:
    path = Path(json.loads(line))
    answers = []
    for decoder, source in ((own, path), (strangers, path.read_bytes())):
        try:
            picture = decoder.decode(source)
            answers.append([picture.width, picture.height])
        except SrganError as error:
            answers.append([type(error).__name__, str(error)])
    print(json.dumps([str(path), *answers]), flush=True)
print(json.dumps([own.crashes, strangers.crashes]))
"""


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[dict[str, str]]:
    index = shared / "corpora" / "index.tsv"
    if not index.is_file():
        pytest.skip(f"no odd files in {index.parent}")
    with index.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) > 300
    return rows


@pytest.fixture(scope="module")
def answers(shared: Path, rows: list[dict[str, str]]) -> dict[str, list[list[Any]]]:
    """What became of each file as somebody's own and as a stranger's, read in a process of little memory."""
    paths = [str(shared / "corpora" / row["path"]) for row in rows]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READER],
        input="\n".join(map(json.dumps, paths)),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.returncode, done.stderr) == (0, "")  # libraries print nothing, either
    *lines, crashes = map(json.loads, done.stdout.splitlines())
    assert crashes == [0, 0]
    assert [line[0] for line in lines] == paths
    return {row["path"]: line[1:] for row, line in zip(rows, lines, strict=True)}


def is_picture(answer: list[Any]) -> bool:
    return isinstance(answer[0], int)


def test_every_file_is_read_or_refused_as_expected(
    rows: list[dict[str, str]], answers: dict[str, list[list[Any]]]
) -> None:
    wrong = []
    for row in rows:
        own, strangers = answers[row["path"]]
        if row["path"].endswith("/truncated_jpeg.jpg"):  # by its last byte alone: all ten scans are there
            assert is_picture(own)
            continue
        if row["expect"] == "reject" and (is_picture(own) or is_picture(strangers)):
            wrong.append((row["path"], own))
        if row["expect"] == "accept":
            if not is_picture(own):
                wrong.append((row["path"], own))
            if not is_picture(strangers) and strangers[0] != "PictureTooLargeError":
                wrong.append((row["path"], strangers))
    assert wrong == []
    assert sum(is_picture(own) for own, _ in answers.values()) > 100


def test_what_both_read_is_the_same_size(answers: dict[str, list[list[Any]]]) -> None:
    for path, (own, strangers) in answers.items():
        if is_picture(strangers):
            assert own == strangers, path


def test_no_file_needs_all_its_time_or_memory(answers: dict[str, list[list[Any]]]) -> None:
    spent = [
        (path, answer)
        for path, both in answers.items()
        for answer in both
        if not is_picture(answer)
        and any(word in answer[1] for word in (" takes ", "crashes", "not enough memory"))
    ]
    assert spent == []


def test_errors_are_one_short_line_and_begin_with_the_name(
    shared: Path, answers: dict[str, list[list[Any]]]
) -> None:
    for path, (own, strangers) in answers.items():
        for answer, name in ((own, str(shared / "corpora" / path)), (strangers, "the picture")):
            if not is_picture(answer):
                assert answer[1].startswith(f"{name}: "), path
                assert len(answer[1].removeprefix(name)) < 400, path
                assert answer[1].isprintable(), path
