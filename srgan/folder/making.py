"""The one making of a file: which format a result has, what is lost and told, and the bytes.

The folder job, the pipe, the cluster, and the requests and jobs of the service all come here, so the same picture
becomes the same file, with the same warnings or for the same reason none, wherever it was sent.

    decide    before the inference, which would be lost if its result could not be written
    make      the inference and what follows it
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from srgan.errors import FormatError, UsageError
from srgan.pictures import (
    ALWAYS_LOSSY,
    FORMATS,
    Background,
    Invention,
    Picture,
    Quality,
    costs,
    format_of_suffix,
    guarded,
    labels,
    laid_on,
    losses,
    why_not,
    why_not_lossless,
)
from srgan.pictures.guarded import GuardedDecoder
from srgan.pictures.labels import Label, labelled
from srgan.texts import did_you_mean
from srgan.upscale import AnyUpscaler, MemoryNeed, Request, model_of, weights_of

AUTO = "auto"  # the format of the input

# The partner's result, at most 16 bits of four channels, and what differs.
_MAP_BYTES_PER_PX = 16

# Of a colour profile; the largest in use, of printing presses, have two or three megabytes.
_MAX_ICC_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Order:
    """What is asked for of a file, all that decides on the result beside the picture and the model.

    `format`: a key of `pictures.FORMATS`, or `AUTO` for that of the picture, and PNG where that cannot hold the
    result. `quality`: 1..100 or "lossless", None for the default, as `pictures.encode` has it. `background`: what
    is put behind a transparent picture if its format holds no transparency. `metadata`: "strip" leaves out what
    the picture's file says beside its pixels and their colours. `hdr`: "drop" leaves out a gain map, which is
    picture and no metadata. `map`: whether it is told how much is invented;
    that changes nothing of the result, and takes as long again. `label`: whether the file says how it was made.
    Raises UsageError for a value out of range.
    """

    request: Request = field(default_factory=Request)
    format: str = AUTO
    quality: Quality = None
    metadata: Literal["keep", "strip"] = "keep"
    hdr: Literal["keep", "drop"] = "keep"
    map: bool = False
    label: Literal["on", "off"] = "on"
    background: Background | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense whatever the picture."""
        if isinstance(self.quality, int) and not 1 <= self.quality <= 100:
            raise UsageError(f"quality {self.quality} is out of range: choose one from 1 to 100, or lossless")
        if self.quality == "lossless" and self.format in ALWAYS_LOSSY:
            reason = f"{FORMATS[self.format].pillow} {ALWAYS_LOSSY[self.format]}"
            raise UsageError(f"{reason}; choose png, webp, avif or tiff for a result without loss")
        if self.hdr not in ("keep", "drop"):
            raise UsageError(f"hdr {self.hdr!r} is not understood: choose keep or drop")
        if self.map and self.request.region is not None:
            raise UsageError("a map is of a whole result: leave the region away")
        if self.format != AUTO and self.format not in FORMATS:
            raise UsageError(_unknown_format(self.format))

    def settings(self, model_scale: int) -> dict[str, object]:
        """Return all of it, fit for JSON; to ask for `model_scale`, the model's own, is to ask for none."""
        settings = {**self.request.settings(), "format": self.format, "quality": self.quality, "label": self.label}
        if settings["scale"] == model_scale:
            settings["scale"] = None
        if self.background is not None:
            settings["background"] = str(self.background)
        # Absent where it is kept, so that results of before there was a choice are still known.
        rare = {"metadata": self.metadata, "hdr": self.hdr}
        return {**settings, **{name: value for name, value in rare.items() if value != "keep"}}

    def fingerprint(self, model_sha256: str, model_scale: int) -> str:
        """Return what two results have in common that were made with the same model and settings."""
        text = json.dumps([model_sha256, self.settings(model_scale)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Decision:
    """How `picture` will be written: `format` is a key of `pictures.FORMATS`, `warnings` tell why that one.

    `model`: the name of the one that takes it. `label`: what the file will say of how it was made.
    `memory`: what that takes, the picture, its result and the file among it; `encoding_bytes` of that.
    """

    picture: Picture
    order: Order
    format: str
    warnings: tuple[str, ...] = ()
    model: str = field(kw_only=True)
    label: Label | None = field(kw_only=True)
    memory: MemoryNeed = field(kw_only=True)
    encoding_bytes: int = field(kw_only=True)

    def named(self, target: Path) -> tuple[Decision, Path]:
        """Return the decision and the place of its result, which has another suffix than `target` if it must."""
        suffixes = FORMATS[self.format].suffixes
        if target.suffix.lower() in suffixes:
            return self, target
        place = target.with_suffix(suffixes[0])
        if self.warnings:
            return self, place
        warning = f"the file is in truth {self.format.upper()}, so the result is named {place.name}"
        return replace(self, warnings=(warning,)), place


@dataclass(frozen=True)
class Made:
    """A result: the `picture` without label and background, and the `content` of its file in `format`.

    `warnings`: what is not as it was. `invention`: how much of it is invented, if a map was ordered.
    """

    picture: Picture
    content: bytes
    format: str
    warnings: tuple[str, ...]
    invention: Invention | None = None


def decide(picture: Picture, order: Order, upscaler: AnyUpscaler) -> Decision:
    """Return how the result of `order` for `picture` will be written.

    Raises FormatError if it cannot be, UsageError for a size, region or mask that does not fit, for a model
    without the partner that a mask or a map needs, or a result that takes more memory than the upscaler may,
    PictureTooLargeError for one above its limit.
    """
    if order.map or order.request.protect is not None:
        upscaler.partner()
    if order.hdr == "drop":
        picture = picture.without_gain_map()
    size = upscaler.output_size(picture, order.request)
    shown = picture if order.background is None else laid_on(picture, order.background)
    format, warnings = _format(picture, shown, order, size)
    request, scale = order.request, upscaler.scale
    sizes = [request.output_size(frame.height, frame.width, scale) for frame in picture.frames]
    written = _in(format, picture, shown)
    encoding_bytes = costs.encoding_bytes(written, format, sizes, order.quality)
    if written is not picture:
        encoding_bytes += sum(3 * picture.bits // 8 * height * width for height, width in sizes)
    if order.map:
        encoding_bytes += _MAP_BYTES_PER_PX * sizes[0][0] * sizes[0][1]
    memory = upscaler.memory(picture, request, beside_bytes=encoding_bytes)
    return Decision(
        picture,
        order,
        format,
        warnings,
        model=model_of(upscaler, picture),
        label=_label(picture, order, upscaler) if order.label == "on" else None,
        memory=memory,
        encoding_bytes=encoding_bytes,
    )


def _label(picture: Picture, order: Order, upscaler: AnyUpscaler) -> Label:
    request, scale = order.request, upscaler.scale
    return Label(
        model_of(upscaler, picture),
        weights_of(upscaler, picture),
        request.label(scale),
        request.strength,
        is_generated=any(request.is_generated(frame.height, frame.width, scale) for frame in picture.frames),
        day=labels.day(),
    )


def _format(picture: Picture, shown: Picture, order: Order, size: tuple[int, int]) -> tuple[str, tuple[str, ...]]:
    """Return the format of the result and what is told of that; raises FormatError if there is none.

    `shown`: the picture on its background.
    """
    format = picture.format if order.format == AUTO else order.format
    reason = why_not(_in(format, picture, shown), format, size=size)
    if reason is None and order.quality == "lossless":
        reason = why_not_lossless(shown, format)
    if reason is None:
        return format, ()
    if order.format != AUTO:
        raise FormatError(f"{reason}; choose another format, or {AUTO}, which takes one that can")
    if png_cannot := why_not(picture, "png", size=size):
        raise FormatError(f"{reason}, and {png_cannot}; choose another format")
    return "png", (f"{reason}, so the result is PNG",)


def _in(format: str, picture: Picture, shown: Picture) -> Picture:
    """Return what a file of `format` shows of `picture`: itself, or where it holds no transparency, `shown`."""
    return picture if format not in FORMATS or "alpha" in FORMATS[format].holds else shown


def make(
    decision: Decision,
    upscaler: AnyUpscaler,
    progress: Callable[[float], None] | None = None,
    turn: AbstractContextManager[None] | None = None,
    coder: GuardedDecoder | None = None,
) -> Made:
    """Return the result that was decided on.

    `progress`: as `Upscaler.upscale` takes it; what it raises ends a guarded encoder too. `turn`: entered for the
    inference alone. `coder`: encodes, in place of that for one's own pictures. Raises EngineError if the inference
    fails, PictureError if the result cannot be encoded.
    """
    order = decision.order
    told = None
    with turn or contextlib.nullcontext():
        result = upscaler.upscale(decision.picture, order.request, progress, beside_bytes=decision.encoding_bytes)
        if order.map:
            told = upscaler.invented(decision.picture, result, order.request, progress)
    if order.metadata == "strip":
        result = stripped(result)
    file, told_of_file = _of_file(result, decision)
    check = None if progress is None else functools.partial(progress, 1.0)
    encode = guarded.encode if coder is None else coder.encode
    content = encode(file, decision.format, quality=order.quality, check=check)
    warnings = dict.fromkeys([*file.warnings, *decision.warnings, *told_of_file, *losses(file, decision.format)])
    return Made(result, content, decision.format, tuple(warnings), told)


def _of_file(result: Picture, decision: Decision) -> tuple[Picture, tuple[str, ...]]:
    """Return what of a result is written: on its background and labelled, if so; and what is told of that."""
    told: tuple[str, ...] = ()
    background, format = decision.order.background, decision.format
    clear = any(frame.alpha is not None for frame in result.frames)
    if background is not None and clear and "alpha" not in FORMATS[format].holds:
        result = laid_on(result, background)
        told = (f"{FORMATS[format].pillow} cannot hold transparency, so it was laid on {background}",)
    if decision.label is not None:
        result = labelled(result, decision.label, format)
    return result, told


def stripped(picture: Picture) -> Picture:
    """Return `picture` with its colour profile and nothing else that its file said beside the pixels."""
    frames = [replace(frame.without_metadata(), icc=_profile(frame.icc)) for frame in picture.frames]
    if (gain_map := frames[0].gain_map) is not None:
        frames[0] = replace(frames[0], gain_map=replace(gain_map, icc=_profile(gain_map.icc)))
    warnings = picture.warnings
    if any(before.icc and not after.icc for before, after in zip(picture.frames, frames, strict=True)):
        warnings = (*warnings, "its colour profile is none that can be passed on, so it was left out")
    return replace(frames[0], further=tuple(frames[1:]), warnings=warnings)


def known_format(name: str) -> str:
    """Return the key in `FORMATS` that "jpeg" or "TIF" stand for, or `AUTO`; raises UsageError for others."""
    if name == AUTO:
        return name
    format = format_of_suffix(f".{name}")
    if not format:
        raise UsageError(_unknown_format(name))
    return format


def _unknown_format(name: str) -> str:
    choices = (AUTO, *FORMATS)
    return f"unknown format {name!r}: choose {', '.join(choices)}{did_you_mean(name, choices)}"


def format_of_name(out: Path, format: str) -> str:
    """Return the format that the name `out` asks for; raises UsageError if `format` says another one."""
    named = format_of_suffix(out.suffix)
    if named is None:
        raise UsageError(f"{out}: {out.suffix} cannot be written; choose {', '.join(FORMATS)}")
    if format not in (AUTO, named):
        raise UsageError(f"{out}: the name says {named} but -f says {format}; leave one of them away")
    return named


def _profile(icc: bytes | None) -> bytes | None:
    """Return a colour profile, or None for what is none (ICC.1, 7.2), whatever it may be."""
    is_profile = icc is not None and len(icc) <= _MAX_ICC_BYTES and icc[36:40] == b"acsp"
    return icc if is_profile else None
