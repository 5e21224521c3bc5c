"""Image folders to training patches: pictures decoded once into a packed cache, patches gathered from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from srgan.errors import TrainingError, UsageError
from srgan.files import TEMPORARY_SUFFIX, write_atomically
from srgan.training.degradation import Degradation
from srgan.training.models import SCALE
from srgan.training.sources import (
    ENERGY_BLOCK_PX,
    THUMBNAIL_PX,
    File,
    Source,
    in_order,
    list_files,
    listed,
    shown,
    try_examine,
)

log = logging.getLogger(__name__)

_FORMAT = 1  # of the cache; part of its key, so that another version packs anew
_BAD_FILES_SHOWN = 5
_FILES_BETWEEN_WORDS = 2000  # a minute or so


@dataclass(frozen=True)
class PictureCache:
    """Pictures packed one after another, each (H,W,3) uint8 row by row.

    `pixels`: (bytes,) uint8, memory-mapped. `offsets`, `heights`, `widths`: (count,) int64. `names`: where each
    came from. `sha256`: hash of the names and contents, so that a run can say what it was trained on.

    What `build_cache` adds, each (count, ...): `lr_offsets`: where the shipped LR picture begins in `pixels`, -1
    without one. `sources`: number of the source. `energy_offsets`: into `energy`, `Examined.energy` of all
    pictures one after another. `thumbnails`, `jpeg_qualities`, `notes`: as in `Examined`. `source_weights`: one
    for each source, or None if patches come as positions do. `skipped`: (name, reason) of files left out.
    """

    pixels: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    names: list[str]
    sha256: str
    lr_offsets: Tensor | None = None
    sources: Tensor | None = None
    energy_offsets: Tensor | None = None
    energy: Tensor | None = None
    thumbnails: Tensor | None = None
    jpeg_qualities: Tensor | None = None
    notes: list[str] | None = None
    source_weights: tuple[float, ...] | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, index: int) -> Tensor:
        """Return picture `index` as (H,W,3) uint8, a view."""
        return self._view(int(self.offsets[index]), int(self.heights[index]), int(self.widths[index]))

    def lr_picture(self, index: int) -> Tensor | None:
        """Return the shipped LR of picture `index` as (H/4,W/4,3) uint8, a view, or None if it has none."""
        if self.lr_offsets is None or self.lr_offsets[index] < 0:
            return None
        height, width = int(self.heights[index]) // SCALE, int(self.widths[index]) // SCALE
        return self._view(int(self.lr_offsets[index]), height, width)

    def subset(self, indices: Sequence[int]) -> PictureCache:
        """Return a cache of these pictures alone, sharing the pixels."""
        keep = torch.as_tensor(list(indices), dtype=torch.int64)
        columns: dict[str, Any] = {}
        for name in (
            *("offsets", "heights", "widths", "lr_offsets", "sources"),
            *("energy_offsets", "thumbnails", "jpeg_qualities"),
        ):
            column = getattr(self, name)
            columns[name] = None if column is None else column[keep]
        notes = None if self.notes is None else [self.notes[i] for i in keep.tolist()]
        return replace(self, names=[self.names[i] for i in keep.tolist()], notes=notes, **columns)

    def _view(self, start: int, height: int, width: int) -> Tensor:
        return self.pixels[start : start + height * width * 3].view(height, width, 3)


class Patches:
    """Random HR patches with the eight dihedral flips, every position of every picture equally likely.

    Weights of sources and `energy_weighting` change that: this share of the patches is drawn in proportion to
    the gradient magnitude around them, the rest evenly. Pictures with a shipped LR are cut on its grid.

    One index computation gathers a whole batch from the packed cache, on the CPU from the memory map, or on a
    GPU from its own memory when `device` is one and has room. All randomness comes from `random`, a CPU generator
    that the checkpoint stores.
    """

    def __init__(
        self,
        cache: PictureCache,
        patch_px: int,
        device: torch.device,
        random: torch.Generator,
        energy_weighting: float = 0.0,
    ) -> None:
        too_small = int(((cache.heights < patch_px) | (cache.widths < patch_px)).sum())
        if too_small:
            log.warning("%d pictures are smaller than a patch of %d px and are not used", too_small, patch_px)
        if too_small == len(cache):
            raise UsageError(f"no training picture is at least {patch_px} px on both sides: add larger pictures")
        self._cache, self._patch_px, self._device, self._random = cache, patch_px, device, random
        self._lr_offsets = torch.full((len(cache),), -1) if cache.lr_offsets is None else cache.lr_offsets
        self._steps = torch.where(self._lr_offsets < 0, 1, SCALE)
        self._cells = _Cells.of(cache, patch_px, self._steps, energy_weighting)
        self._ends = self._cells.mass.cumsum(0)
        self._pixels = cache.pixels.to(device) if _fits(cache.pixels, device) else cache.pixels

    def draw(self, count: int) -> Tensor:
        """Return (count,3,P,P) float32 in [0,1] on the device, channels_last."""
        which, top, left, flips = self._places(count)
        return self._gather(
            self._cache.offsets[which], self._cache.widths[which], top, left, flips, self._patch_px
        )

    def pairs(self, count: int, degrade: Degradation) -> tuple[Tensor, Tensor]:
        """Return LR (count,3,h,w) and HR (count,3,4h,4w) in [0,1] on the device, of the same places.

        4h is the patch without the margin of `degrade`, which makes LR where no LR picture was shipped.
        """
        which, top, left, flips = self._places(count)
        cache, margin = self._cache, degrade.margin_hr_px
        outer = self._gather(cache.offsets[which], cache.widths[which], top, left, flips, self._patch_px)
        shipped = (self._lr_offsets[which] >= 0).nonzero()[:, 0]
        if not len(shipped):
            return degrade(outer)
        given = self._gather(
            self._lr_offsets[which][shipped],
            cache.widths[which][shipped] // SCALE,
            (top[shipped] + margin) // SCALE,
            (left[shipped] + margin) // SCALE,
            flips[shipped],
            (self._patch_px - 2 * margin) // SCALE,
        )
        if len(shipped) == count:
            return given, outer[..., margin : self._patch_px - margin, margin : self._patch_px - margin]
        lr, hr = degrade(outer)
        return lr.index_copy(0, shipped.to(lr.device), given), hr

    def _places(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw (count,) each of: picture, top, left, flips in 0..7."""
        # float64: 53 bits place a patch evenly among all positions of a million pictures.
        chance = torch.rand(4, count, dtype=torch.float64, generator=self._random)
        cells = self._cells
        cell = torch.searchsorted(self._ends, chance[0] * self._ends[-1], right=True).clamp(
            max=len(self._ends) - 1
        )
        which = cells.picture[cell]
        step = self._steps[which]
        top = cells.top[cell] + step * (chance[1] * cells.rows[cell]).long()
        left = cells.left[cell] + step * (chance[2] * cells.columns[cell]).long()
        return which, top, left, (chance[3] * 8).long()

    def _gather(
        self, offsets: Tensor, widths: Tensor, top: Tensor, left: Tensor, flips: Tensor, side_px: int
    ) -> Tensor:
        """Cut (count,3,side,side) float32 in [0,1]; flips and transposition are index arithmetic."""
        device = self._pixels.device
        offsets, widths, top, left, flips = (
            column.view(-1, 1, 1).to(device) for column in (offsets, widths, top, left, flips)
        )
        grid, last = torch.arange(side_px, device=device), side_px - 1
        down, across = grid.view(1, -1, 1), grid.view(1, 1, -1)
        transposed, upside_down, mirrored = ((flips >> bit) & 1 == 1 for bit in range(3))
        y, x = torch.where(transposed, across, down), torch.where(transposed, down, across)
        y, x = torch.where(upside_down, last - y, y), torch.where(mirrored, last - x, x)
        first = offsets + 3 * ((top + y) * widths + left + x)
        index = first.unsqueeze(-1) + torch.arange(3, device=device)
        patches = self._pixels[index].to(self._device)  # (count,side,side,3)
        return patches.permute(0, 3, 1, 2).float().div_(255)  # permuted NHWC is channels_last as it stands


@dataclass(frozen=True)
class _Cells:
    """Rectangles of patch positions with one density each: rows by columns of them from (top, left)."""

    picture: Tensor
    top: Tensor
    left: Tensor
    rows: Tensor
    columns: Tensor
    mass: Tensor  # float64

    @staticmethod
    def of(cache: PictureCache, patch_px: int, steps: Tensor, energy_weighting: float) -> _Cells:
        """Return the cells of all pictures that hold a patch; `steps`: (count,) pixels between positions."""
        if energy_weighting and (cache.energy is None or cache.energy_offsets is None):
            raise ValueError("energy weighting needs a cache made by build_cache")
        usable = ((cache.heights >= patch_px) & (cache.widths >= patch_px)).nonzero()[:, 0]
        step = steps[usable]
        rows = (cache.heights[usable] - patch_px) // step + 1
        columns = (cache.widths[usable] - patch_px) // step + 1
        side = ENERGY_BLOCK_PX // step if energy_weighting else torch.maximum(rows, columns)
        high, wide = (rows + side - 1) // side, (columns + side - 1) // side
        picture = torch.repeat_interleave(torch.arange(len(usable)), high * wide)
        place = torch.arange(len(picture)) - ((high * wide).cumsum(0) - high * wide)[picture]
        i, j = place // wide[picture], place % wide[picture]
        cells = _Cells(
            picture=usable[picture],
            top=i * (side * step)[picture],
            left=j * (side * step)[picture],
            rows=torch.minimum(side[picture], rows[picture] - i * side[picture]),
            columns=torch.minimum(side[picture], columns[picture] - j * side[picture]),
            mass=torch.empty(0),
        )
        mass = (cells.rows * cells.columns * step[picture] ** 2).double()
        detail = mass * _energies(cache, cells, patch_px) if energy_weighting else mass
        if cache.source_weights is None or cache.sources is None:
            return replace(cells, mass=_mixed(mass, detail, energy_weighting))
        sources = cache.sources[cells.picture]
        for source, weight in enumerate(cache.source_weights):
            of_source = sources == source
            mass[of_source] = weight * _mixed(mass[of_source], detail[of_source], energy_weighting)
        if not mass.sum() > 0:
            raise UsageError("no source with a weight above 0 has a picture as large as a patch: add larger ones")
        return replace(cells, mass=mass)


def _mixed(mass: Tensor, detail: Tensor, share: float) -> Tensor:
    """Blend two masses, each made to sum to 1; pictures without any detail are drawn evenly."""
    even = mass / mass.sum()
    return even if not detail.sum() > 0 else (1 - share) * even + share * detail / detail.sum()


def _energies(cache: PictureCache, cells: _Cells, patch_px: int) -> Tensor:
    """Mean energy of the blocks that the patches of each cell touch, (cells,) float64."""
    assert cache.energy is not None  # noqa: S101 - checked by the caller
    assert cache.energy_offsets is not None  # noqa: S101 - likewise
    reach = (ENERGY_BLOCK_PX + patch_px - 2) // ENERGY_BLOCK_PX + 1  # blocks under the patches of a cell
    numbers, counts = np.unique(cells.picture.numpy(), return_counts=True)
    ends, energies = counts.cumsum(), []
    for picture, begin, end in zip(numbers.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True):
        high, wide = (-(-int(size[picture]) // ENERGY_BLOCK_PX) for size in (cache.heights, cache.widths))
        first = int(cache.energy_offsets[picture])
        sums = torch.zeros(high + 1, wide + 1, dtype=torch.float64)
        blocks = cache.energy[first : first + high * wide].view(high, wide)
        sums[1:, 1:] = blocks.double().cumsum(0).cumsum(1)
        i, j = cells.top[begin:end] // ENERGY_BLOCK_PX, cells.left[begin:end] // ENERGY_BLOCK_PX
        bottom, right = (i + reach).clamp(max=high), (j + reach).clamp(max=wide)
        total = sums[bottom, right] - sums[i, right] - sums[bottom, j] + sums[i, j]
        energies.append((total / ((bottom - i) * (right - j))).clamp(min=0))
    return torch.cat(energies)


def _fits(pixels: Tensor, device: torch.device) -> bool:
    """Whether the cache may live on `device`; half of what a GPU has free is left to the networks."""
    return device.type == "cpu" or (
        device.type == "cuda" and pixels.numel() <= torch.cuda.mem_get_info(device)[0] // 2
    )


def build_cache(
    folders: Sequence[Source | Path], cache_folder: Path, *, max_bad_share: float = 1.0
) -> PictureCache:
    """Decode every picture of `folders` once; later calls with the same files only map the result.

    Unreadable, unmatched and vanished pictures are counted, named in the log and left out. The pixels are stored
    under the hash of their content, the index under that of the paths, sizes and modification times, so a changed
    folder is packed anew. The index is written last and whole, so a kill leaves nothing that is trusted later;
    one process packs at a time. Raises UsageError for a folder that does not exist, or if more than
    `max_bad_share` of the files had to be left out, or all; TrainingError if the cache cannot be written.
    """
    sources = _as_sources(folders)
    files = list_files(sources)
    index_path = _index_path(files, cache_folder)
    try:
        cache = _load(index_path)
        if cache is None:
            cache_folder.mkdir(parents=True, exist_ok=True)
            with _alone(cache_folder) as alone:
                if alone:
                    _sweep(cache_folder)
                log.info("decoding %d files into %s", len(files), cache_folder)
                cache = _load(index_path) or pack(files, cache_folder)
    except OSError as error:
        raise TrainingError(
            f"{cache_folder} cannot hold the decoded pictures: {error.strerror or error}; make room or choose "
            "another --run"
        ) from error
    _refuse_if_bad(cache, max_bad_share, sources)
    return weighted(cache, sources)


def pack(files: Sequence[File], folder: Path) -> PictureCache:
    """Decode `files` into `folder`, whatever is there, and map the result; bad files end up in its `skipped`.

    Raises OSError if the folder cannot hold them.
    """
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
    cache = _load(index_path)
    if cache is None:
        raise OSError(f"{index_path} could not be read back")
    return cache


def survey(files: Sequence[File]) -> tuple[PictureCache, list[File]]:
    """Decode `files` as `build_cache` does but keep no pixels; return the rest, and the files that can be used."""
    header, columns, kept = _decode_all(files, None)
    return _assembled(header, columns, torch.empty(0, dtype=torch.uint8)), kept


def weighted(cache: PictureCache, sources: Sequence[Source]) -> PictureCache:
    """Return `cache` with the weights of `sources`; one without a weight has 1 beside others."""
    if all(source.weight is None for source in sources):
        return cache
    weights = tuple(1.0 if source.weight is None else source.weight for source in sources)
    sha256 = hashlib.sha256(f"{cache.sha256} {weights}".encode()).hexdigest()  # it is another training set
    return replace(cache, source_weights=weights, sha256=sha256)


def split(cache: PictureCache, held_out: int, seed: int) -> tuple[PictureCache, PictureCache]:
    """Return (training, validation) pictures; validation is `held_out` of them, chosen by `seed`.

    Never more than a fifth is held out, so that a handful of pictures still trains.
    """
    training, validation = split_numbers(len(cache), held_out, seed)
    return cache.subset(training), cache.subset(validation)


def split_numbers(count: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Return which of `count` pictures `split` puts where."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    held = min(held_out, count // 5)
    return sorted(order[held:]), sorted(order[:held])


def _as_sources(folders: Sequence[Source | Path]) -> list[Source]:
    return [folder if isinstance(folder, Source) else Source(folder) for folder in folders]


def _index_path(files: Sequence[File], folder: Path) -> Path:
    """Named by the format and the paths, sizes, modes and modification times."""
    stamps: list[Any] = [_FORMAT]
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


def _load(index_path: Path) -> PictureCache | None:
    """Map a packed cache, or return None if there is none, or not the whole of one."""
    try:
        with safe_open(index_path, framework="pt") as index:
            columns = {name: index.get_tensor(name) for name in index.keys()}  # noqa: SIM118 - not a dict
        header = json.loads(columns.pop("header").numpy().tobytes())
        path = index_path.parent / header["pixels"]
        if path.stat().st_size != header["bytes"]:
            return None
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return None
    return _assembled(header, columns, _mapped(path) if header["bytes"] else torch.empty(0, dtype=torch.uint8))


def _mapped(path: Path) -> Tensor:
    """Map a file as (bytes,) uint8; it may be larger than memory."""
    # Read-only, because a mapping that could be written to is refused beyond memory and swap (copy on write would
    # need room for all of it). torch warns that it has no read-only tensors; nothing writes to this one.
    packed = np.memmap(path, dtype=np.uint8, mode="r")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(packed)


def _assembled(header: dict[str, Any], columns: dict[str, Tensor], pixels: Tensor) -> PictureCache:
    fields: dict[str, Any] = {**columns, **{key: header[key] for key in ("names", "notes", "sha256")}}
    return PictureCache(pixels, skipped=tuple(map(tuple, header["skipped"])), **fields)


def _decode_all(
    files: Sequence[File], packed: IO[bytes] | None
) -> tuple[dict[str, Any], dict[str, Tensor], list[File]]:
    """Examine all files in parallel, write the pixels in order to `packed` if given, and say which can be used."""
    kept: list[File] = []
    digest, skipped, names, notes = hashlib.sha256(), [], [], []
    rows: list[tuple[int, ...]] = []
    energies, thumbnails = [np.empty(0, np.float32)], []
    offset = energy_offset = 0
    for number, (file, found) in enumerate(in_order(try_examine, files), start=1):
        if number % _FILES_BETWEEN_WORDS == 0:
            log.info("%d of %d files decoded", number, len(files))
        if isinstance(found, str):
            skipped.append((file.path.name, found))
            continue
        height, width = found.hr.shape[:2]
        lr_offset = -1 if found.lr is None else offset + found.hr.nbytes
        rows.append((offset, height, width, lr_offset, file.source, energy_offset, found.jpeg_quality))
        for pixels in (found.hr, found.lr):
            if pixels is not None:
                data = pixels.data
                digest.update(
                    f"{file.path.name} {hashlib.sha256(data).hexdigest()}\n".encode(errors="surrogateescape")
                )
                offset += pixels.nbytes
                if packed is not None:
                    packed.write(data)
        energies.append(found.energy.ravel())
        energy_offset += found.energy.size
        thumbnails.append(found.thumbnail)
        names.append(file.path.name)
        kept.append(file)
        notes.append(found.note)
    keys = ("offsets", "heights", "widths", "lr_offsets", "sources", "energy_offsets", "jpeg_qualities")
    table = torch.tensor(rows, dtype=torch.int64).view(-1, len(keys))
    columns = {key: column.contiguous() for key, column in zip(keys, table.unbind(1), strict=True)}
    columns["energy"] = torch.from_numpy(np.concatenate(energies))
    columns["thumbnails"] = torch.from_numpy(
        np.array(thumbnails, dtype=np.uint8).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)
    )
    header = {"names": names, "notes": notes, "skipped": skipped, "sha256": digest.hexdigest()}
    return header, columns, kept


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Hold `folder` against other processes that pack, and yield whether that could be done.

    The lock falls when this process does, however it ends. Without one, two processes may do the same work twice.
    """
    if os.name == "nt":
        yield False
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # some network file systems have no locks
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left; only for who holds the folder alone."""
    for left_over in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        left_over.unlink()


def _refuse_if_bad(cache: PictureCache, max_bad_share: float, sources: Sequence[Source]) -> None:
    bad, total = len(cache.skipped), len(cache.skipped) + len(cache)
    if not bad:
        return
    some = "; ".join(shown(reason) for _, reason in cache.skipped[:_BAD_FILES_SHOWN])
    said = f"{bad} of {total} files below {listed(sources)} cannot be used: {some}"
    said += "; ..." if bad > _BAD_FILES_SHOWN else ""
    if not len(cache):
        raise UsageError(f"none of the {total} files below {listed(sources)} could be read as a picture: {some}")
    if bad > max_bad_share * total:
        raise UsageError(
            f"{said}. That is more than data.max_bad_share = {max_bad_share:g} allows: is it the right folder?"
        )
    log.warning("left out: %s", said)
