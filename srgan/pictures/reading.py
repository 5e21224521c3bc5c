"""Files and bytes to `Picture`."""

from __future__ import annotations

import contextlib
import io
import logging
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
from srgan.pictures import colour, gif, heic, metadata, png, ppm, tiff
from srgan.pictures.picture import FORMATS, Picture
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

# Pillow's remarks on damaged files would go to standard error where nobody has set up logging.
logging.getLogger("PIL").addHandler(logging.NullHandler())

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

# Formats that are read: Pillow's names to ours. MPO is a JPEG file with further pictures behind the first.
_READ = {format.pillow: key for key, format in FORMATS.items()} | {"MPO": "jpg"}

_OPENED = tuple(format for format in _READ if format != "MPO")  # Pillow finds MPO behind JPEG itself


def decode(source: Path | bytes, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Picture:
    """Read a picture from a file or from the bytes of one, and turn it upright by its EXIF orientation.

    The content decides the format, not the name. Frames of an animation come as they are seen, each whole; pages
    one by one. 16 bits per channel stay 16; CMYK and L*a*b* become sRGB. What the file carries and the picture
    does not is told in its `warnings`.
    Raises PictureTooLargeError before decoding if the header promises more than `max_megapixels`, all frames and
    pages together; UnsupportedPictureError for pixels that would be damaged (floating point beyond 0..1, 32-bit
    integers); PictureError if the file cannot be read, is truncated or damaged.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), "the picture", max_megapixels)
    with _open_regular_file(source) as file:
        return _decode(file, str(source), max_megapixels)


def jpeg_quality(path: Path) -> int | None:
    """Return the quality, 1..100 on libjpeg's scale, that a JPEG file was written with; None for other formats.

    Estimated from its luma quantisation table: the scale of the standard's own table (ITU T.81, annex K) that is
    nearest, which is exact for files written by libjpeg. No pixel is decoded. Raises PictureError if the file
    cannot be read.
    """
    with (
        _open_regular_file(path) as file,
        guarded(str(path), "is damaged or incomplete"),
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
def guarded(name: str, complaint: str) -> Iterator[None]:
    """Turn whatever Pillow raises into a PictureError that begins with `name`."""
    try:
        yield
    except SrganError as error:
        if str(error).startswith(name):
            raise
        raise type(error)(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name}: {NO_PICTURE}") from error
    except MemoryError as error:
        raise PictureError(f"{name}: {complaint}: not enough memory") from error
    except _DECODER_ERRORS as error:
        said = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
        raise PictureError(f"{name}: {complaint}: {said}") from error


class _Budget:
    """The pixels that may be decoded from one file, all frames and pages together."""

    def __init__(self, max_megapixels: float) -> None:
        self._max_megapixels = max_megapixels
        self._left = max_megapixels * 1e6

    def spend(self, width: int, height: int, frames: int = 1) -> None:
        """Take so many pixels; raise PictureTooLargeError if they are more than are left."""
        self.check(width, height, frames)
        self._left -= width * height * frames

    def check(self, width: int, height: int, frames: int = 1) -> None:
        """Raise PictureTooLargeError if so many pixels are more than are left."""
        if width * height * frames > self._left:
            times = f" in {frames} frames" if frames > 1 else ""
            raise PictureTooLargeError(
                f"{width}x{height} pixels{times} are more than the limit of {self._max_megapixels:g} megapixels "
                "for a file; crop or reduce it first"
            )


def _decode(file: BinaryIO, name: str, max_megapixels: float) -> Picture:
    budget = _Budget(max_megapixels)
    warnings: list[str] = []
    with guarded(name, "is damaged or incomplete"):
        head = file.read(32)
        file.seek(0)
        if not looks_like_picture(head):
            raise UnsupportedPictureError(f"{name}: {NO_PICTURE}")
        if tiff.is_tiff(head):
            return _read_tiff(file.read(), budget)
        if heic.is_heic(head):
            return _read_heic(file, budget)
        if head.startswith((b"GIF87a", b"GIF89a")):
            budget.check(*gif.canvas(file))
            file.seek(0)
        try:
            image = Image.open(file, formats=_OPENED)
        except UnidentifiedImageError:
            if not head.startswith(b"\xff\xd8\xff"):
                raise
            # Pillow looks into EXIF for the resolution, and takes some damage there for no JPEG at all.
            file.seek(0)
            file = io.BytesIO(metadata.hide_exif(file.read()))
            image = Image.open(file, formats=_OPENED)
            warnings.append("its EXIF data is damaged and was not kept")
        with image as opened:
            if opened.format != "MPO" and getattr(opened, "is_animated", False):
                return _read_frames(opened, file, budget)
            budget.spend(opened.width, opened.height)
            return _read_still(opened, file, warnings)


def _read_still(opened: ImageFile.ImageFile, file: BinaryIO, warnings: list[str]) -> Picture:
    if opened.format == "PNG" and png.is_deep(file):
        # Pixels before metadata: on some damaged files the metadata parser fails first, and a load after that
        # returns half a picture without an error.
        samples, opened = png.deep_samples(file)
        planes = _Planes.of_samples(samples, opened.info.get("transparency"))
        return _finished(planes, opened, file, warnings)
    if opened.format == "PPM" and ppm.is_scaled(opened):
        return _finished(_Planes.of_samples(ppm.samples(opened, file)), opened, file, warnings)
    opened.load()
    if opened.format == "MPO":
        warnings.append("only the first picture of the file was read; others behind it are not kept")
    if opened.format == "AVIF" and (bits := _avif_bits(file)) > 8:
        warnings.append(f"its {bits} bits per channel were read as 8")
    planes = _Planes.of_image(opened, warnings)
    return _finished(planes, opened, file, warnings)


def _read_frames(opened: ImageFile.ImageFile, file: BinaryIO, budget: _Budget) -> Picture:
    """Read an animation; the first frame carries what belongs to all."""
    count: int = opened.n_frames  # type: ignore[attr-defined]  # Pillow has it on some classes of images alone
    budget.spend(opened.width, opened.height, count)
    warnings = []
    first = 0
    if getattr(opened, "default_image", False):
        first = 1
        warnings.append("its still picture for programs without animation was not kept")
    if opened.format == "PNG" and png.is_deep(file):
        warnings.append("the 16 bits per channel of its frames were read as 8")
        file.seek(0)
    if opened.format == "AVIF" and (bits := _avif_bits(file)) > 8:
        warnings.append(f"its {bits} bits per channel were read as 8")
    frames = []
    for index in range(first, count):
        opened.seek(index)
        opened.load()
        planes = _Planes.of_image(opened, warnings)
        frames.append(Picture(planes.pixels, planes.alpha, duration_ms=float(opened.info.get("duration") or 0)))
    # WebP marks opaque animations as transparent wherever a frame is stored as a change to the one before.
    if all(frame.alpha is None or frame.alpha.min() == 255 for frame in frames):
        frames = [replace(frame, alpha=None) for frame in frames]
    whole = _finished(_Planes(frames[0].pixels, frames[0].alpha), opened, file, warnings)
    return replace(
        whole,
        duration_ms=frames[0].duration_ms,
        plays=_plays(opened),
        further=tuple(replace(frame, format=whole.format) for frame in frames[1:]),
    )


def _plays(opened: ImageFile.ImageFile) -> int:
    """Return how often an animation is shown: GIF counts the repetitions after the first time."""
    loop = opened.info.get("loop")
    if opened.format == "GIF":
        return 1 if loop is None else loop + 1 if loop else 0
    return int(loop or 0)


def _read_tiff(content: bytes, budget: _Budget) -> Picture:
    found: list[Picture] = []
    warnings: list[str] = []
    for page in tiff.pages(content):
        if found and page.is_secondary:
            warnings.append("its reduced copies and masks were not kept")
            continue
        height, width = page.size
        budget.spend(width, height)
        found.append(_read_page(page, warnings))
    if not found:
        raise ValueError("it holds no page")
    told = tuple(dict.fromkeys([*found[0].warnings, *warnings]))
    return replace(found[0], warnings=told, further=tuple(found[1:]))


def _read_page(page: tiff.Page, warnings: list[str]) -> Picture:
    icc = page.icc
    if page.is_deep:
        levels = tiff.deep_samples(page)
        colours, alpha, kind, said = tiff.colour_and_extra(page, levels)
        warnings += said
        if kind == 5:
            image = Image.fromarray(_to_8_bits(colours), "CMYK")
            image, said_of_cmyk = colour.from_cmyk(image, icc)
            warnings += ["its 16 bits per channel were read as 8", said_of_cmyk]
            colours, alpha, icc = np.asarray(image), None if alpha is None else _to_8_bits(alpha), None
        planes = _Planes(colours[..., 0] if colours.shape[2] == 1 else colours, alpha)
        planes = planes.turned(tiff.orientation(page))
    else:
        try:
            image = Image.open(io.BytesIO(page.file), formats=("TIFF",))
        except UnidentifiedImageError as error:
            raise UnsupportedPictureError(
                f"TIFF with this kind of samples ({page.bits} bits) is not supported; save it as RGB or greyscale "
                "with 8 or 16 bits per channel"
            ) from error
        with image as opened:
            opened.load()  # Pillow turns the page upright in this
            if opened.mode in ("CMYK", "LAB"):
                icc = None
            planes = _Planes.of_image(opened, warnings, bits=page.bits)
    exif = b""
    try:
        if block := page.exif():
            exif = metadata.upright_exif(block)
    except _DECODER_ERRORS:
        warnings.append("its EXIF data is damaged and was not kept")
    warnings += [f"its {words} was not kept" for words in page.unkept()]
    dpi = None if page.dpi is None else metadata.valid_dpi(page.dpi)
    if dpi and tiff.orientation(page) >= 5:
        dpi = dpi[::-1]
    return Picture(planes.pixels, planes.alpha, icc, exif, "tiff", xmp=page.xmp, dpi=dpi)


def _read_heic(file: BinaryIO, budget: _Budget) -> Picture:
    opened = heic.open_first(file)
    budget.spend(*opened.size)
    planes = _Planes.of_samples(opened.samples())
    exif, warnings = b"", list(opened.warnings)
    try:
        if opened.exif:
            exif = metadata.upright_exif(opened.exif)  # libheif has turned the picture already
    except (struct.error, ValueError):
        warnings.append("its EXIF data is damaged and was not kept")
    return Picture(
        planes.pixels,
        planes.alpha,
        opened.icc,
        exif,
        "heic",
        tuple(warnings),
        xmp=opened.xmp,
        dpi=_exif_dpi(exif),
    )


def _finished(planes: _Planes, opened: ImageFile.ImageFile, file: BinaryIO, warnings: list[str]) -> Picture:
    """Return the picture with what `opened`, which is loaded, carries beside its pixels."""
    icc = opened.info.get("icc_profile") or None
    if opened.mode == "CMYK":
        icc = None
    orientation, exif, said = _exif_of(opened)
    planes = planes.turned(orientation)
    dpi = opened.info.get("dpi")
    dpi = _exif_dpi(exif) if dpi is None else metadata.valid_dpi(dpi)
    if dpi and planes.is_swapped(orientation):
        dpi = dpi[::-1]
    if opened.info.get("photoshop"):
        said = [*said, "its Photoshop data was not kept"]
    xmp = opened.info.get("xmp", b"")
    return Picture(
        planes.pixels,
        planes.alpha,
        icc,
        exif,
        _READ[str(opened.format)],
        tuple(dict.fromkeys([*warnings, *said])),
        xmp=xmp if isinstance(xmp, bytes) else str(xmp).encode(),
        dpi=dpi,
        texts=_texts(opened),
        png_colour=png.colour_chunks(file) if opened.format == "PNG" and not icc else (),
    )


def _texts(opened: ImageFile.ImageFile) -> tuple[tuple[str, str], ...]:
    if isinstance(opened, PngImagePlugin.PngImageFile):
        return tuple(
            (str(keyword), str(text))
            for keyword, text in opened.text.items()
            if keyword != "XML:com.adobe.xmp" and not keyword.startswith("Raw profile type ")
        )
    comment = opened.info.get("comment")
    if not isinstance(comment, bytes) or not comment.strip():
        return ()
    try:
        return (("Comment", comment.decode()),)
    except UnicodeDecodeError:
        return (("Comment", comment.decode("latin-1")),)


def _exif_of(image: Image.Image) -> tuple[int, bytes, list[str]]:
    """Return the orientation, the EXIF block with its orientation reset, and warnings.

    Damaged metadata must not cost a good picture, so the block is dropped then, and that is said.
    """
    dropped = ["its EXIF data is damaged and was not kept"]
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_ERRORS:
        return 1, b"", dropped
    orientation = orientation if isinstance(orientation, int) else 1
    block = image.info.get("exif")
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
    file.seek(0)
    content = file.read()
    configuration = content.find(b"av1C")
    if configuration < 0 or len(content) <= configuration + 6 or not content[configuration + 6] & 0x40:
        return 8
    return 12 if content[configuration + 6] & 0x20 else 10


def _to_8_bits(levels: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = np.rint(levels / np.float32(257)).astype(np.uint8)
    return rounded


@dataclass(frozen=True)
class _Planes:
    """Colour (H,W,3) or grey (H,W), and alpha (H,W) or None, as in `Picture`."""

    pixels: np.ndarray
    alpha: np.ndarray | None

    @classmethod
    def of_samples(cls, samples: np.ndarray, transparent: object = None) -> _Planes:
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
    def of_image(cls, image: Image.Image, warnings: list[str], bits: int = 8) -> _Planes:
        """Convert a loaded image; `bits`: of its samples, if its mode has room for more."""
        if image.mode == "CMYK":
            image, said = colour.from_cmyk(image, image.info.get("icc_profile"))
            warnings.append(said)
        elif image.mode == "LAB":
            image, said = colour.from_lab(image)
            warnings.append(said)
        elif image.mode == "F":
            warnings.append("its floating-point samples were rounded to 16 bits")
            return cls(_from_floats(np.asarray(image)), None)
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

    def turned(self, orientation: int) -> _Planes:
        """Return the planes upright by their EXIF orientation."""
        if orientation not in _TURNS:
            return self
        swap, axes = _TURNS[orientation]

        def turn(plane: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(np.flip(plane.swapaxes(0, 1) if swap else plane, axes))

        return _Planes(turn(self.pixels), None if self.alpha is None else turn(self.alpha))


def _from_floats(values: np.ndarray) -> np.ndarray:
    """Return floating-point samples of 0 (black) to 1 (white) as uint16."""
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise UnsupportedPictureError(
            "floating-point samples beyond 0 to 1 are not supported, since nothing says what is black and white; "
            "save it with 16-bit integers"
        )
    levels: np.ndarray = np.rint(values * 65535).astype(np.uint16)
    return levels
