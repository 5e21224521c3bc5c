"""Content credentials (C2PA), which vouch for the file that they are in and for no other made of it."""

from __future__ import annotations

from srgan.pictures.formats import boxes, webp

TOLD = "its content credentials (C2PA) were not kept, since they vouch for the original alone"

# The user type of their box in AVIF and HEIC, and the name of their extension in GIF (C2PA 2.1, appendix A).
_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_GIF = b"!\xff\x0bC2PA_GIF"


def are_in(content: bytes) -> bool:
    """Return whether a WebP, GIF, AVIF or HEIC file holds content credentials."""
    if content.startswith(b"RIFF"):
        return webp.has_chunk(content, b"C2PA")
    if content.startswith(b"GIF"):
        return _GIF in content
    return any(content[start : start + 16] == _BOX for start, _ in boxes.of_kind(content, b"uuid"))
