"""Files and bytes to `Picture`."""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from srgan.errors import UnsupportedPictureError
from srgan.pictures import colour, metadata
from srgan.pictures.faults import DECODER_ERRORS, OPENED, READ, Budget, as_picture_errors, open_regular_file
from srgan.pictures.formats import (
    beside,
    bitstreams,
    bmp,
    boxes,
    coded_items,
    filling,
    gif,
    heic,
    jpeg,
    jpeg_mending,
    jpeg_parts,
    png,
    png_mending,
    ppm,
    raw_rows,
    tiff,
    ultra_hdr,
    webp,
)
from srgan.pictures.formats.tiff_reading import read_tiff
from srgan.pictures.picture import A_GAIN_MAP, Picture
from srgan.pictures.planes import Planes
from srgan.pictures.signatures import NO_PICTURE, looks_like_picture

# Imported one by one, because asking Pillow for one format that is not registered yet imports all of its forty.
_PLUGINS = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

DEFAULT_MAX_MEGAPIXELS = 200.0

# Pillow's own limit lies below ours and is one for the whole process; `decode` has its own, checked at the same
# place: after the header is read and before a pixel is.
Image.MAX_IMAGE_PIXELS = None

# Pillow's remarks on damaged files would go to standard error where nobody has set up logging.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def decode(
    source: Path | bytes, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS, accept_damaged: bool = False
) -> Picture:
    """Read a picture from a file or from the bytes of one, and turn it upright by its EXIF orientation.

    The content decides the format, not the name. Frames of an animation come as they are seen, each whole; pages
    one by one. 16 bits per channel stay 16; CMYK and L*a*b* become sRGB. What the file carries and the picture
    does not is told in its `warnings`. `accept_damaged`: of a file that is damaged or cut short, take what is
    there, and say so.
    Raises PictureTooLargeError before decoding if the header promises more than `max_megapixels`, all frames and
    pages together; UnsupportedPictureError for pixels that would be damaged (floating point beyond 0..1, 32-bit
    integers); PictureError if the file cannot be read, is truncated or damaged.
    """
    if isinstance(source, bytes):
        return _sized(_decode(io.BytesIO(source), "the picture", max_megapixels, accept_damaged))
    with open_regular_file(source) as file:
        return _sized(_decode(file, str(source), max_megapixels, accept_damaged))


def _sized(picture: Picture) -> Picture:
    """Return the picture with its size, and that of each page, noted as the one that its metadata speaks of."""
    further = tuple(replace(page, read_size=(page.height, page.width)) for page in picture.further)
    return replace(picture, read_size=(picture.height, picture.width), further=further)


def _decode(file: BinaryIO, name: str, max_megapixels: float, accept_damaged: bool) -> Picture:
    budget = Budget(max_megapixels)
    with as_picture_errors(name, "is damaged or incomplete"):
        head = file.read(32)
        file.seek(0)
        if not looks_like_picture(head):
            raise UnsupportedPictureError(f"{name}: {NO_PICTURE}")
        if tiff.is_tiff(head):
            return read_tiff(file.read(), budget, accept_damaged=accept_damaged)
        file, warnings = _sound(file, head, budget, accept_damaged=accept_damaged)
        if heic.is_heic(head):
            return _read_heic(file, budget, warnings)
        try:
            image = Image.open(file, formats=OPENED)
        except UnidentifiedImageError:
            if not head.startswith(b"\xff\xd8\xff"):
                raise
            # Pillow looks into EXIF for the resolution, and takes some damage there for no JPEG at all.
            file.seek(0)
            file = io.BytesIO(metadata.hide_exif(file.read()))
            image = Image.open(file, formats=OPENED)
            warnings.append("its EXIF data is damaged and was not kept")
        with image as opened:
            if opened.format != "MPO" and getattr(opened, "is_animated", False):
                return _read_frames(opened, file, budget, warnings)
            budget.spend(opened.width, opened.height)
            if isinstance(opened, JpegImagePlugin.JpegImageFile):
                return _read_jpeg(opened, file, warnings, accept_damaged=accept_damaged)
            return _read_still(opened, file, warnings)


def _sound(file: BinaryIO, head: bytes, budget: Budget, *, accept_damaged: bool) -> tuple[BinaryIO, list[str]]:
    """Return a file of which nothing is missing, the same where nothing is wrong, and warnings.

    JPEG and TIFF files are looked at later. Raises DamageError otherwise, and what Pillow raises.
    """
    if head.startswith(png.SIGNATURE):
        return png_mending.sound(file, budget.check, accept_damaged=accept_damaged)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return gif.sound(file, budget.check, accept_damaged=accept_damaged)
    if head.startswith(b"RIFF"):
        return webp.sound(file, budget.check, accept_damaged=accept_damaged)
    if head.startswith((b"BM", b"P")):
        format = "BMP" if head.startswith(b"B") else "PPM"
        return raw_rows.sound(file, format, budget.check, accept_damaged=accept_damaged)
    if head[4:8] != b"ftyp":
        return file, []

    def of_heic(content: bytes) -> np.ndarray:
        first = heic.open_first(io.BytesIO(content))
        budget.check(*first.size)
        return first.samples()

    decode = filling.by_pillow("AVIF", budget.check)
    if heic.is_heic(head):
        heic.reader()  # without it, nothing else matters
        decode = of_heic
    return coded_items.sound(file, decode, accept_damaged=accept_damaged)


def _read_jpeg(
    opened: JpegImagePlugin.JpegImageFile, file: BinaryIO, warnings: list[str], *, accept_damaged: bool
) -> Picture:
    file.seek(0)
    content = file.read()
    opened, damage = jpeg_mending.loaded(opened, content, accept_damaged=accept_damaged)
    gain_map, gain_map_warnings = ultra_hdr.read(content, opened.size)
    warnings = [
        *warnings,
        *damage,
        *gain_map_warnings,
        *jpeg_parts.unkept(content, keeps_gain_map=gain_map is not None),
    ]
    picture = _finished(Planes.of_image(opened, warnings), opened, file, warnings)
    if gain_map is not None:
        orientation, _, _ = exif_of(opened)
        gain_map = replace(gain_map, levels=Planes(gain_map.levels, None).turned(orientation).pixels)
    return replace(picture, gain_map=gain_map)


def _read_still(opened: ImageFile.ImageFile, file: BinaryIO, warnings: list[str]) -> Picture:
    if opened.format == "PNG" and png.is_deep(file):
        # Pixels before metadata: on some damaged files the metadata parser fails first, and a load after that
        # returns half a picture without an error.
        samples, opened = png.deep_samples(file)
        planes = Planes.of_samples(samples, opened.info.get("transparency"))
        return _finished(planes, opened, file, warnings)
    if opened.format == "PPM" and ppm.is_scaled(opened):
        return _finished(Planes.of_samples(ppm.samples(opened, file)), opened, file, warnings)
    opened.load()
    if opened.format == "AVIF" and (bits := _avif_bits(file)) > 8:
        warnings.append(f"its {bits} bits per channel were read as 8")
    if opened.format == "AVIF" and boxes.has_gain_map(_content(file)):
        warnings.append(f"{A_GAIN_MAP} was not kept")
    if opened.format == "BMP":
        file.seek(0)
        opened.info["icc_profile"], colour_warnings = bmp.profile(file.read())
        warnings += colour_warnings
    planes = Planes.of_image(opened, warnings)
    return _finished(planes, opened, file, warnings)


def _read_frames(opened: ImageFile.ImageFile, file: BinaryIO, budget: Budget, warnings: list[str]) -> Picture:
    """Read an animation; the first frame carries what belongs to all."""
    count: int = opened.n_frames  # type: ignore[attr-defined]  # Pillow has it on some classes of images alone
    budget.spend(opened.width, opened.height, count)
    first = 0
    if getattr(opened, "default_image", False):
        first = 1
        warnings.append("its still picture for programs without animation was not kept")
    if opened.format == "PNG" and png.is_deep(file):
        warnings.append("the 16 bits per channel of its frames were read as 8")
        file.seek(0)
    if opened.format == "AVIF" and (bits := _avif_bits(file)) > 8:
        warnings.append(f"its {bits} bits per channel were read as 8")
    frames: list[Picture] = []
    if opened.format == "GIF":
        frames = [
            Picture(planes.pixels, planes.alpha, duration_ms=duration)
            for planes, duration in gif.seen_frames(file)
        ]
    for index in range(first, 0 if frames else count):
        opened.seek(index)
        opened.load()
        planes = Planes.of_image(opened, warnings)
        frames.append(Picture(planes.pixels, planes.alpha, duration_ms=float(opened.info.get("duration") or 0)))
    # WebP marks opaque animations as transparent wherever a frame is stored as a change to the one before.
    if all(frame.alpha is None or frame.alpha.min() == 255 for frame in frames):
        frames = [replace(frame, alpha=None) for frame in frames]
    whole = _finished(Planes(frames[0].pixels, frames[0].alpha), opened, file, warnings)
    orientation, _, _ = exif_of(opened)
    turned = [Planes(frame.pixels, frame.alpha).turned(orientation) for frame in frames[1:]]
    return replace(
        whole,
        duration_ms=frames[0].duration_ms,
        plays=_plays(opened, file),
        further=tuple(
            Picture(planes.pixels, planes.alpha, format=whole.format, duration_ms=frame.duration_ms)
            for planes, frame in zip(turned, frames[1:], strict=True)
        ),
    )


def _plays(opened: ImageFile.ImageFile, file: BinaryIO) -> int:
    """Return how often an animation is shown: GIF counts the repetitions after the first time."""
    loop = opened.info.get("loop")
    if opened.format == "AVIF":
        return boxes.plays(_content(file))
    if opened.format == "GIF":
        return 1 if loop is None else loop + 1 if loop else 0
    return int(loop or 0)


def _read_heic(file: BinaryIO, budget: Budget, warnings: list[str]) -> Picture:
    opened = heic.open_first(file)
    budget.spend(*opened.size)
    planes = Planes.of_samples(opened.samples())
    exif, warnings = b"", [*warnings, *opened.warnings, *beside.unkept(_content(file))]
    if boxes.has_gain_map(_content(file)):
        warnings.append(f"{A_GAIN_MAP} was not kept")
    try:
        if opened.exif:
            exif = metadata.upright_exif(opened.exif)  # libheif has turned the picture already
    except (struct.error, ValueError):
        warnings.append("its EXIF data is damaged and was not kept")
    return Picture(
        pixels=planes.pixels,
        alpha=planes.alpha,
        icc=opened.icc,
        exif=exif,
        format="heic",
        lossy_quality=0,
        warnings=tuple(warnings),
        xmp=opened.xmp,
        dpi=_exif_dpi(exif),
        png_colour=colour.cicp_chunk(*opened.code_points) if not opened.icc and opened.code_points else (),
    )


def _finished(planes: Planes, opened: ImageFile.ImageFile, file: BinaryIO, warnings: list[str]) -> Picture:
    """Return the picture with what `opened`, which is loaded, carries beside its pixels."""
    raw = png.raw_profiles(opened.text) if isinstance(opened, PngImagePlugin.PngImageFile) else {}
    icc = opened.info.get("icc_profile") or raw.get("icc")
    if opened.mode == "CMYK":
        icc = None
    orientation, exif, exif_warnings = exif_of(opened, raw.get("exif", b""))
    warnings = [*warnings, *exif_warnings, *_unkept(opened, file)]
    planes = planes.turned(orientation)
    dpi = opened.info.get("dpi")
    dpi = _exif_dpi(exif) if dpi is None else metadata.valid_dpi(dpi)
    if dpi and planes.is_swapped(orientation):
        dpi = dpi[::-1]
    if opened.info.get("photoshop"):
        warnings.append("its Photoshop data was not kept")
    if opened.format != "BMP" and "icc_profile" in opened.info and not opened.info["icc_profile"]:
        warnings.append("its colour profile is damaged and was not kept")
    xmp = (
        opened.info.get("xmp") or raw.get("xmp", b"") or (gif.beside(file).xmp if opened.format == "GIF" else b"")
    )
    return Picture(
        pixels=planes.pixels,
        alpha=planes.alpha,
        icc=icc,
        exif=exif,
        format=READ[str(opened.format)],
        warnings=tuple(dict.fromkeys(warnings)),
        xmp=xmp if isinstance(xmp, bytes) else str(xmp).encode(),
        dpi=dpi,
        texts=_texts(opened, file),
        png_colour=_colour_chunks(opened, file) if not icc else (),
        lossy_quality=_lossy_quality(opened, file),
    )


def _lossy_quality(opened: ImageFile.ImageFile, file: BinaryIO) -> int | None:
    if opened.format == "WEBP":
        return 0 if webp.is_lossy(_content(file)) else None
    if opened.format == "AVIF":  # grey without loss does not say so
        return None if boxes.is_identity(_content(file)) else 0
    return jpeg.quality_of(opened)


def _colour_chunks(opened: ImageFile.ImageFile, file: BinaryIO) -> tuple[tuple[bytes, bytes], ...]:
    if opened.format == "PNG":
        return png.colour_chunks(file)
    if opened.format != "AVIF":
        return ()
    content = _content(file)
    code_points = boxes.colours(content) or bitstreams.colours(content)
    return colour.cicp_chunk(*code_points) if code_points else ()


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _texts(opened: ImageFile.ImageFile, file: BinaryIO) -> tuple[tuple[str, str], ...]:
    if isinstance(opened, PngImagePlugin.PngImageFile):
        return tuple(
            (str(keyword), str(text))
            for keyword, text in opened.text.items()
            if keyword != "XML:com.adobe.xmp" and not png.raw_profiles({keyword: text})
        )
    comment = ""
    if opened.format == "GIF":
        comment = gif.beside(file).comment
    elif isinstance(opened, JpegImagePlugin.JpegImageFile):
        comments = [body for name, body in opened.applist if name == "COM" and body.strip(b"\0 \n")]
        comment = "\n".join(dict.fromkeys(map(gif.text_of, comments)))
    return (("Comment", comment),) if comment else ()


def _unkept(opened: ImageFile.ImageFile, file: BinaryIO) -> list[str]:
    """Return warnings of what the file says and `Picture` has no place for."""
    across, down = 1, 1
    warnings = []
    if opened.format == "PNG":
        across, down = opened.info.get("aspect", (1, 1))
        warnings = [f"its {words} were not kept" for words in png.unkept(file)]
    elif opened.format in ("JPEG", "MPO") and opened.info.get("jfif_unit") == 0:
        across, down = opened.info.get("jfif_density", (1, 1))
    elif opened.format == "AVIF":
        across, down = boxes.pixel_shape(_content(file))
    elif opened.format == "GIF":
        across, down = gif.pixel_shape(file)
        warnings = gif.beside(file).unkept
    warnings += beside.unkept(_content(file))
    if across != down and across and down:
        # A file says how many pixels make the same length; AVIF and GIF how long they are.
        shape = f"{across}:{down}" if opened.format in ("AVIF", "GIF") else f"{down}:{across}"
        warnings.append(f"its pixels are not square ({shape}), which was not kept")
    return warnings


def exif_of(image: Image.Image, otherwise: bytes = b"") -> tuple[int, bytes, list[str]]:
    """Return the orientation, the EXIF block with its orientation reset, and warnings.

    `otherwise`: the block of a file that has none where blocks belong.

    Damaged metadata must not cost a good picture, so the block is dropped then, and that is said.
    """
    dropped = ["its EXIF data is damaged and was not kept"]
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODER_ERRORS:
        return 1, b"", dropped
    orientation = orientation if isinstance(orientation, int) else 1
    block = image.info.get("exif") or otherwise
    if not block:
        return orientation, b"", []
    try:
        return orientation, metadata.upright_exif(block), []
    except (struct.error, ValueError):
        return orientation, b"", dropped


def _exif_dpi(exif: bytes) -> tuple[float, float] | None:
    try:
        return metadata.exif_dpi(exif) if exif else None
    except (struct.error, ValueError):
        return None


def _avif_bits(file: BinaryIO) -> int:
    """Return the bits per channel that an AVIF file's configuration tells, 8 if there is none."""
    content = _content(file)
    configuration = content.find(b"av1C")
    if configuration < 0 or len(content) <= configuration + 6 or not content[configuration + 6] & 0x40:
        return 8
    return 12 if content[configuration + 6] & 0x20 else 10
