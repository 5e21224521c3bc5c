"""Decoding of files that may be hostile: `pictures.decode` behind a look at the header, in a process with limits.

An ordinary photograph (a JPEG, PNG or WebP file whose header asks for no care) is decoded where it is, at no cost.
All else, and everything for who asks for it, goes to a worker process: another Python that decodes one file after
another under limits on processor time and memory, and is killed at a deadline. What kills it costs that one file.

The worker is started by `subprocess` and not by `multiprocessing`, so that threads in this process do no harm and
the caller's main module is not run again. It answers with JSON and raw arrays; nothing is unpickled. It guards
against accidents and exhaustion. It is no sandbox: who takes over a decoder has the rights of this user.

Limits on processor time and memory need the module `resource` (Linux, macOS); macOS does not enforce the one on
memory. Without them the deadline and the containment of crashes remain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np

from srgan import errors, pictures
from srgan.errors import GuardError, PictureError, SrganError
from srgan.pictures import DEFAULT_MAX_MEGAPIXELS, Picture, headers
from srgan.pictures.headers import Header, Limits

__all__ = ["GuardedDecoder", "Limits", "decode"]

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

# The most that the description of an answer may take; pixels and profiles come behind it.
_MAX_DESCRIPTION_BYTES = 16 << 20

# A worker that keeps more than this share of its limit from one file to the next is replaced.
_KEPT_SHARE = 1 / 8

_START = "import sys; sys.path[:] = sys.argv[1:]; from srgan.pictures.guarded import _serve; _serve()"
_START_TIMEOUT_S = 60.0

# Of the environment, what finding libraries and naming files needs; keys and passwords are no affair of a worker.
_ENVIRONMENT = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
# One thread, and its heap in one piece: what a machine of many cores sets aside for each would eat up the limit.
_ENVIRONMENT_OF_OUR_OWN = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


class GuardedDecoder:
    """Decodes pictures without risk to this process; any thread may call it.

    `always`: decode every file in a worker, ordinary or not. `max_workers`: how many there may be at once, None
    for one per processor; further callers wait. Workers start when they are needed and stay for the next file
    until `close`, the end of a `with` block, or the end of this process.
    """

    def __init__(
        self, limits: Limits | None = None, *, always: bool = False, max_workers: int | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._always = always
        self._pool = _Pool(max_workers or os.cpu_count() or 1)
        self._closing = weakref.finalize(self, self._pool.close)

    @property
    def crashes(self) -> int:
        """Workers that died on a file or had to be killed so far."""
        return self._pool.crashes

    def decode(self, source: Path | bytes) -> Picture:
        """Read a picture from a file or from the bytes of one, as `pictures.decode` does.

        Raises what that raises, PictureTooLargeError also for too many scans or too long a side, and PictureError
        if the file exceeds the limits on time and memory or crashes its decoder; GuardError if no worker can be
        started.
        """
        return self._decode(source, self._limits)

    def close(self) -> None:
        """End the workers; a call that is under way is finished first, a later one raises GuardError."""
        self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode(self, source: Path | bytes, limits: Limits) -> Picture:
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
                return pictures.decode(source, max_megapixels=limits.max_megapixels)
        return self._pool.decode(source, name, limits)


def decode(source: Path | bytes, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Picture:
    """Do as `pictures.decode` does, with `Limits.of_own_pictures`; raises as `GuardedDecoder.decode`."""
    return _decoder_of_own_pictures()._decode(source, Limits.of_own_pictures(max_megapixels))


@functools.cache
def _decoder_of_own_pictures() -> GuardedDecoder:
    return GuardedDecoder()


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


# This side: workers, and who may use which


class _Pool:
    """At most `size` workers, each used by one thread at a time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.crashes = 0
        self._closed = False
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._slots = threading.BoundedSemaphore(self._size)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def decode(self, source: Path | bytes, name: str, limits: Limits) -> Picture:
        with self._slots:
            worker = self._take()
            try:
                return worker.decode(source, name, limits)
            finally:
                self._give_back(worker)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            self._all.difference_update(idle)
        for worker in idle:
            worker.end()

    def forget(self) -> None:
        """Part from the workers in a forked process: they are the parent's, and so are their answers."""
        for worker in self._all:
            worker.disown()
        self._begin()

    def _take(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise GuardError("the decoder is closed; make a new one")
            while self._idle:
                worker = self._idle.pop()
                if worker.is_running():
                    return worker
                worker.end()
                self._all.discard(worker)
        worker = _Worker()
        with self._lock:
            self._all.add(worker)
        return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            self.crashes += worker.state == "lost"
            if worker.state == "fit" and not self._closed:
                self._idle.append(worker)
                return
            self._all.discard(worker)
        worker.end()


_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()


def _forget_workers() -> None:
    for pool in _pools:
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


class _Worker:
    """The process that decodes, as seen from this one.

    `state`: "fit" for the next file, "worn" (sound, but to be replaced), or "lost".
    """

    def __init__(self) -> None:
        self.state = "lost"
        self._overdue = False
        places = [place for place in sys.path if place]
        if (own := str(Path(__file__).parents[1])) not in places:  # it was found in the current folder
            places.insert(0, own)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            self._process = subprocess.Popen(  # noqa: S603  # this Python and our own places
                # Isolated, or a numpy.py in the current folder would be run.
                [sys.executable, "-I", "-W", "ignore", "-c", _START, *places],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=environment | _ENVIRONMENT_OF_OUR_OWN,
                # Ctrl-C is this process's to answer.
                process_group=None if sys.platform == "win32" else 0,
            )
        except OSError as error:
            raise GuardError(f"no process for decoding can be started: {error.strerror}") from error
        self._requests = cast(FileIO, self._process.stdin)
        self._answers = cast(FileIO, self._process.stdout)
        _widen(self._requests)
        _widen(self._answers)
        try:
            with self._deadline(_START_TIMEOUT_S):
                _receive(self._answers, len(_READY))
        except EOFError as error:
            self.end()
            raise GuardError("the process for decoding does not start; is the installation complete?") from error
        except BaseException:
            self.end()
            raise
        self.state = "fit"

    def is_running(self) -> bool:
        return self._process.poll() is None

    def decode(self, source: Path | bytes, name: str, limits: Limits) -> Picture:
        self.state = "lost"  # until the answer is here, whatever interrupts it
        try:
            with self._deadline(limits.wall_s):
                self._request(source, limits)
                answer = _receive_description(self._answers)
                picture = _unpack(answer.get("picture"), self._answers, _Budget(limits.memory_bytes))
        except (EOFError, BrokenPipeError) as error:
            raise PictureError(
                f"{name}: {self._cause_of_death(limits)}; save it again with another program"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PictureError(f"{name}: its decoder gave a senseless answer; the file is damaged") from error
        self.state = "worn" if answer.get("worn") or self._overdue else "fit"
        if isinstance(picture, Picture):
            return picture
        kind = getattr(errors, str(answer.get("error")), None)
        if not (isinstance(kind, type) and issubclass(kind, SrganError)):
            kind = PictureError
        raise kind(f"{name}: {answer.get('message')}")

    def end(self) -> None:
        """Kill the process, which holds nothing worth saving, and leave nothing of it."""
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._answers.close()

    def disown(self) -> None:
        """Close what a fork has copied; the process belongs to another."""
        self._requests.close()
        self._answers.close()
        self._process.returncode = 0  # so that it is not waited for

    def _request(self, source: Path | bytes, limits: Limits) -> None:
        is_path = not isinstance(source, bytes)
        blob = source if isinstance(source, bytes) else os.fsencode(source.absolute())
        _send(self._requests, {"is_path": is_path, "bytes": len(blob), **dataclasses.asdict(limits)}, [blob])

    def _cause_of_death(self, limits: Limits) -> str:
        self._process.kill()
        code = self._process.wait()
        if self._overdue:
            return f"takes longer than {limits.wall_s:g} s to decode"
        if sys.platform != "win32" and code == -signal.SIGXCPU:
            return f"takes more than {limits.cpu_s:g} s of processor time to decode"
        reason = f"exit code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"
        return f"crashes its decoder ({reason})"

    @contextlib.contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        """Kill the process, so that reading from it and writing to it end, once the time is over."""
        timer = threading.Timer(seconds, self._kill_overdue)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError as error:
            raise GuardError(f"no thread can be started: {error}") from error
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # it may be at work at this moment

    def _kill_overdue(self) -> None:
        self._overdue = True
        self._process.kill()


def _widen(pipe: FileIO) -> None:
    """Ask for a larger pipe, where there is such a thing: pixels pass in fewer pieces."""
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)


# The other side: the process that decodes

_READY = b"ready"


def _serve() -> None:
    """Decode what standard input asks for until it ends; the whole life of a worker."""
    requests, answers = FileIO(os.dup(0), "r"), FileIO(os.dup(1), "w")
    _give_up_privileges()
    idle_bytes = _address_space_bytes()
    nothing = os.open(os.devnull, os.O_RDWR)
    answers.write(_READY)
    for standard in (0, 1, 2):  # libraries print to them
        os.dup2(nothing, standard)
    while True:
        try:
            request = _receive_description(requests)
            blob = bytes(_receive(requests, request.pop("bytes")))
            is_path = request.pop("is_path")
        except EOFError:
            return
        limits = Limits(**request)
        kept_bytes = _address_space_bytes() - idle_bytes
        _limit(limits, idle_bytes)
        worn = kept_bytes > limits.memory_bytes * _KEPT_SHARE
        answer, blobs = _answer(Path(os.fsdecode(blob)) if is_path else blob, limits)
        _send(answers, {"worn": worn} | answer, blobs)
        del answer, blobs, blob


def _answer(source: Path | bytes, limits: Limits) -> tuple[dict[str, object], list[bytes | np.ndarray]]:
    blobs: list[bytes | np.ndarray] = []
    # The names are the asker's: they are put before the message over there.
    prefix = "the picture: " if isinstance(source, bytes) else f"{source}: "
    try:
        picture = pictures.decode(source, max_megapixels=limits.max_megapixels)
        frames = (picture, *getattr(picture, "further", ()))
        for found in (Header(1, 1, frames=len(frames)), *(Header(frame.width, frame.height) for frame in frames)):
            headers.refuse(found, prefix.removesuffix(": "), limits)
        return {"picture": _pack(picture, blobs)}, blobs
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
    wanted = {resource.RLIMIT_CPU: spent_s, resource.RLIMIT_AS: idle_bytes + limits.memory_bytes}
    for kind, soft in wanted.items():
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


# Between them: a length, a description in JSON, and the bytes that it announces

_LENGTH = struct.Struct(">Q")


@dataclass
class _Budget:
    """How many bytes may still be received."""

    left_bytes: int

    def spend(self, count: int) -> None:
        if not 0 <= count <= self.left_bytes:
            raise ValueError(f"{count} bytes announced, {self.left_bytes} allowed")
        self.left_bytes -= count


def _send(stream: FileIO, description: dict[str, object], blobs: Sequence[bytes | np.ndarray]) -> None:
    text = json.dumps(description).encode()
    parts: list[Any] = [_LENGTH.pack(len(text)), text, *blobs]
    for part in parts:
        view = memoryview(part).cast("B") if len(part) else memoryview(b"")  # an empty array cannot be cast
        while view:
            view = view[stream.write(view) :]


def _receive(stream: FileIO, count: int) -> bytearray:
    buffer = bytearray(count)
    _receive_into(stream, memoryview(buffer))
    return buffer


def _receive_into(stream: FileIO, view: memoryview) -> None:
    while view:
        count = stream.readinto(view)
        if not count:
            raise EOFError("the other side is gone")
        view = view[count:]


def _receive_description(stream: FileIO) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(_receive(stream, _LENGTH.size))
    if length > _MAX_DESCRIPTION_BYTES:
        raise ValueError(f"a description of {length} bytes")
    description: dict[str, Any] = json.loads(_receive(stream, length))
    return description


def _pack(value: object, blobs: list[bytes | np.ndarray]) -> object:
    """Return `value` as JSON knows it; arrays and bytes go to `blobs`, in order."""
    if isinstance(value, np.ndarray):
        blobs.append(np.ascontiguousarray(value).reshape(-1))
        return {"array": value.dtype.str, "shape": value.shape}
    if isinstance(value, bytes):
        blobs.append(value)
        return {"bytes": len(value)}
    if isinstance(value, tuple):
        return [_pack(item, blobs) for item in value]
    if isinstance(value, Picture):
        fields = {field.name: _pack(getattr(value, field.name), blobs) for field in dataclasses.fields(value)}
        return {"picture": fields}
    return value


def _unpack(tree: Any, stream: FileIO, budget: _Budget) -> object:
    """Return what `_pack` was given, reading arrays and bytes from `stream`.

    Raises ValueError, TypeError or KeyError for what it never wrote; EOFError if the stream ends.
    """
    if isinstance(tree, list):
        return tuple(_unpack(item, stream, budget) for item in tree)
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        dtype, shape = np.dtype(tree["array"]), tuple(map(int, tree["shape"]))
        if dtype.kind not in "bfiu" or min(shape, default=0) < 0:
            raise ValueError(f"an array of {dtype} with shape {shape}")
        budget.spend(dtype.itemsize * math.prod(shape))
        array = np.empty(shape, dtype)
        if array.size:
            flat: Any = array.reshape(-1)
            _receive_into(stream, memoryview(flat).cast("B"))
        return array
    if "bytes" in tree:
        budget.spend(tree["bytes"])
        return bytes(_receive(stream, tree["bytes"]))
    fields: dict[str, Any] = {name: _unpack(field, stream, budget) for name, field in tree["picture"].items()}
    return Picture(**fields)
