"""What a measurement was made on, and how much of it other processes had meanwhile."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
from pathlib import Path
from time import monotonic
from typing import Any

from srgan.machine import available_cores

PACKAGES = ("openvino", "torch", "onnxruntime", "ncnn", "numpy", "pillow")
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")


def machine() -> dict[str, Any]:
    """Return processor, cores, instruction sets that decide the speed, memory and versions."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": processor(),
        "cores": available_cores(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "system": platform.system(),
        "versions": versions,
    }


def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


class OtherWork:
    """How many cores everything but this process and its ended children keeps busy, since it was made."""

    def __init__(self) -> None:
        self._began, self._busy, self._used = monotonic(), busy_s(), used_s()

    def cores(self) -> float | None:
        """Return it, or None where the system does not tell."""
        busy = busy_s()
        if busy is None or self._busy is None:
            return None
        others = busy - self._busy - (used_s() - self._used)
        return max(0.0, others / (monotonic() - self._began))


def busy_s() -> float | None:
    """Seconds in which any core worked, with those that a hypervisor gave to others, since the system's start."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, fields[:8])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def used_s() -> float:
    """Processor time of this process and its ended children so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
