"""Decoded images and samples as the arrays of a `Picture`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from srgan.errors import UnsupportedPictureError
from srgan.pictures import colour

# Pixel modes that are read: what each becomes without transparency and with it. All are exact.
_MODES = {
    "1": ("L", "LA"),
    "L": ("L", "LA"),
    "LA": ("LA", "LA"),
    "La": ("LA", "LA"),
    "P": ("RGB", "RGBA"),
    "PA": ("RGBA", "RGBA"),
    "RGB": ("RGB", "RGBA"),
    "RGBA": ("RGBA", "RGBA"),
    "RGBa": ("RGBA", "RGBA"),
    "RGBX": ("RGB", "RGB"),
    "YCbCr": ("RGB", "RGB"),
}

_ROWS_AT_ONCE = 64

# EXIF orientation to what makes the picture upright: whether to swap rows and columns, then which axes to reverse.
_TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}


@dataclass(frozen=True)
class Planes:
    """Colour (H,W,3) or grey (H,W), and alpha (H,W) or None, as in `Picture`."""

    pixels: np.ndarray
    alpha: np.ndarray | None

    @classmethod
    def of_samples(cls, samples: np.ndarray, transparent: object = None) -> Planes:
        """Split (H,W,C) samples, the last of 2 or 4 being alpha; `transparent`: a colour that is clear."""
        channels = samples.shape[2]
        alpha = samples[..., -1] if channels in (2, 4) else None
        colours = samples[..., 0] if channels < 3 else samples[..., :3]
        if alpha is None and transparent is not None:
            clear = colours == np.array(transparent, np.uint16)
            clear = clear if clear.ndim == 2 else clear.all(axis=2)
            alpha = np.where(clear, 0, np.iinfo(samples.dtype).max).astype(samples.dtype)
        return cls(colours, alpha)

    @classmethod
    def of_image(cls, image: Image.Image, warnings: list[str], bits: int = 8) -> Planes:
        """Convert a loaded image; `bits`: of its samples, if its mode has room for more."""
        if image.mode == "CMYK":
            image, warning = colour.from_cmyk(image, image.info.get("icc_profile"))
            warnings.append(warning)
        elif image.mode == "LAB":
            image, warning = colour.from_lab(image)
            warnings.append(warning)
        elif image.mode == "F":
            warnings.append("its floating-point samples were rounded to 16 bits")
            return cls(from_floats(np.asarray(image)), None)
        elif image.mode in ("I;16", "I;16B", "I;16L", "I;16N"):
            largest = 2**bits - 1
            levels = np.asarray(image).astype(np.uint32)
            return cls(((levels.clip(0, largest) * 65535 + largest // 2) // largest).astype(np.uint16), None)
        elif image.mode not in _MODES:
            raise UnsupportedPictureError(
                f"pixels of mode {image.mode} are not supported; save it as RGB or greyscale with 8 or 16 bits "
                "per channel"
            )
        converted = image.convert(_MODES[image.mode][image.has_transparency_data])
        array = np.asarray(converted)
        if converted.mode in ("LA", "RGBA"):
            return cls(array[..., 0] if converted.mode == "LA" else array[..., :3], array[..., -1])
        return cls(array, None)

    @staticmethod
    def is_swapped(orientation: int) -> bool:
        """Whether that EXIF orientation turns rows into columns."""
        return _TURNS.get(orientation, (False, ()))[0]

    def with_rows(self, height: int) -> Planes:
        """Return the planes with black, clear rows below them, `height` in all."""

        def filled(plane: np.ndarray) -> np.ndarray:
            return np.concatenate([plane, np.zeros((height - len(plane), *plane.shape[1:]), plane.dtype)])

        return Planes(filled(self.pixels), None if self.alpha is None else filled(self.alpha))

    def turned(self, orientation: int) -> Planes:
        """Return the planes upright by their EXIF orientation."""
        if orientation not in _TURNS:
            return self
        swap, axes = _TURNS[orientation]

        def turn(plane: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(np.flip(plane.swapaxes(0, 1) if swap else plane, axes))

        return Planes(turn(self.pixels), None if self.alpha is None else turn(self.alpha))


def from_floats(values: np.ndarray) -> np.ndarray:
    """Return floating-point samples of 0 (black) to 1 (white) as uint16; others are UnsupportedPictureError."""
    if not np.isfinite(values).all():
        raise UnsupportedPictureError(
            "floating-point samples beyond 0 to 1 (no number, or infinite) are not supported; give them a value"
        )
    if values.min() < 0 or values.max() > 1:
        raise UnsupportedPictureError(
            "floating-point samples beyond 0 to 1 are not supported, since nothing says what is black and white; "
            "save it with 16-bit integers"
        )
    levels = np.empty(values.shape, np.uint16)
    for row, exact in zip(levels, values, strict=True):  # in float32 the halves would round the wrong way
        row[...] = np.rint(exact * np.float64(65535))
    return levels


def without_tint(levels: np.ndarray) -> np.ndarray:
    """Return colours (H,W,3) that are all within two levels of 255 of grey as exactly that, others as they are.

    A grey photograph comes out of lossy WebP and HEIC with channels that are a level or two apart, which nobody
    sees until a generator makes colours of it.
    """
    if levels.ndim == 2:
        return levels
    tint = 2 * (np.iinfo(levels.dtype).max // 255)
    if np.any(levels.max(axis=2) - levels.min(axis=2) > tint):
        return levels
    grey = np.rint(levels.mean(axis=2, dtype=np.float32)).astype(levels.dtype)
    return np.repeat(grey[..., None], 3, axis=2)


def to_8_bits(levels: np.ndarray) -> np.ndarray:
    """Return uint8 levels as they are, and uint16 levels rounded to uint8."""
    if levels.dtype == np.uint8:
        return levels
    rounded = np.empty(levels.shape, np.uint8)
    for top in range(0, len(levels), _ROWS_AT_ONCE):  # the floats of all would be four times the picture
        rows = slice(top, top + _ROWS_AT_ONCE)
        rounded[rows] = np.rint(levels[rows] / np.float32(257))
    return rounded
