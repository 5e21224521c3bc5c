"""ONNX models that nobody vouches for are run in a process with limits before they are run here.

What a graph of harmless operators costs only shows when it is compiled and run: constants may unfold to any size.
Models whose sha256 is in the manifest of the bundled weights are not tried. The limits need the module `resource`
(Linux, macOS); without it, the deadline remains.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from srgan import errors, isolated
from srgan.engines import graphs
from srgan.engines.openvino import OpenVinoEngine
from srgan.errors import EngineError, SrganError, WeightsError
from srgan.machine import available_bytes

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_WALL_S = 1800.0

# Beside what the process has to begin with: three times what ESRGAN takes for 256 pixels a side.
_MOST_MEMORY_BYTES, _LEAST_MEMORY_BYTES = 8 * 2**30, 2**30

_SIDE_LR_PX = 24


@dataclass(frozen=True)
class Limits:
    """What a trial may cost: processor time of all cores for the first small pictures and for the whole.

    To find the halo of an unknown network takes up to 18 pictures of 400 pixels a side.
    """

    first_cpu_s: int = 120
    whole_cpu_s: int = 1800


_CALL = "from srgan.conversion.trial import answer; answer(*sys.argv)"

_passed: dict[tuple[str, int | None], int | None] = {}


def tried(
    content: bytes, sha256: str, source: str, halo_lr_px: int | None = None, limits: Limits | None = None
) -> int | None:
    """Return the context in LR pixels that an engine is to be told of an ONNX model, after it has run elsewhere.

    `content`: the file, `sha256` its hash; what has passed is not tried again in this process. `halo_lr_px`: the
    context, where a person says it. None is returned where the file itself says it.
    Raises WeightsError, which names `source`, for a model that cannot be used, or takes too much time or memory;
    UsageError for a context of a model that has its own.
    """
    if (sha256, halo_lr_px) not in _passed:
        _passed[sha256, halo_lr_px] = _asked(content, source, halo_lr_px, limits or Limits())
    return _passed[sha256, halo_lr_px]


def _asked(content: bytes, source: str, halo_lr_px: int | None, limits: Limits) -> int | None:
    memory_bytes = max(_LEAST_MEMORY_BYTES, min(_MOST_MEMORY_BYTES, available_bytes() // 2))
    try:
        done = subprocess.run(  # noqa: S603  # this Python and its places
            isolated.command(_CALL, json.dumps([source, halo_lr_px, asdict(limits)]), str(memory_bytes)),
            input=content,
            env=isolated.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_S,
            check=False,
        )
        told = json.loads(done.stdout)
        if "error" not in told:
            halo: int | None = None if told["halo_lr_px"] is None else int(told["halo_lr_px"])
            return halo
        kind = getattr(errors, told["error"], WeightsError)
        message = str(told["message"])
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"{source}: takes too long to be compiled and run") from error
    except OSError as error:
        raise WeightsError(f"{source}: no process to try it in can be started: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:  # it died before its answer
        raise WeightsError(f"{source}: {_cause_of_death(done.returncode)} when it is compiled and run") from error
    raise kind(message if message.startswith(source) else f"{source}: {message}")


def _cause_of_death(code: int) -> str:
    if sys.platform != "win32" and code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "takes too much time or memory"
    reason = f"exit code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"
    return f"crashes OpenVINO ({reason})"


def answer(question: str, memory_bytes: str) -> None:
    """Try the model on standard input, and say on standard output what came of it: the life of the process."""
    source, halo_lr_px, costs = json.loads(question)
    limits = Limits(**costs)
    content = sys.stdin.buffer.read()
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print there
    try:
        _limit(int(memory_bytes), limits.first_cpu_s)
        told: dict[str, object] = {"halo_lr_px": _found(content, source, halo_lr_px, limits)}
    except EngineError as error:
        told = {"error": "WeightsError", "message": f"{source}: {error}"}
    except SrganError as error:
        told = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        told = {"error": "WeightsError", "message": f"{source}: takes too much memory"}
    os.write(out, json.dumps(told).encode())
    os._exit(0)  # what is left of the model is nobody's


def _found(content: bytes, source: str, halo_lr_px: int | None, limits: Limits) -> int | None:
    """Return what `tried` does; the model is first run on small pictures."""
    written = graphs.metadata_of(graphs.read_graph(content, source), source)
    first = halo_lr_px if written or halo_lr_px is not None else 0
    engine = OpenVinoEngine(content, name=source, halo_lr_px=first)
    engine.run(np.full((1, 3, _SIDE_LR_PX, _SIDE_LR_PX + 1), 0.5, np.float32))
    if written or halo_lr_px is not None:
        return halo_lr_px
    _limit(None, limits.whole_cpu_s)
    return OpenVinoEngine(content, name=source).metadata.halo_lr_px


def _limit(memory_bytes: int | None, cpu_s: int) -> None:
    if resource is None:
        return
    most = {resource.RLIMIT_CPU: math.ceil(time.process_time()) + cpu_s, resource.RLIMIT_CORE: 0}
    if memory_bytes is not None and Path("/proc/self/statm").exists():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most[resource.RLIMIT_AS] = pages * os.sysconf("SC_PAGE_SIZE") + memory_bytes
    for kind, soft in most.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
