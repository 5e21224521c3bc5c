"""`Upscaler`: load a generator once, upscale many pictures. `Request`: how large and how strongly."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from srgan.conversion.loading import load_engine
from srgan.engines.inference import Inference, Progress
from srgan.engines.protocol import Engine, Precision, precision_of
from srgan.errors import PictureTooLargeError, UsageError
from srgan.pictures import Picture, PillowImage, decode, resized, scaled_dpi, without_tint
from srgan.pictures.guarded import shared
from srgan.weights import ModelMetadata, Weights

MIN_SCALE, MAX_SCALE = 1.0, 16.0
MAX_SIDE_PX = 100_000

# Output pixels of one picture: 3 bytes each, so 3 GB.
DEFAULT_MAX_OUTPUT_MEGAPIXELS = 1000.0

# Opacity of 255 below which a colour is too imprecise to be upscaled.
_FAINT = 16

# What other libraries hold a picture in.
_Held = TypeVar("_Held", npt.NDArray[np.generic], PillowImage)

# `Inference.levels` for one picture, with what is the same for all its channels.
_Run = Callable[..., np.ndarray]

_REDUCED = "it is larger than what was asked for, so it was reduced without the model"


@dataclass(frozen=True)
class Request:
    """How large a result is wanted, and how much of the generator in it.

    At most one way to say the size: `scale`, times larger, 1 to 16; `long_side_px`, the longer side of the result;
    `width_px` or `height_px`, the other side following; both of them, the largest size of the same shape that fits
    into that box. None of them: the model's own scale. A picture that is larger than its size in pixels asks for
    is reduced. `strength`: 1 is the generator's result, 0 bicubic interpolation, between them is a blend of both.
    Raises UsageError for more than one size or one that is out of range.
    """

    scale: float | None = None
    long_side_px: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense whatever the picture."""
        box = self.width_px is not None or self.height_px is not None
        if (self.scale is not None) + (self.long_side_px is not None) + box > 1:
            raise UsageError("choose one size: a scale, a long side, or a width and height")
        if self.scale is not None and not MIN_SCALE <= self.scale <= MAX_SCALE:
            raise UsageError(
                f"scale {self.scale:g} is out of range: choose one from {MIN_SCALE:g} to {MAX_SCALE:g}"
            )
        for name, side in (("long side", self.long_side_px), ("width", self.width_px), ("height", self.height_px)):
            if side is not None and not 1 <= side <= MAX_SIDE_PX:
                raise UsageError(f"{name} {side} is out of range: choose one from 1 to {MAX_SIDE_PX} pixels")
        if not 0 <= self.strength <= 1:
            raise UsageError(f"strength {self.strength:g} is out of range: choose one from 0 to 1")

    @classmethod
    def of(
        cls, request: Request | float | None, scale: float | None = None, strength: float | None = None
    ) -> Request:
        """Return the request that a plain number, a scale, or None stands for; or that `scale` and `strength` do.

        Raises UsageError if both are given.
        """
        if request is not None and (scale is not None or strength is not None):
            raise UsageError("say the size once: as `request`, or as `scale` and `strength`")
        if isinstance(request, Request):
            return request
        return cls(scale=request if scale is None else scale, strength=1.0 if strength is None else strength)

    def output_size(self, height: int, width: int, model_scale: int) -> tuple[int, int]:
        """Return (height, width) of the result for a picture of that size.

        Raises UsageError if a size in pixels would enlarge it more than 16 times.
        """
        ratio = self._ratio(height, width, model_scale)
        if ratio > MAX_SCALE:
            raise UsageError(
                f"{self.label(model_scale)} is {ratio:.1f} times the {width}x{height} pixels of the picture; "
                f"at most {MAX_SCALE:g} times are possible"
            )
        return max(1, round(height * ratio)), max(1, round(width * ratio))

    def label(self, model_scale: int) -> str:
        """Return the size in a word, for file names and messages: x4, x2.5, 2000px, 800w, 600h, 800x600."""
        if self.long_side_px is not None:
            return f"{self.long_side_px}px"
        if self.width_px is not None and self.height_px is not None:
            return f"{self.width_px}x{self.height_px}"
        if self.width_px is not None:
            return f"{self.width_px}w"
        return f"x{self.scale or model_scale:g}" if self.height_px is None else f"{self.height_px}h"

    def _ratio(self, height: int, width: int, model_scale: int) -> float:
        if self.long_side_px is not None:
            return self.long_side_px / max(height, width)
        sides = [
            wanted / has
            for wanted, has in ((self.width_px, width), (self.height_px, height))
            if wanted is not None
        ]
        return min(sides) if sides else self.scale or model_scale


@dataclass(frozen=True)
class MemoryNeed:
    """What a picture takes, in bytes. `held`: itself, its results and what follows; `working`: of the model."""

    held: int
    working: int


class AnyUpscaler(Protocol):
    """What is needed of an `Upscaler`, and what a test can fake."""

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says of itself."""
        ...

    @property
    def scale(self) -> int:
        """Output pixels per input pixel when no other scale is asked for."""
        ...

    def upscale(
        self,
        picture: Picture,
        request: Request | float | None = None,
        progress: Progress | None = None,
        *,
        beside_bytes: int = 0,
    ) -> Picture:
        """Return `picture` enlarged; an exception that `progress` raises stops the work between two tiles."""
        ...

    def memory(
        self, picture: Picture, request: Request | float | None = None, *, beside_bytes: int = 0
    ) -> MemoryNeed:
        """Return what `upscale` will take, or raise what it would."""
        ...

    def output_size(self, picture: Picture, request: Request | float | None = None) -> tuple[int, int]:
        """Return (height, width) that `upscale` would give, or raise what it would."""
        ...


class Upscaler:
    """Upscales pictures with one generator; keeps no state between calls, and any thread may call it.

    `model`: name of a bundled model, path of an ONNX file, `Weights`, or None for the default model. `tile_lr_px`:
    the side of a tile's core in LR pixels, "off" for the whole picture at once, or "auto" for what is fastest
    within `working_bytes`, by default a third of the free memory. The result is the same whatever it is.
    `memory_bytes`: of a picture, its results, what follows them and the model's work, all together; a picture that
    takes more is refused before any work. The program itself, 140 MB, comes on top. `device`, `precision`,
    `balance`, `halo_lr_px`: see `load_engine`. `engine`: used instead of all these and `model`.
    `max_output_megapixels`: a larger result is refused before any work.
    Raises UsageError for a value out of range, and what `load_engine` raises.
    """

    def __init__(
        self,
        model: str | Path | Weights | None = None,
        *,
        tile_lr_px: int | Literal["auto", "off"] = "auto",
        memory_bytes: int | None = None,
        working_bytes: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        balance: float | None = None,
        halo_lr_px: int | None = None,
        engine: Engine | None = None,
        max_output_megapixels: float = DEFAULT_MAX_OUTPUT_MEGAPIXELS,
    ) -> None:
        self._max_output_megapixels = max_output_megapixels
        # What another process needs to load the same.
        self._arguments = {
            "model": model,
            "tile_lr_px": tile_lr_px,
            "memory_bytes": memory_bytes,
            "working_bytes": working_bytes,
            "device": device,
            "precision": precision,
            "balance": balance,
            "halo_lr_px": halo_lr_px,
            "engine": engine,
            "max_output_megapixels": max_output_megapixels,
        }
        if engine is None:
            engine, self._model_sha256 = load_engine(
                model, device=device, precision=precision, balance=balance, halo_lr_px=halo_lr_px
            )
        else:
            self._model_sha256 = hashlib.sha256(engine.metadata.to_json().encode()).hexdigest()
        self._memory_bytes = memory_bytes
        self._inference = Inference(engine, tile_lr_px=tile_lr_px, memory_bytes=working_bytes)
        if memory_bytes is not None:
            self.memory(Picture(np.zeros((1, 1), np.uint8)))  # what is too little for that is too little for all

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments alone: what is unpickled, in a worker, loads the model again."""
        return self._arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]  # as `Upscaler(...)` in the other process would

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says of itself: name, scale, halo, how it was trained."""
        return self._inference.engine.metadata

    @property
    def model_sha256(self) -> str:
        """Hash of the weights, or of what another engine says of itself: equal hashes, equal results."""
        return self._model_sha256

    @property
    def precision(self) -> Precision:
        """In what the generator is computed; "auto" has become one of the others."""
        return precision_of(self._inference.engine)

    @property
    def scale(self) -> int:
        """Output pixels per input pixel when no other scale is asked for."""
        return self.metadata.scale

    @property
    def memory_bytes(self) -> int | None:
        """What a picture, its results and the work may take together, None for any."""
        return self._memory_bytes

    @overload
    def upscale(
        self,
        picture: Picture | str | Path | bytes,
        request: Request | float | None = None,
        progress: Progress | None = None,
        *,
        scale: float | None = None,
        strength: float | None = None,
        beside_bytes: int = 0,
    ) -> Picture: ...

    @overload
    def upscale(
        self,
        picture: _Held,
        request: Request | float | None = None,
        progress: Progress | None = None,
        *,
        scale: float | None = None,
        strength: float | None = None,
        beside_bytes: int = 0,
    ) -> _Held: ...

    def upscale(
        self,
        picture: Picture | str | Path | bytes | npt.NDArray[np.generic] | PillowImage,
        request: Request | float | None = None,
        progress: Progress | None = None,
        *,
        scale: float | None = None,
        strength: float | None = None,
        beside_bytes: int = 0,
    ) -> Picture | npt.NDArray[np.generic] | PillowImage:
        """Return `picture` enlarged, as the kind that it came as.

        `picture`: a `Picture`; the path of a file, or the bytes of one, which give a `Picture`; an array, (H,W)
        grey, (H,W,3) RGB or (H,W,4) RGB and alpha, of uint8, uint16 or floats from 0 to 1; or a Pillow image, of
        which the current frame is taken. `request`: a `Request`, a scale, or None for the model's own scale;
        instead of it, `scale` and `strength` as in a `Request`.

        Frames and pages are upscaled one by one. A smaller size than the model's is reached by antialiased
        resampling of the model's result, a larger one by the model run again on its result, reduced to what that
        needs. Greyscale stays greyscale, colours that are grey to a level or two become
        exactly that, and 16 bits stay 16; transparency is upscaled apart from colour; profile and metadata are
        kept. `progress` is called with the finished fraction, 1.0 last; an exception it raises stops the work.
        `beside_bytes`: memory that will be needed afterwards, beside the result. Raises UsageError for a size out
        of range, too little memory or what is no picture, PictureError for one that cannot be read,
        PictureTooLargeError if the result would be larger than the limit, EngineError if inference fails.
        """
        request = Request.of(request, scale, strength)
        if isinstance(picture, np.ndarray):
            result = self._upscale_picture(Picture.from_array(picture), request, progress, beside_bytes)
            return result.to_array(picture.dtype.newbyteorder("="))
        if isinstance(picture, PillowImage):
            return self._upscale_picture(Picture.from_pil(picture), request, progress, beside_bytes).to_pil()
        if isinstance(picture, str | Path | bytes):
            picture = decode(picture if isinstance(picture, bytes) else Path(picture))
        if not isinstance(picture, Picture):
            raise UsageError(
                f"{type(picture).__name__} cannot be upscaled: give a path, the bytes of a file, a NumPy array, a "
                "Pillow image or a Picture"
            )
        return self._upscale_picture(picture, request, progress, beside_bytes)

    def _upscale_picture(
        self, picture: Picture, request: Request, progress: Progress | None, beside_bytes: int
    ) -> Picture:
        self.output_size(picture, request)
        limit_bytes = None
        if self._memory_bytes is not None:
            limit_bytes = self._memory_bytes - self.memory(picture, request, beside_bytes=beside_bytes).held
        report = progress or _ignore
        total_px = sum(frame.height * frame.width for frame in picture.frames)
        done_px = 0
        results = []
        for frame in picture.frames:
            frame_px = frame.height * frame.width

            def report_frame(fraction: float, before: int = done_px, share_px: int = frame_px) -> None:
                report((before + fraction * share_px) / total_px)

            results.append(self._upscale_frame(frame, request, report_frame, limit_bytes))
            done_px += frame_px
        return replace(results[0], further=tuple(results[1:])) if len(results) > 1 else results[0]

    def output_size(self, picture: Picture, request: Request | float | None = None) -> tuple[int, int]:
        """Return (height, width) that `upscale` would give, without any work; raises what it would."""
        request = Request.of(request)
        pixels = 0
        for frame in picture.frames:
            height, width = request.output_size(frame.height, frame.width, self.scale)
            # The model's own result comes first, whatever is asked for.
            pixels += max(height * width, frame.height * frame.width * self.scale**2)
        if pixels > self._max_output_megapixels * 1e6:
            each = f" in {len(picture.frames)} frames" if picture.further else ""
            raise PictureTooLargeError(
                f"{picture.width}x{picture.height} pixels{each} become {pixels / 1e6:.3g} megapixels, more than "
                f"the limit of {self._max_output_megapixels:g}; cut the picture into parts"
            )
        return request.output_size(picture.height, picture.width, self.scale)

    def memory(
        self, picture: Picture, request: Request | float | None = None, *, beside_bytes: int = 0
    ) -> MemoryNeed:
        """Return what `upscale` will take, without any work; raises UsageError if it may not take so much."""
        request = Request.of(request)
        held, between = beside_bytes, 0
        for frame in picture.frames:
            height, width = request.output_size(frame.height, frame.width, self.scale)
            px_bytes = frame.pixels[:1, :1].nbytes + (0 if frame.alpha is None else frame.alpha.itemsize)
            own_px, result_px = frame.height * frame.width, height * width
            held += (own_px + result_px) * px_bytes
            for given, kept in self._passes(frame, height, width):
                model_px, pass_px = math.prod(given) * self.scale**2, math.prod(kept)
                own = 0 if given == (frame.height, frame.width) else math.prod(given) * px_bytes
                own += 0 if kept == (height, width) else pass_px * px_bytes
                between = max(between, own + self._between_bytes(request, px_bytes, model_px, pass_px))
        held += max(0, between - beside_bytes)  # what is between is gone when the rest follows
        bound = self._memory_bytes
        limit = None if bound is None else max(1, bound - held)
        working = max(self._inference.needed_bytes(*given, limit) for given in self._given(picture, request))
        if bound is not None and held + working > bound:
            raise UsageError(
                f"{bound / 1e6:.3g} MB of memory are too little for {picture.width}x{picture.height} pixels: with "
                f"the result and its file {math.ceil((held + working) / 1e6)} MB are needed"
            )
        return MemoryNeed(held, working)

    def _passes(self, frame: Picture, height: int, width: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Return (height, width) of what each run of the model is given, and of what is kept of its result.

        One does up to the model's own scale. Beyond, the last gives all of its scale, and those before no more
        than it needs: by LPIPS that beats both a larger result reduced and interpolation, at a third of the time.
        """
        runs = 1
        while self.scale > 1 and self.scale**runs < max(height / frame.height, width / frame.width):
            runs += 1
        sizes = [(frame.height, frame.width)]
        for left in reversed(range(runs)):
            sizes.append((-(-height // self.scale**left), -(-width // self.scale**left)))
        return list(itertools.pairwise(sizes))

    def _given(self, picture: Picture, request: Request) -> list[tuple[int, int]]:
        """Return (height, width) of all that the model is given for `picture`."""
        sizes = [(frame, request.output_size(frame.height, frame.width, self.scale)) for frame in picture.frames]
        return [given for frame, size in sizes for given, _ in self._passes(frame, *size)]

    def _between_bytes(self, request: Request, px_bytes: int, model_px: int, result_px: int) -> int:
        """Return what is held between the picture and its result: that of the model, and copies for resampling."""
        resampled = 0 if model_px == result_px and request.strength == 1 else 8 * (model_px + result_px)
        model = 0 if model_px == result_px else model_px * px_bytes
        return model + resampled + (result_px * px_bytes if request.strength < 1 else 0)

    def _upscale_frame(
        self, picture: Picture, request: Request, report: Progress, limit_bytes: int | None
    ) -> Picture:
        height, width = request.output_size(picture.height, picture.width, self.scale)
        visible = picture
        if picture.alpha is not None:
            visible = replace(picture, pixels=_bled(picture.pixels, picture.alpha))
        visible = replace(visible, pixels=without_tint(visible.pixels))
        smaller = height < picture.height or width < picture.width
        if request.strength == 0 or smaller:
            report(1.0)
            if smaller:
                visible = replace(visible, warnings=(*picture.warnings, _REDUCED))
            return resized(visible, height, width)
        passes = self._passes(picture, height, width)
        whole_px, done_px, result = sum(math.prod(given) for given, _ in passes), 0, visible
        for given, kept in passes:

            def report_pass(fraction: float, before: int = done_px, share_px: int = math.prod(given)) -> None:
                report((before + fraction * share_px) / whole_px)

            result = self._upscale_whole(result, report_pass, limit_bytes)
            if kept != (result.height, result.width):
                result = resized(result, *kept)
            done_px += math.prod(given)
        if request.strength == 1:
            return result
        return _blend(result, resized(visible, height, width), request.strength)

    def _upscale_whole(self, picture: Picture, report: Progress, limit_bytes: int | None) -> Picture:
        """Return one frame at the model's scale; what is hidden by its alpha has been filled already."""
        height, width = picture.height * self.scale, picture.width * self.scale
        dpi = scaled_dpi(picture, height, width)
        warnings: list[str] = []
        run = functools.partial(self._inference.levels, warn=warnings.append, limit_bytes=limit_bytes)
        if picture.alpha is None:
            pixels = self._upscale_colours(picture.pixels, report, run)
            return replace(picture, pixels=pixels, dpi=dpi, warnings=(*picture.warnings, *warnings))
        pixels = self._upscale_colours(picture.pixels, lambda fraction: report(fraction / 2), run)
        opaque = _lowest_around(picture.alpha) == np.iinfo(picture.alpha.dtype).max
        _hold_within(pixels, picture.pixels, self.scale, where=~opaque)
        alpha = self._upscale_alpha(picture.alpha, lambda fraction: report((1 + fraction) / 2), run)
        told = (*picture.warnings, *dict.fromkeys(warnings))
        return replace(picture, pixels=pixels, alpha=alpha, dpi=dpi, warnings=told)

    def _upscale_colours(self, levels: np.ndarray, report: Progress, run: _Run) -> np.ndarray:
        """Upscale (H,W,3) or (H,W); colours that are all grey stay exactly that."""
        if levels.ndim == 3 and all(np.array_equal(levels[..., 0], levels[..., channel]) for channel in (1, 2)):
            return np.repeat(self._upscale_levels(levels[..., 0], report, run)[..., None], 3, axis=2)
        return self._upscale_levels(levels, report, run)

    def _upscale_levels(self, levels: np.ndarray, report: Progress, run: _Run) -> np.ndarray:
        """Upscale (H,W,3) or (H,W) of either depth to the same at the model's scale."""
        height, width, *channels = levels.shape
        out = shared.empty((height * self.scale, width * self.scale, *channels), levels.dtype)
        return run(levels, report=report, out=out)

    def _upscale_alpha(self, alpha: np.ndarray, report: Progress, run: _Run) -> np.ndarray:
        """Upscale (H,W) transparency; what was fully opaque or clear around stays exactly so."""
        if alpha.min() == alpha.max():
            report(1.0)
            return np.full((alpha.shape[0] * self.scale, alpha.shape[1] * self.scale), alpha.flat[0])
        sr = self._upscale_levels(alpha, report, run)
        _hold_within(sr, alpha, self.scale)
        return sr


def _blend(result: Picture, smooth: Picture, strength: float) -> Picture:
    """Return `strength` of `result` and the rest of `smooth`, which has the same size."""

    def mixed(sharp: np.ndarray, soft: np.ndarray) -> np.ndarray:
        levels = shared.empty(sharp.shape, sharp.dtype)
        # By rows: the floats of all would be four times the picture.
        for row, of_sharp, of_soft in zip(levels, sharp, soft, strict=True):
            row[:] = np.rint(of_soft + np.float32(strength) * (of_sharp.astype(np.float32) - of_soft))
        return levels

    alpha = None
    if result.alpha is not None and smooth.alpha is not None:
        alpha = mixed(result.alpha, smooth.alpha)
    return replace(result, pixels=mixed(result.pixels, smooth.pixels), alpha=alpha)


def _lowest_around(levels: np.ndarray) -> np.ndarray:
    """Return the lowest of the nine levels around each of (H,W)."""
    height, width = levels.shape
    padded = np.pad(levels, 1, mode="edge")
    lowest: np.ndarray = np.minimum.reduce(
        [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    )
    return lowest


def _hold_within(sr: np.ndarray, lr: np.ndarray, scale: int, where: np.ndarray | None = None) -> None:
    """Hold `sr` within the range of the four pixels of `lr` around, in place; `where` (H,W): there alone.

    A generator overshoots beside edges, and its flat areas are off by a level here and there. On a rim either
    would show, as a line against whatever is put behind.
    """
    height, width = lr.shape[:2]
    padded = np.pad(lr.reshape(height, width, -1), ((1, 1), (1, 1), (0, 0)), mode="edge")
    blocks = sr.reshape(height, scale, width, scale, -1)
    # The half of a block that is nearer to the pixel before it lies between that one and its own.
    halves = slice(0, scale // 2), slice(scale // 2, scale)
    for down in (0, 1):
        for across in (0, 1):
            four = [padded[y : y + height, x : x + width] for y in (down, down + 1) for x in (across, across + 1)]
            low, high = np.minimum.reduce(four), np.maximum.reduce(four)
            if where is not None:
                low[~where], high[~where] = 0, np.iinfo(lr.dtype).max
            part = blocks[:, halves[down], :, halves[across]]
            np.clip(part, low[:, None, :, None], high[:, None, :, None], out=part)


def _bled(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return `pixels` with the colour of clear and faint ones taken from the visible ones nearby.

    The colour under full transparency is arbitrary, often black or white, and that of faint pixels is little more
    (of eight bits, few survive the programs that premultiply), but a generator would draw either into the rim.
    Nearby: the smallest square of 2, 4, 8, ... pixels around that holds anything visible, weighted by opacity.
    """
    least = _FAINT * (np.iinfo(alpha.dtype).max // 255)
    if (alpha >= least).all() or not alpha.any():
        return pixels
    colour = pixels.astype(np.float32).reshape(*alpha.shape, -1)
    filled: np.ndarray = np.rint(_fill(colour, alpha.astype(np.float32), least=least))
    return filled.astype(pixels.dtype).reshape(pixels.shape)


def _fill(colour: np.ndarray, weight: np.ndarray, least: float) -> np.ndarray:
    """Replace `colour` (H,W,C) where `weight` (H,W) is below `least` by that of a coarser picture of itself."""
    if (weight >= least).all():
        return colour
    height, width = weight.shape
    odd = ((0, height % 2), (0, width % 2))
    squares = (height + 1) // 2, 2, (width + 1) // 2, 2
    coarse_weight = np.pad(weight, odd).reshape(squares).sum(axis=(1, 3))
    weighted = np.pad(colour * weight[..., None], (*odd, (0, 0)))
    coarse = weighted.reshape(*squares, -1).sum(axis=(1, 3)) / np.maximum(coarse_weight, 1)[..., None]
    coarse = _fill(coarse, coarse_weight, least=1)
    enlarged = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(weight[..., None] >= least, colour, enlarged)


def _ignore(fraction: float) -> None:
    """Take progress where nobody asked for it."""
