"""Many pictures: a plan is carried out, one file after the other as it looks, several at a time in truth."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from srgan.errors import OutputError, PictureError, SrganError, UsageError
from srgan.files import open_new, removed_on_error
from srgan.folder.manifest import Manifest, Origin, explained
from srgan.folder.planning import AUTO, Job, Plan, plan
from srgan.folder.reporting import FileReport
from srgan.pictures import DEFAULT_MAX_MEGAPIXELS, FORMATS, Picture, encode, guarded, losses, why_not
from srgan.pictures.consistency import consistency
from srgan.upscale import Request, Upscaler

__all__ = ["AUTO", "FileReport", "Job", "Options", "Plan", "plan", "run"]

# Decode and encode this many files beside the one in inference.
DEFAULT_WORKERS = 2

# Uncompressed, the largest picture that is read (200 megapixels of 64 bits) is smaller.
MAX_SOURCE_BYTES = 2 * 2**30

_KEPT_MANIFESTS = 16


@dataclass(frozen=True)
class Options:
    """How every file of a run is made. `quality`: 1..100 for lossy formats, None for their default.

    `overwrite`: make again what is finished, and replace files that are not results of an earlier run.
    `fail_fast`: begin no further file when one has failed. `measured`: compare each result with its source.
    `max_megapixels`: a source that promises more, all its frames together, is refused before it is decoded.
    Raises UsageError for a quality or a limit out of range.
    """

    request: Request = field(default_factory=Request)
    quality: int | None = None
    overwrite: bool = False
    fail_fast: bool = False
    measured: bool = False
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS

    def __post_init__(self) -> None:
        """Refuse what makes no sense whatever the picture."""
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UsageError(f"quality {self.quality} is out of range: choose one from 1 to 100")
        if not 0 < self.max_megapixels < math.inf:
            raise UsageError(f"a limit of {self.max_megapixels:g} megapixels is none: give more than 0")

    def decode(self, source: Path | bytes) -> Picture:
        """Return the picture in a file, or in the bytes of one; raises as `guarded.decode`."""
        return guarded.decode(source, max_megapixels=self.max_megapixels)

    def settings(self, format: str) -> dict[str, object]:
        """Return what decides on a result beside the model, fit for JSON."""
        return {**asdict(self.request), "format": format, "quality": self.quality}

    def fingerprint(self, model_sha256: str, format: str) -> str:
        """Return what two results have in common that were made with the same model and settings."""
        text = json.dumps([model_sha256, self.settings(format)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def run(
    plan: Plan,
    upscaler: Upscaler,
    options: Options | None = None,
    *,
    workers: int = DEFAULT_WORKERS,
    progress: Callable[[float], None] | None = None,
    stop: threading.Event | None = None,
) -> Generator[FileReport]:
    """Carry out `plan` and yield a report of each file, in its order; one that fails does not stop the others.

    Finished files of an earlier run are skipped: results of the same source, model and settings that nobody has
    touched since. Files are written whole or not at all. `workers`: how many files are decoded or encoded beside
    the one in inference. `progress` is called with the finished fraction of that one. Once `stop` is set, files in
    work are finished and no other is begun. Raises OutputError, after reports of what was finished, if nothing
    more can be written.
    """
    for folder, reason in plan.unreadable:
        yield FileReport(folder, None, "failed", f"{folder}: cannot be listed: {reason}")
    options = options or Options()
    if plan.unreadable and options.fail_fast:
        return
    desk = Desk(plan, options, upscaler.model_sha256)
    bench = _Bench(desk, upscaler, progress, stop or threading.Event())
    pool = ThreadPoolExecutor(workers + 1, thread_name_prefix="srgan")
    in_work: deque[Future[FileReport | None]] = deque()
    try:
        for job in plan:
            if bench.is_stopping():
                break
            in_work.append(pool.submit(bench.work, job))
            if len(in_work) > 2 * workers:
                yield from _reported(in_work.popleft())
        while in_work:
            yield from _reported(in_work.popleft())
    except BaseException:
        bench.abandoned = True
        pool.shutdown(wait=False, cancel_futures=True)
        desk.close(abandoned=True)
        raise
    pool.shutdown()
    desk.close()
    if bench.hopeless is not None:
        raise bench.hopeless


class Desk:
    """What is decided before and after the work on a file: is it finished, may it be written, and where.

    A job that `begin` was called for is to be ended with `end`. Any thread may call.
    """

    def __init__(self, plan: Plan, options: Options, model_sha256: str) -> None:
        self.options = options
        self._plan = plan
        self._model_sha256 = model_sha256
        self._manifests: OrderedDict[Path, Manifest] = OrderedDict()
        self._users: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def begin(self, job: Job) -> Origin | FileReport:
        """Return the source as it is, or a report if its result is there; PictureError if it must not be made."""
        manifest = self._opened(job.root)
        origin = _origin(job.source)
        if not self.options.overwrite:
            finished = manifest.finished(job.target, origin, self._settings(job))
            if finished is not None:
                return FileReport(job.source, finished, "skipped")
            manifest.refuse_foreign(job.target, origin)
        return origin

    def place(self, job: Job, target: Path, origin: Origin) -> Path:
        """Return a temporary name for what will become `target`, which need not be that of the plan."""
        if target != job.target:
            if not self._plan.claim(target, job):
                raise PictureError(f"the result would be {target}, which belongs to another picture; rename one")
            self._refuse_foreign(job, target, origin)
        return self._manifests[job.root].temporary(target)

    def put(self, temporary: Path, target: Path, job: Job, origin: Origin) -> None:
        """Give a finished file its name, and know it in later runs."""
        with removed_on_error(temporary):
            self._refuse_foreign(job, target, origin)  # somebody may have put a file there during the inference
            self._manifests[job.root].put(temporary, target, job.target, origin, self._settings(job))

    def end(self, job: Job) -> None:
        """Let go of the job's folder, which is closed if many others are in use."""
        with self._lock:
            self._users[job.root] -= 1
            idle = [root for root in self._manifests if not self._users[root]]
            for root in idle[: max(0, len(self._manifests) - _KEPT_MANIFESTS)]:
                self._manifests.pop(root).close()
                del self._users[root]

    def close(self, *, abandoned: bool = False) -> None:
        """Let go of all folders."""
        with self._lock:
            for manifest in self._manifests.values():
                manifest.close(abandoned=abandoned)

    def _opened(self, root: Path) -> Manifest:
        with self._lock:
            self._users[root] += 1
            if root not in self._manifests:
                self._manifests[root] = Manifest(root)
            self._manifests.move_to_end(root)
            return self._manifests[root]

    def _refuse_foreign(self, job: Job, target: Path, origin: Origin) -> None:
        if not self.options.overwrite:
            self._manifests[job.root].refuse_foreign(target, origin)

    def _settings(self, job: Job) -> str:
        return self.options.fingerprint(self._model_sha256, job.format)


class _Bench:
    """Where threads work on files: each on one from its beginning to its end, and one at a time in inference."""

    def __init__(
        self, desk: Desk, upscaler: Upscaler, progress: Callable[[float], None] | None, stop: threading.Event
    ) -> None:
        self.abandoned = self.failed_fast = False
        self.hopeless: OutputError | None = None
        self._desk, self._upscaler, self._progress, self._stop = desk, upscaler, progress, stop
        self._inference = threading.Lock()

    def is_stopping(self) -> bool:
        """Return whether no further file is to be begun."""
        return self._stop.is_set() or self.abandoned or self.failed_fast or self.hopeless is not None

    def work(self, job: Job) -> FileReport | None:
        """Return what became of `job`, or None if it was left because the run is to stop."""
        if self.is_stopping():
            return None
        stopwatch = _Stopwatch()
        try:
            report = self._made(job, stopwatch)
        except OutputError as error:
            self.hopeless = self.hopeless or error
            return None
        except (SrganError, MemoryError) as error:
            report = failure(job, error)
            self.failed_fast = self._desk.options.fail_fast
        finally:
            self._desk.end(job)
        return report and replace(report, seconds=stopwatch.seconds())

    def _made(self, job: Job, stopwatch: _Stopwatch) -> FileReport | None:
        origin = self._desk.begin(job)
        if isinstance(origin, FileReport):
            return origin
        options = self._desk.options
        picture = options.decode(job.source)
        # Before the inference, which would be lost if its result cannot be written.
        format, target, warnings = destination(picture, job, self._upscaler.output_size(picture, options.request))
        temporary = self._desk.place(job, target, origin)
        with stopwatch.waiting_for(self._inference):
            if self.is_stopping():
                return None
            result = self._upscaler.upscale(picture, options.request, self._tell)
        write_result(temporary, target, encode(result, format, quality=options.quality))
        self._desk.put(temporary, target, job, origin)
        return written(job, target, picture, result, warnings, options)

    def _tell(self, fraction: float) -> None:
        if self.abandoned:
            raise _AbandonedError
        if self._progress is not None:
            self._progress(fraction)


class _AbandonedError(Exception):
    """Nobody waits for the result any more."""


class _Stopwatch:
    """Time since it was made, without that of waiting for others."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @contextlib.contextmanager
    def waiting_for(self, lock: threading.Lock) -> Iterator[None]:
        began = time.perf_counter()
        with lock:
            self._started += time.perf_counter() - began
            yield


def destination(picture: Picture, job: Job, size: tuple[int, int]) -> tuple[str, Path, tuple[str, ...]]:
    """Return format and place of the result of `size` (height, width), and what is to be said of them.

    The place is not `job.target` if the format has to be another than the name of the input promised. Raises
    PictureError if the format that was asked for cannot hold the result.
    """
    format, target, warnings = job.format, job.target, []
    if format == AUTO:
        format = picture.format
        if reason := why_not(picture, format, size=size):
            format = "png"
            warnings.append(f"{reason}, so the result is PNG")
    elif reason := why_not(picture, format, size=size):
        raise PictureError(f"{reason}; choose another format, PNG holds everything")
    if target.suffix.lower() not in FORMATS[format].suffixes:
        target = target.with_suffix(FORMATS[format].suffixes[0])
        if not warnings:
            warnings.append(f"the file is in truth {format.upper()}, so the result is named {target.name}")
    return format, target, (*warnings, *losses(picture, format))


def write_result(temporary: Path, target: Path, data: bytes) -> None:
    """Write what will become `target` to the disk, or leave nothing; raises what `manifest.explained` does."""
    with explained(target), removed_on_error(temporary), open_new(temporary) as file:
        file.write(data)


def written(
    job: Job, target: Path, picture: Picture, result: Picture, warnings: tuple[str, ...], options: Options
) -> FileReport:
    """Return the report of a file that was made."""
    report = FileReport(
        job.source,
        target,
        "written",
        warnings=(*result.warnings, *warnings),
        source_size=(picture.width, picture.height),
        size=(result.width, result.height),
    )
    if not options.measured:
        return report
    measured = consistency(picture, result)
    return replace(report, lr_psnr_db=measured.lr_psnr_db, colour_shift_levels=measured.colour_shift)


def failure(job: Job, error: Exception) -> FileReport:
    """Return the report of a file that could not be made."""
    said = str(error)
    if isinstance(error, MemoryError):
        said = "not enough memory; choose a smaller tile with -t, or reduce the picture"
    about = (str(job.source), str(job.target.parent))
    return FileReport(job.source, None, "failed", said if said.startswith(about) else f"{job.source}: {said}")


def _reported(future: Future[FileReport | None]) -> Iterator[FileReport]:
    report = future.result()
    if report is not None:
        yield report


def _origin(source: Path) -> Origin:
    try:
        origin = Origin.of(source)
    except OSError as error:
        raise PictureError(f"{source}: cannot be read: {error.strerror}") from error
    if origin.size > MAX_SOURCE_BYTES:
        raise PictureError(
            f"{source}: {origin.size} bytes are more than a picture of a size that is read can have"
        )
    return origin
