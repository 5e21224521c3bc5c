"""This machine: how many cores and how much memory the process may take, and whether there is more to run on."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def available_cores() -> int:
    """Return how many cores this process may use: those it is bound to, within its control group's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(bound, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such group, or the quota reads "max"
        return bound


def has_graphics_driver() -> bool:
    """Return whether there is a driver that PyTorch may run on, by its file: free where there is none."""
    drivers = {"linux": "/dev/nvidiactl", "win32": r"C:\Windows\System32\nvcuda.dll", "darwin": "/usr/bin"}
    return Path(drivers.get(sys.platform, "/dev/nvidiactl")).exists()


def available_bytes() -> int:
    """Return how much memory may be taken: what is free, within the limit of this process's control group.

    Where the system does not say, 2 GiB.
    """
    try:
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(meminfo["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        free = 2 * 2**30
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or the limit reads "max"
        return free
    return max(0, min(free, limit))
