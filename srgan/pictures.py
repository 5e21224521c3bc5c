"""The only module that knows Pillow: files and bytes to `Picture` and back.

What a file says about its pixels is kept, or refused with an error; nothing is converted with a loss. Pictures of
16 bits per channel, CMYK, floating point, animations and pages are refused.
"""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
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

from srgan.errors import PictureError, PictureTooLargeError, SrganError, UnsupportedPictureError

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

# What Pillow raises on hostile files, as met in its decoders and its metadata parsers.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
    UserWarning,
    struct.error,
    zlib.error,
)

# Pixel modes that are read: what each becomes without transparency and with it. All are exact.
_MODES = {
    "1": ("L", "LA"),
    "L": ("L", "LA"),
    "LA": ("LA", "LA"),
    "P": ("RGB", "RGBA"),
    "PA": ("RGBA", "RGBA"),
    "RGB": ("RGB", "RGBA"),
    "RGBA": ("RGBA", "RGBA"),
}

# EXIF orientation to the turn that makes the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A still picture in memory, upright.

    `pixels`: (H,W,3) RGB or (H,W) grey, uint8, in 0..255 and in the colours of `icc`. `alpha`: (H,W) uint8, not
    premultiplied, or None if every pixel is opaque by nature. `icc`: the ICC profile as found. `exif`: the EXIF
    block as found ("Exif" header and TIFF structure), its orientation reset to upright. `format`: the key in
    `FORMATS`, or "gif", of the file it was read from. `warnings`: what of the file could not be kept.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes = b""
    format: str = "png"
    warnings: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])

    @property
    def is_grey(self) -> bool:
        """Whether there is one channel instead of three."""
        return self.pixels.ndim == 2


@dataclass(frozen=True)
class Format:
    """A format that is written. `suffixes`: of file names, the first one for new files."""

    pillow: str
    suffixes: tuple[str, ...]
    max_side_px: int
    holds_alpha: bool = True
    holds_icc: bool = True
    holds_exif: bool = True


FORMATS = {
    "png": Format("PNG", (".png",), 2**31 - 1),
    "jpg": Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), 65_500, holds_alpha=False),
    "webp": Format("WEBP", (".webp",), 16_383),
    "avif": Format("AVIF", (".avif",), 65_536),
    "tiff": Format("TIFF", (".tif", ".tiff"), 2**31 - 1),
    "bmp": Format("BMP", (".bmp",), 2**31 - 1, holds_alpha=False, holds_icc=False, holds_exif=False),
    "ppm": Format(
        "PPM", (".ppm", ".pgm", ".pnm"), 2**31 - 1, holds_alpha=False, holds_icc=False, holds_exif=False
    ),
}

# Formats that are read: Pillow's names to ours. MPO is a JPEG file with further pictures behind the first.
_READ = {format.pillow: key for key, format in FORMATS.items()} | {"GIF": "gif", "MPO": "jpg"}

_OPENED = tuple(format for format in _READ if format != "MPO")  # Pillow finds MPO behind JPEG itself

# Suffixes by which a picture is known in a folder.
PICTURE_SUFFIXES = frozenset(
    {suffix for format in FORMATS.values() for suffix in format.suffixes} | {".gif", ".pbm", ".apng"}
)


def decode(source: Path | bytes, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Picture:
    """Read a picture from a file or from the bytes of one, and turn it upright by its EXIF orientation.

    The content decides the format, not the name. Raises PictureTooLargeError before decoding if the header
    promises more than `max_megapixels`; UnsupportedPictureError for what would be damaged (more than 8 bits per
    channel, CMYK, several frames or pages); PictureError if the file cannot be read, is truncated or damaged.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), "the picture", max_megapixels)
    with _open_regular_file(source) as file:
        return _decode(file, str(source), max_megapixels)


def encode(picture: Picture, format: str, *, quality: int | None = None) -> bytes:
    """Return `picture` as a file of `format`, a key of `FORMATS`, with its ICC profile and EXIF.

    `quality`: 1..100 for the lossy formats, None for the default, which is chosen to be hard to tell from the
    original; PNG, TIFF, BMP and PPM do without it. Raises PictureError if the format cannot hold the picture.
    """
    if reason := why_not(picture, format):
        raise PictureError(f"{reason}; choose another format, PNG holds everything")
    target = FORMATS[format]
    options: dict[str, object] = _encoder_options(format, quality)
    if target.holds_icc and picture.icc:
        options["icc_profile"] = picture.icc
    if target.holds_exif and picture.exif:
        options["exif"] = picture.exif
        if format == "tiff":
            del options["compression"]  # Pillow writes EXIF into uncompressed TIFF only
    image = _image_of(picture)
    buffer = io.BytesIO()
    with _guarded(f"as {target.pillow}", "cannot be encoded"):
        image.save(buffer, target.pillow, **options)
    return buffer.getvalue()


def why_not(picture: Picture, format: str, *, size: tuple[int, int] | None = None) -> str | None:
    """Return why `format` cannot hold `picture`, in a few words, or None if it can.

    `size`: (height, width) that it will be written with, if not its own.
    """
    if format not in FORMATS:
        return f"{format.upper()} is read but not written"
    target = FORMATS[format]
    if picture.alpha is not None and not target.holds_alpha:
        return f"{target.pillow} cannot hold transparency"
    if picture.icc and not target.holds_icc:
        return f"{target.pillow} cannot hold a colour profile"
    if max(size or (picture.height, picture.width)) > target.max_side_px:
        return f"{target.pillow} ends at {target.max_side_px} pixels a side"
    return None


def format_of_suffix(suffix: str) -> str | None:
    """Return the key in `FORMATS` that file names with `suffix` (".jpg") have, or None."""
    return next((key for key, format in FORMATS.items() if suffix.lower() in format.suffixes), None)


def resized(picture: Picture, height: int, width: int) -> Picture:
    """Return `picture` at another size by bicubic resampling (a = -0.5), antialiased when it gets smaller."""

    def resize(plane: np.ndarray) -> np.ndarray:
        if plane.dtype == np.uint8:
            return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
        # Pillow resizes 16 bits one channel at a time and as floats alone.
        channels = plane.reshape(*plane.shape[:2], -1)
        out = np.empty((height, width, channels.shape[2]), plane.dtype)
        for index in range(channels.shape[2]):
            channel = Image.fromarray(channels[..., index].astype(np.float32))
            levels = np.asarray(channel.resize((width, height), Image.Resampling.BICUBIC))
            out[..., index] = np.rint(levels).clip(0, np.iinfo(plane.dtype).max)
        return out.reshape(height, width, *plane.shape[2:])

    # Apart, not as RGBA: Pillow premultiplies there, which rounds the colour of faint pixels away.
    alpha = None if picture.alpha is None else resize(picture.alpha)
    return replace(picture, pixels=resize(picture.pixels), alpha=alpha)


def jpeg_quality(path: Path) -> int | None:
    """Return the quality, 1..100 on libjpeg's scale, that a JPEG file was written with; None for other formats.

    Estimated from its luma quantisation table: the scale of the standard's own table (ITU T.81, annex K) that is
    nearest, which is exact for files written by libjpeg. No pixel is decoded. Raises PictureError if the file
    cannot be read.
    """
    with (
        _open_regular_file(path) as file,
        _guarded(str(path), "is damaged or incomplete"),
        Image.open(file, formats=_OPENED) as opened,
    ):
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


@contextlib.contextmanager
def _open_regular_file(path: Path) -> Iterator[BinaryIO]:
    try:
        status = path.stat()  # never opened if it is a pipe or a device: that could wait for ever
        if stat.S_ISDIR(status.st_mode):
            raise PictureError(f"{path}: is a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(f"{path}: is not a regular file (a pipe, a socket or a device)")
        if status.st_size == 0:
            raise PictureError(f"{path}: is empty; copy the file again")
        file = path.open("rb")
    except OSError as error:
        raise PictureError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the name
        raise PictureError(f"{path}: cannot be read: {error}") from error
    with file:
        yield file


@contextlib.contextmanager
def _guarded(name: str, complaint: str) -> Iterator[None]:
    """Turn whatever Pillow raises into a PictureError."""
    try:
        yield
    except SrganError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(sorted(_READ))
        raise PictureError(f"{name}: is not a picture of a known format ({known})") from error
    except MemoryError as error:
        raise PictureError(f"{name}: {complaint}: not enough memory") from error
    except _DECODER_ERRORS as error:
        said = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
        raise PictureError(f"{name}: {complaint}: {said}") from error


def _decode(file: BinaryIO, name: str, max_megapixels: float) -> Picture:
    with _guarded(name, "is damaged or incomplete"), Image.open(file, formats=_OPENED) as opened:
        _refuse_too_large(opened, name, max_megapixels)
        _refuse_unsupported(opened, file, name)
        # Pixels before metadata: on some damaged files the metadata parser fails first, and a load after that
        # returns half a picture without an error.
        opened.load()
        # A frame may turn out larger than the header promised.
        _refuse_too_large(opened, name, max_megapixels)
        warnings = []
        if opened.format == "MPO":
            warnings.append("only the first picture of the file was read; others behind it are not kept")
        orientation, exif, exif_warnings = _exif_of(opened)
        icc = opened.info.get("icc_profile")
        format = _READ[str(opened.format)]
        image = opened.convert(_MODES[opened.mode][opened.has_transparency_data])
        if orientation in _TURNS:
            image = image.transpose(_TURNS[orientation])
        array = np.asarray(image)
    alpha = array[..., -1] if image.mode in ("LA", "RGBA") else None
    if alpha is not None:
        array = array[..., 0] if image.mode == "LA" else array[..., :3]
    return Picture(array, alpha, icc or None, exif, format, (*warnings, *exif_warnings))


def _refuse_too_large(image: Image.Image, name: str, max_megapixels: float) -> None:
    if image.width * image.height > max_megapixels * 1e6:
        raise PictureTooLargeError(
            f"{name}: {image.width}x{image.height} pixels are more than the limit of {max_megapixels:g} "
            "megapixels; crop or reduce it first"
        )


def _refuse_unsupported(image: ImageFile.ImageFile, file: BinaryIO, name: str) -> None:
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise UnsupportedPictureError(
            f"{name}: holds several frames or pages, which are not supported yet; save one of them as a picture"
        )
    if image.mode not in _MODES:
        raise UnsupportedPictureError(
            f"{name}: pixels of mode {image.mode} are not supported yet; save it as 8-bit RGB or greyscale"
        )
    if _has_deep_channels(image, file):
        raise UnsupportedPictureError(
            f"{name}: more than 8 bits per channel are not supported yet; save it with 8 bits"
        )


def _has_deep_channels(image: ImageFile.ImageFile, file: BinaryIO) -> bool:
    """Return whether Pillow would cut the channels down to 8 bits without a word.

    It does for 16-bit colour: the file's own header tells, not the mode that Pillow gives it.
    """
    if image.format == "PNG":
        file.seek(24)  # the signature, then the header chunk's length, name, width and height
        return file.read(1)[0] > 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return bool(max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8)
    if image.format == "PPM":
        arguments = image.tile[0].args
        return isinstance(arguments, tuple) and arguments[1] > 255  # the largest value there may be
    if image.format == "AVIF":
        file.seek(0)
        content = file.read()
        configuration = content.find(b"av1C")
        return configuration >= 0 and bool(content[configuration + 6] & 0x40)  # its high_bitdepth flag
    return False


def _exif_of(image: Image.Image) -> tuple[object, bytes, tuple[str, ...]]:
    """Return the orientation, the EXIF block with its orientation reset, and warnings.

    Damaged metadata must not cost a good picture, so the block is dropped then, and that is said.
    """
    dropped = ("its EXIF data is damaged and was not kept",)
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_ERRORS:
        return 1, b"", dropped
    block = image.info.get("exif")
    if not block:
        return orientation, b"", ()
    try:
        return orientation, _with_upright_orientation(block), ()
    except (struct.error, ValueError):
        return orientation, b"", dropped


def _with_upright_orientation(block: bytes) -> bytes:
    """Return an EXIF block whose orientation tag, if it has one, says 1.

    The two bytes are changed in place and everything else stays as it is: written anew, the block would lose
    what only its camera understands. Raises ValueError or struct.error if the block is not one.
    """
    header = b"Exif\0\0"
    tiff = bytearray(block.removeprefix(header))
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        raise ValueError("no byte order mark")
    (first,) = struct.unpack_from(order + "L", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, first)
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(order + "H", tiff, entry)
        if tag == ExifTags.Base.Orientation:
            struct.pack_into(order + "HLHH", tiff, entry + 2, 3, 1, 1, 0)  # one SHORT: 1
    return header + bytes(tiff)


def _image_of(picture: Picture) -> Image.Image:
    if picture.alpha is None:
        return Image.fromarray(np.ascontiguousarray(picture.pixels))
    return Image.fromarray(np.dstack([picture.pixels, picture.alpha]))


def _encoder_options(format: str, quality: int | None) -> dict[str, object]:
    """Return Pillow's options; the figures beside them are of a 2-megapixel photograph."""
    match format:
        case "png":
            return {"compress_level": 2}  # a quarter of the time of Pillow's 6, an eighth larger
        case "jpg":
            return {"quality": quality or 95, "subsampling": 0}  # 4:4:4: colour at full resolution
        case "webp":
            return {"quality": quality or 95, "method": 2}  # a third of the time of 4, a fiftieth larger
        case "avif":
            return {"quality": quality or 90, "subsampling": "4:4:4"}
        case "tiff":
            return {"compression": "tiff_adobe_deflate"}
        case _:
            return {}
