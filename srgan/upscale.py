"""`Upscaler`: load a generator once, upscale many pictures. `Request`: how large and how strongly."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from srgan.conversion.loading import load_engine
from srgan.engines.inference import Inference, Progress
from srgan.engines.protocol import Engine, Precision, is_faithful, precision_of, weights_sha256_of
from srgan.errors import PictureTooLargeError, UsageError
from srgan.pictures import (
    Invention,
    Mask,
    Picture,
    PillowImage,
    Region,
    Window,
    back_project,
    decode,
    invention,
    mixed,
    resized,
    resized_gain_map,
    scaled_dpi,
    without_tint,
)
from srgan.pictures.guarded import shared
from srgan.weights import ModelMetadata, Weights, lossy_rule, partner_of

MIN_SCALE, MAX_SCALE = 1.0, 16.0
MAX_SIDE_PX = 100_000

# Output pixels of one picture: 3 bytes each, so 3 GB.
DEFAULT_MAX_OUTPUT_MEGAPIXELS = 1000.0

# Opacity of 255 below which a colour is too imprecise to be upscaled.
_FAINT = 16

# Of back-projection where no engine does it: in results of another size than the model's, and at rims of
# transparency.
_ROUNDS = 3
_AFTER_REACH_LR_PX = 4 * _ROUNDS + 8  # and of what else follows the engine: rims, resampling, a blend
_PROJECTING_BYTES = 16  # for each pixel of the result: one channel of it in float32, and three of what follows

# What other libraries hold a picture in.
_Held = TypeVar("_Held", npt.NDArray[np.generic], PillowImage)

# (height, width) of what a run of the model is given, and of what is kept of its result.
_Pass = tuple[tuple[int, int], tuple[int, int]]

# `Inference.levels` for one picture, with what is the same for all its channels.
_Run = Callable[..., np.ndarray]

AUTO_MODEL = "auto"  # what is called so takes the model that suits each picture

Wrap: TypeAlias = Literal["horizontal", "both"]
WRAPS: tuple[Wrap, ...] = ("horizontal", "both")

_REDUCED = "it is larger than what was asked for, so it was reduced without the model"


@dataclass(frozen=True)
class Request:
    """How large a result is wanted, and how much of the generator in it.

    At most one way to say the size: `scale`, times larger, 1 to 16; `long_side_px`, the longer side of the result;
    `width_px` or `height_px`, the other side following; both of them, the largest size of the same shape that fits
    into that box. None of them: the model's own scale. A picture that is larger than its size in pixels asks for
    is reduced. `strength`: 1 is the generator's result, 0 bicubic interpolation, between them is a blend of both.
    `protect`: where it is white, the result is that of the model's partner, which was trained for content alone;
    the strength is of both. `region`: the part of the result that is made. `wrap`: whose edges meet: "horizontal"
    for left and right, as of a panorama of 360 degrees, "both" for those and top and bottom, as of a texture.
    Raises UsageError for more than one size or one that is out of range.
    """

    scale: float | None = None
    long_side_px: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    strength: float = 1.0
    protect: Mask | None = None
    region: Region | None = None
    wrap: Wrap | None = None

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
        if self.wrap not in (None, *WRAPS):
            raise UsageError(f"wrap {self.wrap!r} is not understood: choose {' or '.join(WRAPS)}")

    @classmethod
    def of(
        cls,
        request: Request | float | None,
        scale: float | None = None,
        strength: float | None = None,
        protect: Mask | None = None,
        region: Region | None = None,
        wrap: Wrap | None = None,
    ) -> Request:
        """Return the request that a plain number, a scale, or None stands for; or that the others do.

        Raises UsageError if both are given.
        """
        if request is not None and any(value is not None for value in (scale, strength, protect, region, wrap)):
            raise UsageError(
                "say it once: as `request`, or as `scale`, `strength`, `protect`, `region` and `wrap`"
            )
        if isinstance(request, Request):
            return request
        return cls(
            scale=request if scale is None else scale,
            strength=1.0 if strength is None else strength,
            protect=protect,
            region=region,
            wrap=wrap,
        )

    def settings(self) -> dict[str, object]:
        """Return all of it, fit for JSON; of what most requests have none, nothing is said if there is none."""
        rare = {
            "protect": self.protect and self.protect.sha256,
            "region": self.region and str(self.region),
            "wrap": self.wrap,
        }
        usual = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in rare}
        return {**usual, **{name: value for name, value in rare.items() if value is not None}}

    def output_size(self, height: int, width: int, model_scale: int) -> tuple[int, int]:
        """Return (height, width) of the result, or its region, for a picture of that size.

        Raises UsageError if a size in pixels would enlarge it more than 16 times, or the region lies outside.
        """
        whole = self.whole_size(height, width, model_scale)
        if self.region is None:
            return whole
        self.region.refuse_outside(*whole)
        return self.region.height, self.region.width

    def whole_size(self, height: int, width: int, model_scale: int) -> tuple[int, int]:
        """Return (height, width) of the result that a region would be of."""
        ratio = self._ratio(height, width, model_scale)
        if ratio > MAX_SCALE:
            raise UsageError(
                f"{self.label(model_scale)} is {ratio:.1f} times the {width}x{height} pixels of the picture; "
                f"at most {MAX_SCALE:g} times are possible"
            )
        return max(1, round(height * ratio)), max(1, round(width * ratio))

    def is_generated(self, height: int, width: int, model_scale: int) -> bool:
        """Return whether a model takes part in the result for a picture of that size."""
        whole = self.whole_size(height, width, model_scale)
        return self.strength > 0 and whole[0] >= height and whole[1] >= width

    def label(self, model_scale: int) -> str:
        """Return the size in a word, for file names and messages: x4, x2.5, 2000px, 800w, 600h, 800x600.

        With a region, x4_300x200+40+60: its size and its corner.
        """
        if self.region is not None:
            part, whole = self.region, replace(self, region=None).label(model_scale)
            return f"{whole}_{part.width}x{part.height}+{part.left}+{part.top}"
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
class _Sheet:
    """A picture laid beside itself `across` times on either side, and `down` times above and below.

    `given`, `whole`: (height, width) of that, and of its result. `region`: the part of the result that is wanted;
    None for all of a picture that is alone. `reach_px`: how many pixels around one count for the result.
    """

    across: int
    down: int
    given: tuple[int, int]
    whole: tuple[int, int]
    region: Region | None
    reach_px: int

    def laid(self, levels: np.ndarray) -> np.ndarray:
        """Return (H,W) or (H,W,3) of the picture as that of the sheet."""
        if not self.across and not self.down:
            return levels
        return np.tile(levels, (2 * self.down + 1, 2 * self.across + 1, 1)[: levels.ndim])


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

    def lr_px(self, picture: Picture, request: Request | float | None = None) -> int:
        """Return how many pixels `upscale` runs through a model."""
        ...

    def partner(self) -> AnyUpscaler:
        """Return what upscales by the model's partner, or raise UsageError if there is none."""
        ...

    def invented(
        self,
        picture: Picture,
        result: Picture,
        request: Request | float | None = None,
        progress: Progress | None = None,
    ) -> Invention:
        """Return by how much `result` of `request` leaves what `picture` supports."""
        ...


def model_of(upscaler: AnyUpscaler, picture: Picture) -> str:
    """Return the name of the model that takes `picture`."""
    taken_by = upscaler.for_picture(picture) if isinstance(upscaler, Upscaler) else upscaler
    return taken_by.metadata.name


def weights_of(upscaler: AnyUpscaler, picture: Picture) -> str:
    """Return the hash of the weights that take `picture`, "" if it is not known."""
    taken_by = upscaler.for_picture(picture) if isinstance(upscaler, Upscaler) else upscaler
    return weights_sha256_of(taken_by)


class Upscaler:
    """Upscales pictures with one generator; keeps no state between calls, and any thread may call it.

    `model`: name of a bundled model, path of an ONNX file, `Weights`, or None for the bundled ones that suit each
    picture: the default model, and for files compressed with loss the one that was trained on such. `tile_lr_px`:
    the side of a tile's core in LR pixels, "off" for the whole picture at once, or "auto" for what is fastest
    within `working_bytes`, by default a third of the free memory. The result is the same whatever it is.
    `memory_bytes`: of a picture, its results, what follows them and the model's work, all together; a picture that
    takes more is refused before any work. The program itself, 140 MB, comes on top. `device`, `precision`,
    `balance`, `halo_lr_px`, `faithful`: see `load_engine`. `engine`: used instead of all these and `model`;
    `partner`: returns the upscaler of the model's partner, beside an `engine`.
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
        faithful: bool | None = None,
        engine: Engine | None = None,
        partner: Callable[[], AnyUpscaler] | None = None,
        max_output_megapixels: float = DEFAULT_MAX_OUTPUT_MEGAPIXELS,
    ) -> None:
        self._max_output_megapixels = max_output_megapixels
        # What another process needs to load the same.
        self._arguments: dict[str, Any] = {
            "model": model,
            "tile_lr_px": tile_lr_px,
            "memory_bytes": memory_bytes,
            "working_bytes": working_bytes,
            "device": device,
            "precision": precision,
            "balance": balance,
            "halo_lr_px": halo_lr_px,
            "faithful": faithful,
            "engine": engine,
            "partner": partner,
            "max_output_megapixels": max_output_megapixels,
        }
        is_given = engine is not None
        if engine is None:
            engine, self._model_sha256 = load_engine(
                model,
                device=device,
                precision=precision,
                balance=balance,
                halo_lr_px=halo_lr_px,
                faithful=faithful,
            )
        else:
            told = engine.metadata.to_json() + " faithful" * is_faithful(engine)
            self._model_sha256 = hashlib.sha256(told.encode()).hexdigest()
        self._make_partner = partner
        self._partner: AnyUpscaler | None = None
        self._rule = lossy_rule() if model is None and balance is None and not is_given else None
        self._for_lossy: Upscaler | None = None
        self._lock = threading.Lock()
        if self._rule is not None:
            self._model_sha256 = hashlib.sha256(f"{self._model_sha256} {self._rule}".encode()).hexdigest()
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
    def name(self) -> str:
        """The name of the model, or "auto" where each picture gets the one that suits it."""
        return self.metadata.name if self._rule is None else AUTO_MODEL

    def for_picture(self, picture: Picture) -> Upscaler:
        """Return the upscaler whose model suits `picture`: this one itself, if its model was named."""
        if self._rule is None or not self._rule.takes(picture.format, picture.lossy_quality):
            return self
        with self._lock:
            if self._for_lossy is None:
                self._for_lossy = Upscaler(**(self._arguments | {"model": self._rule.model}))
            return self._for_lossy

    @property
    def model_sha256(self) -> str:
        """Hash of the weights, or of what another engine says of itself: equal hashes, equal results."""
        return self._model_sha256

    @property
    def weights_sha256(self) -> str:
        """Hash of the file of weights, of two with + between; "" of an engine that does not say."""
        return weights_sha256_of(self._inference.engine)

    @property
    def precision(self) -> Precision:
        """In what the generator is computed; "auto" has become one of the others."""
        return precision_of(self._inference.engine)

    @property
    def faithful(self) -> bool:
        """Whether results are corrected until, reduced again, they are the picture they were made from."""
        return is_faithful(self._inference.engine)

    @property
    def scale(self) -> int:
        """Output pixels per input pixel when no other scale is asked for."""
        return self.metadata.scale

    @property
    def memory_bytes(self) -> int | None:
        """What a picture, its results and the work may take together, None for any."""
        return self._memory_bytes

    def partner(self) -> AnyUpscaler:
        """Return the upscaler of the bundled model that was trained for content alone, loaded once; or itself.

        Raises UsageError for a model that is not bundled, or a bundled one of another scale.
        """
        if self._partner is None:
            self._partner = self._make_partner() if self._make_partner is not None else self._bundled_partner()
        return self._partner

    def _bundled_partner(self) -> AnyUpscaler:
        arguments = self._arguments
        named = None if arguments["model"] is None else str(arguments["model"])
        partner = partner_of(named)
        if arguments["engine"] is not None or partner is None:
            raise UsageError(
                f"{self.metadata.name} has no partner that was trained for content alone, which masks and maps "
                "need; bundled models of x4 have one"
            )
        if named == partner:
            return self
        return Upscaler(**{**arguments, "model": partner, "balance": None})

    def invented(
        self,
        picture: Picture,
        result: Picture,
        request: Request | float | None = None,
        progress: Progress | None = None,
    ) -> Invention:
        """Return by how much `result`, which `request` gave of `picture`, leaves what that supports.

        Of the first frame, pixel by pixel: the difference to the result of the model's partner, and what it,
        reduced again, differs from `picture`. That takes as long as the result. Raises what `upscale` does, and
        UsageError for a region or a model without a partner.
        """
        request = Request.of(request)
        if request.region is not None:
            raise UsageError("a map is of a whole result: leave the region away")
        first, made = picture.frames[0], result.frames[0]
        partner = self.partner()
        other = made if partner is self else partner.upscale(first, replace(request, protect=None), progress)
        return invention(first, made, other)

    @overload
    def upscale(
        self,
        picture: Picture | str | Path | bytes,
        request: Request | float | None = None,
        progress: Progress | None = None,
        *,
        scale: float | None = None,
        strength: float | None = None,
        protect: Mask | None = None,
        region: Region | None = None,
        wrap: Wrap | None = None,
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
        protect: Mask | None = None,
        region: Region | None = None,
        wrap: Wrap | None = None,
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
        protect: Mask | None = None,
        region: Region | None = None,
        wrap: Wrap | None = None,
        beside_bytes: int = 0,
    ) -> Picture | npt.NDArray[np.generic] | PillowImage:
        """Return `picture` enlarged, as the kind that it came as.

        `picture`: a `Picture`; the path of a file, or the bytes of one, which give a `Picture`; an array, (H,W)
        grey, (H,W,3) RGB or (H,W,4) RGB and alpha, of uint8, uint16 or floats from 0 to 1; or a Pillow image, of
        which the current frame is taken. `request`: a `Request`, a scale, or None for the model's own scale;
        instead of it, `scale`, `strength`, `protect`, `region` and `wrap` as in a `Request`.

        Frames and pages are upscaled one by one. A smaller size than the model's is reached by antialiased
        resampling of the model's result, a larger one by the model run again on its result, reduced to what that
        needs. Greyscale stays greyscale, colours that are grey to a level or two become
        exactly that, and 16 bits stay 16; transparency is upscaled apart from colour; profile and metadata are
        kept. `progress` is called with the finished fraction, 1.0 last; an exception it raises stops the work.
        `beside_bytes`: memory that will be needed afterwards, beside the result. Raises UsageError for a size out
        of range, too little memory or what is no picture, PictureError for one that cannot be read,
        PictureTooLargeError if the result would be larger than the limit, EngineError if inference fails.
        """
        request = Request.of(request, scale, strength, protect, region, wrap)
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
        if (taken_by := self.for_picture(picture)) is not self:
            return taken_by._upscale_picture(picture, request, progress, beside_bytes)
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
        if request.protect is not None:
            request.protect.refuse_for(picture)
        for frame in picture.frames:
            height, width = request.output_size(frame.height, frame.width, self.scale)
            (lr_height, lr_width), _ = self._passes(frame, request)[0]
            # The model's own result comes first, whatever is asked for.
            pixels += max(height * width, lr_height * lr_width * self.scale**2)
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
            sheet = self._sheet(frame, request)
            rows, columns = self._windows(sheet)
            own_px = math.prod(sheet.given)
            result_px = rows.length * columns.length if sheet.region is not None else height * width
            held += (own_px + result_px) * px_bytes
            if frame.gain_map is not None:
                held += frame.gain_map.levels.nbytes * (own_px + height * width) // own_px
            passes = self._passes(frame, request)
            for number, (given, kept) in enumerate(passes):
                model_px, pass_px = math.prod(given) * self.scale**2, math.prod(kept)
                own = math.prod(given) * px_bytes if number else 0
                own += 0 if number + 1 == len(passes) else pass_px * px_bytes
                if self.faithful and (frame.alpha is not None or model_px != pass_px or len(passes) > 1):
                    own += _PROJECTING_BYTES * max(model_px, pass_px)
                between = max(between, own + self._between_bytes(request, px_bytes, model_px, pass_px))
        held += max(0, between - beside_bytes)  # what is between is gone when the rest follows
        bound = self._memory_bytes
        limit = None if bound is None else max(1, bound - held)
        sizes = [given for frame in picture.frames for given, _ in self._passes(frame, request)]
        working = max(self._inference.needed_bytes(*size, limit) for size in sizes)
        if bound is not None and held + working > bound:
            raise UsageError(
                f"{bound / 1e6:.3g} MB of memory are too little for {picture.width}x{picture.height} pixels: with "
                f"the result and its file {math.ceil((held + working) / 1e6)} MB are needed"
            )
        return MemoryNeed(held, working)

    def _passes(self, frame: Picture, request: Request) -> list[_Pass]:
        """Return the runs of the model that make what is asked for of a frame."""
        rows, columns = self._windows(self._sheet(frame, request))
        given = rows.stop - rows.start, columns.stop - columns.start
        return self._passes_between(given, (rows.length, columns.length))

    def _passes_between(self, given: tuple[int, int], wanted: tuple[int, int]) -> list[_Pass]:
        """Return (height, width) of what each run of the model is given, and of what is kept of its result.

        One does up to the model's own scale. Beyond, the last gives all of its scale, and those before no more
        than it needs: by LPIPS that beats both a larger result reduced and interpolation, at a third of the time.
        """
        runs = 1
        while self.scale > 1 and self.scale**runs < max(wanted[0] / given[0], wanted[1] / given[1]):
            runs += 1
        sizes = [given]
        for left in reversed(range(runs)):
            sizes.append((-(-wanted[0] // self.scale**left), -(-wanted[1] // self.scale**left)))
        return list(itertools.pairwise(sizes))

    def _between_bytes(self, request: Request, px_bytes: int, model_px: int, result_px: int) -> int:
        """Return what is held between the picture and its result: that of the model, and copies for resampling."""
        resampled = 0 if model_px == result_px and request.strength == 1 else 8 * (model_px + result_px)
        model = 0 if model_px == result_px else model_px * px_bytes
        further = (request.strength < 1) + (request.protect is not None)
        return model + resampled + result_px * px_bytes * further

    def lr_px(self, picture: Picture, request: Request | float | None = None) -> int:
        """Return how many pixels `upscale` runs through a model: transparency doubles them, and a mask."""
        request = Request.of(request)
        runs = 1 if request.protect is None else 2
        return runs * sum(
            math.prod(given) * (1 if frame.alpha is None else 2)
            for frame in picture.frames
            for given, _ in self._passes(frame, request)
        )

    def _reach(self, size: tuple[int, int], whole: tuple[int, int], request: Request, *, is_clear: bool) -> int:
        """Return how many pixels around one of a picture of that size count for the result, which has `whole`."""
        if request.strength > 0 and whole[0] >= size[0] and whole[1] >= size[1]:
            is_all = whole == (size[0] * self.scale, size[1] * self.scale)
            follows = not is_all or is_clear or request.strength < 1 or request.protect is not None
            return self.metadata.halo_lr_px + _AFTER_REACH_LR_PX * follows
        return max(2 * math.ceil(side / length) for side, length in zip(size, whole, strict=True)) + 2

    def _sheet(self, frame: Picture, request: Request) -> _Sheet:
        """Return how often a frame is laid beside itself so that its edges meet, once where they do not."""
        size = frame.height, frame.width
        whole = request.whole_size(*size, self.scale)
        reach = self._reach(size, whole, request, is_clear=frame.alpha is not None)
        if request.wrap is None:
            return _Sheet(0, 0, size, whole, request.region, reach)
        repeats = len(self._passes_between(size, whole))  # each run of the model sees as far again
        across = math.ceil(reach * repeats / frame.width)
        down = math.ceil(reach * repeats / frame.height) if request.wrap == "both" else 0
        part = request.region or Region(0, 0, whole[1], whole[0])
        part = replace(part, left=part.left + across * whole[1], top=part.top + down * whole[0])
        down_times, across_times = 2 * down + 1, 2 * across + 1
        given, result = (
            (size[0] * down_times, size[1] * across_times),
            (whole[0] * down_times, whole[1] * across_times),
        )
        return _Sheet(across, down, given, result, part, reach)

    def _windows(self, sheet: _Sheet) -> tuple[Window, Window]:
        """Return which rows and columns of a sheet become what is asked for of its result."""
        (rows, columns), (height, width) = sheet.given, sheet.whole
        part = sheet.region or Region(0, 0, width, height)
        kept = (slice(part.top, part.top + part.height), slice(part.left, part.left + part.width))
        if sheet.region is None or len(self._passes_between(sheet.given, sheet.whole)) > 1:
            # What the model runs on again is of the whole.
            return Window(0, rows, height, kept[0]), Window(0, columns, width, kept[1])
        around = (
            Window.around(part, *size, sheet.reach_px, self.metadata.multiple_lr_px)
            for part, size in zip(kept, ((rows, height), (columns, width)), strict=True)
        )
        return next(around), next(around)

    def _upscale_frame(
        self, picture: Picture, request: Request, report: Progress, limit_bytes: int | None
    ) -> Picture:
        sheet = self._sheet(picture, request)
        rows, columns = self._windows(sheet)
        size = request.whole_size(picture.height, picture.width, self.scale)
        gain_map = resized_gain_map(picture, *size, request.region)
        visible = replace(picture, pixels=sheet.laid(picture.pixels), gain_map=None)
        if picture.alpha is not None:
            alpha = sheet.laid(picture.alpha)
            visible = replace(visible, pixels=_bled(visible.pixels, alpha), alpha=alpha)
        visible = replace(visible, pixels=without_tint(visible.pixels))
        is_grey = _is_all_grey(visible.pixels)  # of the whole, whatever part of it is made
        if sheet.region is not None:
            visible = _cut(visible, slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        smaller = sheet.whole[0] < sheet.given[0] or sheet.whole[1] < sheet.given[1]
        if request.strength == 0 or smaller:
            report(1.0)
            if smaller:
                visible = replace(visible, warnings=(*picture.warnings, _REDUCED))
            result = resized(visible, rows.length, columns.length)
        else:
            part = None
            if request.protect is not None:
                levels = sheet.laid(request.protect.levels)
                part = levels[rows.start : rows.stop, columns.start : columns.stop]
            result = self._upscale_part(visible, (rows.length, columns.length), part, is_grey, report, limit_bytes)
            if request.strength < 1:
                result = _blend(result, resized(visible, rows.length, columns.length), request.strength)
        result = result if sheet.region is None else _cut(result, rows.kept, columns.kept)
        return replace(result, gain_map=gain_map)

    def _upscale_part(
        self,
        visible: Picture,
        size: tuple[int, int],
        protect: np.ndarray | None,
        is_grey: bool,
        report: Progress,
        limit_bytes: int | None,
    ) -> Picture:
        """Return the model's result of that (height, width), where `protect` is white that of its partner."""

        passes = self._passes_between((visible.height, visible.width), size)
        given_px = [math.prod(given) for given, _ in passes]

        def made(upscaler: Upscaler, report: Progress) -> Picture:
            result = visible
            for number, (_, kept) in enumerate(passes):

                def report_pass(fraction: float, number: int = number) -> None:
                    report((sum(given_px[:number]) + fraction * given_px[number]) / sum(given_px))

                result = upscaler._upscale_whole(result, is_grey, report_pass, limit_bytes)
                resampled = kept != (result.height, result.width)
                if resampled:
                    result = resized(result, *kept)
                if resampled or number:  # what the model was given is then not the picture
                    result = upscaler._kept_faithful(result, visible)
            return result

        if protect is None:
            return made(self, report)
        partner = self.partner()
        if not isinstance(partner, Upscaler):
            raise UsageError(f"the partner of {self.metadata.name} is of another kind")
        sharp = made(self, lambda fraction: report(fraction / 2))
        return mixed(sharp, made(partner, lambda fraction: report((1 + fraction) / 2)), protect)

    def _upscale_whole(
        self, picture: Picture, is_grey: bool, report: Progress, limit_bytes: int | None
    ) -> Picture:
        """Return one frame at the model's scale; what is hidden by its alpha has been filled already."""
        height, width = picture.height * self.scale, picture.width * self.scale
        dpi = scaled_dpi(picture, height, width)
        warnings: list[str] = []
        run = functools.partial(self._inference.levels, warn=warnings.append, limit_bytes=limit_bytes)
        if picture.alpha is None:
            pixels = self._upscale_colours(picture.pixels, is_grey, report, run)
            return replace(picture, pixels=pixels, dpi=dpi, warnings=(*picture.warnings, *warnings))
        pixels = self._upscale_colours(picture.pixels, is_grey, lambda fraction: report(fraction / 2), run)
        opaque = np.minimum.reduce(_around(picture.alpha)) == np.iinfo(picture.alpha.dtype).max
        _hold_within(pixels, picture.pixels, self.scale, where=~opaque)
        alpha = self._upscale_alpha(picture.alpha, lambda fraction: report((1 + fraction) / 2), run)
        for _ in range(_ROUNDS if self.faithful else 0):  # some of what was held back at a rim is missing now
            back_project(pixels, picture.pixels)
            _hold_within(pixels, picture.pixels, self.scale, where=_is_flat(picture.pixels) & ~opaque)
            back_project(alpha, picture.alpha)
            _hold_within(alpha, picture.alpha, self.scale, where=_is_flat(picture.alpha))
        told = (*picture.warnings, *dict.fromkeys(warnings))
        return replace(picture, pixels=pixels, alpha=alpha, dpi=dpi, warnings=told)

    def _kept_faithful(self, result: Picture, source: Picture) -> Picture:
        """Return `result`, of another size than the model's, such that it reduces to `source` if it is to."""
        if not self.faithful:
            return result
        pixels = _copied(result.pixels)
        alpha = None if result.alpha is None else _copied(result.alpha)
        for _ in range(_ROUNDS):
            back_project(pixels, source.pixels)
            if alpha is not None and source.alpha is not None:
                back_project(alpha, source.alpha)
        return replace(result, pixels=pixels, alpha=alpha)

    def _upscale_colours(self, levels: np.ndarray, is_grey: bool, report: Progress, run: _Run) -> np.ndarray:
        """Upscale (H,W,3) or (H,W); colours that are all grey stay exactly that."""
        if levels.ndim == 3 and is_grey:
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


def _is_all_grey(levels: np.ndarray) -> bool:
    """Return whether all colours of (H,W,3) are grey; (H,W) are."""
    return levels.ndim == 2 or all(np.array_equal(levels[..., 0], levels[..., other]) for other in (1, 2))


def _cut(picture: Picture, rows: slice, columns: slice) -> Picture:
    """Return a part of one frame."""
    alpha = None if picture.alpha is None else np.ascontiguousarray(picture.alpha[rows, columns])
    return replace(picture, pixels=np.ascontiguousarray(picture.pixels[rows, columns]), alpha=alpha)


def _copied(levels: np.ndarray) -> np.ndarray:
    """Return `levels` where they can be changed, and encoded without another copy."""
    copy = shared.empty(levels.shape, levels.dtype)
    copy[:] = levels
    return copy


def _around(levels: np.ndarray) -> list[np.ndarray]:
    """Return the nine levels around each of (H,W) or (H,W,3), as so many arrays of that shape."""
    height, width = levels.shape[:2]
    padded = np.pad(levels, ((1, 1), (1, 1), (0, 0))[: levels.ndim], mode="edge")
    return [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]


def _is_flat(levels: np.ndarray) -> np.ndarray:
    """Return where, (H,W), the nine pixels around one of (H,W) or (H,W,3) are all equal."""
    around = _around(levels)
    spread: np.ndarray = np.maximum.reduce(around) - np.minimum.reduce(around)
    flat: np.ndarray = spread.reshape(*levels.shape[:2], -1).max(axis=2) == 0
    return flat


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
