"""What goes wrong around the image library, as errors of this package: files, formats, damage, sizes."""

from __future__ import annotations

import contextlib
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import UnidentifiedImageError

from srgan.errors import PictureError, PictureTooLargeError, SrganError
from srgan.pictures.formats.damage import CUT_SHORT
from srgan.pictures.picture import FORMATS
from srgan.pictures.signatures import NO_PICTURE

# Formats that are read: Pillow's names to ours. MPO is a JPEG file with further pictures behind the first.
READ = {format.pillow: key for key, format in FORMATS.items()} | {"MPO": "jpg"}

OPENED = tuple(format for format in READ if format != "MPO")  # Pillow finds MPO behind JPEG itself

# What Pillow raises on hostile files, as met in its decoders and its metadata parsers.
DECODER_ERRORS = (
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

# Those that say in words what is wrong; the others speak of what went wrong in the program.
_IN_WORDS = (OSError, ValueError, SyntaxError, RuntimeError)


@contextlib.contextmanager
def open_regular_file(path: Path) -> Iterator[BinaryIO]:
    """Yield the file; raises PictureError for what is none, which is not opened: a pipe could wait for ever."""
    try:
        status = path.stat()
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
def as_picture_errors(name: str, complaint: str) -> Iterator[None]:
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
    except DECODER_ERRORS as error:
        message = next(iter(str(error).splitlines()), "")[:200] if isinstance(error, _IN_WORDS) else ""
        if message.startswith(("image file is truncated", "not enough image data")):
            message = CUT_SHORT
        raise PictureError(": ".join(filter(None, (name, complaint, message)))) from error


class Budget:
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
