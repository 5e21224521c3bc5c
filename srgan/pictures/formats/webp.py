"""What a WebP file tells in its chunks (RFC 9649)."""

from __future__ import annotations


def is_lossy(content: bytes) -> bool:
    """Return whether the first frame was compressed with loss."""
    start = 12
    while start + 8 <= len(content):
        name, size = content[start : start + 4], int.from_bytes(content[start + 4 : start + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8 "
        # The pixels of a frame are chunks in its own, behind its place, size and duration.
        start += 8 + (16 if name == b"ANMF" else size + size % 2)
    return False
