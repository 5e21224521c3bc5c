"""What the folder of a training run tells: its log, its recipe and its sample strips."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from srgan.errors import UsageError
from srgan.pages.layout import data_uri

LOG_NAME, RECIPE_NAME, SAMPLES_NAME = "metrics.jsonl", "recipe.json", "samples"

Points = list[tuple[int, float]]  # (step, value), steps ascending

_STRIP_LIMIT_BYTES = 8 << 20  # of one strip; a larger file is not one
_STRIP = re.compile(r"(?P<stage>[a-z_-]+)-(?P<step>\d+)\.png")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Row:
    """One line of the log: scalars by name, NaN where the run logged a value that is not finite."""

    step: int
    elapsed_s: float
    scalars: dict[str, float]


@dataclass(frozen=True)
class Alarm:
    """Something that the run noticed, in its own words; `times` in a row, the last one at `until`."""

    stage: str
    step: int
    text: str
    times: int = 1
    until: int = 0


@dataclass(frozen=True)
class RunLog:
    """What metrics.jsonl tells: rows by stage, in the order of the run."""

    stages: dict[str, list[Row]] = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)
    unreadable: int = 0

    def series(self, stage: str) -> dict[str, Points]:
        """Return every scalar of `stage`, by name; none if the run has no such stage."""
        series: dict[str, dict[int, float]] = {}
        for row in self.stages.get(stage, ()):
            for key, value in row.scalars.items():
                series.setdefault(key, {})[row.step] = value
        return {key: list(points.items()) for key, points in series.items()}

    def seconds(self) -> Iterator[tuple[str, float]]:
        """Yield how long each stage took, as far as the run logged it."""
        ended_s = 0.0
        for stage, rows in self.stages.items():
            began_s = ended_s
            ended_s = max((row.elapsed_s for row in rows if math.isfinite(row.elapsed_s)), default=began_s)
            yield stage, ended_s - began_s


@dataclass(frozen=True)
class Strip:
    """A sample strip that is shown: its caption, its PNG as a URI, its size in pixels."""

    caption: str
    uri: str
    width: int
    height: int


def read_run(run: Path) -> tuple[RunLog, datetime]:
    """Return what the log of the folder `run` tells, and when it was written last.

    Raises UsageError if `run` is no folder of a run or its log has no complete row yet.
    """
    path = run / LOG_NAME
    try:
        data, written = path.read_bytes(), datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run} holds no run ({LOG_NAME} is missing): give the folder of `srgan train`") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    log = read_log(data)
    if not log.stages and not log.alarms:
        raise UsageError(f"{path} has no complete row yet: wait for the run's first log interval")
    return log, written


def read_log(data: bytes) -> RunLog:
    """Read metrics.jsonl; a line that is torn or not a row is counted and left out.

    A run that was resumed or rolled back tells some steps twice: what it told last counts. The torn end of a run
    that is being written or was killed is not counted.
    """
    log = RunLog()
    unreadable = 0
    lines = data.decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, parse_int=float)
            stage, step = values["stage"], int(values["step"])
            if not isinstance(stage, str) or step < 0:
                raise ValueError("not a row")
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            unreadable += number < len(lines)  # the last line has no end yet
            continue
        if isinstance(values.get("alarm"), str):
            _note_alarm(log.alarms, Alarm(stage, step, values["alarm"], until=step))
        elapsed = values.get("elapsed_s")
        scalars = {
            key: math.nan if value is None else float(value)
            for key, value in values.items()
            if key not in ("stage", "step", "elapsed_s") and isinstance(value, float | bool | None)
        }
        if scalars:
            rows = log.stages.setdefault(stage, [])
            if rows and step < rows[-1].step:
                rows[:] = [row for row in rows if row.step < step]
            rows.append(Row(step, elapsed if isinstance(elapsed, float) else math.nan, scalars))
    return RunLog({stage: rows for stage, rows in log.stages.items() if rows}, log.alarms, unreadable)


def _note_alarm(alarms: list[Alarm], new: Alarm) -> None:
    last = alarms[-1] if alarms else None
    if last and (last.stage, last.text) == (new.stage, new.text):
        alarms[-1] = Alarm(last.stage, last.step, last.text, last.times + 1, new.step)
    else:
        alarms.append(new)


def read_recipe(run: Path) -> dict[str, Any]:
    """Return the recipe as stored, or nothing: the curves are worth showing without it."""
    try:
        recipe = json.loads((run / RECIPE_NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def flat_settings(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted name, text): a text as it is, any other value in JSON."""
    pairs = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            pairs += flat_settings(value, f"{before}{key}.")
        else:
            text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
            pairs.append((f"{before}{key}", text))
    return pairs


def strip_files(run: Path, stages: Sequence[str]) -> list[tuple[str, int, Path]]:
    """Return (stage, step, file) of the sample strips of `run`, in the order of the run."""
    folder, files = run / SAMPLES_NAME, []
    for path in folder.glob("*.png") if folder.is_dir() else ():
        match = _STRIP.fullmatch(path.name)
        if match:
            files.append((match["stage"], int(match["step"]), path))
    order = {stage: number for number, stage in enumerate(stages)}
    return sorted(files, key=lambda strip: (order.get(strip[0], len(order)), *strip))


def read_strip(path: Path, caption: str) -> Strip | None:
    """Return the PNG to be shown, or None if it is none (or is just being written)."""
    try:
        if path.stat().st_size > _STRIP_LIMIT_BYTES:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    if not data.startswith(_PNG) or len(data) < 24:
        return None
    width, height = struct.unpack(">II", data[16:24])
    return Strip(caption, data_uri(data, "png"), width, height)


def plain(key: str) -> str:
    """Return a key as a person would write it: "lr_psnr" is "Lr psnr"."""
    words = key.replace("_", " ").strip() or key
    return words[:1].upper() + words[1:]
