"""`Picture`, the formats it is read from and written to, and what each of them can hold."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from srgan.errors import UsageError
from srgan.files import write_atomically
from srgan.installed import remedy
from srgan.pictures import colour, metadata, timing, xmp
from srgan.pictures.formats import coders
from srgan.pictures.gain_map import GainMap

# 1..100 of files compressed with loss, or none of that; None for what suits the picture and the format.
Quality: TypeAlias = int | Literal["lossless"] | None


@dataclass(frozen=True, eq=False, repr=False)
class Picture:
    """A picture in memory, upright: a still one, or the first frame or page with the others behind it.

    `pixels`: (H,W,3) RGB or (H,W) grey, uint8 in 0..255 or uint16 in 0..65535, in the colours of `icc`. `alpha`:
    (H,W) of the same type, not premultiplied, or None if every pixel is opaque by nature. `icc`: the ICC profile
    as found. `exif`: the EXIF block ("Exif" header and TIFF structure), its orientation reset to upright.
    `format`: the key in `FORMATS`, or "heic", of the file it was read from. `warnings`: what of the file could not
    be kept.

    `xmp`: the XMP packet. `dpi`: pixels per inch (across, down). `texts`: comments and captions by their keyword.
    `png_colour`: chunks by which a PNG file describes its colours without a profile, (name, body) each; what AVIF
    and HEIC files say by code points is such a chunk, `cICP`.

    `further`: the frames of an animation or the pages of a document after this one, which have none of their own.
    `duration_ms`: how long the frame is shown, None if it is no frame of an animation. `plays`: how often the
    animation is shown, 0 for ever.

    `lossy_quality`: of a file compressed with loss, the quality 1..100 that it was written with, on libjpeg's
    scale, 0 where that is not known; None of others.

    `read_size`: (height, width) with which it was read, of which EXIF and XMP speak; None if it is what it was.

    `gain_map`: what makes the picture for HDR screens of it, None if there is none.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes = b""
    format: str = "png"
    warnings: tuple[str, ...] = ()
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    texts: tuple[tuple[str, str], ...] = ()
    png_colour: tuple[tuple[bytes, bytes], ...] = ()
    further: tuple[Picture, ...] = ()
    duration_ms: float | None = None
    plays: int = 0
    lossy_quality: int | None = None
    read_size: tuple[int, int] | None = None
    gain_map: GainMap | None = None

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

    @property
    def bits(self) -> int:
        """Bits per channel, 8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def frames(self) -> tuple[Picture, ...]:
        """This frame or page alone, and those behind it."""
        return (replace(self, further=()), *self.further) if self.further else (self,)

    @property
    def is_animated(self) -> bool:
        """Whether there are several frames, shown one after the other."""
        return bool(self.further) and self.duration_ms is not None

    @classmethod
    def from_array(cls, array: npt.NDArray[np.generic]) -> Picture:
        """Return the picture in (H,W) grey, (H,W,3) RGB or (H,W,4) RGB and alpha; see `interchange.from_array`."""
        from srgan.pictures import interchange

        return interchange.from_array(array)

    def to_array(self, dtype: npt.DTypeLike | None = None) -> npt.NDArray[np.generic]:
        """Return the first frame as (H,W), (H,W,3) or (H,W,4), by default in its own depth: see `interchange`."""
        from srgan.pictures import interchange

        return interchange.to_array(self, dtype)

    @classmethod
    def from_pil(cls, image: Image.Image) -> Picture:
        """Return a Pillow image upright, with its profile and EXIF; see `interchange.from_pil`."""
        from srgan.pictures import interchange

        return interchange.from_pil(image)

    def to_pil(self) -> Image.Image:
        """Return the first frame as a Pillow image, its profile and EXIF in `info`; see `interchange.to_pil`."""
        from srgan.pictures import interchange

        return interchange.to_pil(self)

    def save(self, path: str | Path, *, quality: Quality = None) -> tuple[str, ...]:
        """Write the picture, whole or not at all, and return what the format did not hold, in a few words each.

        The suffix decides the format. `quality`: see `encode`. Raises UsageError for a suffix of no format that
        is written, PictureError if the format cannot hold what is seen of the picture, OSError as it comes.
        """
        from srgan.pictures.writing import encode

        path = Path(path)
        format = format_of_suffix(path.suffix)
        if format is None:
            suffixes = ", ".join(target.suffixes[0] for target in FORMATS.values())
            raise UsageError(f"{path}: the suffix of the name decides the format: choose one of {suffixes}")
        write_atomically(path, encode(self, format, quality=quality))
        return losses(self, format)

    def __repr__(self) -> str:
        """Return size, depth and kind, since nobody reads a million pixels."""
        kind = ("grey" if self.is_grey else "RGB") + ("" if self.alpha is None else " and alpha")
        frames = f", {len(self.frames)} {'frames' if self.is_animated else 'pages'}" if self.further else ""
        return f"<Picture {self.width}x{self.height} {kind}, {self.bits} bits{frames}>"

    def _repr_png_(self) -> bytes:
        """Return what notebooks show."""
        from srgan.pictures.writing import encode

        return encode(replace(self, further=()), "png")

    def without_metadata(self) -> Picture:
        """Return the picture with nothing but what is needed to show it: no EXIF, XMP or texts on any frame."""
        bare = replace(self, exif=b"", xmp=b"", texts=())
        return replace(bare, further=tuple(frame.without_metadata() for frame in self.further))

    def without_gain_map(self) -> Picture:
        """Return the picture for ordinary screens alone; that it was for others, too, is told."""
        if self.gain_map is None:
            return self
        return replace(self, gain_map=None, warnings=(*self.warnings, f"{A_GAIN_MAP} was left out"))


@dataclass(frozen=True)
class Format:
    """A format that is written. `suffixes`: of file names, the first one for new files.

    `holds`: what survives in it beside 8-bit pixels, of "16 bits", "alpha", "icc", "exif", "xmp", "dpi", "texts",
    "comment" (the one text of that name), "png_colour", "gain map", "animation" and "pages".
    """

    pillow: str
    suffixes: tuple[str, ...]
    max_side_px: int
    holds: frozenset[str]


FORMATS = {
    "png": Format(
        "PNG",
        (".png", ".apng"),
        2**31 - 1,
        frozenset({"16 bits", "alpha", "icc", "exif", "xmp", "dpi", "texts", "png_colour", "animation"}),
    ),
    "jpg": Format(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        65_500,
        frozenset({"icc", "exif", "xmp", "dpi", "comment", "gain map"}),
    ),
    "webp": Format("WEBP", (".webp",), 16_383, frozenset({"alpha", "icc", "exif", "xmp", "dpi", "animation"})),
    "avif": Format("AVIF", (".avif",), 65_536, frozenset({"alpha", "icc", "exif", "xmp", "dpi", "animation"})),
    "tiff": Format(
        "TIFF",
        (".tif", ".tiff"),
        2**31 - 1,
        frozenset({"16 bits", "alpha", "icc", "exif", "xmp", "dpi", "pages"}),
    ),
    "gif": Format("GIF", (".gif",), 65_535, frozenset({"alpha", "animation", "comment"})),
    "bmp": Format("BMP", (".bmp",), 2**31 - 1, frozenset({"dpi"})),
    "ppm": Format("PPM", (".ppm", ".pgm", ".pnm"), 2**31 - 1, frozenset({"16 bits"})),
}

# Suffixes by which a picture is known in a folder.
PICTURE_SUFFIXES = frozenset(
    {suffix for format in FORMATS.values() for suffix in format.suffixes}
    | {".pbm", ".heic", ".heif", ".mpo", ".avifs"}
)

# A JPEG file keeps EXIF and XMP in one segment each, whose length has 16 bits; 2 for the length itself, and the
# name in front of it.
MAX_JPEG_EXIF_BYTES, MAX_JPEG_XMP_BYTES = 65_533, 65_504

# How warnings about a gain map begin.
A_GAIN_MAP = "its gain map, which lets HDR screens show it brighter,"


# Formats for which EXIF is taken apart and put together; the others carry it along as it is.
REWRITES_EXIF = {"tiff", "avif"}

# Formats that say by code points (ITU-T H.273) what colours are meant; a profile says it in the others.
SAYS_CODE_POINTS = {"png", "avif"}

# Formats all of whose frames have the size of the first.
ONE_SIZE = {"webp", "avif"}


# Formats of which a file is compressed with loss or without it.
EITHER_WAY = {"webp", "avif"}

# Formats that never are without loss, and why.
ALWAYS_LOSSY = {"jpg": "compresses with loss", "gif": "holds 256 colours a frame"}


def format_of_suffix(suffix: str) -> str | None:
    """Return the key in `FORMATS` that file names with `suffix` (".jpg") have, or None."""
    return next((key for key, format in FORMATS.items() if suffix.lower() in format.suffixes), None)


def why_not(picture: Picture, format: str, *, size: tuple[int, int] | None = None) -> str | None:
    """Return why `format` cannot hold what is seen of `picture`, in a few words, or None if it can.

    `size`: (height, width) that it will be written with, if not its own.
    """
    if format not in FORMATS:
        return f"{format.upper()} is read but not written"
    target = FORMATS[format]
    if any(frame.alpha is not None for frame in picture.frames) and "alpha" not in target.holds:
        return f"{target.pillow} cannot hold transparency"
    if picture.icc and "icc" not in target.holds:
        return f"{target.pillow} cannot hold a colour profile"
    if picture.is_animated and "animation" not in target.holds:
        return f"{target.pillow} cannot hold an animation"
    if picture.is_animated and format in ONE_SIZE and len({(f.height, f.width) for f in picture.frames}) > 1:
        return f"{target.pillow} cannot hold an animation whose frames differ in size"
    if picture.further and not picture.is_animated and "pages" not in target.holds:
        return f"{target.pillow} cannot hold several pages"
    if max(size or (picture.height, picture.width)) > target.max_side_px:
        return f"{target.pillow} ends at {target.max_side_px} pixels a side"
    return None


def why_not_lossless(picture: Picture, format: str) -> str | None:
    """Return why a file of `format` cannot hold `picture` without loss, in a few words, or None if it can.

    That 16 bits become 8 is no such loss, but one that `losses` tells.
    """
    name = FORMATS[format].pillow
    if format in ALWAYS_LOSSY:
        return f"{name} {ALWAYS_LOSSY[format]}"
    if format == "avif" and picture.is_animated:
        return f"an animated {name} is compressed with loss"
    if format == "avif" and not picture.is_grey and not coders.are_there():
        return f"{name} without loss needs imagecodecs, which is not installed ({remedy('codecs')})"
    return None


def is_lossless(picture: Picture, format: str, quality: Quality) -> bool:
    """Return whether a file of `format` is to be compressed without loss, where there is a choice.

    It is if `quality` says so; and if that says nothing, where the picture comes from no lossy file.
    """
    if format not in EITHER_WAY or isinstance(quality, int):
        return False
    if quality is None and picture.lossy_quality is not None:
        return False
    return why_not_lossless(picture, format) is None


def losses(picture: Picture, format: str) -> tuple[str, ...]:
    """Return what of `picture` a file of `format` will not carry, each in a few words; its pixels' size aside."""
    target = FORMATS[format]
    name = target.pillow
    lost = []
    if picture.bits == 16 and ("16 bits" not in target.holds or picture.is_animated):
        kind = f"an animated {name}" if "16 bits" in target.holds else name
        lost.append(f"{kind} is written with 8 bits per channel, so the 16 of the picture were rounded")
    if format == "gif":
        if any(_colours(frame) > (256 if frame.alpha is None else 255) for frame in picture.frames):
            lost.append("GIF holds 256 colours a frame, so others were approached by a pattern of them")
        if any(_is_soft(frame.alpha) for frame in picture.frames):
            lost.append("GIF holds no partial transparency, so edges became hard")
    if picture.is_animated and "animation" in target.holds:
        lost += timing.losses(picture, format)
    for what, words in (("exif", "EXIF data"), ("xmp", "XMP data"), ("dpi", "a resolution")):
        if getattr(picture, what) and what not in target.holds:
            lost.append(f"{name} cannot hold {words}")
    if picture.exif and "exif" in target.holds and not (exif := exif_for(picture, format)):
        lost.append(f"{name} holds no EXIF data that is damaged, so this was not kept")
    if format == "jpg":
        if picture.exif and len(exif) > MAX_JPEG_EXIF_BYTES:
            lost.append("JPEG holds 64 KB of EXIF data, so this was not kept")
        if picture.xmp and not jpeg_holds_xmp(picture, picture.xmp):
            too_long = len(picture.xmp) > MAX_JPEG_XMP_BYTES - xmp.GAIN_MAP_BYTES
            why = "JPEG holds 64 KB of XMP data, so this" if too_long else "its XMP data is damaged and"
            lost.append(f"{why} was not kept")
    if picture.texts and "texts" not in target.holds:
        kept = {"Comment"} if "comment" in target.holds else set()
        texts = {keyword for keyword, _ in picture.texts} - kept
        if raw := {keyword for keyword in texts if keyword.startswith("Raw profile type ")}:
            lost.append(f"{name} cannot hold the IPTC data of the file")
        if texts - raw:
            lost.append(f"{name} cannot hold the texts of the file")
    if picture.gain_map is not None and "gain map" not in target.holds:
        lost.append(f"{name} cannot hold a gain map, so HDR screens will show the picture no brighter than others")
    return (*lost, *_lost_colours(picture, format))


def jpeg_holds_xmp(picture: Picture, packet: bytes) -> bool:
    """Return whether an XMP packet fits into a JPEG file, together with what tells of a gain map."""
    if picture.gain_map is None:
        return len(packet) <= MAX_JPEG_XMP_BYTES
    return len(packet) <= MAX_JPEG_XMP_BYTES - xmp.GAIN_MAP_BYTES and xmp.is_whole(packet)


def exif_for(picture: Picture, format: str) -> bytes:
    """Return the EXIF block for a file of `format`, of the picture's own size; empty if it is too damaged."""
    if not picture.exif:
        return b""
    height, width = picture.read_size or (picture.height, picture.width)
    scale = picture.width / width, picture.height / height
    try:
        exif = metadata.fitted_exif(picture.exif, picture.height, picture.width, picture.dpi, scale)
    except (struct.error, ValueError):
        return b""
    return b"" if format in REWRITES_EXIF and not metadata.is_rewritable(exif) else exif


def profile_for(picture: Picture, format: str) -> bytes | None:
    """Return the ICC profile for a file of `format`: the picture's, or what its `cICP` chunk says as one."""
    code_points = colour.code_points(picture.png_colour)
    holds = FORMATS[format].holds
    if picture.icc or "icc" not in holds or code_points is None or format in SAYS_CODE_POINTS:
        return picture.icc if "icc" in holds else None
    return colour.profile_of(*code_points, grey=picture.is_grey)


def _lost_colours(picture: Picture, format: str) -> list[str]:
    name = FORMATS[format].pillow
    if "png_colour" in FORMATS[format].holds:
        return []
    chunks = {chunk for chunk, _ in picture.png_colour}
    lost = []
    if chunks & {b"mDCV", b"cLLI"}:
        lost.append(f"{name} cannot hold what the file says of the brightness of its colours (mDCV, cLLI)")
    if code_points := colour.code_points(picture.png_colour):
        if format not in SAYS_CODE_POINTS and not profile_for(picture, format):
            meant = colour.named(*code_points)
            lost.append(f"{name} cannot say that the colours are {meant}, so they will be shown as sRGB")
    elif chunks & {b"gAMA", b"cHRM", b"sRGB"}:
        lost.append(f"{name} cannot hold the gamma and primaries of the file")
    return lost


def _colours(frame: Picture) -> int:
    """Return how many colours are in what is seen of a frame, at the 8 bits of GIF."""
    is_there = np.zeros(1 << (8 if frame.is_grey else 24), bool)
    for top, levels in enumerate(frame.pixels):  # by rows: at once it would take twelve bytes a pixel
        if frame.alpha is not None:
            levels = levels[frame.alpha[top] > np.iinfo(frame.alpha.dtype).max // 2]
        if frame.bits == 16:
            levels = np.rint(levels / 257)
        wide = levels.astype(np.uint32)
        is_there[wide if frame.is_grey else wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]] = True
    return int(np.count_nonzero(is_there))


def _is_soft(alpha: np.ndarray | None) -> bool:
    return alpha is not None and any(((row > 0) & (row < np.iinfo(row.dtype).max)).any() for row in alpha)
