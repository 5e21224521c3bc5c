"""`Picture` to the bytes of a file."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from srgan.errors import PictureError
from srgan.pictures import colour, metadata
from srgan.pictures.faults import as_picture_errors
from srgan.pictures.formats import boxes, png, tiff
from srgan.pictures.picture import (
    FORMATS,
    MAX_JPEG_EXIF_BYTES,
    MAX_JPEG_XMP_BYTES,
    REWRITES_EXIF,
    Picture,
    profile_for,
    why_not,
)
from srgan.pictures.planes import to_8_bits


def encode(picture: Picture, format: str, *, quality: int | None = None) -> bytes:
    """Return `picture`, frames and pages included, as a file of `format`, a key of `FORMATS`.

    Its profile, EXIF, XMP, resolution and texts go with it as far as the format holds them; `losses` tells what
    does not. EXIF and XMP are made to tell the size that the picture has now. `quality`: 1..100 for the lossy
    formats (JPEG, WebP, AVIF), None for the default, which is chosen to be hard to tell from the original.
    Raises PictureError if the format cannot hold what is seen of the picture (`why_not`).
    """
    if reason := why_not(picture, format):
        raise PictureError(f"{reason}; choose another format, PNG holds everything but pages and TIFF those")
    target = FORMATS[format]
    exif, xmp = _metadata(picture, format)
    with as_picture_errors(f"as {target.pillow}", "cannot be encoded"):
        if format == "tiff":
            return tiff.write([_sheet(page) for page in picture.frames])
        if format == "ppm":
            return _ppm(picture)
        if format == "png" and not picture.further:
            return png.write(_joined(picture), _png_chunks(picture, exif, xmp))
        options = _encoder_options(format, quality)
        if picture.dpi and not exif and format in ("webp", "avif"):
            exif = _resolution_as_exif(picture.dpi)
        if icc := profile_for(picture, format):
            options["icc_profile"] = icc
        if exif and "exif" in target.holds and (format != "jpg" or len(exif) <= MAX_JPEG_EXIF_BYTES):
            options["exif"] = exif
        if xmp and (format in ("webp", "avif") or (format == "jpg" and len(xmp) <= MAX_JPEG_XMP_BYTES)):
            options["xmp"] = xmp
        if picture.dpi and format in ("png", "jpg", "bmp"):
            options["dpi"] = _whole(picture.dpi) if format == "jpg" else picture.dpi
        if format == "png":
            options["pnginfo"] = _png_info(picture, xmp)
        if "comment" in target.holds and (comment := dict(picture.texts).get("Comment")):
            options["comment"] = comment.encode()
        images = _images(picture, format)
        if format == "avif" and all(_is_without_colour(frame) for frame in picture.frames):
            options["subsampling"] = "4:0:0"  # grey alone, so that no reader finds a tint
        if picture.further:
            options |= _animation_options(picture, format)
            options |= {"save_all": True, "append_images": images[1:]}
        buffer = io.BytesIO()
        images[0].save(buffer, target.pillow, **options)
        content = buffer.getvalue()
        code_points = colour.code_points(picture.png_colour)
        if format == "avif" and code_points and not picture.icc:
            content = boxes.with_colours(content, *code_points)
        return content


def _metadata(picture: Picture, format: str) -> tuple[bytes, bytes]:
    """Return EXIF and XMP as they are to be written with the picture's own size."""
    exif, xmp = picture.exif, picture.xmp
    height, width = picture.read_size or (picture.height, picture.width)
    scale = picture.width / width, picture.height / height
    if exif:
        try:
            exif = metadata.fitted_exif(exif, picture.height, picture.width, picture.dpi, scale)
        except (struct.error, ValueError):
            exif = b""
    if exif and format in REWRITES_EXIF and not metadata.is_rewritable(exif):
        exif = b""
    if xmp:
        xmp = metadata.fitted_xmp(xmp, picture.height, picture.width, picture.dpi, scale)
    return exif, xmp


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
    return np.dstack([picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha])


def _images(picture: Picture, format: str) -> list[Image.Image]:
    """Return the frames as Pillow's images, all of one mode, of 8 bits."""
    frames = picture.frames
    grey = all(frame.is_grey for frame in frames)
    clear = any(frame.alpha is not None for frame in frames)
    images = [_image(frame, grey=grey, clear=clear) for frame in frames]
    return [_in_palette(image) for image in images] if format == "gif" else images


def _image(frame: Picture, *, grey: bool, clear: bool) -> Image.Image:
    pixels = to_8_bits(frame.pixels)
    if frame.is_grey and not grey:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if not clear:
        return Image.fromarray(np.ascontiguousarray(pixels))
    alpha = np.full(pixels.shape[:2], 255, np.uint8) if frame.alpha is None else to_8_bits(frame.alpha)
    return Image.fromarray(np.dstack([pixels, alpha]))


def _is_without_colour(frame: Picture) -> bool:
    return frame.is_grey or bool((frame.pixels == frame.pixels[..., :1]).all())


def _in_palette(image: Image.Image) -> Image.Image:
    """Return a frame of a GIF file: 256 colours of its own, the last one clear if it has transparency."""
    if image.mode == "L":
        return image
    clear = np.asarray(image)[..., -1] < 128 if image.mode in ("RGBA", "LA") else None
    colours = image.convert("RGB")
    count = 256 if clear is None else 255
    levels = np.asarray(colours).astype(np.uint32)
    packed = levels[..., 0] << 16 | levels[..., 1] << 8 | levels[..., 2]
    if clear is not None:
        packed = np.where(clear, packed[~clear][:1].sum(), packed)  # what is clear needs no colour of its own
    found, places = np.unique(packed, return_inverse=True)
    if len(found) <= count:
        exactly = Image.fromarray(places.reshape(packed.shape).astype(np.uint8)).convert("P")
        exactly.putpalette([int(value) >> shift & 255 for value in found for shift in (16, 8, 0)])
        return exactly if clear is None else _with_clear(exactly, clear)
    palette = colours.quantize(count, Image.Quantize.MEDIANCUT, kmeans=1)
    exact = np.array_equal(np.asarray(palette.convert("RGB")), np.asarray(colours))
    indexed = palette if exact else colours.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return indexed if clear is None else _with_clear(indexed, clear)


def _with_clear(indexed: Image.Image, clear: np.ndarray) -> Image.Image:
    indices = np.where(clear, np.uint8(255), np.asarray(indexed))
    result = Image.fromarray(indices.astype(np.uint8)).convert("P")
    used = (indexed.getpalette() or [])[: 3 * 255]
    result.putpalette(used + [0] * (768 - len(used)))
    result.info["transparency"] = 255
    return result


def _animation_options(picture: Picture, format: str) -> dict[str, Any]:
    durations = [round(frame.duration_ms or 0) for frame in picture.frames]
    plays = picture.plays
    match format:
        case "gif":  # a program repeats as often as the file says after the first time
            durations = [round(milliseconds / 10) * 10 for milliseconds in durations]
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
            return {"quality": quality or 90, "subsampling": "4:4:4"}
        case _:
            return {}


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
    head = b"%s\n%d %d\n%d\n" % (kind, picture.width, picture.height, peak)
    return head + picture.pixels.astype(picture.pixels.dtype.newbyteorder(">")).tobytes()


def _whole(dpi: tuple[float, float]) -> tuple[int, int]:
    """Return a resolution as JPEG holds it: whole numbers of 16 bits."""
    across, down = (min(65535, max(1, round(side))) for side in dpi)
    return across, down
