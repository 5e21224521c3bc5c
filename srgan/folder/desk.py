"""What is decided about a file before and after the work on it, on the machine of the caller alone.

`Desk` knows which file is finished, which place may be written, and gives results their names; what works on files
(threads, actors, a pipe) asks it. `Options` say how every file of a run is made.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path

from srgan.errors import PictureError, UsageError
from srgan.files import open_new, removed_on_error, write_atomically
from srgan.folder.making import Decision, Made, Order
from srgan.folder.manifest import Manifest, Origin, explained
from srgan.folder.planning import Job, Plan
from srgan.folder.reporting import FileReport
from srgan.pictures import DEFAULT_MAX_MEGAPIXELS, Picture, encode, format_of_suffix, guarded
from srgan.pictures.consistency import consistency
from srgan.upscale import Upscaler

# Uncompressed, the largest picture that is read (200 megapixels of 64 bits) is smaller.
MAX_SOURCE_BYTES = 2 * 2**30

_KEPT_MANIFESTS = 16


@dataclass(frozen=True)
class Options:
    """How every file of a run is made: `order`, in the format that its job may name instead.

    `overwrite`: make again what is finished, and replace files that are not results of an earlier run.
    `fail_fast`: begin no further file when one has failed. `measured`: compare each result with its source.
    `max_megapixels`: a source that promises more, all its frames together, is refused before it is decoded.
    `accept_damaged`: of a file that is damaged or cut short, take what is there, and say so. `map`: where the map
    of what is invented goes, if one is ordered; its one picture is made again if it is finished.
    Raises UsageError for a limit out of range.
    """

    order: Order = field(default_factory=Order)
    overwrite: bool = False
    fail_fast: bool = False
    measured: bool = False
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
    accept_damaged: bool = False
    map: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense whatever the picture."""
        if self.map is not None:
            if format_of_suffix(self.map.suffix) is None:
                raise UsageError(f"{self.map}: {self.map.suffix or 'no suffix'} cannot be written; choose .png")
            if self.map.is_dir() or (self.map.exists() and not self.overwrite):
                raise UsageError(f"{self.map}: exists; give the map another name, or --overwrite to replace it")
            if not self.map.parent.is_dir():
                raise UsageError(f"{self.map.parent}: there is no such folder for the map")
        if not 0 < self.max_megapixels < math.inf:
            raise UsageError(f"a limit of {self.max_megapixels:g} megapixels is none: give more than 0")

    def order_of(self, job: Job) -> Order:
        """Return what is asked for of the file of `job`."""
        return replace(self.order, format=job.format)

    def decode(self, source: Path | bytes) -> Picture:
        """Return the picture in a file, or in the bytes of one; raises as `guarded.decode`."""
        return guarded.decode(source, max_megapixels=self.max_megapixels, accept_damaged=self.accept_damaged)

    def write_map(self, made: Made, target: Path) -> None:
        """Write the map that was ordered of a result at `target`; raises what `manifest.explained` does."""
        if self.map is None or made.invention is None:
            return
        if self.map.resolve() == target.resolve():
            raise PictureError(f"{target}: the result and its map cannot have one name")
        content = encode(made.invention.drawn(), format_of_suffix(self.map.suffix) or "png")
        with explained(self.map):
            write_atomically(self.map, content)

    def report(self, job: Job, target: Path, decision: Decision, made: Made) -> FileReport:
        """Return the report of a file that was made."""
        source, result = decision.picture, made.picture
        report = FileReport(
            job.source,
            target,
            "written",
            warnings=made.warnings,
            model=decision.model,
            source_size=(source.width, source.height),
            size=(result.width, result.height),
            invented_levels=None if made.invention is None else round(made.invention.rms_levels, 2),
        )
        if not self.measured:
            return report
        measured = consistency(source, result)
        return replace(report, lr_psnr_db=measured.lr_psnr_db, colour_shift_levels=measured.colour_shift)


class Desk:
    """What is decided before and after the work on a file: is it finished, may it be written, and where.

    A job that `begin` was called for is to be ended with `end`. Any thread may call.
    """

    def __init__(self, plan: Plan, options: Options, upscaler: Upscaler) -> None:
        self.options = options
        self._plan = plan
        self._model = upscaler.model_sha256, upscaler.scale
        self._manifests: OrderedDict[Path, Manifest] = OrderedDict()
        self._users: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def begin(self, job: Job) -> Origin | FileReport:
        """Return the source as it is, or a report if its result is there; PictureError if it must not be made."""
        manifest = self._opened(job.root)
        origin = _origin(job.source)
        if not self.options.overwrite and self.options.map is None:
            finished = manifest.finished(job.target, origin, self._fingerprint(job))
            if finished is not None:
                return FileReport(job.source, finished, "skipped")
            self._refuse_foreign(job, job.target, origin)
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
            self._manifests[job.root].put(temporary, target, job.target, origin, self._fingerprint(job))

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
                self._manifests[root] = Manifest(root, begins=not self._plan.is_one_file)
            self._manifests.move_to_end(root)
            return self._manifests[root]

    def _refuse_foreign(self, job: Job, target: Path, origin: Origin) -> None:
        if not self.options.overwrite:
            self._manifests[job.root].refuse_foreign(target, origin, self._fingerprint(job))

    def _fingerprint(self, job: Job) -> str:
        return self.options.order_of(job).fingerprint(*self._model)


def write_result(temporary: Path, target: Path, content: bytes) -> None:
    """Write what will become `target` to the disk, or leave nothing; raises what `manifest.explained` does."""
    with explained(target), removed_on_error(temporary), open_new(temporary) as file:
        file.write(content)


def failure(job: Job, error: Exception) -> FileReport:
    """Return the report of a file that could not be made."""
    message = str(error)
    if isinstance(error, MemoryError):
        message = "not enough memory; choose a smaller tile with -t, or reduce the picture"
    if not message.startswith((str(job.source), str(job.target.parent))):
        message = f"{job.source}: {message}"
    return FileReport(job.source, None, "failed", message)


def hopeless(plan: Plan) -> list[FileReport]:
    """Return the reports of what fails by the plan: folders not listed, and files whose results are in the way."""
    unlisted = [(folder, f"{folder}: cannot be listed: {reason}") for folder, reason in plan.unreadable]
    return [FileReport(path, None, "failed", reason) for path, reason in (*unlisted, *plan.refused())]


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
