"""Decoding of files that may be hostile, and encoding that may crash, in a process with limits.

`decode` is `pictures.decode` behind a look at the header. An ordinary photograph (a JPEG, PNG or WebP file whose
header asks for no care) is decoded where it is, at no cost.
All else, and everything for who asks for it, goes to a worker process: another Python that decodes one file after
another under limits on processor time and memory, and is killed at a deadline. What kills it costs that one file.

Encoders that may crash or take minutes (AVIF, animations) run there too, for who asks for it all of them: metadata
that they cannot take, or a fault of theirs, costs the one file, and none goes on for who is gone. Pixels of the
upscaler are mapped there, not copied.

The worker is started by `subprocess` and not by `multiprocessing`, so that threads in this process do no harm and
the caller's main module is not run again. It answers with JSON and raw arrays; nothing is unpickled. It guards
against accidents and exhaustion. It is no sandbox: who takes over a decoder has the rights of this user.

Limits on processor time and memory need the module `resource` (Linux, macOS); macOS does not enforce the one on
memory. Without them the deadline and the containment of crashes remain.

    headers.py    what a file promises, read without decoding
    pool.py       which worker decodes the next file
    process.py    a worker as seen from this process: started, asked, killed
    worker.py     the other side: the process that decodes and encodes
    messages.py   what passes between the two
    shared.py     arrays that both can map
"""

from __future__ import annotations

import contextlib
import functools
import io
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from srgan import pictures
from srgan.machine import available_cores
from srgan.pictures import DEFAULT_MAX_MEGAPIXELS, Picture, Quality, costs
from srgan.pictures.guarded import headers
from srgan.pictures.guarded.headers import Limits
from srgan.pictures.guarded.pool import Pool
from srgan.pictures.guarded.process import Check

__all__ = ["GuardedDecoder", "Limits", "decode", "decoder_of_own_pictures", "encode"]


class GuardedDecoder:
    """Decodes pictures without risk to this process; any thread may call it.

    `always`: decode every file in a worker, ordinary or not. `max_workers`: how many there may be at once, None
    for one per core; further callers wait. Workers start when they are needed and stay for the next file
    until `close`, the end of a `with` block, or the end of this process.
    """

    def __init__(
        self, limits: Limits | None = None, *, always: bool = False, max_workers: int | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._always = always
        self._pool = Pool(max_workers or available_cores())
        self._closing = weakref.finalize(self, self._pool.close)

    @property
    def crashes(self) -> int:
        """Workers that died on a file or had to be killed so far."""
        return self._pool.crashes

    @property
    def worker_pids(self) -> list[int]:
        """The processes at work or waiting for work."""
        return self._pool.worker_pids

    def decode(self, source: Path | bytes, limits: Limits | None = None) -> Picture:
        """Read a picture from a file or from the bytes of one, as `pictures.decode` does.

        `limits`: of this file, in place of the decoder's.
        Raises what that raises, PictureTooLargeError also for too many scans or too long a side, and PictureError
        if the file exceeds the limits on time and memory or crashes its decoder; GuardError if no worker can be
        started.
        """
        limits = limits or self._limits
        name = "the picture" if isinstance(source, bytes) else str(source)
        with _opened(source) as file:
            if file is None:  # to be refused by name
                return pictures.decode(source, max_megapixels=limits.max_megapixels)
            header = None
            with contextlib.suppress(OSError):  # the decoder will meet it again
                header = headers.read_header(file, max_scans=limits.max_scans)
        if header is not None:
            headers.refuse(header, name, limits)
            if header.ordinary and not self._always:
                return pictures.decode(
                    source, max_megapixels=limits.max_megapixels, accept_damaged=limits.accept_damaged
                )
        return self._pool.decode(source, name, limits)

    def encode(
        self, picture: Picture, format: str, *, quality: Quality = None, check: Check | None = None
    ) -> bytes:
        """Return `picture` as a file, as `pictures.encode` does; in a worker if it is AVIF, animated or `always`.

        `check`: called time and again from another thread while a worker is at work; what it raises ends the work
        and is raised. Raises what `pictures.encode` raises, and PictureError if the picture crashes its encoder,
        takes far too long or more memory than `costs` tells; GuardError if no worker can be started.
        """
        if not self._always and not _may_crash(picture, format):
            return pictures.encode(picture, format, quality=quality)
        sizes = [(frame.height, frame.width) for frame in picture.frames]
        megapixels = sum(height * width for height, width in sizes) / 1e6
        limits = Limits.of_encoding(megapixels, costs.encoding_bytes(picture, format, sizes, quality))
        return self._pool.encode(picture, format, quality, limits, check)

    def close(self) -> None:
        """End the workers; a call that is under way is finished first, a later one raises GuardError."""
        self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def decode(
    source: Path | bytes, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS, accept_damaged: bool = False
) -> Picture:
    """Do as `pictures.decode` does, with `Limits.of_own_pictures`; raises as `GuardedDecoder.decode`."""
    return decoder_of_own_pictures().decode(
        source, Limits.of_own_pictures(max_megapixels, accept_damaged=accept_damaged)
    )


def encode(picture: Picture, format: str, *, quality: Quality = None, check: Check | None = None) -> bytes:
    """Do as `pictures.encode` does, and take and raise as `GuardedDecoder.encode`."""
    return decoder_of_own_pictures().encode(picture, format, quality=quality, check=check)


@functools.cache
def decoder_of_own_pictures() -> GuardedDecoder:
    """Return the decoder behind `decode` and `encode`, one for the life of the process."""
    return GuardedDecoder()


def _may_crash(picture: Picture, format: str) -> bool:
    """Return whether the encoder is to be guarded: native code that crashes, or minutes of work."""
    return format == "avif" or picture.is_animated


@contextlib.contextmanager
def _opened(source: Path | bytes) -> Iterator[BinaryIO | None]:
    """Yield the file, or None for what is none that can be read; a pipe or a device is not opened."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        file = source.open("rb") if stat.S_ISREG(source.stat().st_mode) else None
    except (OSError, ValueError):
        file = None
    with file or contextlib.nullcontext():
        yield file
