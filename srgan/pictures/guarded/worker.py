"""The other side: the process that decodes, under limits."""

from __future__ import annotations

import contextlib
import math
import os
import time
from io import FileIO
from pathlib import Path

import numpy as np

from srgan import pictures
from srgan.errors import SrganError
from srgan.pictures.guarded import headers, messages
from srgan.pictures.guarded.headers import Header, Limits

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# A worker that keeps more than this share of its limit from one file to the next is replaced.
_KEPT_SHARE = 1 / 8


def serve() -> None:
    """Decode what standard input asks for until it ends; the whole life of a worker."""
    requests, answers = FileIO(os.dup(0), "r"), FileIO(os.dup(1), "w")
    _give_up_privileges()
    idle_bytes = _address_space_bytes()
    nothing = os.open(os.devnull, os.O_RDWR)
    answers.write(messages.READY)
    for standard in (0, 1, 2):  # libraries print to them
        os.dup2(nothing, standard)
    while True:
        try:
            request = messages.receive_description(requests)
            blob = bytes(messages.receive(requests, request.pop("bytes")))
            is_path = request.pop("is_path")
        except EOFError:
            return
        limits = Limits(**request)
        kept_bytes = _address_space_bytes() - idle_bytes
        _limit(limits, idle_bytes)
        worn = kept_bytes > limits.memory_bytes * _KEPT_SHARE
        answer, blobs = _answer(Path(os.fsdecode(blob)) if is_path else blob, limits)
        messages.send(answers, {"worn": worn} | answer, blobs)
        del answer, blobs, blob


def _answer(source: Path | bytes, limits: Limits) -> tuple[dict[str, object], list[bytes | np.ndarray]]:
    blobs: list[bytes | np.ndarray] = []
    # The names are the asker's: they are put before the message over there.
    prefix = "the picture: " if isinstance(source, bytes) else f"{source}: "
    try:
        picture = pictures.decode(
            source, max_megapixels=limits.max_megapixels, accept_damaged=limits.accept_damaged
        )
        frames = (picture, *getattr(picture, "further", ()))
        for header in (Header(1, 1, frames=len(frames)), *(Header(frame.width, frame.height) for frame in frames)):
            headers.refuse(header, prefix.removesuffix(": "), limits)
        return {"picture": messages.pack(picture, blobs)}, blobs
    except SrganError as error:
        # Who has met the limit once may have lost more than the file: a thread that did not start, half a table.
        worn = isinstance(error.__cause__, MemoryError)
        message = str(error).removeprefix(prefix)
        return {"error": type(error).__name__, "message": message} | ({"worn": True} if worn else {}), []
    except MemoryError:
        return {"error": "PictureError", "message": "cannot be decoded: not enough memory", "worn": True}, []


def _give_up_privileges() -> None:
    if resource is not None:
        for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):  # neither core dumps nor any file at all
            resource.setrlimit(kind, (0, resource.getrlimit(kind)[1]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # Linux: rather this process than its parent


def _limit(limits: Limits, idle_bytes: int) -> None:
    if resource is None:
        return
    spent_s = math.ceil(time.process_time() + limits.cpu_s)
    most = {resource.RLIMIT_CPU: spent_s, resource.RLIMIT_AS: idle_bytes + limits.memory_bytes}
    for kind, soft in most.items():
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS knows RLIMIT_AS and may refuse it
            resource.setrlimit(kind, (soft, hard))


def _address_space_bytes() -> int:
    """Return the size of this process's address space, or 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
