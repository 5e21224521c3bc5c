"""Image folders to HR patches: pictures decoded once into a packed cache, patches gathered from it."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from srgan import pictures
from srgan.errors import PictureError, TrainingError, UsageError
from srgan.files import TEMPORARY_SUFFIX, write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureCache:
    """Pictures packed one after another, each (H,W,3) uint8 row by row.

    `pixels`: (bytes,) uint8, memory-mapped. `offsets`, `heights`, `widths`: (count,) int64. `names`: where each
    came from. `sha256`: hash of the names and contents, so that a run can say what it was trained on.
    """

    pixels: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    names: list[str]
    sha256: str

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, index: int) -> Tensor:
        """Return picture `index` as (H,W,3) uint8, a view."""
        height, width = int(self.heights[index]), int(self.widths[index])
        start = int(self.offsets[index])
        return self.pixels[start : start + height * width * 3].view(height, width, 3)

    def subset(self, indices: Sequence[int]) -> PictureCache:
        """Return a cache of these pictures alone, sharing the pixels."""
        keep = torch.as_tensor(list(indices), dtype=torch.int64)
        return PictureCache(
            self.pixels,
            self.offsets[keep],
            self.heights[keep],
            self.widths[keep],
            [self.names[i] for i in keep.tolist()],
            self.sha256,
        )


class Patches:
    """Random HR patches with the eight dihedral flips, every position of every picture equally likely.

    One index computation gathers a whole batch from the packed cache, on the CPU from the memory map, or on a
    GPU from its own memory when `device` is one. All randomness comes from `random`, a CPU generator that the
    checkpoint stores.
    """

    def __init__(self, cache: PictureCache, patch_px: int, device: torch.device, random: torch.Generator) -> None:
        too_small = int(((cache.heights < patch_px) | (cache.widths < patch_px)).sum())
        if too_small:
            log.warning("%d pictures are smaller than a patch of %d px and are not used", too_small, patch_px)
        self._rows = (cache.heights - patch_px + 1).clamp(min=0)
        self._columns = (cache.widths - patch_px + 1).clamp(min=0)
        self._columns[self._rows == 0] = 0
        self._ends = (self._rows * self._columns).cumsum(0)
        if not len(cache) or not int(self._ends[-1]):
            raise UsageError(f"no training picture is at least {patch_px} px on both sides: add larger pictures")
        self._cache, self._patch_px, self._random = cache, patch_px, random
        self._pixels = cache.pixels.to(device)
        self._grid = torch.arange(patch_px)

    def draw(self, count: int) -> Tensor:
        """Return (count,3,P,P) float32 in [0,1] on the device, channels_last."""
        place = torch.randint(int(self._ends[-1]), (count,), generator=self._random)
        which = torch.searchsorted(self._ends, place, right=True)
        place = place - (self._ends[which] - self._rows[which] * self._columns[which])
        top, left = place // self._columns[which], place % self._columns[which]
        flips = torch.randint(8, (count,), generator=self._random)
        index = self._index(which, top, left, flips).to(self._pixels.device)
        patches = self._pixels[index]  # (count,P,P,3)
        return patches.permute(0, 3, 1, 2).float().div_(255)  # permuted NHWC is channels_last as it stands

    def _index(self, which: Tensor, top: Tensor, left: Tensor, flips: Tensor) -> Tensor:
        """Positions in the packed pixels, (count,P,P,3), with flips and transposition as index arithmetic."""
        last = self._patch_px - 1
        down = self._grid.view(1, -1, 1).expand(len(which), -1, self._patch_px)
        across = self._grid.view(1, 1, -1).expand(len(which), self._patch_px, -1)
        bit = [((flips >> shift) & 1).bool().view(-1, 1, 1) for shift in range(3)]
        y, x = torch.where(bit[0], across, down), torch.where(bit[0], down, across)
        y, x = torch.where(bit[1], last - y, y), torch.where(bit[2], last - x, x)
        row = (top.view(-1, 1, 1) + y) * self._cache.widths[which].view(-1, 1, 1)
        pixel = row + left.view(-1, 1, 1) + x
        return (self._cache.offsets[which].view(-1, 1, 1) + 3 * pixel).unsqueeze(-1) + torch.arange(3)


def build_cache(folders: Sequence[Path], cache_folder: Path) -> PictureCache:
    """Decode every picture below `folders` once; later calls with the same files only map the result.

    Unreadable pictures are named in the log and left out. The key is made of the paths, sizes and modification
    times, so a changed folder is packed anew. Raises UsageError for a folder that does not exist or holds no
    readable picture, TrainingError if the cache cannot be written.
    """
    paths = _picture_paths(folders)
    stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    key = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
    pixels_path, index_path = cache_folder / f"{key}.pixels", cache_folder / f"{key}.json"
    index = _index(index_path, pixels_path)
    if index is None:
        _pack(paths, pixels_path, index_path)
        index = json.loads(index_path.read_text(encoding="utf-8"))
    if not index["names"]:
        raise UsageError(f"none of the {len(paths)} files below {_listed(folders)} could be read as a picture")
    # Mode "c" (copy on write) because torch has no read-only tensors; nothing ever writes.
    packed = np.memmap(pixels_path, dtype=np.uint8, mode="c")
    sizes = torch.tensor(index["sizes"], dtype=torch.int64)
    lengths = sizes[:, 0] * sizes[:, 1] * 3
    return PictureCache(
        torch.from_numpy(packed),
        lengths.cumsum(0) - lengths,
        sizes[:, 0],
        sizes[:, 1],
        index["names"],
        index["sha256"],
    )


def split(cache: PictureCache, held_out: int, seed: int) -> tuple[PictureCache, PictureCache]:
    """Return (training, validation) pictures; validation is `held_out` of them, chosen by `seed`.

    Never more than a fifth is held out, so that a handful of pictures still trains.
    """
    order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(held_out, len(cache) // 5)
    return cache.subset(sorted(order[count:])), cache.subset(sorted(order[:count]))


def _picture_paths(folders: Sequence[Path]) -> list[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder: give --data a folder of pictures")
    paths = sorted(
        {  # a set: folders that overlap must not bring a picture into training and validation
            path.resolve()
            for folder in folders
            for path in folder.rglob("*")
            if path.suffix.lower() in pictures.PICTURE_SUFFIXES
            and not path.name.startswith(".")
            and path.is_file()
        }
    )
    if not paths:
        raise UsageError(
            f"no pictures below {_listed(folders)}: expected {', '.join(sorted(pictures.PICTURE_SUFFIXES))}"
        )
    return paths


def _index(index_path: Path, pixels_path: Path) -> dict[str, Any] | None:
    """Return the index if it is there and the pixels that it speaks of are, whole; else None."""
    try:
        index: dict[str, Any] = json.loads(index_path.read_text(encoding="utf-8"))
        expected_bytes = sum(3 * height * width for height, width in index["sizes"])
        return index if pixels_path.stat().st_size == expected_bytes else None
    except FileNotFoundError:
        return None


def _pack(paths: Sequence[Path], pixels_path: Path, index_path: Path) -> None:
    # A random name, so that two runs that start together do not write into one file.
    temporary = pixels_path.with_name(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    digest, names, sizes = hashlib.sha256(), [], []
    try:
        pixels_path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as packed:
            for path in paths:
                pixels = _decoded(path)
                if pixels is None:
                    continue
                data = pixels.tobytes()
                packed.write(data)
                digest.update(f"{path.name} {hashlib.sha256(data).hexdigest()}\n".encode())
                names.append(path.name)
                sizes.append(pixels.shape[:2])
        temporary.replace(pixels_path)
        index = {"names": names, "sizes": sizes, "sha256": digest.hexdigest()}
        write_atomically(index_path, json.dumps(index).encode())
    except OSError as error:
        raise TrainingError(
            f"{pixels_path.parent} cannot hold the decoded pictures: {error.strerror}; make room or choose "
            "another --run"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _decoded(path: Path) -> npt.NDArray[np.uint8] | None:
    """Return (H,W,3), or None for a picture that cannot be read."""
    try:
        pixels = pictures.decode(path).pixels
    except PictureError as error:
        log.warning("left out: %s", error)
        return None
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)
