"""The other side: the process that decodes and encodes, under limits."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from io import FileIO
from pathlib import Path
from typing import cast

import numpy as np

from srgan import pictures
from srgan.errors import SrganError
from srgan.pictures import FORMATS, Picture, Quality
from srgan.pictures.guarded import headers, messages
from srgan.pictures.guarded.headers import Header, Limits

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# A worker that keeps more than this share of its limit from one file to the next is replaced.
_KEPT_SHARE = 1 / 8


def serve() -> None:
    """Decode and encode what standard input asks for until it ends; the whole life of a worker."""
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
            limits = Limits(**request["limits"])
            kept_bytes = _address_space_bytes() - idle_bytes
            _limit(limits, idle_bytes)  # before the pixels come: those of the last file may be too few for them
            if request["task"] == "decode":
                blob = bytes(messages.receive(requests, request["bytes"]))
            else:  # its asker's own, as many bytes as it says
                picture = messages.unpack(request["picture"], requests, messages.Budget(sys.maxsize), maps=True)
        except EOFError:
            return
        worn = kept_bytes > limits.memory_bytes * _KEPT_SHARE
        if request["task"] == "decode":
            answer, blobs = _decoded(Path(os.fsdecode(blob)) if request["is_path"] else blob, limits)
            del blob
        else:
            answer, blobs = _encoded(cast(Picture, picture), request["format"], request["quality"])
            del picture
        messages.send(answers, {"worn": worn} | answer, blobs)
        del answer, blobs


_Answer = tuple[dict[str, object], list[bytes | np.ndarray]]


def _decoded(source: Path | bytes, limits: Limits) -> _Answer:
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
        return {"result": messages.pack(picture, blobs)}, blobs
    except (SrganError, MemoryError) as error:
        return _failure(error, prefix, "decoded")


def _encoded(picture: Picture, format: str, quality: Quality) -> _Answer:
    blobs: list[bytes | np.ndarray] = []
    try:
        return {"result": messages.pack(pictures.encode(picture, format, quality=quality), blobs)}, blobs
    except (SrganError, MemoryError) as error:
        return _failure(error, f"as {FORMATS[format].pillow}: ", "encoded")


def _failure(error: Exception, prefix: str, done: str) -> _Answer:
    if not isinstance(error, SrganError):
        return {"error": "PictureError", "message": f"cannot be {done}: not enough memory", "worn": True}, []
    # Who has met the limit once may have lost more than the file: a thread that did not start, half a table.
    worn = {"worn": True} if isinstance(error.__cause__, MemoryError) else {}
    return {"error": type(error).__name__, "message": str(error).removeprefix(prefix), **worn}, []


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
