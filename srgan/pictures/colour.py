"""Colours that are neither grey nor RGB, brought to sRGB; and code points (ITU-T H.273) as profiles."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable

import numpy as np
from PIL import Image

_UNSPECIFIED = 2
_SRGB = 1, 13  # primaries of BT.709 and the curve of sRGB

# White and the primaries red, green, blue as (x, y), by their code points.
_D65 = (0.3127, 0.3290)
_PRIMARIES = {
    1: (_D65, (0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    5: (_D65, (0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),
    6: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: (_D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}

# ICC's parametric curves, by code points: g alone, or g, a, b, c, d of (a x + b)^g from d on, else c x.
_BT709 = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES: dict[int, tuple[float, ...]] = {
    1: _BT709,
    4: (2.2,),
    5: (2.8,),
    6: _BT709,
    8: (1.0,),
    13: (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
    14: _BT709,
    15: _BT709,
}

_NAMES = {1: "BT.709", 9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_CURVE_NAMES = {13: "sRGB", 16: "PQ", 18: "HLG"}

_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def cicp_chunk(primaries: int, transfer: int) -> tuple[tuple[bytes, bytes], ...]:
    """Return what PNG says of RGB with these code points: a chunk `cICP`, or none for sRGB and the unsaid."""
    meant = tuple(
        usual if said in (0, _UNSPECIFIED) else said
        for said, usual in zip((primaries, transfer), _SRGB, strict=True)
    )
    if meant == _SRGB or max(meant) > 255:
        return ()
    return ((b"cICP", bytes([*meant, 0, 1])),)


def code_points(chunks: tuple[tuple[bytes, bytes], ...]) -> tuple[int, int] | None:
    """Return primaries and transfer of a chunk `cICP` among these, or None."""
    body = dict(chunks).get(b"cICP", b"")
    return (body[0], body[1]) if len(body) == 4 else None


def named(primaries: int, transfer: int) -> str:
    """Return code points in words."""
    return (
        f"{_NAMES.get(primaries, f'primaries {primaries}')} "
        f"with {_CURVE_NAMES.get(transfer, f'transfer curve {transfer}')}"
    )


def profile_of(primaries: int, transfer: int, *, grey: bool = False) -> bytes | None:
    """Return an ICC profile (version 4) of the same colours or greys, None for PQ, HLG and unknown ones."""
    if primaries not in _PRIMARIES or transfer not in _CURVES:
        return None
    white, *corners = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in _PRIMARIES[primaries])
    cone = _BRADFORD @ white
    adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / cone) @ _BRADFORD
    columns = np.stack(corners, axis=1)
    matrix = adapt @ (columns * np.linalg.solve(columns, white))
    curve = _CURVES[transfer]
    para = struct.pack(">4s4xHxx", b"para", 3 if len(curve) == 5 else 0) + _fixed(curve)
    tags = {
        b"desc": _text(named(primaries, transfer)),
        b"cprt": _text("No copyright"),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50),
        b"chad": b"sf32\0\0\0\0" + _fixed(adapt.ravel()),
    }
    if grey:
        tags[b"kTRC"] = para
    else:
        for name, column in zip((b"r", b"g", b"b"), matrix.T, strict=True):
            tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + _fixed(column), name + b"TRC": para}
    start = 128 + 4 + 12 * len(tags)
    table, bodies = struct.pack(">L", len(tags)), b""
    for name, body in tags.items():
        table += struct.pack(">4sLL", name, start + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    header = struct.pack(
        ">L4xL4s4s4s12x4s28x",
        start + len(bodies),
        0x04200000,
        b"mntr",
        b"GRAY" if grey else b"RGB ",
        b"XYZ ",
        b"acsp",
    ) + _fixed(_D50)
    return header.ljust(128, b"\0") + table + bodies


def _fixed(values: Iterable[float]) -> bytes:
    """Return ICC's numbers of 16 bits before the point and 16 behind."""
    return b"".join(struct.pack(">l", round(float(value) * 65536)) for value in values)


def _text(words: str) -> bytes:
    text = words.encode("utf-16-be")
    return struct.pack(">4s4xLL4sLL", b"mluc", 1, 12, b"enUS", len(text), 28) + text


def from_cmyk(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """Return a CMYK image in sRGB, by its profile if it has one for CMYK, and what is to be said of it."""
    from PIL import ImageCms

    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            if profile.profile.xcolor_space == "CMYK":
                return _to_srgb(image, profile), "its CMYK colours were converted to sRGB by their profile"
        except (OSError, ImageCms.PyCMSError):
            pass
        reason = "its colour profile is not one for CMYK"
    else:
        reason = "it has no colour profile"
    return image.convert("RGB"), f"{reason}, so its CMYK colours were converted to sRGB by the plain formula"


def from_lab(image: Image.Image) -> tuple[Image.Image, str]:
    """Return a CIE L*a*b* image (D50) in sRGB, and what is to be said of it."""
    from PIL import ImageCms

    profile = ImageCms.createProfile("LAB")
    return _to_srgb(image, profile), "its L*a*b* colours were converted to sRGB"


def from_srgb(levels: tuple[int, int, int], icc: bytes, *, grey: bool) -> tuple[int, ...]:
    """Return sRGB levels 0..255 in the colours of a profile, three of them or one for greys; as they are, if it
    is one that cannot be used.
    """
    from PIL import ImageCms

    mode = "L" if grey else "RGB"
    try:
        converted = ImageCms.profileToProfile(
            Image.new("RGB", (1, 1), levels),
            ImageCms.createProfile("sRGB"),
            ImageCms.ImageCmsProfile(io.BytesIO(icc)),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode=mode,
        )
    except (OSError, ValueError, ImageCms.PyCMSError):
        return levels[:1] if grey else levels
    assert converted is not None  # noqa: S101  # it is None only if asked to work in place
    return tuple(int(level) for level in np.asarray(converted).reshape(-1))


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    from PIL import ImageCms

    converted = ImageCms.profileToProfile(
        image,
        profile,  # type: ignore[arg-type]  # a profile, whatever of it Pillow exports
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None  # noqa: S101  # it is None only if asked to work in place
    return converted
