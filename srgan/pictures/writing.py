"""`Picture` to the bytes of a file."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from srgan.errors import PictureError
from srgan.machine import available_cores
from srgan.pictures import colour, metadata, timing
from srgan.pictures.faults import as_picture_errors
from srgan.pictures.formats import avif_grid, boxes, coders, png, tiff, ultra_hdr
from srgan.pictures.picture import (
    FORMATS,
    MAX_JPEG_EXIF_BYTES,
    Picture,
    Quality,
    exif_for,
    is_lossless,
    jpeg_holds_xmp,
    profile_for,
    why_not,
    why_not_lossless,
)
from srgan.pictures.planes import to_8_bits
from srgan.pictures.xmp import with_gain_map

_MOST_AVIF_THREADS = 4

# So many pixels of a frame of GIF decide on its colours, evenly chosen: all of 8 megapixels of noise take minutes.
_PALETTE_PX = 512 * 512


def encode(picture: Picture, format: str, *, quality: Quality = None) -> bytes:
    """Return `picture`, frames and pages included, as a file of `format`, a key of `FORMATS`.

    Its profile, EXIF, XMP, resolution and texts go with it as far as the format holds them; `losses` tells what
    does not. EXIF and XMP are made to tell the size that the picture has now. `quality`: 1..100 for the lossy
    formats (JPEG, WebP, AVIF) or "lossless"; None for that in WebP and AVIF if the picture comes from no lossy
    file, else for what is hard to tell from the original.
    Raises PictureError if the format cannot hold what is seen of the picture (`why_not`), or not without loss.
    """
    reason = why_not(picture, format)
    if quality == "lossless":
        reason = reason or why_not_lossless(picture, format)
    if reason:
        raise PictureError(f"{reason}; choose another format, PNG holds everything but pages and TIFF those")
    lossless = is_lossless(picture, format, quality)
    target = FORMATS[format]
    exif, xmp = _metadata(picture, format)
    with as_picture_errors(f"as {target.pillow}", "cannot be encoded"):
        if format == "tiff":
            return tiff.write([_sheet(page) for page in picture.frames])
        if format == "ppm":
            return _ppm(picture)
        if format == "png" and not picture.further:
            return png.write(_joined(picture), _png_chunks(picture, exif, xmp))
        level = None if quality == "lossless" else quality
        options = _encoder_options(format, level)
        if lossless:
            options |= _lossless_options(format)
        if picture.dpi and not exif and format in ("webp", "avif"):
            exif = _resolution_as_exif(picture.dpi)
        if icc := profile_for(picture, format):
            options["icc_profile"] = icc
        if exif and "exif" in target.holds and (format != "jpg" or len(exif) <= MAX_JPEG_EXIF_BYTES):
            options["exif"] = exif
        behind = b""
        if format == "jpg":
            xmp = xmp if jpeg_holds_xmp(picture, xmp) else b""
            if picture.gain_map is not None:
                behind = ultra_hdr.coded(picture.gain_map, level)
                xmp = with_gain_map(xmp, len(behind))
        if xmp and format in ("webp", "avif", "jpg"):
            options["xmp"] = xmp
        if picture.dpi and format in ("png", "jpg", "bmp"):
            options["dpi"] = _whole(picture.dpi) if format == "jpg" else picture.dpi
        if format == "png":
            options["pnginfo"] = _png_info(picture, xmp)
        if "comment" in target.holds and (comment := dict(picture.texts).get("Comment")):
            options["comment"] = comment.encode()
        is_grey = format == "avif" and all(_is_without_colour(frame) for frame in picture.frames)
        if is_grey:
            options["subsampling"] = "4:0:0"  # grey alone, so that no reader finds a tint
        by_coders = format == "avif" and lossless and not is_grey
        is_large = avif_grid.is_needed(picture.height, picture.width)
        if by_coders or (format == "avif" and not picture.further and is_large):
            return _with_code_points(picture, _in_tiles(picture, options, by_coders=by_coders))
        images = _images(picture, format)
        if picture.further:
            options |= _animation_options(picture, format)
            options |= {"save_all": True, "append_images": images[1:]}
        buffer = io.BytesIO()
        images[0].save(buffer, target.pillow, **options)
        content = buffer.getvalue()
        if behind:
            return ultra_hdr.joined(content, behind)
        return _with_code_points(picture, content) if format == "avif" else content


def _with_code_points(picture: Picture, content: bytes) -> bytes:
    """Return an AVIF file that says what colours are meant, if the picture does."""
    code_points = colour.code_points(picture.png_colour)
    return boxes.with_colours(content, *code_points) if code_points and not picture.icc else content


def _in_tiles(picture: Picture, options: dict[str, Any], *, by_coders: bool) -> bytes:
    """Return a large picture as an AVIF file, by the options for a small one.

    `by_coders`: its colours without loss, which Pillow cannot.
    """
    exif, xmp = options.pop("exif", b""), options.pop("xmp", b"")
    icc = options.pop("icc_profile", b"") if by_coders else b""

    def encode_tile(levels: np.ndarray, is_alpha: bool) -> bytes:
        if by_coders and not is_alpha:
            return coders.avif(levels, options["max_threads"])
        buffer = io.BytesIO()
        # Transparency is a grey picture beside, without a profile.
        beside = {"subsampling": "4:0:0", "icc_profile": None} if is_alpha else {}
        Image.fromarray(levels).save(buffer, "AVIF", **{**options, **beside})
        return buffer.getvalue()

    alpha = None if picture.alpha is None else to_8_bits(picture.alpha)
    return avif_grid.write(to_8_bits(picture.pixels), alpha, encode_tile, exif=exif, xmp=xmp, icc=icc)


def _metadata(picture: Picture, format: str) -> tuple[bytes, bytes]:
    """Return EXIF and XMP as they are to be written with the picture's own size."""
    height, width = picture.read_size or (picture.height, picture.width)
    scale = picture.width / width, picture.height / height
    xmp = picture.xmp and metadata.fitted_xmp(picture.xmp, picture.height, picture.width, picture.dpi, scale)
    return exif_for(picture, format), xmp


def _resolution_as_exif(dpi: tuple[float, float]) -> bytes:
    block = Image.Exif()
    block[ExifTags.Base.XResolution], block[ExifTags.Base.YResolution] = dpi
    block[ExifTags.Base.ResolutionUnit] = 2  # inches
    return block.tobytes()


def _sheet(page: Picture) -> tiff.Sheet:
    exif, xmp = _metadata(page, "tiff")
    return tiff.Sheet(_joined(page), exif, xmp, profile_for(page, "tiff"), page.dpi)


def _joined(picture: Picture) -> np.ndarray:
    """Return (H,W,C) levels with alpha last."""
    if picture.alpha is not None:
        return np.dstack([picture.pixels, picture.alpha])
    return picture.pixels[..., None] if picture.is_grey else picture.pixels


def _images(picture: Picture, format: str) -> list[Image.Image]:
    """Return the frames as Pillow's images, all of one mode, of 8 bits."""
    frames = picture.frames
    grey = all(frame.is_grey for frame in frames)
    clear = any(frame.alpha is not None for frame in frames)
    images = (_image(frame, grey=grey, clear=clear) for frame in frames)
    return [_in_palette(image) for image in images] if format == "gif" else list(images)


def _image(frame: Picture, *, grey: bool, clear: bool) -> Image.Image:
    pixels = to_8_bits(frame.pixels)
    if frame.is_grey and not grey:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if not clear:
        return Image.fromarray(np.ascontiguousarray(pixels))
    alpha = np.full(pixels.shape[:2], 255, np.uint8) if frame.alpha is None else to_8_bits(frame.alpha)
    return Image.fromarray(np.dstack([pixels, alpha]))


def _is_without_colour(frame: Picture) -> bool:
    return frame.is_grey or all((row == row[..., :1]).all() for row in frame.pixels)


def _in_palette(image: Image.Image) -> Image.Image:
    """Return a frame of a GIF file: 256 colours of its own, the last one clear if it has transparency."""
    if image.mode == "L":
        return image
    clear = np.asarray(image.getchannel("A")) < 128 if image.mode in ("RGBA", "LA") else None
    colours = image.convert("RGB")
    count = 256 if clear is None else 255
    indexed = _exactly(np.asarray(colours), clear, count)
    if indexed is None:
        step = math.isqrt(image.width * image.height // _PALETTE_PX) + 1
        sample = Image.fromarray(np.ascontiguousarray(np.asarray(colours)[::step, ::step]))
        palette = sample.quantize(count, Image.Quantize.MEDIANCUT, kmeans=1)
        indexed = colours.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return indexed if clear is None else _with_clear(indexed, clear)


def _exactly(levels: np.ndarray, clear: np.ndarray | None, count: int) -> Image.Image | None:
    """Return (H,W,3) levels with a palette of their colours, or None if there are more than `count`.

    What is `clear` needs no colour of its own. Goes by rows: at once it would take thirty bytes a pixel.
    """
    hidden = None
    if clear is not None and not clear.all():
        y, x = np.unravel_index(int(clear.argmin()), clear.shape)
        hidden = _packed(levels[y, x])

    def rows() -> Iterator[tuple[int, np.ndarray]]:
        for top in range(len(levels)):
            packed = _packed(levels[top])
            yield top, packed if clear is None else np.where(clear[top], hidden or 0, packed)

    colours = np.array([], np.uint32)
    for _, packed in rows():
        colours = np.union1d(colours, packed)
        if len(colours) > count:
            return None
    places = np.empty(levels.shape[:2], np.uint8)
    for top, packed in rows():
        places[top] = np.searchsorted(colours, packed)
    image = Image.fromarray(places).convert("P")
    image.putpalette([int(value) >> shift & 255 for value in colours for shift in (16, 8, 0)])
    return image


def _packed(levels: np.ndarray) -> np.ndarray:
    """Return (...,3) uint8 levels as one number each."""
    wide = levels.astype(np.uint32)
    packed: np.ndarray = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return packed


def _with_clear(indexed: Image.Image, clear: np.ndarray) -> Image.Image:
    result = Image.fromarray(np.where(clear, np.uint8(255), np.asarray(indexed))).convert("P")
    used = (indexed.getpalette() or [])[: 3 * 255]
    result.putpalette(used + [0] * (768 - len(used)))
    result.info["transparency"] = 255
    return result


def _animation_options(picture: Picture, format: str) -> dict[str, Any]:
    durations, plays = timing.durations_ms(picture, format), timing.plays(picture, format)
    match format:
        case "gif":  # a program repeats as often as the file says after the first time
            loop: dict[str, Any] = {} if plays == 1 else {"loop": plays - 1 if plays else 0}
            # Cleared in between, so that what is clear in a frame is so whatever was shown before.
            clear = any(frame.alpha is not None for frame in picture.frames)
            return {"duration": durations, "disposal": 2 if clear else 1, **loop}
        case "png":
            still = PngImagePlugin.Blend.OP_SOURCE, PngImagePlugin.Disposal.OP_NONE
            return {"duration": durations, "loop": plays, "blend": still[0], "disposal": still[1]}
        case "webp":
            return {"duration": durations, "loop": plays, "background": (0, 0, 0, 0)}
        case _:
            return {"duration": durations}


def _encoder_options(format: str, quality: int | None) -> dict[str, Any]:
    """Return Pillow's options; the figures beside them are of a 2-megapixel photograph."""
    match format:
        case "png":
            return {"compress_level": 2}  # a quarter of the time of Pillow's 6, an eighth larger
        case "jpg":
            return {"quality": quality or 95, "subsampling": 0}  # 4:4:4: colour at full resolution
        case "webp":
            return {"quality": quality or 95, "method": 2}  # a third of the time of 4, a fiftieth larger
        case "avif":
            # More threads than that take memory of their own, and the picture has tiles for no more.
            threads = min(available_cores(), _MOST_AVIF_THREADS)
            return {"quality": quality or 90, "subsampling": "4:4:4", "max_threads": threads}
        case _:
            return {}


def _lossless_options(format: str) -> dict[str, Any]:
    """Return what Pillow's options become without loss."""
    if format == "webp":
        return {"lossless": True, "exact": True, "quality": 50}  # colours under full transparency are kept
    return {"quality": 100}


def _png_info(picture: Picture, xmp: bytes) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, body in picture.png_colour:
        info.add(name, body)
    if xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    for keyword, text in picture.texts:
        info.add_itxt(keyword, text)
    return info


def _png_chunks(picture: Picture, exif: bytes, xmp: bytes) -> list[tuple[bytes, bytes]]:
    chunks = list(picture.png_colour)
    if picture.icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)))
    if picture.dpi:
        per_metre = (round(side / 0.0254) for side in picture.dpi)
        chunks.append((b"pHYs", struct.pack(">LLB", *per_metre, 1)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    if xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    for keyword, text in picture.texts:
        chunks.append((b"iTXt", keyword.encode("latin-1", "replace") + b"\0\0\0\0\0" + text.encode()))
    return chunks


def _ppm(picture: Picture) -> bytes:
    kind = b"P5" if picture.is_grey else b"P6"
    peak = np.iinfo(picture.pixels.dtype).max
    file = io.BytesIO(b"%s\n%d %d\n%d\n" % (kind, picture.width, picture.height, peak))
    file.seek(0, io.SEEK_END)
    for row in picture.pixels:
        file.write(row.astype(row.dtype.newbyteorder(">")).tobytes())
    return file.getvalue()


def _whole(dpi: tuple[float, float]) -> tuple[int, int]:
    """Return a resolution as JPEG holds it: whole numbers of 16 bits."""
    across, down = (min(65535, max(1, round(side))) for side in dpi)
    return across, down
