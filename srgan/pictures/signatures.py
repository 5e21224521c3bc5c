"""Whether a file is a picture at all, by its first bytes."""

from __future__ import annotations

from srgan.pictures.formats import heic, tiff
from srgan.pictures.picture import FORMATS

START_BYTES = 32  # of a file, by which it is known

# All that is read; whatever begins otherwise is refused before any decoder sees it.
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM")
_PORTABLE = tuple(
    b"P" + kind + space
    for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"f")
    for space in (b"\n", b" ", b"\t", b"\r")
)
_AVIF_BRANDS = (b"avif", b"avis", b"mif1", b"msf1")

NO_PICTURE = (
    f"is not a picture of a known format ({', '.join(sorted({f.pillow for f in FORMATS.values()} | {'HEIC'}))})"
)


def looks_like_picture(head: bytes) -> bool:
    """Return whether a file that begins with these 32 bytes may be a picture of a format that is read."""
    return (
        head.startswith(_SIGNATURES)
        or head.startswith(_PORTABLE)
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS)
        or tiff.is_tiff(head)
        or heic.is_heic(head)
    )


def format_of_start(head: bytes) -> str | None:
    """Return the format of a picture that begins with these 32 bytes, a key of `FORMATS` or "heic"; None for none.

    Stricter than `looks_like_picture`, for files that nobody has called a picture: text may begin with "BM".
    """
    if not looks_like_picture(head) or (head.startswith(b"BM") and head[6:10] != bytes(4)):
        return None
    if tiff.is_tiff(head):
        return "tiff"
    starts = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp", b"P": "ppm"}
    found = next((format for start, format in starts.items() if head.startswith(start)), None)
    return found or ("heic" if heic.is_heic(head) else "avif")
