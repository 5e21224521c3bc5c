"""What it takes to encode a picture, known before there is one."""

from __future__ import annotations

from collections.abc import Sequence

from srgan.pictures.formats import avif_grid
from srgan.pictures.picture import Picture, Quality, is_lossless

# Memory beside the picture, its file included, for each pixel of noise in all frames: an eighth above what `python
# benchmarks/encoding_memory.py` measured (Pillow 13, libavif 1.4.2). RGBA stands for all with transparency. WebP
# packs that without loss; AVIF keeps several copies of each frame, in twice the bits.
BYTES_PER_PX: dict[tuple[str, str], dict[str, float]] = {
    ("png", "still"): {"L": 2.3, "RGB": 4.5, "RGBA": 10.5},
    ("png", "frames"): {"L": 6.5, "RGB": 17, "RGBA": 17},
    ("jpg", "still"): {"L": 2.3, "RGB": 7.3},
    ("webp", "still"): {"L": 13, "RGB": 13, "RGBA": 47},
    ("webp", "frames"): {"L": 14, "RGB": 14, "RGBA": 19},
    ("webp", "lossless still"): {"L": 48, "RGB": 48, "RGBA": 48},
    ("webp", "lossless frames"): {"L": 22, "RGB": 22, "RGBA": 24},
    ("avif", "still"): {"L": 27, "RGB": 53, "RGBA": 53},
    ("avif", "frames"): {"L": 125, "RGB": 125, "RGBA": 125},
    ("tiff", "still"): {"L": 2.4, "RGB": 3.6, "RGBA": 10.5},
    ("tiff", "frames"): {"L": 2.4, "RGB": 6.2, "RGBA": 12.7},
    ("gif", "still"): {"L": 3.4, "RGB": 16, "RGBA": 17},
    ("gif", "frames"): {"L": 3.4, "RGB": 16, "RGBA": 17},
    ("bmp", "still"): {"L": 1.2, "RGB": 7.5},
    ("ppm", "still"): {"L": 1.2, "RGB": 3.4},
}

# A process of Python with its libraries and the stacks of its threads.
_PROCESS_BYTES = 64_000_000

# Of a longer animation AVIF's encoder has so many frames in work; of the others there are images and a file.
_AVIF_FRAMES = 10
_AVIF_FRAME_BYTES_PER_PX = 6

# Formats that hold 16 bits are written with them; for the others there is a copy in 8.
_DEEP = {"png", "tiff", "ppm"}


def encoding_bytes(
    picture: Picture, format: str, sizes: Sequence[tuple[int, int]], quality: Quality = None
) -> int:
    """Return how much memory `encode` takes at most beside a picture like this one, its file among it.

    `format`: a key of `FORMATS` that can hold it. `sizes`: (height, width) of the frames of what is encoded.
    `quality`: as `encode` takes it.
    """
    channels = (1 if picture.is_grey else 3) + any(frame.alpha is not None for frame in picture.frames)
    mode = {1: "L", 3: "RGB"}.get(channels, "RGBA")
    kind = "frames" if len(sizes) > 1 else "still"
    if (format, f"lossless {kind}") in BYTES_PER_PX and is_lossless(picture, format, quality):
        kind = f"lossless {kind}"
    row = BYTES_PER_PX[format, kind]
    per_px = row.get(mode, max(row.values()))
    px = sum(height * width for height, width in sizes)
    if format == "avif" and len(sizes) == 1 and avif_grid.is_needed(*sizes[0]):
        # One tile at a time, and what is coded so far, twice while it is put together.
        needed = per_px * 2 * avif_grid.TILE_PX**2 + channels * px
    elif format == "avif" and len(sizes) > 1:
        largest = max(height * width for height, width in sizes)
        needed = per_px * min(px, _AVIF_FRAMES * largest) + _AVIF_FRAME_BYTES_PER_PX * px
    else:
        needed = per_px * px
    if picture.gain_map is not None and format == "jpg":
        levels = picture.gain_map.levels
        share = levels.shape[0] * levels.shape[1] / (picture.height * picture.width)
        needed += BYTES_PER_PX["jpg", "still"]["L" if levels.ndim == 2 else "RGB"] * share * px
    if picture.bits == 16:
        needed = 2 * needed if format in _DEEP and not picture.is_animated else needed + channels * px
    return int(needed) + _PROCESS_BYTES
