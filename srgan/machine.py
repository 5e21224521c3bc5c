"""This machine: how many cores and how much memory the process may take, and whether there is more to run on."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Where the system does not say how much memory is free.
_ASSUMED_FREE_BYTES = 2 * 2**30


def available_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: those it is bound to, within the quotas of its control groups.

    `root`: where the system's /proc and /sys are.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_quota_cores(group) for group in _groups("cpu", root))
    return min([bound, *(max(1, math.ceil(cores)) for cores in quotas if cores is not None)])


def has_graphics_driver() -> bool:
    """Return whether there is a driver that PyTorch may run on, by its file: free where there is none."""
    drivers = {"linux": "/dev/nvidiactl", "win32": r"C:\Windows\System32\nvcuda.dll", "darwin": "/usr/bin"}
    return Path(drivers.get(sys.platform, "/dev/nvidiactl")).exists()


def bfloat16_pays(root: Path = Path("/")) -> bool:
    """Return whether a processor that computes bfloat16 is faster in it than in float32.

    Intel's are with AMX; by AVX512-BF16 alone they multiply no more numbers in a cycle, and converting costs.
    Where the system does not say what there is, and on other makers' processors, it is taken to pay. oneDNN, which
    computes, keeps from AMX where its own variable says so. `root`: where the system's /proc is.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    try:
        processor = (root / "proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return True
    has_amx = "amx_bf16" in processor and (limit in ("ALL", "DEFAULT") or "AMX" in limit)
    return has_amx or "GenuineIntel" not in processor


def available_bytes(root: Path = Path("/")) -> int:
    """Return how much memory may be taken: what is free, within the limits of this process's control groups.

    Free is also what holds nothing but copies of files, which the system drops when the memory is wanted. Where
    the system does not say, 2 GiB. `root`: where its /proc and /sys are.
    """
    free = _ASSUMED_FREE_BYTES
    with contextlib.suppress(OSError, ValueError, KeyError):
        free = _table(root / "proc/meminfo")["MemAvailable:"] * 1024
    within = (_free_bytes(group) for group in _groups("memory", root))
    return max(0, min([free, *(group_free for group_free in within if group_free is not None)]))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that this process is in, those above them included: all limit it.

    `controller`: "cpu" or "memory". Version 1 has a tree for each, version 2 one for all; a system may have both.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    groups = {  # "4:memory:/a/b", "1:cpu,cpuacct:/a", and "0::/a/b" of version 2
        name: group
        for line in memberships
        for _, names, group in [line.split(":", 2)]
        for name in names.split(",")
    }
    for line in mounts:  # "31 23 0:28 /tree /sys/fs/cgroup/memory rw,... - cgroup cgroup rw,memory"
        place, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        name = {"cgroup2": "", "cgroup": controller}.get(kind)
        if name is None or name not in groups or (name and name not in options.split(",")):
            continue
        tree, mount_point = place.split(" ")[3:5]
        folder = root / mount_point.lstrip("/")
        yield folder
        # A container may see its own group as the tree's root, and itself under the name that it has outside.
        group = PurePosixPath(groups[name])
        if group.is_relative_to(tree) and ".." not in group.parts:
            for part in group.relative_to(tree).parts:
                folder /= part
                yield folder


def _quota_cores(group: Path) -> float | None:
    """Return how many cores' time the group may take, or None for any."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such controller, or the quota reads "max"
        return None


def _free_bytes(group: Path) -> int | None:
    """Return how much more memory the group may take, or None for any."""
    for limits, used, prefix in (
        (("memory.max", "memory.high"), "memory.current", ""),
        (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"),
    ):
        limit = min((_number(group / name) for name in limits), default=math.inf)
        if math.isinf(limit):
            continue
        with contextlib.suppress(OSError, ValueError):
            return int(limit) - int((group / used).read_text()) + _reclaimable_bytes(group, prefix)
    return None


def _number(file: Path) -> float:
    """Return what the file says, infinity where there is none or it reads "max"."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return math.inf


def _reclaimable_bytes(group: Path, prefix: str) -> int:
    """Return how much of what the group uses are copies of files that the system drops at need.

    Of those used lately it will drop half without harm: the rest may be the program's own code.
    """
    try:
        table = _table(group / "memory.stat")
    except (OSError, ValueError):
        return 0
    return table.get(f"{prefix}inactive_file", 0) + table.get(f"{prefix}active_file", 0) // 2


def _table(file: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number on each line."""
    return {name: int(number) for line in file.read_text().splitlines() for name, number, *_ in [line.split()]}


def keep_caches_together() -> None:
    """Let matplotlib, which torchmetrics loads, write to the folder for caches and not to that for settings."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("MPLCONFIGDIR", str(caches / "matplotlib"))
