"""`Upscaler`: load a generator once, upscale many pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from srgan.engine import Engine, OpenVinoEngine
from srgan.errors import PictureTooLargeError, UsageError
from srgan.inference import Inference, Progress
from srgan.pictures import Picture, resized
from srgan.weights import ModelMetadata, find_weights

MIN_SCALE, MAX_SCALE = 1.0, 16.0

# Output pixels of one picture: 3 bytes each, so 3 GB.
DEFAULT_MAX_OUTPUT_MEGAPIXELS = 1000.0

# Opacity of 255 below which a colour is too imprecise to be upscaled.
_FAINT = 16


class Upscaler:
    """Upscales pictures with one generator; keeps no state between calls, and any thread may call it.

    `model`: name of a bundled model, path of an ONNX file, or None for the default model. `tile_lr_px`: the side
    of a tile's core in LR pixels, "off" for the whole picture at once, or "auto" for whole pictures as long as
    they fit into a third of the free memory. The result is the same whatever it is. `engine`: used instead of
    loading `model`. `max_output_megapixels`: a larger result is refused before any work.
    Raises UsageError for a tile size below 1, and what `find_weights` and `OpenVinoEngine` raise.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        tile_lr_px: int | Literal["auto", "off"] = "auto",
        engine: Engine | None = None,
        max_output_megapixels: float = DEFAULT_MAX_OUTPUT_MEGAPIXELS,
    ) -> None:
        self._max_output_megapixels = max_output_megapixels
        self._inference = Inference(engine or _engine_for(model), tile_lr_px=tile_lr_px)

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says of itself: name, scale, halo, how it was trained."""
        return self._inference.engine.metadata

    @property
    def scale(self) -> int:
        """Output pixels per input pixel when no other scale is asked for."""
        return self.metadata.scale

    def upscale(self, picture: Picture, scale: float | None = None, progress: Progress | None = None) -> Picture:
        """Return `picture` enlarged `scale` times, by default the model's own scale.

        Another scale than the model's is reached by resampling the model's result. Greyscale stays greyscale;
        transparency is upscaled apart from colour; profile and metadata are kept. `progress` is called with the
        finished fraction, 1.0 last; an exception it raises stops the work.
        Raises UsageError for a scale out of range, PictureTooLargeError if the result would be larger than
        the limit, EngineError if inference fails.
        """
        wanted = self.scale if scale is None else scale
        height, width = self._output_size(picture, wanted)
        report = progress or _ignore
        if picture.alpha is None:
            alpha = None
            pixels = self._upscale_levels(picture.pixels, report)
        else:
            visible = _bled(picture.pixels, picture.alpha)
            pixels = self._upscale_levels(visible, lambda fraction: report(fraction / 2))
            alpha = self._upscale_alpha(picture.alpha, lambda fraction: report((1 + fraction) / 2))
        result = replace(picture, pixels=pixels, alpha=alpha)
        return result if (height, width) == pixels.shape[:2] else resized(result, height, width)

    def upscale_array(self, lr: np.ndarray) -> np.ndarray:
        """Return SR (N,3,sH,sW) float32, not clamped, of `lr` (N,3,H,W) float32 in [0,1]."""
        return self._inference.array(lr)

    def _upscale_levels(self, levels: np.ndarray, report: Progress) -> np.ndarray:
        """Upscale (H,W,3) or (H,W) uint8 to the same at the model's scale."""
        height, width, *channels = levels.shape
        out = np.empty((height * self.scale, width * self.scale, *channels), np.uint8)

        def write(rows: slice, columns: slice, piece: np.ndarray) -> None:
            # A grey picture went in as three equal channels and comes out as three nearly equal ones.
            values = np.moveaxis(piece[0], 0, -1) if channels else piece[0].mean(axis=0)
            out[rows, columns] = np.rint(values.clip(0, 1) * 255)  # truncating would darken by half a level

        def read(rows: slice, columns: slice) -> np.ndarray:
            return _to_nchw(levels[rows, columns])

        self._inference.run(height, width, read, write, report=report)
        return out

    def _upscale_alpha(self, alpha: np.ndarray, report: Progress) -> np.ndarray:
        """Upscale (H,W) uint8 transparency; what was fully opaque or clear around stays exactly so."""
        if alpha.min() == alpha.max():
            report(1.0)
            return np.full((alpha.shape[0] * self.scale, alpha.shape[1] * self.scale), alpha.flat[0])
        sr = self._upscale_levels(alpha, report)
        # A generator overshoots beside edges, and its flat areas are off by a level here and there. Held within
        # the range of the nine pixels around, neither shows.
        padded = np.pad(alpha, 1, mode="edge")
        around = [padded[y : y + alpha.shape[0], x : x + alpha.shape[1]] for y in range(3) for x in range(3)]
        low, high = np.minimum.reduce(around), np.maximum.reduce(around)
        blocks = sr.reshape(alpha.shape[0], self.scale, alpha.shape[1], self.scale)
        np.clip(blocks, low[:, None, :, None], high[:, None, :, None], out=blocks)
        return sr

    def _output_size(self, picture: Picture, scale: float) -> tuple[int, int]:
        check_scale(scale)
        largest = max(scale, self.scale)  # the model's own result comes first, whatever is asked for
        if picture.height * picture.width * largest**2 > self._max_output_megapixels * 1e6:
            raise PictureTooLargeError(
                f"{picture.width}x{picture.height} pixels times {largest:g} squared are more than the limit of "
                f"{self._max_output_megapixels:g} megapixels of output; cut the picture into parts"
            )
        return max(1, round(picture.height * scale)), max(1, round(picture.width * scale))


def check_scale(scale: float) -> None:
    """Raise UsageError if `scale` is out of range or not a number."""
    if not (math.isfinite(scale) and MIN_SCALE <= scale <= MAX_SCALE):
        raise UsageError(f"scale {scale:g} is out of range: choose one from {MIN_SCALE:g} to {MAX_SCALE:g}")


def _engine_for(model: str | Path | None) -> Engine:
    weights = find_weights(model)
    return OpenVinoEngine(weights.onnx, name=str(weights.path))


def _to_nchw(levels: np.ndarray) -> np.ndarray:
    """Return (1,3,h,w) float32 in [0,1] of (h,w,3) or (h,w) uint8."""
    channels = np.moveaxis(levels, -1, 0) if levels.ndim == 3 else np.broadcast_to(levels, (3, *levels.shape))
    nchw: np.ndarray = np.divide(channels, 255, dtype=np.float32)[None]
    return nchw


def _bled(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return `pixels` with the colour of clear and faint ones taken from the visible ones nearby.

    The colour under full transparency is arbitrary, often black or white, and that of faint pixels is little more
    (of eight bits, few survive the programs that premultiply), but a generator would draw either into the rim.
    Nearby: the smallest square of 2, 4, 8, ... pixels around that holds anything visible, weighted by opacity.
    """
    if (alpha >= _FAINT).all() or not alpha.any():
        return pixels
    colour = pixels.astype(np.float32).reshape(*alpha.shape, -1)
    filled: np.ndarray = np.rint(_fill(colour, alpha.astype(np.float32), least=_FAINT))
    return filled.astype(np.uint8).reshape(pixels.shape)


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
