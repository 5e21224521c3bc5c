"""Where training pictures come from: folders, pairs of folders, and what is learnt from looking at each file."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from srgan import pictures
from srgan.errors import PictureError, UsageError
from srgan.machine import available_cores
from srgan.networks.generator import STEPS
from srgan.texts import one_line

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")

ENERGY_BLOCK_PX = 32  # a third of a usual patch: fine enough to find detail, a thousandth of the pixels' bytes
THUMBNAIL_PX = 16


@dataclass(frozen=True)
class Source:
    """A folder of HR pictures, searched recursively.

    `lr_folder`: where each one's shipped LR picture lies, under the same path, as NAME or, at ×4, NAMEx4
    with any picture suffix and exactly the scale's part of the size; these patches are not degraded. `weight`: how
    often patches come from this source, relative to the others; None: as its share of the positions that a patch
    can have.
    """

    folder: Path
    lr_folder: Path | None = None
    weight: float | None = None


@dataclass(frozen=True)
class File:
    """One HR picture to be read, and its shipped LR picture, `scale` times smaller, if it has one."""

    path: Path
    source: int
    lr_path: Path | None = None
    scale: int = 4


@dataclass(frozen=True, eq=False)
class Examined:
    """One usable picture.

    `hr`: (H,W,3) uint8; `lr`: (H/s,W/s,3) uint8 or None. `energy`: mean gradient magnitude of each block of
    `ENERGY_BLOCK_PX`, in grey levels, float32. `thumbnail`: (16,16) uint8. `jpeg_quality`: 1..100, 0 if it is no
    JPEG file. `note`: what is unusual about it, and what was not taken as it is, or "".
    """

    hr: Pixels
    lr: Pixels | None
    energy: npt.NDArray[np.float32]
    thumbnail: Pixels
    jpeg_quality: int
    note: str


def parse_source(text: str) -> Source:
    """Read DIR, DIR=WEIGHT, HR_DIR:LR_DIR or HR_DIR:LR_DIR=WEIGHT; a folder of exactly that name comes first.

    Raises UsageError if there is no such folder or the weight is not a number above 0.
    """
    if _is_folder(text):
        return Source(Path(text))
    folders, equals, number = text.rpartition("=")
    if equals:
        unweighted = _folders_in(folders)
        if unweighted:
            return replace(unweighted, weight=_weight_in(number, text))
    source = _folders_in(text)
    if source is None:
        raise UsageError(f"{text} is not a folder: give a folder of pictures, as DIR, DIR=WEIGHT or HR_DIR:LR_DIR")
    return source


def list_files(sources: Sequence[Source], scale: int = 4) -> list[File]:
    """Return every picture of `sources`, by source and then by path; a pair is found when its LR file is.

    `scale`: of the pairs, and what the names of their LR may end with.

    What training runs below the folders have written is left out, and named in the log: a run inside its own data
    would learn from its sample sheets. Raises UsageError for a folder that does not exist or if there is no
    picture at all.
    """
    files: list[File] = []
    seen: set[Path] = set()  # folders that overlap must not bring a picture into training and validation
    runs: set[Path] = set()
    for number, source in enumerate(sources):
        paths = [path for path in _picture_paths(source.folder, runs) if path.resolve() not in seen]
        seen.update(path.resolve() for path in paths)
        if source.lr_folder is None:
            files += [File(path, number, scale=scale) for path in paths]
            continue
        shipped = {_stem(path, source.lr_folder): path for path in _picture_paths(source.lr_folder, runs)}
        for path in paths:
            if path.is_relative_to(source.lr_folder) and not source.folder.is_relative_to(source.lr_folder):
                continue  # the LR folder lies inside the HR folder
            stem = _stem(path, source.folder)
            missing = source.lr_folder / f"{stem}{path.suffix}"
            # One of another scale, last of all, is told as such when it is read.
            names = (stem, *(f"{stem}x{of}" for of in (scale, *STEPS)))
            lr_path = next((shipped[name] for name in names if name in shipped), missing)
            files.append(File(path, number, lr_path, scale))
    if runs:
        log.warning(
            "left out, as written by training runs: %s", ", ".join(one_line(str(run)) for run in sorted(runs))
        )
    if not files:
        raise UsageError(
            f"no pictures below {listed(sources)}: expected {', '.join(sorted(pictures.PICTURE_SUFFIXES))}"
        )
    return files


def examine(file: File) -> Examined:
    """Decode one picture and measure it. Raises PictureError if it or its pair cannot be used."""
    picture = pictures.decode(file.path)
    hr, changed = pictures.flattened(picture)
    notes = [*(["grey"] if picture.is_grey else []), *changed, *picture.warnings]
    lr = None
    if file.lr_path is not None:
        if not file.lr_path.exists():
            raise PictureError(f"{file.path}: has no LR picture: {file.lr_path} does not exist")
        shipped = pictures.decode(file.lr_path)
        lr, changed = pictures.flattened(shipped)
        notes += [f"LR: {words}" for words in (*changed, *shipped.warnings)]
        if hr.shape != (file.scale * lr.shape[0], file.scale * lr.shape[1], 3):
            raise PictureError(
                f"{file.path}: is {hr.shape[1]}x{hr.shape[0]} px, not {file.scale} times its LR picture "
                f"{file.lr_path.name} of {lr.shape[1]}x{lr.shape[0]} px{_remedy(hr, lr)}"
            )
    green = np.ascontiguousarray(hr[..., 1])  # stands for luma, and is a third of the work
    return Examined(
        hr=hr,
        lr=lr,
        energy=_energy(green),
        thumbnail=_thumbnail(green),
        jpeg_quality=(pictures.jpeg_quality(file.path) or 0) if picture.format == "jpg" else 0,
        note=", ".join(notes),
    )


def _remedy(hr: Pixels, lr: Pixels) -> str:
    """Say which scale a pair is of, if it is of one that there is."""
    scale = next((scale for scale in STEPS if hr.shape[:2] == (scale * lr.shape[0], scale * lr.shape[1])), None)
    return f": for x{scale} set generator.scale={scale}" if scale else f"; scales are {', '.join(map(str, STEPS))}"


def try_examine(file: File) -> Examined | str:
    """What `examine` finds, or why the picture is left out."""
    try:
        return examine(file)
    except (PictureError, OSError, MemoryError) as error:
        return str(error) or f"{file.path}: not enough memory"


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, function(item)) in the order of `items`, computed by threads a few items ahead."""
    workers = workers or min(8, available_cores())
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 2 * workers:  # so many decoded pictures are in memory at once, and no more
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def listed(sources: Sequence[Source]) -> str:
    """Return the folders of `sources` for a message."""
    return ", ".join(one_line(str(source.folder)) for source in sources)


def _folders_in(text: str) -> Source | None:
    if _is_folder(text):
        return Source(Path(text))
    parts = text.split(":")  # a colon may also be in a name
    for cut in range(1, len(parts)):
        hr, lr = ":".join(parts[:cut]), ":".join(parts[cut:])
        if _is_folder(hr) and _is_folder(lr):
            return Source(Path(hr), Path(lr))
    return None


def _is_folder(text: str) -> bool:
    return bool(text) and Path(text).is_dir()  # the empty path is the working folder, which nobody meant


def _weight_in(number: str, text: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise UsageError(f"{text}: the weight must be a number above 0, not {number!r}")
    return weight


def _picture_paths(folder: Path, runs: set[Path]) -> list[Path]:
    """Return the pictures below `folder`, without those of training runs, whose folders are added to `runs`."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give a folder of pictures")
    paths = list(folder.rglob("*"))
    # A run may have been told to write among the pictures themselves: then its samples alone are left out.
    written = {
        path.parent / "samples" if path.parent == folder else path.parent for path in paths if _is_log_of_run(path)
    }
    runs |= written
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in pictures.PICTURE_SUFFIXES
        and not path.name.startswith(".")
        and written.isdisjoint(path.parents)
        and _may_be_read(path)
    )


def _is_log_of_run(path: Path) -> bool:
    """Whether `path` is what training leaves in each of its folders, beside the recipe."""
    return path.name == "metrics.jsonl" and path.with_name("recipe.json").exists()


def _may_be_read(path: Path) -> bool:
    """Whether `path` is a file; true also if that cannot be told, so that it is named and not passed over."""
    try:
        return path.is_file()
    except OSError:
        return True


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _energy(grey: Pixels) -> npt.NDArray[np.float32]:
    """Mean |horizontal| + |vertical| difference of each block of ENERGY_BLOCK_PX, in grey levels.

    The magnitude and not its square: that would send all patches to a few hard edges.
    """
    height, width = grey.shape
    side = ENERGY_BLOCK_PX
    rows, columns = -(-height // side), -(-width // side)
    change = np.zeros((rows * side, columns * side), np.uint16)  # a row of a block sums to 32 · 510 at most
    inner = change[:height, :width]
    inner[:, 1:] = np.maximum(grey[:, 1:], grey[:, :-1]) - np.minimum(grey[:, 1:], grey[:, :-1])
    inner[1:] += np.maximum(grey[1:], grey[:-1]) - np.minimum(grey[1:], grey[:-1])
    sums = change.reshape(rows, side, -1).sum(1, dtype=np.uint16).reshape(rows, columns, side).sum(2)
    areas = np.outer(_parts(height, rows, side), _parts(width, columns, side))
    return np.asarray(sums / areas, dtype=np.float32)


def _parts(size: int, count: int, side: int) -> npt.NDArray[np.int64]:
    """Lengths of the `count` blocks of `side` that `size` is cut into; the last may be shorter."""
    return np.minimum(side, size - side * np.arange(count))


def _thumbnail(grey: Pixels) -> Pixels:
    """Reduce to (16,16) by area, from at most some hundred rows and columns: more change nothing."""
    step = max(1, min(grey.shape) // (16 * THUMBNAIL_PX))
    grey = grey[::step, ::step]
    tops, lefts = (np.arange(THUMBNAIL_PX) * size // THUMBNAIL_PX for size in grey.shape)
    sums = np.add.reduceat(np.add.reduceat(grey, tops, axis=0, dtype=np.int64), lefts, axis=1)
    heights = np.maximum(np.diff(tops, append=grey.shape[0]), 1)  # 0 in pictures smaller than a thumbnail,
    widths = np.maximum(np.diff(lefts, append=grey.shape[1]), 1)  # where the next pixel stands in
    return (sums / np.outer(heights, widths)).round().astype(np.uint8)
