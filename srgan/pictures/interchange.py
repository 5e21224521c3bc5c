"""`Picture` to and from what other libraries hold pictures in: NumPy arrays and Pillow's images."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from srgan.errors import UnsupportedPictureError
from srgan.pictures import metadata
from srgan.pictures.picture import Picture
from srgan.pictures.planes import Planes, from_floats, to_8_bits
from srgan.pictures.reading import exif_of

PillowImage: TypeAlias = Image.Image

_ARRAYS = "an array is (H,W) grey, (H,W,3) RGB or (H,W,4) RGB and alpha, of uint8, uint16 or floats from 0 to 1"


def from_array(array: npt.NDArray[np.generic]) -> Picture:
    """Return the picture in (H,W) grey, (H,W,3) RGB or (H,W,4) RGB and alpha, which is not premultiplied.

    uint8 and uint16 are levels as they are; floating-point values are from 0 (black) to 1 and become the nearest
    of 65536 levels. Raises UnsupportedPictureError for any other array.
    """
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not shape_fits or array.size == 0:
        raise UnsupportedPictureError(f"{_ARRAYS}; this one is {_shape(array)} of {array.dtype}")
    if np.issubdtype(array.dtype, np.floating):
        try:
            levels = from_floats(array)
        except UnsupportedPictureError:
            values = array.astype(np.float64)
            raise UnsupportedPictureError(
                f"{_ARRAYS}; the floats of this one are from {values.min():g} to {values.max():g}"
            ) from None
    elif (native := array.dtype.newbyteorder("=")) in (np.uint8, np.uint16):
        levels = array.astype(native)
    else:
        raise UnsupportedPictureError(f"{_ARRAYS}; this one is of {array.dtype}")
    planes = Planes.of_samples(levels if levels.ndim == 3 else levels[..., None])
    return Picture(planes.pixels, planes.alpha)


def to_array(picture: Picture, dtype: npt.DTypeLike | None = None) -> npt.NDArray[np.generic]:
    """Return the first frame as (H,W), (H,W,3), or with alpha (H,W,4), in its own depth or as `dtype`.

    `dtype`: uint8 or uint16, rounded; float32 or another floating-point type, from 0 to 1; None: as it is.
    Raises UnsupportedPictureError for another type.
    """
    pixels = picture.pixels
    if picture.alpha is not None:
        colours = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        pixels = np.dstack([colours, picture.alpha])
    kind = pixels.dtype if dtype is None else np.dtype(dtype)
    if np.issubdtype(kind, np.floating):
        result: npt.NDArray[np.generic] = (pixels / np.float64(np.iinfo(pixels.dtype).max)).astype(kind)
        return result
    if kind == np.uint8:
        return to_8_bits(pixels).copy()
    if kind == np.uint16:
        return pixels.astype(np.uint16) * 257 if pixels.dtype == np.uint8 else pixels.copy()
    raise UnsupportedPictureError(f"a picture cannot become an array of {kind}: choose uint8, uint16 or float32")


def from_pil(image: PillowImage) -> Picture:
    """Return the current frame of a Pillow image, upright by its EXIF orientation, with its profile and EXIF.

    Modes are taken as those of files are. Raises UnsupportedPictureError for a mode whose pixels would be damaged.
    """
    warnings: list[str] = []
    image.load()
    orientation, exif, exif_warnings = exif_of(image)
    planes = Planes.of_image(image, warnings, bits=16).turned(orientation)
    height, width = planes.pixels.shape[:2]
    dpi = metadata.valid_dpi(image.info["dpi"]) if "dpi" in image.info else None
    if dpi and Planes.is_swapped(orientation):
        dpi = dpi[::-1]
    icc = image.info.get("icc_profile") if image.mode != "CMYK" else None
    xmp = image.info.get("xmp", b"")
    return Picture(
        planes.pixels,
        planes.alpha,
        icc=icc or None,
        exif=exif,
        warnings=(*warnings, *exif_warnings),
        xmp=xmp if isinstance(xmp, bytes) else str(xmp).encode(),
        dpi=dpi,
        read_size=(height, width),
    )


def to_pil(picture: Picture) -> PillowImage:
    """Return the first frame as a Pillow image of mode L, LA, RGB, RGBA or, of 16 bits and grey, I;16.

    Pillow has no mode for colours of 16 bits: they are rounded to 8. Profile, EXIF, XMP and resolution are in its
    `info`, by the names that Pillow's own `save` takes.
    """
    levels = picture.pixels
    if picture.bits == 16 and not (picture.is_grey and picture.alpha is None):
        levels = to_8_bits(levels)
    if picture.alpha is not None:
        levels = np.dstack([levels, to_8_bits(picture.alpha)])
    image = Image.fromarray(np.ascontiguousarray(levels))
    entries = {"icc_profile": picture.icc, "exif": picture.exif, "xmp": picture.xmp, "dpi": picture.dpi}
    image.info.update({name: value for name, value in entries.items() if value})
    return image


def _shape(array: npt.NDArray[np.generic]) -> str:
    return "(" + ",".join(map(str, array.shape)) + ")"
