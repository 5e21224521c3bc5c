"""A worker as seen from this process: started, asked, and killed when it takes too long."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import cast

import numpy as np

from srgan import errors, isolated
from srgan.errors import GuardError, PictureError, SrganError
from srgan.pictures import FORMATS, Picture, Quality
from srgan.pictures.guarded import messages
from srgan.pictures.guarded.headers import Limits

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What a worker runs.
START = "from srgan.pictures.guarded.worker import serve; serve()"
_START_TIMEOUT_S = 60.0

# What has closed its output is about to end, however much memory it has to give back.
_END_TIMEOUT_S = 5.0

# How long work goes on that nobody waits for.
_CHECK_EVERY_S = 0.05

Check = Callable[[], None]

# One thread, and its heap in one piece: what a machine of many cores sets aside for each would eat up the limit.
_SETTINGS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


class Worker:
    """The process that decodes and encodes, as seen from this one.

    `state`: "fit" for the next file, "worn" (sound, but to be replaced), or "lost".
    """

    def __init__(self) -> None:
        self.state = "lost"
        self._overdue = False
        self._refusal: BaseException | None = None
        try:
            self._process = subprocess.Popen(  # noqa: S603  # this Python and its places
                isolated.command(START),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=isolated.environment() | _SETTINGS,
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
                messages.receive(self._answers, len(messages.READY))
        except EOFError as error:
            self.end()
            raise GuardError("the process for decoding does not start; is the installation complete?") from error
        except BaseException:
            self.end()
            raise
        self.state = "fit"

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def was_stopped(self) -> bool:
        """Whether it was ended because nobody waits for its result any more."""
        return self._refusal is not None

    def is_running(self) -> bool:
        """Return whether the process has not ended."""
        return self._process.poll() is None

    def decode(self, source: Path | bytes, name: str, limits: Limits) -> Picture:
        """Have a file decoded; `name` stands before what is wrong with it.

        Raises what the decoder raises, and PictureError if the file kills the process or lets it run out of time.
        """
        blob = source if isinstance(source, bytes) else os.fsencode(source.absolute())
        request = {"task": "decode", "is_path": not isinstance(source, bytes), "bytes": len(blob)}
        picture = self._result(request, [blob], name, limits)
        if not isinstance(picture, Picture):
            raise PictureError(f"{name}: its decoder gave a senseless answer; the file is damaged")
        return picture

    def encode(
        self, picture: Picture, format: str, quality: Quality, limits: Limits, check: Check | None = None
    ) -> bytes:
        """Have a picture encoded; raises what the encoder does, PictureError if it dies or takes too long.

        `check`: called from another thread time and again; what it raises ends the work, and is raised here.
        """
        blobs: list[bytes | np.ndarray] = []
        request = {
            "task": "encode",
            "picture": messages.pack(picture, blobs),
            "format": format,
            "quality": quality,
        }
        content = self._result(request, blobs, f"as {FORMATS[format].pillow}", limits, check)
        if not isinstance(content, bytes):
            raise PictureError(f"as {FORMATS[format].pillow}: its encoder gave a senseless answer")
        return content

    def _result(
        self,
        request: dict[str, object],
        blobs: list[bytes | np.ndarray],
        name: str,
        limits: Limits,
        check: Check | None = None,
    ) -> object:
        self.state = "lost"  # until the answer is here, whatever interrupts it
        request["limits"] = dataclasses.asdict(limits)
        task = str(request["task"])
        try:
            with self._deadline(limits.wall_s, check):
                messages.send(self._requests, request, blobs)
                answer = messages.receive_description(self._answers)
                result = messages.unpack(answer.get("result"), self._answers, messages.Budget(limits.memory_bytes))
        except (EOFError, BrokenPipeError) as error:
            if self._refusal is not None:
                raise self._refusal from None
            remedy = "save it again with another program" if task == "decode" else "choose another format"
            raise PictureError(f"{name}: {self._cause_of_death(task, limits)}; {remedy}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PictureError(f"{name}: its {task}r gave a senseless answer; the file is damaged") from error
        self.state = "worn" if answer.get("worn") or self._overdue else "fit"
        if "error" not in answer:
            return result
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

    def _cause_of_death(self, task: str, limits: Limits) -> str:
        try:
            code = self._process.wait(_END_TIMEOUT_S)  # so that it says itself what it ends with
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._overdue:
            return f"takes longer than {limits.wall_s:g} s to {task}"
        if sys.platform != "win32" and code == -signal.SIGXCPU:
            return f"takes more than {limits.cpu_s:g} s of processor time to {task}"
        reason = f"exit code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"
        return f"crashes its {task}r ({reason})"

    @contextlib.contextmanager
    def _deadline(self, seconds: float, check: Check | None = None) -> Iterator[None]:
        """Kill the process once the time is over or `check` raises, so that reading and writing end."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done, seconds, check), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise GuardError(f"no thread can be started: {error}") from error
        try:
            yield
        finally:
            done.set()
            thread.join()  # it may be at work at this moment

    def _watch(self, done: threading.Event, seconds: float, check: Check | None) -> None:
        end = time.monotonic() + seconds
        while not done.wait(max(0.0, end - time.monotonic()) if check is None else _CHECK_EVERY_S):
            if check is not None:
                try:
                    check()
                except BaseException as error:  # noqa: BLE001  # raised where the result is waited for
                    self._refusal = error
            if self._refusal is not None or time.monotonic() >= end:
                self._overdue = self._refusal is None
                self._process.kill()
                return


def _widen(pipe: FileIO) -> None:
    """Ask for a larger pipe, where there is such a thing: pixels pass in fewer pieces."""
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
