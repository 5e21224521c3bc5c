"""Image folders to a packed cache: pictures decoded once, and mapped into memory from then on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from srgan.errors import TrainingError, UsageError
from srgan.files import TEMPORARY_SUFFIX, write_atomically
from srgan.pictures.guarded.headers import read_header
from srgan.texts import one_line
from srgan.training.config import DataRecipe
from srgan.training.data.sources import (
    ENERGY_BLOCK_PX,
    THUMBNAIL_PX,
    File,
    Source,
    in_order,
    list_files,
    listed,
    try_examine,
)

log = logging.getLogger(__name__)

_FORMAT = 2  # of the cache and of how pixels come into it; part of its key, so that another version packs anew
_BAD_FILES_SHOWN = 5
_FILES_BETWEEN_LOGS = 2000  # a minute or so

# The columns of a cache that have one number for each picture.
_NUMBERS = ("offsets", "heights", "widths", "lr_offsets", "sources", "energy_offsets", "jpeg_qualities")


@dataclass(frozen=True)
class PictureCache:
    """Pictures packed one after another, each (H,W,3) uint8 row by row.

    `pixels`: (bytes,) uint8, memory-mapped. `names`: where each came from. `sha256`: hash of the names and
    contents, so that a run can say what it was trained on. `skipped`: (name, reason) of files left out.

    Of each picture, (count,) int64: `offsets` into `pixels`, `heights`, `widths`; `lr_offsets`: where its shipped
    LR picture begins, -1 without one; `sources`: number of the source; `energy_offsets`: into `energy`, which is
    `Examined.energy` of all pictures one after another; and `jpeg_qualities`, as `thumbnails` and `notes` those of
    `Examined`. `source_weights`: of each source; empty if patches come as positions do. `folders`: the sources.
    `scale`: from LR to HR. `validation`: pictures that runs are judged by instead of some of these.
    """

    pixels: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    lr_offsets: Tensor
    sources: Tensor
    energy_offsets: Tensor
    energy: Tensor
    jpeg_qualities: Tensor
    thumbnails: Tensor
    names: list[str]
    notes: list[str]
    sha256: str
    skipped: tuple[tuple[str, str], ...]
    source_weights: tuple[float, ...] = ()
    folders: tuple[str, ...] = ()
    scale: int = 4
    validation: PictureCache | None = None

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, index: int) -> Tensor:
        """Return picture `index` as (H,W,3) uint8, a view."""
        return self._view(int(self.offsets[index]), int(self.heights[index]), int(self.widths[index]))

    def lr_picture(self, index: int) -> Tensor | None:
        """Return the shipped LR of picture `index` as (H/s,W/s,3) uint8, a view, or None if it has none."""
        if self.lr_offsets[index] < 0:
            return None
        height, width = (int(sizes[index]) // self.scale for sizes in (self.heights, self.widths))
        return self._view(int(self.lr_offsets[index]), height, width)

    def energy_of(self, index: int) -> Tensor:
        """Return `Examined.energy` of picture `index`, (rows,columns) float32 by blocks, a view."""
        high, wide = (-(-int(size[index]) // ENERGY_BLOCK_PX) for size in (self.heights, self.widths))
        first = int(self.energy_offsets[index])
        return self.energy[first : first + high * wide].view(high, wide)

    def subset(self, indices: Sequence[int]) -> PictureCache:
        """Return a cache of these pictures alone, sharing the pixels."""
        keep = torch.as_tensor(list(indices), dtype=torch.int64)
        names, notes = ([texts[i] for i in indices] for texts in (self.names, self.notes))
        columns: dict[str, Any] = {key: getattr(self, key)[keep] for key in (*_NUMBERS, "thumbnails")}
        return replace(self, names=names, notes=notes, **columns)

    def contents_sha256(self) -> str:
        """Return the hash of what the pictures and their LR show, whatever they are called and in which order."""
        digests = []
        for index in range(len(self)):
            shown = [picture for picture in (self.picture(index), self.lr_picture(index)) if picture is not None]
            shapes = str([tuple(picture.shape) for picture in shown]).encode()
            digests.append(
                hashlib.sha256(b"".join([shapes, *(picture.numpy().data for picture in shown)])).digest()
            )
        return hashlib.sha256(b"".join(sorted(digests))).hexdigest()

    def _view(self, start: int, height: int, width: int) -> Tensor:
        return self.pixels[start : start + height * width * 3].view(height, width, 3)


def build_cache(
    folders: Sequence[Source | Path], cache_folder: Path, scale: int = 4, *, max_bad_share: float = 1.0
) -> PictureCache:
    """Decode every picture of `folders` once; later calls with the same files only map the result.

    Unreadable, unmatched and vanished pictures are counted, named in the log and left out. The pixels are stored
    under the hash of their content, the index under that of the paths, sizes and modification times, so a changed
    folder is packed anew. The index is written last and whole, so a kill leaves nothing that is trusted later; one
    process packs at a time. `scale`: of the shipped LR, and of the runs that the cache is for. Raises UsageError
    for a folder that does not exist, or if more than `max_bad_share` of the files had to be left out, or all;
    TrainingError if the cache cannot be written.
    """
    sources = _as_sources(folders)
    files = list_files(sources, scale)
    index_path = _index_path(files, cache_folder)
    try:
        cache = _load(index_path, scale)
        if cache is None:
            cache_folder.mkdir(parents=True, exist_ok=True)
            with locked(cache_folder) as alone:
                if alone:
                    _sweep(cache_folder)
                log.info("decoding %d files into %s", len(files), cache_folder)
                cache = _load(index_path, scale) or pack(files, cache_folder)
    except OSError as error:
        raise TrainingError(
            f"{cache_folder} cannot hold the decoded pictures: {error.strerror or error}; make room or choose "
            "another --run"
        ) from error
    _refuse_if_bad(cache, max_bad_share, sources)
    names = tuple(":".join(str(part) for part in (of.folder, of.lr_folder) if part) for of in sources)
    return replace(weighted(cache, sources), folders=names)


def pack(files: Sequence[File], folder: Path) -> PictureCache:
    """Decode `files` into `folder`, whatever is there, and map the result; bad files end up in its `skipped`.

    Raises OSError if the folder cannot hold them.
    """
    _refuse_without_room(files, folder)
    temporary = folder / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        with temporary.open("xb") as packed:
            header, columns, _ = _decode_all(files, packed)
            packed.flush()
            os.fsync(packed.fileno())
            header["bytes"] = packed.tell()
        # Named by content: the same pictures under other paths or dates share one file, and two processes that
        # saw different ones never share it.
        header["pixels"] = f"{header['sha256'][:32]}.pixels"
        temporary.replace(folder / header["pixels"])
    finally:
        temporary.unlink(missing_ok=True)
    text = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
    index_path = _index_path(files, folder)
    write_atomically(index_path, save({**columns, "header": text}))
    cache = _load(index_path, files[0].scale)
    if cache is None:
        raise OSError(f"{index_path} could not be read back")
    return cache


def _refuse_without_room(files: Sequence[File], folder: Path) -> None:
    """Raise OSError if the disk has less room than the pixels take, as far as their headers tell."""
    needed = sum(_pixel_bytes(path) for file in files for path in (file.path, file.lr_path) if path is not None)
    free = shutil.disk_usage(folder).free
    if needed > free:
        text = f"{len(files)} pictures take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, text)


def _pixel_bytes(path: Path) -> int:
    try:
        with path.open("rb") as file:
            header = read_header(file, max_scans=1)
    except OSError:
        return 0
    return 3 * header.width * header.height if header is not None and not header.truncated else 0


def survey(files: Sequence[File]) -> tuple[PictureCache, list[File]]:
    """Decode `files` as `build_cache` does but keep no pixels; return the rest, and the files that can be used."""
    header, columns, kept = _decode_all(files, None)
    return _assembled(header, columns, torch.empty(0, dtype=torch.uint8), files[0].scale), kept


def weighted(cache: PictureCache, sources: Sequence[Source]) -> PictureCache:
    """Return `cache` with the weights of `sources`; one without a weight has 1 beside others."""
    if all(source.weight is None for source in sources):
        return cache
    weights = tuple(1.0 if source.weight is None else source.weight for source in sources)
    sha256 = hashlib.sha256(f"{cache.sha256} {weights}".encode()).hexdigest()  # it is another training set
    return replace(cache, source_weights=weights, sha256=sha256)


def split(cache: PictureCache, recipe: DataRecipe) -> tuple[PictureCache, PictureCache]:
    """Return (training, validation) pictures; validation is `held_out` of them, chosen by `split_seed`.

    Never more than a fifth is held out, so that a handful of pictures still trains; none, where `cache` brings its
    validation along.
    """
    if cache.validation is not None:
        return cache, cache.validation
    count = len(cache)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.split_seed)).tolist()
    held = min(recipe.held_out, count // 5)
    return cache.subset(sorted(order[held:])), cache.subset(sorted(order[:held]))


def _as_sources(folders: Sequence[Source | Path]) -> list[Source]:
    return [folder if isinstance(folder, Source) else Source(folder) for folder in folders]


def _index_path(files: Sequence[File], folder: Path) -> Path:
    """Named by the format and the paths, sizes, modes and modification times; of pairs by their scale, too."""
    stamps: list[Any] = [_FORMAT, *{file.scale for file in files if file.lr_path is not None}]
    for file in files:
        for path in (file.path, file.lr_path):
            stamps.append([file.source, *_stamp(path)] if path else None)
    return folder / f"{hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:32]}.index"


def _stamp(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except OSError:  # vanished since it was listed; reading it will say so
        return [str(path.absolute())]
    # The mode too: a file that could not be read is read again once it may be.
    return [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_mode]


def _load(index_path: Path, scale: int) -> PictureCache | None:
    """Map a packed cache for runs of `scale`, or return None if there is none, or not the whole of one."""
    try:
        with safe_open(index_path, framework="pt") as index:
            columns = {name: index.get_tensor(name) for name in index.keys()}  # noqa: SIM118 - not a dict
        header = json.loads(columns.pop("header").numpy().tobytes())
        path = index_path.parent / header["pixels"]
        if path.stat().st_size != header["bytes"]:
            return None
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return None
    pixels = _mapped(path) if header["bytes"] else torch.empty(0, dtype=torch.uint8)
    return _assembled(header, columns, pixels, scale)


def _mapped(path: Path) -> Tensor:
    """Map a file as (bytes,) uint8; it may be larger than memory."""
    # Read-only, because a mapping that could be written to is refused beyond memory and swap (copy on write would
    # need room for all of it). torch warns that it has no read-only tensors; nothing writes to this one.
    packed = np.memmap(path, dtype=np.uint8, mode="r")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(packed)


def _assembled(header: dict[str, Any], columns: dict[str, Tensor], pixels: Tensor, scale: int) -> PictureCache:
    fields: dict[str, Any] = {**columns, **{key: header[key] for key in ("names", "notes", "sha256")}}
    return PictureCache(pixels, skipped=tuple(map(tuple, header["skipped"])), scale=scale, **fields)


def _decode_all(
    files: Sequence[File], packed: IO[bytes] | None
) -> tuple[dict[str, Any], dict[str, Tensor], list[File]]:
    """Examine all files in parallel, write the pixels in order to `packed` if given, and say which can be used."""
    kept: list[File] = []
    digest, skipped, names, notes = hashlib.sha256(), [], [], []
    rows: list[tuple[int, ...]] = []
    energies, thumbnails = [np.empty(0, np.float32)], []
    offset = energy_offset = 0
    for number, (file, picture) in enumerate(in_order(try_examine, files), start=1):
        if number % _FILES_BETWEEN_LOGS == 0:
            log.info("%d of %d files decoded", number, len(files))
        if isinstance(picture, str):
            skipped.append((file.path.name, picture))
            continue
        height, width = picture.hr.shape[:2]
        lr_offset = -1 if picture.lr is None else offset + picture.hr.nbytes
        rows.append((offset, height, width, lr_offset, file.source, energy_offset, picture.jpeg_quality))
        for pixels in (picture.hr, picture.lr):
            if pixels is not None:
                data = pixels.data
                digest.update(
                    f"{file.path.name} {hashlib.sha256(data).hexdigest()}\n".encode(errors="surrogateescape")
                )
                offset += pixels.nbytes
                if packed is not None:
                    packed.write(data)
        energies.append(picture.energy.ravel())
        energy_offset += picture.energy.size
        thumbnails.append(picture.thumbnail)
        names.append(file.path.name)
        kept.append(file)
        notes.append(picture.note)
    table = torch.tensor(rows, dtype=torch.int64).view(-1, len(_NUMBERS))
    columns = {key: column.contiguous() for key, column in zip(_NUMBERS, table.unbind(1), strict=True)}
    columns["energy"] = torch.from_numpy(np.concatenate(energies))
    columns["thumbnails"] = torch.from_numpy(
        np.array(thumbnails, dtype=np.uint8).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)
    )
    header = {"names": names, "notes": notes, "skipped": skipped, "sha256": digest.hexdigest()}
    return header, columns, kept


@contextlib.contextmanager
def locked(folder: Path, *, waits: bool = True) -> Iterator[bool]:
    """Hold `folder` against other processes that do so, and yield whether that could be done.

    The lock falls when this process does, however it ends. Without one, two processes may do the same work twice.
    `waits`: until no other one has it; else TimeoutError is raised.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=-1 if waits else 0)
    except Timeout:
        raise
    except (OSError, NotImplementedError):
        # Some network file systems have no locks. Whatever else is wrong with the folder (full, read-only, gone)
        # is told, with its remedy, by the first write into it: nothing is hidden here.
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Remove what killed processes left; only for who holds the folder alone."""
    for left_over in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        left_over.unlink()


def _refuse_if_bad(cache: PictureCache, max_bad_share: float, sources: Sequence[Source]) -> None:
    bad, total = len(cache.skipped), len(cache.skipped) + len(cache)
    if not bad:
        return
    some = "; ".join(one_line(reason) for _, reason in cache.skipped[:_BAD_FILES_SHOWN])
    message = f"{bad} of {total} files below {listed(sources)} cannot be used: {some}"
    message += "; ..." if bad > _BAD_FILES_SHOWN else ""
    if not len(cache):
        raise UsageError(f"none of the {total} files below {listed(sources)} could be read as a picture: {some}")
    if bad > max_bad_share * total:
        raise UsageError(
            f"{message}. That is more than data.max_bad_share = {max_bad_share:g} allows: is it the right folder?"
        )
    log.warning("left out: %s", message)
