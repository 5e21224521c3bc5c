"""The pages of a TIFF file to a `Picture`."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image, UnidentifiedImageError

from srgan.errors import UnsupportedPictureError
from srgan.pictures import colour, descriptions, metadata
from srgan.pictures.faults import DECODER_ERRORS, Budget
from srgan.pictures.formats import tiff
from srgan.pictures.picture import Picture
from srgan.pictures.planes import Planes, to_8_bits

_DESCRIPTION = 270


def read_tiff(content: bytes, budget: Budget) -> Picture:
    """Return the pages of a TIFF file, spending `budget` on each; raises what Pillow does on damaged ones."""
    read: list[Picture] = []
    warnings: list[str] = []
    told = count = 0
    for page in tiff.pages(content):
        told = told or descriptions.imagej_pictures(page.tags.get(_DESCRIPTION))
        count += 1
        if read and page.is_secondary:
            warnings.append("its reduced copies and masks were not kept")
            continue
        height, width = page.size
        budget.spend(width, height)
        try:
            read.append(_read_page(page, warnings))
        except UnsupportedPictureError:
            raise
        except DECODER_ERRORS as error:
            name = page.compression(built_in=isinstance(error, UnidentifiedImageError))
            if name is None:
                raise
            raise _uncompressible(name) from error
    if not read:
        raise ValueError("it holds no page")
    if told > count:
        warnings.append(
            f"{told - count} pictures of its ImageJ stack have no entry of their own and were not read"
        )
    warnings = [*read[0].warnings, *warnings]
    return replace(read[0], warnings=tuple(dict.fromkeys(warnings)), further=tuple(read[1:]))


def _read_page(page: tiff.Page, warnings: list[str]) -> Picture:
    icc = page.icc
    if page.is_deep:
        levels = tiff.deep_samples(page)
        colours, alpha, kind, further_warnings = tiff.colour_and_extra(page, levels)
        warnings += further_warnings
        if kind == 5:
            image = Image.fromarray(to_8_bits(colours), "CMYK")
            image, warning = colour.from_cmyk(image, icc)
            warnings += ["its 16 bits per channel were read as 8", warning]
            colours, alpha, icc = np.asarray(image), None if alpha is None else to_8_bits(alpha), None
        planes = Planes(colours[..., 0] if colours.shape[2] == 1 else colours, alpha)
        planes = planes.turned(tiff.orientation(page))
    else:
        try:
            image = Image.open(io.BytesIO(page.file), formats=("TIFF",))
        except UnidentifiedImageError as error:
            if name := page.compression():
                raise _uncompressible(name) from error
            raise UnsupportedPictureError(
                f"TIFF with this kind of samples ({page.bits} bits) is not supported; save it as RGB or greyscale "
                "with 8 or 16 bits per channel"
            ) from error
        with image as opened:
            opened.load()  # Pillow turns the page upright in this
            if opened.mode in ("CMYK", "LAB"):
                icc = None
            planes = Planes.of_image(opened, warnings, bits=page.bits)
        if page.is_signed and planes.pixels.dtype == np.uint8:
            planes = replace(planes, pixels=planes.pixels ^ np.uint8(0x80))
        planes = _without_unknown(planes, page, warnings)
    warnings += page.remarks()
    exif = b""
    try:
        if block := page.exif():
            exif = metadata.upright_exif(block)
    except DECODER_ERRORS:
        warnings.append("its EXIF data is damaged and was not kept")
    warnings += [f"its {words} was not kept" for words in page.unkept()]
    dpi = None if page.dpi is None else metadata.valid_dpi(page.dpi)
    if dpi and tiff.orientation(page) >= 5:
        dpi = dpi[::-1]
    return Picture(planes.pixels, planes.alpha, icc, exif, "tiff", xmp=page.xmp, dpi=dpi)


def _without_unknown(planes: Planes, page: tiff.Page, warnings: list[str]) -> Planes:
    """Return the planes of a page of 8 bits without what is no transparency though it was taken for such."""
    additional = page.additional_channels
    if additional and additional[0] not in (1, 2):
        planes = replace(planes, alpha=None)
    if len(additional) > (planes.alpha is not None):
        warnings.append("its additional channels were not kept")
    return planes


def _uncompressible(name: str) -> UnsupportedPictureError:
    return UnsupportedPictureError(f"TIFF compressed by {name} is not supported; save it with Deflate or LZW")
