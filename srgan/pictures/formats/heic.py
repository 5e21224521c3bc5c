"""HEIC, the format of telephones: read where `pillow-heif` is installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from srgan.errors import UnsupportedPictureError
from srgan.pictures.formats import bitstreams

_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


def is_heic(head: bytes) -> bool:
    """Return whether a file that begins with these 32 bytes is a HEIC file."""
    if head[4:8] != b"ftyp":
        return False
    brand, compatible = head[8:12], {head[start : start + 4] for start in range(16, len(head), 4)}
    return brand in _BRANDS or (
        brand in (b"mif1", b"msf1") and bool(compatible & _BRANDS) and b"avif" not in compatible
    )


@dataclass(frozen=True)
class First:
    """The first picture of a file, upright, not yet decoded. `code_points`: as of `bitstreams.colours`."""

    file: Any
    size: tuple[int, int]
    exif: bytes
    xmp: bytes
    icc: bytes | None
    code_points: tuple[int, int] | None
    warnings: tuple[str, ...]

    def samples(self) -> np.ndarray:
        """Decode (H,W,C) uint8 or uint16 levels, C of 1 to 4 with alpha last."""
        levels = np.asarray(self.file)
        return levels[..., None] if levels.ndim == 2 else levels


def reader() -> Any:
    """Return `pillow-heif`; raises UnsupportedPictureError without it."""
    try:
        import pillow_heif
    except ImportError as error:
        raise UnsupportedPictureError(
            "HEIC is read with the package pillow-heif, which is not installed: pip install pillow-heif"
        ) from error
    return pillow_heif


def open_first(file: BinaryIO) -> First:
    """Open the first picture; raises what `reader` and `pillow-heif` raise."""
    opened = reader().open_heif(file, convert_hdr_to_8bit=False)
    warnings = (
        ("only the first picture of the file was read; others behind it are not kept",) if len(opened) > 1 else ()
    )
    nclx = opened.info.get("nclx_profile")
    file.seek(0)
    return First(
        file=opened[opened.primary_index],
        size=opened[opened.primary_index].size,
        exif=opened.info.get("exif") or b"",
        xmp=opened.info.get("xmp") or b"",
        icc=opened.info.get("icc_profile") or None,
        code_points=(nclx["color_primaries"], nclx["transfer_characteristics"])
        if nclx
        else bitstreams.colours(file.read()),
        warnings=warnings,
    )
