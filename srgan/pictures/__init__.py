"""The only package that knows Pillow: files and bytes to `Picture` and back.

What a file says about its pixels is kept, or refused with an error; what else it carries is kept as far as the
format of the result can hold it, and what is not is told.

    decode     a file, or the bytes of one, to a `Picture`: reading.py, planes.py, formats/; errors: faults.py
    encode     a `Picture` to the bytes of a file: writing.py, with formats/
    why_not    why a format cannot hold a picture; `losses`: what of it the format will not carry: picture.py
    resized    a `Picture` at another size: resampling.py; `back_project`: one kept true to its original
    from_pil, to_pil, from_array, to_array   of a `Picture`: what other libraries hold: interchange.py
    GainMap    what makes a picture for HDR screens of one: gain_map.py, formats/ultra_hdr.py
    Region     a part of a result, and what it takes of the picture: regions.py
    mixed      two results by a `Mask`: masks.py
    invention  what of a result its picture does not say, as a number and a map: invention.py
    laid_on    a `Picture` on a `Background`: backgrounds.py
    flattened  a `Picture` as 8-bit RGB without transparency: flattening.py
    guarded    decoding of files that may be hostile, in a process with limits
"""

from srgan.pictures.backgrounds import Background, laid_on
from srgan.pictures.flattening import flattened
from srgan.pictures.formats.jpeg import jpeg_quality
from srgan.pictures.gain_map import GainMap
from srgan.pictures.interchange import PillowImage
from srgan.pictures.invention import Invention, invention
from srgan.pictures.masks import Mask, mixed
from srgan.pictures.picture import (
    ALWAYS_LOSSY,
    FORMATS,
    PICTURE_SUFFIXES,
    Format,
    Picture,
    Quality,
    format_of_suffix,
    losses,
    why_not,
    why_not_lossless,
)
from srgan.pictures.planes import without_tint
from srgan.pictures.reading import DEFAULT_MAX_MEGAPIXELS, decode
from srgan.pictures.regions import Region, Window
from srgan.pictures.resampling import back_project, resized, resized_gain_map, scaled_dpi
from srgan.pictures.signatures import NO_PICTURE, START_BYTES, format_of_start, looks_like_picture
from srgan.pictures.writing import encode

__all__ = [
    "ALWAYS_LOSSY",
    "DEFAULT_MAX_MEGAPIXELS",
    "FORMATS",
    "NO_PICTURE",
    "PICTURE_SUFFIXES",
    "START_BYTES",
    "Background",
    "Format",
    "GainMap",
    "Invention",
    "Mask",
    "Picture",
    "PillowImage",
    "Quality",
    "Region",
    "Window",
    "back_project",
    "decode",
    "encode",
    "flattened",
    "format_of_start",
    "format_of_suffix",
    "invention",
    "jpeg_quality",
    "laid_on",
    "looks_like_picture",
    "losses",
    "mixed",
    "resized",
    "resized_gain_map",
    "scaled_dpi",
    "why_not",
    "why_not_lossless",
    "without_tint",
]
