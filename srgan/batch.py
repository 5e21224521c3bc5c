"""Many pictures: which file becomes which, decided before any work, and then one after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from srgan.errors import PictureError, SrganError, UsageError
from srgan.files import write_atomically
from srgan.pictures import FORMATS, PICTURE_SUFFIXES, Picture, decode, encode, format_of_suffix, why_not
from srgan.upscale import Request, Upscaler

AUTO = "auto"  # the format of the input

# Suffixes of results whose input has a suffix that is read but not written.
_RESULT_SUFFIXES = {".gif": ".png", ".apng": ".png", ".pbm": ".ppm"}


@dataclass(frozen=True)
class Job:
    """One picture to read and where its result goes. `format`: a key of `pictures.FORMATS`, or `AUTO`."""

    source: Path
    target: Path
    format: str


@dataclass(frozen=True)
class Plan:
    """All that is to be done. `unreadable`: folders that could not be listed, each with the reason."""

    jobs: tuple[Job, ...]
    unreadable: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True)
class FileReport:
    """What became of one file. `source_size` and `size`: (width, height) in pixels, before and after."""

    source: Path
    target: Path | None
    status: Literal["written", "failed"]
    error: str | None = None
    warnings: tuple[str, ...] = ()
    source_size: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    seconds: float = 0.0


def plan(inputs: Sequence[Path], out: Path | None, *, scale: float | str, format: str = AUTO) -> Plan:
    """Return which files become which when upscaled `scale` times, or to a size with that `Request.label`.

    A file `photo.jpg` becomes `photo_x4.jpg` beside it or in the folder `out`, or `out` itself if that names a
    picture. A folder becomes the same tree in `out`, or in a folder beside it with "_x4" to its name; hidden
    files, files without the suffix of a picture and symbolic links that lead out of the folder are left alone.
    Raises UsageError, before any work, if an input does not exist or holds no pictures, if two pictures would
    become one file, or if an input would be overwritten.
    """
    if format != AUTO:
        asked, format = format, format_of_suffix(f".{format}") or ""  # so that "jpeg" and "TIF" are understood
        if not format:
            raise UsageError(f"unknown format {asked!r}: choose {AUTO}, {', '.join(FORMATS)}")
    for path in inputs:
        if not os.path.exists(path):  # noqa: PTH110  # Path.exists raises where a folder may not be searched
            raise UsageError(f"{path}: no such file or folder")
    tag = f"_{scale}" if isinstance(scale, str) else f"_x{scale:g}"
    jobs: list[Job] = []
    unreadable: list[tuple[Path, str]] = []
    if out is not None and _names_a_picture(out):
        jobs.append(_job_with_named_target(inputs, out, format))
    elif out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, neither a folder nor the name of a picture; give another -o")
    else:
        for path in inputs:
            if path.is_dir():
                tree = _Tree(path, out or _beside(path, tag))
                jobs += [_job(source, tree.mirrored(source), tag, format) for source in tree.pictures()]
                unreadable += tree.unreadable
            else:
                jobs.append(_job(path, out or path.parent, tag, format))
    jobs = list(dict.fromkeys(jobs))  # a file that is named twice is upscaled once
    if not jobs and not unreadable:
        raise UsageError(f"no pictures in {', '.join(map(str, inputs))}: none ends in {_known_suffixes()}")
    _refuse_collisions(jobs)
    return Plan(tuple(jobs), tuple(unreadable))


def run(
    plan: Plan,
    upscaler: Upscaler,
    *,
    scale: Request | float | None = None,
    quality: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[FileReport]:
    """Carry out `plan` and yield a report as each file is finished; one that fails does not stop the others.

    `scale`: a request as `Upscaler.upscale` takes it. `quality`: 1..100 for lossy formats, None for their
    default. `progress` is called with the finished fraction of the file at hand. Files are written whole or not
    at all.
    """
    for folder, reason in plan.unreadable:
        yield FileReport(folder, None, "failed", f"{folder}: cannot be listed: {reason}")
    taken = {_identity(path) for job in plan.jobs for path in (job.source, job.target)}
    for job in plan.jobs:
        started = time.perf_counter()
        try:
            picture = decode(job.source)
            # Before the inference, which would be lost if its result cannot be written.
            format, target, warnings = _destination(picture, job, upscaler.output_size(picture, scale), taken)
            result = upscaler.upscale(picture, scale, progress)
            _write(target, encode(result, format, quality=quality))
            report = FileReport(
                job.source,
                target,
                "written",
                warnings=(*picture.warnings, *warnings),
                source_size=(picture.width, picture.height),
                size=(result.width, result.height),
            )
        except SrganError as error:
            said = str(error)
            said = said if said.startswith(str(job.source)) else f"{job.source}: {said}"
            report = FileReport(job.source, None, "failed", said)
        except MemoryError:
            said = f"{job.source}: not enough memory; choose a smaller tile with -t, or reduce the picture"
            report = FileReport(job.source, None, "failed", said)
        yield replace(report, seconds=time.perf_counter() - started)


def _destination(
    picture: Picture, job: Job, size: tuple[int, int], taken: set[str]
) -> tuple[str, Path, tuple[str, ...]]:
    """Return format and place of the result of `size` (height, width), and what is to be said of them.

    The place is not `job.target` if the format has to be another than the name of the input promised.
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
        if _identity(target) in taken:
            raise PictureError(f"the result would be {target}, which belongs to another picture; rename one")
        taken.add(_identity(target))
        if not warnings:
            warnings.append(f"the file is in truth {format.upper()}, so the result is named {target.name}")
    return format, target, tuple(warnings)


def _write(target: Path, data: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)
    except OSError as error:
        raise PictureError(f"{target}: cannot be written: {error.strerror}") from error


class _Tree:
    """The pictures below a folder, and where each goes in the same tree below `target`."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder, self.target = folder, target
        self.unreadable: list[tuple[Path, str]] = []
        if os.path.realpath(target) == os.path.realpath(folder):
            raise UsageError(f"{folder}: results among their inputs would be inputs next time; give another -o")

    def mirrored(self, source: Path) -> Path:
        """Return the folder for the result of `source`."""
        return self.target / source.parent.relative_to(self.folder)

    def pictures(self) -> list[Path]:
        """Return the pictures in a stable order; folders that cannot be listed go to `unreadable`."""
        found: list[Path] = []
        own_results = os.path.realpath(self.target)
        for current, folders, names in os.walk(self.folder, onerror=self._note):
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and os.path.realpath(Path(current, name)) != own_results
            )
            found += [Path(current, name) for name in sorted(names) if self._is_wanted(Path(current, name))]
        return found

    def _is_wanted(self, path: Path) -> bool:
        if path.name.startswith(".") or path.suffix.lower() not in PICTURE_SUFFIXES:
            return False
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder))
        return inside or not path.is_symlink()

    def _note(self, error: OSError) -> None:
        self.unreadable.append((Path(error.filename), error.strerror or str(error)))


def _job(source: Path, folder: Path, tag: str, format: str) -> Job:
    suffix = source.suffix.lower()
    stem = source.stem if suffix in PICTURE_SUFFIXES else source.name  # "photo.v2" is all stem
    if format != AUTO:
        suffix = FORMATS[format].suffixes[0]
    elif format_of_suffix(suffix) is None:
        suffix = _RESULT_SUFFIXES.get(suffix, ".png")
    return Job(source, folder / f"{stem}{tag}{suffix}", format)


def _job_with_named_target(inputs: Sequence[Path], out: Path, format: str) -> Job:
    if len(inputs) != 1 or inputs[0].is_dir():
        raise UsageError(f"{out}: names one picture, but the input is more; give a folder with -o")
    named = format_of_suffix(out.suffix)
    if named is None:
        raise UsageError(f"{out}: {out.suffix} cannot be written; choose {', '.join(FORMATS)}")
    if format not in (AUTO, named):
        raise UsageError(f"{out}: the name says {named} but -f says {format}; leave one of them away")
    return Job(inputs[0], out, named)


def _names_a_picture(out: Path) -> bool:
    return out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir()


def _beside(folder: Path, tag: str) -> Path:
    named = folder if folder.name not in ("", "..") else folder.resolve()
    if not named.name:
        raise UsageError(f"{folder}: there is no place beside it for the results; give a folder with -o")
    return named.with_name(named.name + tag)


def _refuse_collisions(jobs: list[Job]) -> None:
    sources = {_identity(job.source) for job in jobs}
    targets: dict[str, Path] = {}
    for job in jobs:
        target = _identity(job.target)
        if target in sources:
            raise UsageError(f"{job.target}: is an input and would be overwritten; give another folder with -o")
        first = targets.setdefault(target, job.source)
        if first != job.source:
            raise UsageError(
                f"{first} and {job.source} would both become {job.target}; rename one or upscale them apart"
            )


def _identity(path: Path) -> str:
    """Return what two spellings of one place have in common; a link at the place itself is not followed."""
    return str(Path(os.path.realpath(path.parent), path.name))


def _known_suffixes() -> str:
    return ", ".join(sorted(PICTURE_SUFFIXES))
