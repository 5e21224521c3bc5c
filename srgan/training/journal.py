"""What a run tells: a row of figures for machines, curves for TensorBoard, a line for the person who waits."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from torch.utils.tensorboard import SummaryWriter

from srgan.errors import TrainingError
from srgan.files import write_atomically
from srgan.pictures import Picture, encode
from srgan.texts import duration
from srgan.training.config import Recipe

log = logging.getLogger(__name__)


class Journal:
    """RUN/metrics.jsonl, RUN/tensorboard/STAGE, RUN/samples and RUN/recipe.json; silent where `speaks` is false.

    A row of metrics.jsonl holds "stage", "step", "elapsed_s" and either scalars or an "alarm". `since`: (stages,
    step) where the run goes on; rows, curves and samples of a sitting that was killed later are dropped, so that
    the record reads as that of a run that never stopped. Of several processes only the first speaks. Raises
    TrainingError where the run's folder cannot be written to.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, speaks: bool, since: tuple[Sequence[str], int]) -> None:
        self._folder, self._recipe, self._speaks, self._since = folder, recipe, speaks, since
        self._boards: dict[str, SummaryWriter] = {}
        self._bar: _Bar | None = None
        if not speaks:
            return
        with self._room():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "recipe.json", (recipe.model_dump_json(indent=2) + "\n").encode())
            rows = folder / "metrics.jsonl"
            write_atomically(rows, "".join(_rows_until(rows, *since)).encode())
            for path in (folder / "samples").glob("*-*.png"):
                stage, _, step = path.stem.rpartition("-")
                if step.isdecimal() and not _is_kept(stage, int(step), *since):
                    path.unlink(missing_ok=True)
            self._file = rows.open("a", encoding="utf-8")
        self._bar = _Bar() if sys.stderr.isatty() else None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        if self._speaks:
            with contextlib.suppress(OSError):  # what could not be written has been told before
                self._file.close()
                for board in self._boards.values():
                    board.close()

    def write(
        self, stage: str, step: int, elapsed_s: float, left_s: float | None, scalars: dict[str, float]
    ) -> None:
        """Record `scalars` of `stage` at `step`; `left_s`: the time that the stage still needs."""
        if not self._speaks:
            return
        # JSON has no NaN: a figure that is not finite becomes null.
        finite = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
        with self._room():
            self._row({"stage": stage, "step": step, "elapsed_s": round(elapsed_s, 1), **finite})
            for key, value in scalars.items():
                self._board(stage).add_scalar(key, value, step)
        if self._bar:
            self._bar.figures |= {key.removeprefix("validation/"): value for key, value in scalars.items()}
            return
        figures = "  ".join(f"{key} {value:.4g}" for key, value in scalars.items())
        left = "" if left_s is None else f"  {duration(left_s)} left"
        log.info("%s %d%s  %s", stage, step, left, figures)

    def record(self, run: dict[str, Any]) -> None:
        """Write recipe.json anew, with what is known of the run in the section "run"."""
        if self._speaks:
            text = json.dumps({**self._recipe.model_dump(mode="json"), "run": run}, indent=2) + "\n"
            with self._room():
                write_atomically(self._folder / "recipe.json", text.encode())

    def progress(self, stage: str, step: int, done: float, left_s: float) -> None:
        """Show the person who waits at a terminal how far the stage is: `done` of 1."""
        if self._speaks and self._bar:
            self._bar.update(stage, step, done, left_s)

    def alarm(self, stage: str, step: int, elapsed_s: float, text: str) -> None:
        """Record that something is wrong, in words."""
        if not self._speaks:
            return
        with self._room():
            self._row({"stage": stage, "step": step, "elapsed_s": round(elapsed_s, 1), "alarm": text})
        if self._bar:
            self._bar.alarm(f"{stage} {step}: {text}")
            return
        log.warning("%s %d: %s", stage, step, text)

    def sample(self, stage: str, step: int, strip: npt.NDArray[np.uint8]) -> None:
        """Keep a picture of what the generator makes now: (H,W,3)."""
        if not self._speaks:
            return
        with self._room():
            folder = self._folder / "samples"
            folder.mkdir(exist_ok=True)
            write_atomically(folder / f"{stage}-{step:09d}.png", encode(Picture(strip), "png"))
            self._board(stage).add_image("samples", strip, step, dataformats="HWC")

    def _row(self, row: dict[str, object]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _board(self, stage: str) -> SummaryWriter:
        if stage not in self._boards:
            # A stage has its own folder because TensorBoard forgets by step: all that it knows from there on.
            folder, (stages, step) = self._folder / "tensorboard" / stage, self._since
            goes_on = step + 1 if stage == stages[-1] else 0
            self._boards[stage] = SummaryWriter(str(folder), purge_step=goes_on if folder.is_dir() else None)
        return self._boards[stage]

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Turn the refusal of a disk into what to do."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self._folder} cannot be written: {error.strerror}; make room and go on with --resume, or "
                "choose another --run"
            ) from error


class _Bar:
    """One line at a terminal: how far, how fast, how good."""

    _SHOWN = ("content", "perceptual", "adversarial", "psnr_y", "lpips", "patches_per_s")

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[more]}"),
        )
        self.figures: dict[str, float] = {}
        self._alarms = 0
        self._progress = Progress(*columns, console=Console(stderr=True, markup=False, highlight=False))
        self._task = self._progress.add_task("", total=1.0, more="")
        self._progress.start()

    def update(self, stage: str, step: int, done: float, left_s: float) -> None:
        known = [f"{key} {self.figures[key]:.4g}" for key in self._SHOWN if key in self.figures]
        alarms = [f"ALARMS {self._alarms}"] if self._alarms else []
        more = "  ".join([f"{duration(left_s)} left", *alarms, *known])
        self._progress.update(self._task, completed=done, description=f"{stage} {step}", more=more)

    def alarm(self, text: str) -> None:
        self._alarms += 1
        self._progress.console.print(f"ALARM  {text}", style="bold red")

    def stop(self) -> None:
        self._progress.stop()


def _rows_until(path: Path, stages: Sequence[str], step: int) -> Iterator[str]:
    """Lines of `path` up to `step` of the last of `stages`; torn lines are left out."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError):
            row = json.loads(line)
            if _is_kept(row["stage"], row["step"], stages, step):
                yield line


def _is_kept(stage: str, at: int, stages: Sequence[str], step: int) -> bool:
    return stage in stages[:-1] or (stage == stages[-1] and at <= step)
