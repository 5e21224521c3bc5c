"""What a JPEG file tells of how it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin

from srgan.pictures.faults import OPENED, as_picture_errors, open_regular_file


def jpeg_quality(path: Path) -> int | None:
    """Return the quality, 1..100 on libjpeg's scale, that a JPEG file was written with; None for other formats.

    Estimated from its luma quantisation table: the scale of the standard's own table (ITU T.81, annex K) that is
    nearest, which is exact for files written by libjpeg. No pixel is decoded. Raises PictureError if the file
    cannot be read.
    """
    with (
        open_regular_file(path) as file,
        as_picture_errors(str(path), "is damaged or incomplete"),
        Image.open(file, formats=OPENED) as opened,
    ):
        return quality_of(opened)


def quality_of(opened: Image.Image) -> int | None:
    """Return what `jpeg_quality` does, of a file that is open."""
    if not isinstance(opened, JpegImagePlugin.JpegImageFile) or not opened.quantization:
        return None
    table = np.sort(next(iter(opened.quantization.values())))  # sorted: in whatever order Pillow gives them
    quality = np.arange(1, 101)[:, None]
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    scaled = np.sort(((_LUMA_QUANTISATION * percent + 50) // 100).clip(1, 255))
    return int(np.abs(scaled - table).sum(1).argmin()) + 1


# ITU T.81, table K.1.
_LUMA_QUANTISATION = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
)
