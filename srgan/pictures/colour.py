"""Colours that are neither grey nor RGB, brought to sRGB by their profile."""

from __future__ import annotations

import io

from PIL import Image


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
