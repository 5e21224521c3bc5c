"""`srgan compare --study`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srgan.errors import UsageError
from srgan.pages.study import report
from srgan.texts import one_line
from srgan.training.config import OBJECTIVE_DEFAULTS


def show_study(folders: Sequence[Path], page: Path) -> None:
    """Print the table of the study in the one of `folders`, and write it with plots and runs to `page`."""
    if len(folders) != 1:
        raise UsageError(f"--study takes one folder, that of the study, not {len(folders)}")
    print(report(folders[0], page, list(OBJECTIVE_DEFAULTS)))
    print(one_line(str(page)))
