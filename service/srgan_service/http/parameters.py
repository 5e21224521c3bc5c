"""What a request may ask for, the same in the query and in a form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.datastructures import UploadFile

from srgan.errors import UsageError
from srgan.folder.making import Order, known_format
from srgan.pictures import FORMATS, Background, Mask, Quality, Region
from srgan.upscale import MAX_SCALE, MAX_SIDE_PX, MIN_SCALE, Request, Wrap
from srgan_service.http.problems import Problem

FormatName = Literal["auto", "png", "jpg", "webp", "avif", "tiff", "gif", "bmp", "ppm"]
_PICTURE_FIELDS = ("image", "file")
MASK_FIELD = "protect"  # a file beside the picture, of a request alone

# Their own headers and quotes included: nothing that a form says beside its pictures is long.
MAX_FIELDS = 32
MAX_FIELD_BYTES = 4096


def _spelt(name: object) -> object:
    """Return the format that the command line understands by `name` ("jpeg", "TIF"); others as they are."""
    try:
        return known_format(name.lower()) if isinstance(name, str) else name
    except UsageError:
        return name


def _quality(value: object) -> object:
    """Return the number that text stands for, or "lossless"; raises ValueError for others."""
    if value is None or value == "lossless":
        return value
    if re.fullmatch(r"[0-9]{1,3}", str(value)) and not isinstance(value, bool) and 1 <= int(str(value)) <= 100:
        return int(str(value))
    raise ValueError("choose one from 1 to 100, or lossless")


def _colour(value: object) -> object:
    """Return a colour as #rrggbb; raises ValueError for text that is none."""
    if not isinstance(value, str):
        return value
    try:
        return str(Background.parsed(value))
    except UsageError as error:
        raise ValueError("give a colour such as white or #ff8000") from error


_QUALITIES = [{"type": "integer", "minimum": 1, "maximum": 100}, {"type": "string", "enum": ["lossless"]}]


class Wish(BaseModel):
    """How a picture is to be upscaled; all are the options of `srgan upscale` of the same names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Annotated[
        float | None,
        Field(ge=MIN_SCALE, le=MAX_SCALE, description="Times larger; default: the model's own.", examples=[4]),
    ] = None
    long_side: Annotated[
        int | None, Field(ge=1, le=MAX_SIDE_PX, description="Longer side of the result, in pixels.")
    ] = None
    width: Annotated[int | None, Field(ge=1, le=MAX_SIDE_PX, description="Width of the result.")] = None
    height: Annotated[int | None, Field(ge=1, le=MAX_SIDE_PX, description="Height of the result.")] = None
    model: Annotated[
        str | None,
        Field(max_length=100, description="A name from `/v1/models`; default: the one that suits the picture."),
    ] = None
    balance: Annotated[
        float | None,
        Field(
            ge=0, le=1, description="Instead of a model: a point between the two that `/v1/models` names for it."
        ),
    ] = None
    format: Annotated[
        FormatName, BeforeValidator(_spelt), Field(description="Of the result; auto: that of the upload.")
    ] = "auto"
    quality: Annotated[
        Quality,
        BeforeValidator(_quality),
        WithJsonSchema({"anyOf": [*_QUALITIES, {"type": "null"}]}),
        Field(description="For jpg, webp and avif; default: lossless in webp and avif if the upload is."),
    ] = None
    background: Annotated[
        str | None,
        BeforeValidator(_colour),
        Field(
            max_length=40,
            description="A colour to put behind a transparent upload where the format holds no transparency.",
            examples=["white", "#ff8000"],
        ),
    ] = None
    strength: Annotated[
        float, Field(ge=0, le=1, description="1 is the generator's result, 0 bicubic interpolation.")
    ] = 1.0
    faithful: Annotated[
        Literal["on", "off"] | None,
        Field(description="Whether the result, reduced again, is the upload; default: as `/v1/models` says."),
    ] = None
    region: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9]{1,7}(,[0-9]{1,7}){3}$",
            description="The part of the result that is made alone: X,Y,WIDTH,HEIGHT in its pixels.",
            examples=["0,0,512,512"],
        ),
    ] = None
    wrap: Annotated[
        Wrap | None,
        Field(description="Whose edges meet: left and right, as of 360 degrees, or all four, as of a texture."),
    ] = None
    map: Annotated[
        bool,
        Field(description="Answer with a map, as PNG, of what is invented; `X-Invented-Levels` says how much."),
    ] = False
    label: Annotated[
        Literal["on", "off"],
        Field(description="Whether the result says in XMP, or as a text, that and how a model made it."),
    ] = "on"
    metadata: Annotated[
        Literal["strip", "keep"],
        Field(description="Whether what the upload says of place, time and camera stays in the result."),
    ] = "strip"
    hdr: Annotated[
        Literal["keep", "drop"],
        Field(description="Whether a JPEG that is for HDR screens, too, by a gain map, stays one."),
    ] = "keep"

    @property
    def is_faithful(self) -> bool | None:
        """What "on" and "off" stand for; None for what suits the model."""
        return None if self.faithful is None else self.faithful == "on"

    def order(self, protect: Mask | None = None) -> Order:
        """Return what decides on the result beside the model, and the mask of a form.

        Raises UsageError for two sizes that contradict, or a region that is none.
        """
        request = Request(
            scale=self.scale,
            long_side_px=self.long_side,
            width_px=self.width,
            height_px=self.height,
            strength=self.strength,
            protect=protect,
            region=None if self.region is None else Region.parsed(self.region),
            wrap=self.wrap,
        )
        return Order(
            request,
            format=self.format,
            quality=self.quality,
            metadata=self.metadata,
            hdr=self.hdr,
            map=self.map,
            label=self.label,
            background=None if self.background is None else Background.parsed(self.background),
        )


assert set(FormatName.__args__) == {"auto", *FORMATS}  # type: ignore[attr-defined]  # noqa: S101


def with_form(wish: Wish, fields: dict[str, str]) -> Wish:
    """Return `wish` with what a form says; a parameter that is in both must say the same.

    Raises Problem for an unknown or wrong parameter.
    """
    given = wish.model_dump(exclude_unset=True)
    try:
        formed = Wish.model_validate(fields).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise Problem("invalid-parameter", describe(error)) from error
    for name, value in formed.items():
        if given.setdefault(name, value) != value:
            raise Problem("invalid-parameter", f"{name}: the query and the form contradict each other")
    return Wish(**given)


def describe(error: ValidationError) -> str:
    """Return what is wrong, in a line, without what the client sent."""
    return describe_errors(error.errors(include_url=False, include_input=False, include_context=False))


def describe_errors(errors: Sequence[Any]) -> str:
    """Return what pydantic's list of errors says, in a line, without what the client sent."""
    parts = []
    for error in errors[:5]:
        where = ".".join(str(part) for part in error["loc"] if part not in ("query", "body", "path", "header"))
        name = where if where.isidentifier() and len(where) < 40 else "a parameter"
        parts.append(f"{name}: {error['msg']}")
    return "; ".join(parts) or "a parameter is wrong"


def is_picture_field(name: str) -> bool:
    """Return whether a form's file of that name is a picture to upscale."""
    return name in _PICTURE_FIELDS


def text_fields(items: list[tuple[str, str | UploadFile]], *, mask: bool = False) -> dict[str, str]:
    """Return a form's parameters. Raises Problem for one that comes twice or is a file.

    `mask`: whether a file in the field of the mask may be there.
    """
    fields: dict[str, str] = {}
    for name, value in items:
        if isinstance(value, UploadFile):
            if is_picture_field(name) or (mask and name == MASK_FIELD):
                continue
            raise Problem("malformed-request", "a file in a field other than image or file")
        if is_picture_field(name):
            raise Problem("malformed-request", "image and file must be files, with a filename in their part")
        if name in fields:
            raise Problem("invalid-parameter", "a parameter comes twice")
        fields[name] = value
    return fields
