"""Where what of a job lies in the storage."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from datetime import datetime

from srgan_service.jobs.storage import Storage


class JobFiles:
    """The files of all jobs, by the jobs' ids. What reads or writes raises OSError."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def write_picture(self, id: str, token: str, index: int, content: bytes) -> None:
        """Keep a picture that a job is to upscale."""
        self._storage.write(_picture(id, token, index), content)

    def read_picture(self, id: str, token: str, index: int) -> bytes:
        """Return a picture that a job is to upscale."""
        return self._storage.read(_picture(id, token, index))

    def remove_pictures(self, id: str, token: str, count: int) -> None:
        """Remove the pictures of a job that was not accepted; another of the same id keeps its own."""
        for index in range(count):
            self._storage.remove(_picture(id, token, index))
        for folder in (f"jobs/{id}/in", f"jobs/{id}"):
            self._storage.prune(folder)

    def keep_result_alone(self, id: str, path: str | None) -> None:
        """Remove everything of a job that has ended but its result at `path`, None if it has none."""
        unused = ["in", "progress.json"]
        if path is None or not path.startswith(f"jobs/{id}/out/"):  # an archive holds them all
            unused.append("out")
        for part in unused:
            self._storage.remove(f"jobs/{id}/{part}")

    def results_bytes(self, id: str) -> int:
        """Return how large the results of a job that is worked on are together."""
        return self._storage.size_bytes(f"jobs/{id}/out")

    def write_result(self, id: str, index: int, ending: str, content: bytes) -> str:
        """Keep the result of a picture, and return where it is; `ending`: of its name ("_x4.jpg")."""
        path = f"jobs/{id}/out/{index:04}{ending}"
        self._storage.write(path, content)
        return path

    @staticmethod
    def ending(path: str) -> str:
        """Return the ending that a result was kept with."""
        return path.rpartition("/")[2][4:]

    def archive_results(self, id: str, entries: Iterable[tuple[str, str]]) -> tuple[str, int]:
        """Put results into one archive, as pairs of a name there and where it is; return its place and bytes."""
        path = f"jobs/{id}/result.zip"
        return path, self._storage.archive(path, entries)

    def write_progress(self, id: str, fraction: float) -> None:
        """Tell other processes how far a job is."""
        self._storage.write(f"jobs/{id}/progress.json", json.dumps(fraction).encode())

    def progress(self, id: str) -> float:
        """Return how far a job is, as the process that works on it told last; 0 if it told nothing.

        1 if its pictures are no longer kept: it is about to be told that it has ended.
        """
        try:
            return float(json.loads(self._storage.read(f"jobs/{id}/progress.json")))
        except (OSError, ValueError):
            return 0.0 if self._storage.exists(f"jobs/{id}/in") else 1.0

    def write_unfinished_starts(self, id: str, index: int, count: int) -> None:
        """Keep how often a picture was begun by a process that has not told its end; none if 0."""
        if count:
            self._storage.write(_begun(id, index), str(count).encode())
        else:
            self._storage.remove(_begun(id, index))

    def unfinished_starts(self, id: str, index: int) -> int:
        """Return how often a picture was begun by processes that never told its end."""
        try:
            return int(self._storage.read(_begun(id, index)))
        except (OSError, ValueError):
            return 0

    def is_cancelled(self, id: str) -> bool:
        """Return whether a job was cancelled, by whichever process."""
        return self._storage.exists(_cancelled(id))

    def cancel(self, id: str, progress: float, started: datetime | None) -> None:
        """Tell all processes that a job is cancelled, and remove everything else of it.

        `progress`, `started`: as they were, since the database forgets them.
        """
        known = {"progress": progress, "started": started and started.isoformat()}
        with contextlib.suppress(OSError):  # no room even for this; they notice after the picture
            self._storage.write(_cancelled(id), json.dumps(known).encode())
        self.remove_content(id)

    def before_cancelling(self, id: str) -> tuple[float, datetime | None]:
        """Return how far a cancelled job was, from 0 to 1, and when it was begun; 0 and None if nothing tells."""
        try:
            known = json.loads(self._storage.read(_cancelled(id)))
            started = known["started"]
            return float(known["progress"]), started and datetime.fromisoformat(started)
        except (OSError, ValueError, LookupError):
            return 0.0, None

    def remove_content(self, id: str) -> None:
        """Remove everything of a job but that it is cancelled."""
        for part in ("in", "out", "begun", "result.zip", "progress.json"):
            self._storage.remove(f"jobs/{id}/{part}")

    def remove(self, id: str) -> None:
        """Remove everything of a job."""
        self._storage.remove(f"jobs/{id}")

    def ids(self) -> list[str]:
        """Return the ids of all jobs that have files."""
        return self._storage.names("jobs")


def _picture(id: str, token: str, index: int) -> str:
    return f"jobs/{id}/in/{token}-{index:04}"


def _begun(id: str, index: int) -> str:
    return f"jobs/{id}/begun/{index:04}"


def _cancelled(id: str) -> str:
    return f"jobs/{id}/cancelled"
