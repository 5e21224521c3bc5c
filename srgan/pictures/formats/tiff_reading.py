"""The pages of a TIFF file to a `Picture`."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image, UnidentifiedImageError

from srgan.errors import SrganError, UnsupportedPictureError
from srgan.pictures import colour, descriptions, metadata
from srgan.pictures.faults import DECODER_ERRORS, Budget
from srgan.pictures.formats import tiff
from srgan.pictures.formats.damage import CUT_SHORT, NO_END, DamageError, fewer_frames, partly_whole
from srgan.pictures.picture import Picture
from srgan.pictures.planes import Planes, from_floats, to_8_bits


def read_tiff(content: bytes, budget: Budget, *, accept_damaged: bool) -> Picture:
    """Return the pages of a TIFF file, spending `budget` on each; raises what Pillow does on damaged ones.

    `accept_damaged`: return the pages that are whole, or of the first as many rows as there are.
    """
    read: list[Picture] = []
    warnings: list[str] = []
    told = count = 0
    try:
        for page in tiff.pages(content):
            told = told or descriptions.imagej_pictures(page.description)
            count += 1
            if read and page.is_secondary:
                warnings.append("its reduced copies and masks were not kept")
                continue
            budget.spend(page.size[1], page.size[0])
            told_of_page: list[str] = []
            try:
                read.append(_read_page(page, told_of_page))
            except DECODER_ERRORS:
                if read or not accept_damaged:
                    raise
                told_of_page.clear()
                read.append(_read_page(_shortened(page), told_of_page, height=page.size[0]))
            warnings += told_of_page
            if page.entries.following is None:
                warnings.append(NO_END)
    except SrganError:
        raise
    except DECODER_ERRORS:
        if not (accept_damaged and read):
            raise
        warnings.append(fewer_frames(len(read), 0, "page"))
    if not read:
        raise DamageError("it holds no page")
    if told > count:
        warnings.append(
            f"{told - count} pictures of its ImageJ stack have no entry of their own and were not read"
        )
    warnings = [*read[0].warnings, *warnings]
    return replace(read[0], warnings=tuple(dict.fromkeys(warnings)), further=tuple(read[1:]))


def _shortened(page: tiff.Page) -> tiff.Page:
    """Return the rows of a page before the first that is missing or damaged, or raise DamageError."""
    there = page.rows_there()
    step = page.rows_at_once
    sure, beyond = 0, -(-there // step) + 1  # in strips; those before `sure` can be read
    while beyond - sure > 1:
        middle = (sure + beyond) // 2
        if _is_readable(page.with_rows(min(there, middle * step))):
            sure = middle
        else:
            beyond = middle
    if not sure:
        raise DamageError(CUT_SHORT)
    return page.with_rows(min(there, sure * step))


def _is_readable(page: tiff.Page) -> bool:
    try:
        _planes(page, [])
    except SrganError:
        raise
    except DECODER_ERRORS:
        return False
    return True


def _read_page(page: tiff.Page, warnings: list[str], height: int | None = None) -> Picture:
    """Return a page as a picture; `height`: its rows, if those after it are to be made up."""
    rows = page.size[0]
    if page.rows_there() < rows:
        raise DamageError(CUT_SHORT)
    planes, icc = _planes(page, warnings)
    if height is not None and height > rows:
        warnings.append(partly_whole(rows / height))
        planes = planes.with_rows(height)
    planes = planes.turned(page.orientation)
    warnings += page.remarks()
    exif = b""
    try:
        if block := page.exif():
            exif = metadata.upright_exif(block)
    except DECODER_ERRORS:
        warnings.append("its EXIF data is damaged and was not kept")
    warnings += page.unkept()
    dpi = None if page.dpi is None else metadata.valid_dpi(page.dpi)
    if dpi and page.orientation >= 5:
        dpi = dpi[::-1]
    return Picture(planes.pixels, planes.alpha, icc, exif, "tiff", xmp=page.xmp, dpi=dpi)


def _planes(page: tiff.Page, warnings: list[str]) -> tuple[Planes, bytes | None]:
    """Return the samples of a page as they lie, and the colour profile that holds for them."""
    try:
        return _deep_planes(page, warnings) if page.is_deep else _shallow_planes(page, warnings)
    except UnsupportedPictureError:
        raise
    except DECODER_ERRORS as error:
        name = page.compression(built_in=isinstance(error, UnidentifiedImageError))
        if name is None or isinstance(error, DamageError):
            raise
        raise _uncompressible(name) from error


def _deep_planes(page: tiff.Page, warnings: list[str]) -> tuple[Planes, bytes | None]:
    icc = page.icc
    levels = tiff.deep_samples(page)
    if levels.dtype.kind == "f":
        levels = from_floats(levels)
        warnings.append("its floating-point samples were rounded to 16 bits")
    colours, alpha, kind, further_warnings = tiff.colour_and_extra(page, levels)
    warnings += further_warnings
    if kind == 5:
        image = Image.fromarray(to_8_bits(colours), "CMYK")
        image, warning = colour.from_cmyk(image, icc)
        warnings += [*["its 16 bits per channel were read as 8"] * (levels.itemsize > 1), warning]
        colours, alpha, icc = np.asarray(image), None if alpha is None else to_8_bits(alpha), None
    return Planes(colours[..., 0] if colours.shape[2] == 1 else colours, alpha), icc


def _shallow_planes(page: tiff.Page, warnings: list[str]) -> tuple[Planes, bytes | None]:
    icc = page.icc
    try:
        image = Image.open(io.BytesIO(page.file), formats=("TIFF",))
    except UnidentifiedImageError as error:
        if page.is_of_bytes and page.compression(built_in=False) is None:
            return _deep_planes(page, warnings)
        if name := page.compression():
            raise _uncompressible(name) from error
        raise UnsupportedPictureError(
            f"TIFF with this kind of samples ({page.bits} bits) is not supported; save it as RGB or greyscale "
            "with 8 or 16 bits per channel"
        ) from error
    with image as opened:
        opened.load()
        if opened.mode in ("CMYK", "LAB"):
            icc = None
        planes = Planes.of_image(opened, warnings, bits=page.bits)
    if page.is_signed and planes.pixels.dtype == np.uint8:
        planes = replace(planes, pixels=planes.pixels ^ np.uint8(0x80))
    return _without_unknown(planes, page, warnings), icc


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
