"""What a BMP file says of its colours, which Pillow passes over (headers of version 4 and 5)."""

from __future__ import annotations

import struct

_FILE_HEADER_BYTES = 14
_V4_BYTES, _V5_BYTES = 108, 124

# Kinds of colour spaces, as they stand in the file.
_CALIBRATED, _EMBEDDED, _LINKED = b"\0\0\0\0", b"DEBM", b"KNIL"


def profile(content: bytes) -> tuple[bytes | None, list[str]]:
    """Return the ICC profile in a BMP file, None if there is none, and what of its colours is not kept."""
    header = content[_FILE_HEADER_BYTES:]
    try:
        (size,) = struct.unpack_from("<L", header)
        if size < _V4_BYTES:
            return None, []
        kind = header[56:60]
        if kind == _CALIBRATED:
            primaries_and_gamma = any(header[60:_V4_BYTES])
            return None, ["its gamma and primaries were not kept"] * primaries_and_gamma
        if size < _V5_BYTES or kind not in (_EMBEDDED, _LINKED):
            return None, []
        if kind == _LINKED:
            return None, ["its colour profile lies in another file and was not kept"]
        start, length = struct.unpack_from("<LL", header, 112)
    except struct.error:
        return None, []
    icc = header[start : start + length]
    if len(icc) != length or icc[36:40] != b"acsp":  # ICC.1, 7.2
        return None, ["its colour profile is damaged and was not kept"]
    return icc, []
