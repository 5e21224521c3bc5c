"""TIFF page by page: 16 bits per channel read and written, which Pillow cuts to 8, and every page with its tags.

A page is read by Pillow where it can be. Where its samples have 16 bits, Pillow (and libtiff below it) still does
the hard part, decompression: it is shown a greyscale page of the same bytes, which are then read as what they are.
"""

from __future__ import annotations

import ctypes
import functools
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2 as Directory

from srgan.errors import UnsupportedPictureError
from srgan.pictures import descriptions
from srgan.pictures.formats.beside import CREDENTIALS
from srgan.pictures.formats.damage import CUT_SHORT, DamageError
from srgan.pictures.formats.tiff_directory import Entries, Form, appended, listed

_MAX_PAGES = 10_000
_MAX_TILE_PX = 4096 * 4096

# Tags.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
_STRIPS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT = 322, 323, 324, 325, 338, 339
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _XMP, _ICC = 282, 283, 296, 700, 34675

_CALIBRATION = (_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT)
_DESCRIPTION = 270

# Tags that say something of the picture and nothing of how it lies in the file.
_DESCRIPTIVE = {
    *(0x010D, 0x010E, 0x010F, 0x0110, 0x011D, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298),
    *(0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, ExifTags.Base.ExifOffset, ExifTags.Base.GPSInfo),
}

# Tags that are kept, by what is told if they cannot be read.
_KEPT = {
    **dict.fromkeys(_DESCRIPTIVE, "a part of its metadata"),
    **dict.fromkeys((ExifTags.Base.ExifOffset, ExifTags.Base.GPSInfo), "its EXIF data"),
    **dict.fromkeys(_CALIBRATION, "its resolution"),
    _XMP: "its XMP data",
    _ICC: "its colour profile",
}

# Tags whose loss is told, by what they are.
_UNKEPT = {
    33550: "georeference",
    33922: "georeference",
    34264: "georeference",
    34735: "georeference",
    33723: "IPTC data",
    34377: "Photoshop data",
    34736: "georeference",
    34737: "georeference",
    50844: "georeference",
    42112: "GDAL metadata",
    33628: "microscope data",
    33629: "microscope data",
    34412: "microscope data",
    50839: "ImageJ overlays and labels",
}

# Compressions that are not read, by their names; of the others the library may have been built without some.
_COMPRESSIONS = {
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((34927, 50001), "WebP"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    **dict.fromkeys((34661, 9, 10), "JBIG"),
    **dict.fromkeys((34676, 34677), "SGI LogLuv"),
    **dict.fromkeys((22610, 34934), "JPEG XR"),
    34887: "LERC",
    34933: "PNG",
    34892: "lossy JPEG for raw pictures",
    34925: "LZMA",
    50000: "Zstandard",
    6: "JPEG of the old kind",
}

# Those that Pillow and libtiff always read.
_ALWAYS_READ = {1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32809, 32946}

_NODATA, _SUB_IFDS, _DNG, _CREDENTIALS = 42113, 330, 50706, 52545

# Photometric interpretations: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK.
_COLOURS = {0: 1, 1: 1, 2: 3, 5: 4}
_YCBCR, _JPEG = 6, 7

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3


@dataclass(frozen=True)
class _Pieces:
    """The strips or tiles of a page, plane after plane, row after row.

    `down`: rows in one. `columns`: how many stand side by side. `count`: of a plane. `row_bytes`: of a row in one,
    None if they are compressed. `offsets` and `bytes_each`: where they are and how long, as the page tells.
    """

    down: int
    columns: int
    count: int
    planes: int
    offsets_tag: int
    bytes_tag: int
    offsets: tuple[int, ...]
    bytes_each: tuple[int, ...]
    row_bytes: int | None


@dataclass(frozen=True)
class Page:
    """One page. `file`: the TIFF file with this page alone to be seen, and of that only what its samples need.

    `tags`: that directory. `entries`: all as they stand in the file, which has `size_bytes`; those that tell other
    things than how the samples lie also stand in a directory at `place` in `file`.
    """

    file: bytes
    tags: Directory
    place: int
    entries: Entries
    size_bytes: int

    @classmethod
    def of(cls, content: bytes, entries: Entries, size_bytes: int) -> Page:
        """Return the page of these entries of a file, of which the first `size_bytes` came from outside."""
        form = Form.of(content)
        file, places = appended(content, form, entries.samples, entries.others)
        tags = Directory(file[: 16 if form.is_big else 8])
        stream = io.BytesIO(file)
        stream.seek(places[0])
        tags.load(stream)
        return cls(file, tags, places[1], entries, size_bytes)

    def with_rows(self, rows: int) -> Page:
        """Return the first `rows` rows of the page as one."""
        pieces = self._pieces()
        values: dict[int, tuple[int, ...]] = {_HEIGHT: (rows,)}
        for tag, numbers in ((pieces.offsets_tag, pieces.offsets), (pieces.bytes_tag, pieces.bytes_each)):
            values[tag] = tuple(
                number
                for plane in range(pieces.planes)
                for number in numbers[plane * pieces.count :][: pieces.columns * -(-rows // pieces.down)]
            )
        content, entries = listed(self.file, Form.of(self.file), values)
        return self.of(content, self.entries.replaced(entries), self.size_bytes)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width); raises DamageError if there is none."""
        height, width = _integer(self.tags, _HEIGHT), _integer(self.tags, _WIDTH)
        if height < 1 or width < 1:
            raise DamageError("the size is missing")
        return height, width

    def _pieces(self) -> _Pieces:
        height, width = self.size
        tags, samples = self.tags, _integer(self.tags, _SAMPLES, 1)
        planes = samples if samples > 1 and _integer(tags, _PLANAR, 1) == 2 else 1
        bits = _per_sample(tags, _BITS, 1)
        bits = bits if len(bits) == samples else bits[:1] * samples
        is_tiled = _TILES in tags
        across = _integer(tags, _TILE_WIDTH) if is_tiled else width
        down = _integer(tags, _TILE_HEIGHT) if is_tiled else min(height, _integer(tags, _ROWS_PER_STRIP, height))
        if across < 1 or down < 1:
            raise DamageError("the size of its strips or tiles is missing")
        offsets_tag, bytes_tag = (_TILES, _TILE_BYTES) if is_tiled else (_STRIPS, _STRIP_BYTES)
        is_raw = _integer(tags, _COMPRESSION, 1) == 1 and _integer(tags, _PHOTOMETRIC, 1) != _YCBCR
        return _Pieces(
            down=down,
            columns=-(-width // across),
            count=-(-width // across) * -(-height // down),
            planes=planes,
            offsets_tag=offsets_tag,
            bytes_tag=bytes_tag,
            offsets=_tuple(tags.get(offsets_tag, ())),
            bytes_each=_tuple(tags.get(bytes_tag, ())),
            row_bytes=-(-across * (max(bits) if planes > 1 else sum(bits)) // 8) if is_raw else None,
        )

    def rows_there(self) -> int:
        """Return how many rows from the top have all of their bytes within the file."""
        pieces, height = self._pieces(), self.size[0]
        is_tiled = pieces.offsets_tag == _TILES
        least = height
        for plane in range(pieces.planes):
            for piece in range(pieces.count):
                index, top = plane * pieces.count + piece, piece // pieces.columns * pieces.down
                if top >= least:
                    break
                there = self.size_bytes - pieces.offsets[index] if index < len(pieces.offsets) else 0
                rows = pieces.down if is_tiled else min(pieces.down, height - top)
                if pieces.row_bytes is not None:
                    if there < rows * pieces.row_bytes:
                        least = top + (0 if is_tiled else max(0, there) // pieces.row_bytes)
                elif there < max(1, pieces.bytes_each[index] if index < len(pieces.bytes_each) else 1):
                    least = top
        return least

    @property
    def rows_at_once(self) -> int:
        """The rows of a strip or tile."""
        return self._pieces().down

    @property
    def is_secondary(self) -> bool:
        """Whether this is a smaller copy of another page, or a mask for it."""
        kind = self._number(_SUBFILE)
        return kind is not None and kind.is_integer() and bool(int(kind) & 0b101)

    @property
    def description(self) -> str:
        """What the file says of itself in words."""
        return self._value(_DESCRIPTION).decode("latin-1")

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 if there is none of this kind."""
        number = self._number(ExifTags.Base.Orientation)
        return int(number) if number is not None and number in range(1, 9) else 1

    def _value(self, tag: int) -> bytes:
        """Return the bytes of an entry that is not of the samples, none if it is not there."""
        entry = next((item for item in self.entries.others if item.tag == tag), None)
        return entry.value(self.file, Form.of(self.file)) if entry else b""

    def _number(self, tag: int) -> float | None:
        entry = next((item for item in self.entries.others if item.tag == tag), None)
        return entry.number(self.file, Form.of(self.file)) if entry else None

    def _has(self, tag: int) -> bool:
        return any(item.tag == tag for item in self.entries.others)

    @property
    def is_deep(self) -> bool:
        """Whether `deep_samples` reads it; Pillow knows floating-point numbers of 32 bits, one a pixel."""
        bits, is_float = set(_per_sample(self.tags, _BITS, 1)), self._kinds == {_FLOAT}
        is_one_of_32 = bits == {32} and _integer(self.tags, _SAMPLES, 1) == 1
        return bits == {16} or (is_float and bits in ({32}, {64}) and not is_one_of_32)

    @property
    def is_of_bytes(self) -> bool:
        """Whether `deep_samples` reads it though its samples have 8 bits."""
        is_plain = (
            _integer(self.tags, _PHOTOMETRIC, 1) in _COLOURS and _integer(self.tags, _COMPRESSION, 1) != _JPEG
        )
        return is_plain and set(_per_sample(self.tags, _BITS, 1)) == {8} and self._kinds <= {_UNSIGNED, _SIGNED}

    @property
    def _kinds(self) -> set[int]:
        return set(_per_sample(self.tags, _FORMAT, _UNSIGNED))

    @property
    def is_signed(self) -> bool:
        """Whether its samples are whole numbers that may lie below zero."""
        return self._kinds == {_SIGNED}

    def compression(self, *, built_in: bool = True) -> str | None:
        """Return the name of its compression if that may not be readable; `built_in`: even if libtiff knows it."""
        number = _integer(self.tags, _COMPRESSION, 1)
        if number in _ALWAYS_READ or not (built_in or not is_built_in(number)):
            return None
        return _COMPRESSIONS.get(number, f"the method of number {number}")

    @property
    def additional_channels(self) -> tuple[int, ...]:
        """What the samples beyond the colours mean, of those that are told: 0 unknown, 1 and 2 transparency."""
        meanings = self.tags.get(_EXTRA, ())
        return _tuple(meanings)

    @property
    def bits(self) -> int:
        """Bits of the largest sample."""
        return int(max(_per_sample(self.tags, _BITS, 1)))

    @property
    def dpi(self) -> tuple[float, float] | None:
        """Pixels per inch, if the resolution is one of length."""
        across, down = self._number(_X_RESOLUTION), self._number(_Y_RESOLUTION)
        unit = self._number(_RESOLUTION_UNIT)
        per_inch = {2.0: 1.0, 3.0: 2.54}.get(2.0 if unit is None else unit)
        return (across * per_inch, down * per_inch) if across and down and per_inch else None

    @property
    def xmp(self) -> bytes:
        """The XMP packet."""
        return self._value(_XMP).strip(b"\0")

    @property
    def icc(self) -> bytes | None:
        """The ICC profile."""
        profile = self.tags.get(_ICC)
        return profile if isinstance(profile, bytes) else None

    def exif(self) -> bytes:
        """Return an EXIF block of what the tags say of the picture; raises what Pillow does on damaged ones."""
        block = Image.Exif()
        form = Form.of(self.file)
        block.endian, block.bigtiff = form.order, form.is_big
        block.load_from_fp(io.BytesIO(self.file), self.place)
        described = Image.Exif()
        for tag in sorted((_DESCRIPTIVE | self._calibration()) & set(block)):
            if tag in TiffTags.TAGS_V2_GROUPS:
                described[tag] = block.get_ifd(tag)
            elif tag == _DESCRIPTION and isinstance(block[tag], str):
                if text := descriptions.as_read(block[tag], is_signed=self.is_signed):
                    described[tag] = text.encode("latin-1")
            else:
                described[tag] = _as_bytes_of_text(block[tag])
        return described.tobytes() if len(described) else b""

    def _calibration(self) -> set[int]:
        """Return the tags of a resolution whose unit is told elsewhere, or that tells only the shape of pixels."""
        across, down = self._number(_X_RESOLUTION), self._number(_Y_RESOLUTION)
        is_told = self._number(_RESOLUTION_UNIT) == 1 and bool(across and down) and (across, down) != (1, 1)
        return set(_CALIBRATION) if is_told else set()

    def unkept(self) -> list[str]:
        """Return warnings of what the page carries that is not read, or cannot be."""
        unkept = {f"its {words} was not kept" for tag, words in _UNKEPT.items() if self._has(tag)}
        told = {_KEPT[tag] for tag in self.entries.unread if tag in _KEPT}
        if self._has(_CREDENTIALS):
            unkept.add(CREDENTIALS)
        return sorted(unkept | {f"{words} is damaged and was not kept" for words in told})

    def remarks(self) -> list[str]:
        """Return what is to be said of how the page is read."""
        told = []
        if self.is_signed and self.bits in (8, 16):
            told.append(f"its signed samples were moved up by {2 ** (self.bits - 1)}, so that zero is mid-grey")
        if value := self._value(_NODATA).decode("latin-1").strip("\0 ")[:24]:
            told.append(f"its mark for points without data ({value}) was not kept, and they were taken for values")
        if self._has(_DNG):
            told.append("it is a raw picture, of which only what stands first was read")
        elif self._has(_SUB_IFDS):
            told.append("its reduced copies and masks were not kept")
        return told


def is_tiff(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a TIFF file, of the classic or the big kind."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def pages(content: bytes) -> Iterator[Page]:
    """Yield the pages of a TIFF file; raises DamageError, or what Pillow does, if they are damaged."""
    silence_libtiff()
    form = Form.of(content)
    if form.is_big and form.order == ">":
        raise UnsupportedPictureError("big-endian BigTIFF is not supported; save it as TIFF")
    try:
        (place,) = struct.unpack_from(form.word, content, form.link)
    except struct.error as error:
        raise DamageError(CUT_SHORT) from error
    seen: set[int] = set()
    while place and place not in seen:  # a list that runs in a circle ends where it began
        if len(seen) >= _MAX_PAGES:
            raise UnsupportedPictureError(f"more than {_MAX_PAGES} pages are not supported; split the file")
        seen.add(place)
        entries = Entries.at(place, content, form)
        yield Page.of(content, entries, len(content))
        place = entries.following or 0


def deep_samples(page: Page) -> np.ndarray:
    """Return the samples of a page as they are stored: (H,W,C) uint8, uint16, float16, float32 or float64.

    Signed ones are moved up to 0..255 or 0..65535.
    Raises UnsupportedPictureError for another kind of samples, and what Pillow does if the file is damaged.
    """
    tags = page.tags
    kinds = set(_per_sample(tags, _FORMAT, _UNSIGNED))
    if not kinds <= {_UNSIGNED, _SIGNED, _FLOAT} or len(kinds) != 1:
        raise UnsupportedPictureError(
            f"this kind of {page.bits}-bit samples is not supported; save it with 16-bit integers"
        )
    samples = _integer(tags, _SAMPLES, 1)
    if not 1 <= samples <= 8:
        raise UnsupportedPictureError(f"{samples} samples per pixel are not supported; save it as RGB")
    height, width = page.size
    if samples > 1 and _integer(tags, _PLANAR, 1) == 2:
        planes = [_plane(page, height, width, plane, samples) for plane in range(samples)]
        levels = np.concatenate(planes, axis=2)
    else:
        levels = _plane(page, height, width, None, samples)
    if kinds == {_FLOAT}:
        return levels.view(f"f{levels.itemsize}")
    return levels ^ levels.dtype.type(1 << page.bits - 1) if kinds == {_SIGNED} else levels


def _plane(page: Page, height: int, width: int, plane: int | None, samples: int) -> np.ndarray:
    """Return one plane (H,W,1), or all samples (H,W,C) of a page that keeps them together."""
    tags = page.tags
    together = samples if plane is None else 1
    step = _integer(tags, _TILE_WIDTH, width) if _TILES in tags else width
    padded = -(-width // max(1, step)) * step  # tiles are whole
    size = page.bits // 8
    factor = size * together
    shown = _as_bytes(page, width=factor * padded, height=height, plane=plane, samples=samples, factor=factor)
    with Image.open(io.BytesIO(shown), formats=("TIFF",)) as image:
        image.load()
        content = np.ascontiguousarray(np.asarray(image))
    predictor = _integer(tags, _PREDICTOR, 1)
    if predictor == 3:  # differences of bytes; in each row of a tile the high ones stand before the low ones
        apart = content.reshape(height, -1, size * step, together).cumsum(axis=2, dtype=np.uint8)
        parts = np.moveaxis(apart.reshape(height, -1, size, step, together), 2, -1)
        joined = np.ascontiguousarray(parts).view(f">u{size}").reshape(height, padded, together)
        return joined[:, :width].astype(f"u{size}")
    levels = (
        content.view(f"{Form.of(page.file).order}u{size}").reshape(height, padded, together).astype(f"u{size}")
    )
    if predictor == 2:  # each sample is the difference to the one on its left, within its tile
        for left in range(0, width, step):
            part = levels[:, left : left + step]
            np.cumsum(part, axis=1, dtype=part.dtype, out=part)
    elif predictor != 1:
        raise UnsupportedPictureError(f"predictor {predictor} is not supported; save it with another compression")
    cropped: np.ndarray = levels[:, :width]
    return cropped


def _as_bytes(page: Page, *, width: int, height: int, plane: int | None, samples: int, factor: int) -> bytes:
    """Return the file with a new directory: its bytes, or those of one plane, as a greyscale page of 8 bits."""
    tags = page.tags
    tiled = _TILES in tags
    offsets, lengths = (_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)
    places = {tag: _tuple(tags.get(tag, ())) for tag in (offsets, lengths)}
    if plane is not None:
        each = len(places[offsets]) // samples
        places = {tag: values[plane * each : (plane + 1) * each] for tag, values in places.items()}
    entries = {
        _WIDTH: (width,),
        _HEIGHT: (height,),
        _BITS: (8,),
        _COMPRESSION: (_integer(tags, _COMPRESSION, 1),),
        _PHOTOMETRIC: (1,),
        _FILL_ORDER: (_integer(tags, _FILL_ORDER, 1),),
        _SAMPLES: (1,),
        _PLANAR: (1,),
        _PREDICTOR: (1,),
        **places,
    }
    if tiled:
        if _integer(tags, _TILE_WIDTH) * _integer(tags, _TILE_HEIGHT) > max(
            _MAX_TILE_PX, 4 * height * page.size[1]
        ):
            raise DamageError("its tiles are far larger than the page")
        entries |= {
            _TILE_WIDTH: (_integer(tags, _TILE_WIDTH) * factor,),
            _TILE_HEIGHT: (_integer(tags, _TILE_HEIGHT),),
        }
    else:
        entries[_ROWS_PER_STRIP] = (min(height, _integer(tags, _ROWS_PER_STRIP, height)),)
    form = Form.of(page.file)
    content, directory = listed(page.file, form, entries)
    return appended(content, form, directory)[0]


def colour_and_extra(page: Page, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, int, list[str]]:
    """Split samples (H,W,C) uint8 or uint16: colour (H,W,c), alpha (H,W) or None, photometric kind, warnings."""
    kind = _integer(page.tags, _PHOTOMETRIC, 1)
    if kind not in _COLOURS:
        raise UnsupportedPictureError(
            f"{page.bits}-bit samples of photometric kind {kind} are not supported; save it as RGB or greyscale"
        )
    count = _COLOURS[kind]
    if levels.shape[2] < count:
        raise DamageError("it has fewer samples than colours")
    colour, extra = levels[..., :count], levels[..., count:]
    if kind == 0:
        colour = ~colour
    # Where nothing is told, one more than the colours is transparency; several may be any bands.
    meanings = _tuple(page.tags.get(_EXTRA, ())) or (2 if extra.shape[2] == 1 else 0,)
    warnings = []
    alpha = None
    if extra.shape[2] and meanings[0] in (1, 2):
        alpha = extra[..., 0]
        if meanings[0] == 1:
            colour = _unpremultiplied(colour, alpha)
    if extra.shape[2] > (alpha is not None):
        warnings.append("its additional channels were not kept")
    return colour, alpha, kind, warnings


def _unpremultiplied(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    peak = np.iinfo(colour.dtype).max
    opacity = np.maximum(alpha, 1)[..., None].astype(np.float32) / peak
    straight: np.ndarray = np.rint(colour / opacity).clip(0, peak).astype(colour.dtype)
    return straight


@dataclass(frozen=True)
class Sheet:
    """A page to write: (H,W,C) uint8 or uint16 levels, C of 1 to 4 with alpha last, and the tags to go with it."""

    levels: np.ndarray
    exif: bytes
    xmp: bytes
    icc: bytes | None
    dpi: tuple[float, float] | None


def write(sheets: list[Sheet]) -> bytes:
    """Return a TIFF file, compressed by deflate on differences. Raises ValueError if it would not fit 4 GB."""
    file = io.BytesIO()
    file.write(struct.pack("<2sHL", b"II", 42, 0))
    link = 4
    for sheet in sheets:
        tags = _tags_of(sheet)
        offsets = []
        sizes = []
        rows_per_strip = max(1, 2**18 // (sheet.levels.shape[1] * sheet.levels.shape[2]))
        for top in range(0, sheet.levels.shape[0], rows_per_strip):
            offsets.append(file.tell())
            strip = zlib.compress(_differences(sheet.levels[top : top + rows_per_strip]), 3)
            sizes.append(len(strip))
            file.write(strip)
        if file.tell() > 2**32 - 2**20:
            raise ValueError("TIFF ends at 4 GB; choose another format")
        tags[_ROWS_PER_STRIP] = rows_per_strip
        file.write(bytes(file.tell() % 2))
        # `tobytes` takes offsets of strips as counted from the directory's end, so that it may be written first.
        tags[_STRIP_BYTES] = tuple(sizes)
        tags.tagtype[_STRIPS] = TiffTags.LONG
        tags[_STRIPS] = tuple(offsets)
        place = file.tell()
        directory = bytearray(tags.tobytes(place))
        _set_offsets(directory, place, offsets)
        file.write(directory)
        file.seek(link)
        file.write(struct.pack("<L", place))
        file.seek(0, io.SEEK_END)
        link = place + 2 + 12 * len(tags)
    return file.getvalue()


def _tags_of(sheet: Sheet) -> Directory:
    height, width, channels = sheet.levels.shape
    tags = Directory(struct.pack("<2sHL", b"II", 42, 8))
    for tag, value in _described(sheet.exif).items():
        tags[tag] = value
    tags[_WIDTH], tags[_HEIGHT] = width, height
    tags[_BITS] = (8 * sheet.levels.dtype.itemsize,) * channels
    tags[_COMPRESSION], tags[_PREDICTOR] = 8, 2
    tags[_PHOTOMETRIC] = 2 if channels >= 3 else 1
    tags[_SAMPLES] = channels
    tags[_PLANAR] = 1
    if channels in (2, 4):
        tags[_EXTRA] = (2,)
    if sheet.dpi is not None:
        tags[_X_RESOLUTION], tags[_Y_RESOLUTION] = sheet.dpi
        tags[_RESOLUTION_UNIT] = 2
    if sheet.xmp:
        tags.tagtype[_XMP] = TiffTags.BYTE
        tags[_XMP] = sheet.xmp
    if sheet.icc:
        tags.tagtype[_ICC] = TiffTags.UNDEFINED
        tags[_ICC] = sheet.icc
    return tags


def _described(exif: bytes) -> dict[int, object]:
    if not exif:
        return {}
    block = Image.Exif()
    block.load(exif)
    kept = _DESCRIPTIVE | (set(_CALIBRATION) if block.get(_RESOLUTION_UNIT) == 1 else set())
    return {
        tag: dict(block.get_ifd(tag)) if tag in TiffTags.TAGS_V2_GROUPS else _as_bytes_of_text(block[tag])
        for tag in kept & set(block)
    }


def _as_bytes_of_text(value: object) -> object:
    """Return a text, which Pillow has read as Latin-1 and would write as ASCII, as the bytes that it was."""
    return value.encode("latin-1", "replace") if isinstance(value, str) else value


def _set_offsets(directory: bytearray, place: int, offsets: list[int]) -> None:
    """Write where the strips are into a finished directory that will lie at `place`."""
    (count,) = struct.unpack_from("<H", directory)
    for entry in range(2, 2 + 12 * count, 12):
        tag, _, values, value = struct.unpack_from("<HHLL", directory, entry)
        if tag == _STRIPS:
            at = entry + 8 if values == 1 else value - place
            struct.pack_into(f"<{len(offsets)}L", directory, at, *offsets)


def _differences(levels: np.ndarray) -> bytes:
    """Return rows (h,W,C) with each sample as its difference to the one on its left, little-endian."""
    out = levels.astype(levels.dtype.newbyteorder("<"), copy=True)
    np.subtract(levels[:, 1:], levels[:, :-1], out=out[:, 1:])
    return out.tobytes()


def _libtiff() -> list[ctypes.CDLL]:
    """Return libtiff as it is in this process, where it is a file of its own; raises OSError."""
    maps = Path("/proc/self/maps").read_text()
    return [
        ctypes.CDLL(path)
        for path in {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/libtiff" in line}
    ]


def is_built_in(compression: int) -> bool:
    """Return whether libtiff was built with that compression, as far as that can be known."""
    try:
        return any(library.TIFFIsCODECConfigured(compression) for library in _libtiff())
    except (OSError, AttributeError):
        return False


@functools.cache
def silence_libtiff() -> None:
    """Keep libtiff from printing: what it says of a damaged file comes as an error anyhow.

    Its handlers belong to the process, and Pillow leaves the one for errors in place. Where the library is linked
    in another way than by a file of its own name, it stays as it is.
    """
    try:
        for library in _libtiff():
            library.TIFFSetErrorHandler.argtypes = library.TIFFSetWarningHandler.argtypes = [ctypes.c_void_p]
            library.TIFFSetErrorHandler.restype = library.TIFFSetWarningHandler.restype = ctypes.c_void_p
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)
    except (OSError, AttributeError):
        return


def _integer(tags: Directory, tag: int, default: int | None = None) -> int:
    value = tags.get(tag, default)
    if isinstance(value, tuple) and value:
        value = value[0]
    if not isinstance(value, int) or value < 0:
        raise DamageError(f"its tag {tag} is missing or no whole number")
    return value


def _tuple(value: object) -> tuple[int, ...]:
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(number, int) and number >= 0 for number in values):
        raise DamageError("one of its tags is no list of whole numbers")
    return values


def _per_sample(tags: Directory, tag: int, default: int) -> tuple[int, ...]:
    return _tuple(tags.get(tag, default)) or (default,)
