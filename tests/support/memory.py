"""A bound on the memory of a process and all that it starts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from upscale_memory import tree_bytes

_LOOK_EVERY_S = 0.05


class MemoryGroup:
    """A control group that kills what goes beyond `limit_bytes`; raises OSError where none can be made.

    A process joins by being started behind `within`.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        self._folder = _here() / name
        self._folder.mkdir()
        try:
            is_new = (self._folder / "memory.max").exists()
            limit = self._folder / ("memory.max" if is_new else "memory.limit_in_bytes")
            if not limit.exists():
                raise OSError(f"{self._folder} bounds no memory")
            limit.write_text(str(limit_bytes))
        except OSError:
            self._folder.rmdir()
            raise
        self._kills = self._folder / ("memory.events" if is_new else "memory.oom_control")
        self._peak = self._folder / ("memory.peak" if is_new else "memory.max_usage_in_bytes")
        self.within = ["sh", "-c", f'echo $$ > {self._folder}/cgroup.procs && exec "$@"', "sh"]

    @property
    def kills(self) -> int:
        """How many processes were killed for their memory."""
        return sum(int(line.split()[1]) for line in self._kills.read_text().splitlines() if "oom_kill " in line)

    @property
    def peak_bytes(self) -> int:
        """The most that was in use, copies of files that can be dropped among it."""
        return int(self._peak.read_text())

    def close(self) -> None:
        """Remove the group, whose processes have ended."""
        self._folder.rmdir()


def _here() -> Path:
    """The group that this process is in."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "memory":
            return Path(f"/sys/fs/cgroup/memory{group}")
    return Path(f"/sys/fs/cgroup{group}")


@contextlib.contextmanager
def peak_of(pid: int) -> Iterator[list[int]]:
    """Look at the memory of a process and its children until the block ends; the list's one number is the peak."""
    peak, is_over = [0], threading.Event()

    def look() -> None:
        while not is_over.wait(_LOOK_EVERY_S):
            peak[0] = max(peak[0], tree_bytes(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()
