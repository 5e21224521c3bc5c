"""The models that are served: which there are, loaded once, ready when they have proved it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from service.device import Device
from srgan.engine import OpenVinoEngine
from srgan.errors import UnknownModelError, WeightsError
from srgan.inference import Progress
from srgan.loading import load_engine
from srgan.pictures import Picture
from srgan.upscale import Request, Upscaler
from srgan.weights import ModelMetadata, bundled_models, find_weights


class AnyUpscaler(Protocol):
    """What the service needs of an `Upscaler`, and what a test can fake."""

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says of itself."""
        ...

    @property
    def scale(self) -> int:
        """Output pixels per input pixel when no other scale is asked for."""
        ...

    def upscale(
        self, picture: Picture, request: Request | float | None = None, progress: Progress | None = None
    ) -> Picture:
        """Return `picture` enlarged; an exception that `progress` raises stops the work between two tiles."""
        ...

    def output_size(self, picture: Picture, request: Request | float | None = None) -> tuple[int, int]:
        """Return (height, width) that `upscale` would give, or raise what it would."""
        ...


@dataclass(frozen=True)
class ServedModel:
    """A model that requests may name."""

    name: str
    description: str
    scale: int
    is_default: bool


class Models:
    """The bundled models, and the one of `default` if that is a file; all compute on `device`.

    `upscaler`: used for every name, instead of loading anything. Any thread may call.
    Raises UnknownModelError or WeightsError if `default` cannot be found.
    """

    def __init__(
        self,
        device: Device,
        *,
        default: str | None = None,
        tile_lr_px: int | None = None,
        memory_bytes: int = 2**30,
        on: str = "auto",
        precision: str = "auto",
        max_output_megapixels: float = 256.0,
        upscaler: AnyUpscaler | None = None,
    ) -> None:
        self._device = device
        self._tile_lr_px: int | Literal["auto"] = tile_lr_px or "auto"
        self._memory_bytes = memory_bytes
        self._on, self._precision = on, precision
        self._max_output_megapixels = max_output_megapixels
        self._sources: dict[str, str | Path] = {}
        self._loaded: dict[str, AnyUpscaler] = {}
        self._lock = threading.Lock()
        self._listed: list[ServedModel] = []
        self.failure: str | None = None
        self.ready = False
        if upscaler is not None:
            self.serve_only(upscaler)
        else:
            self._find(default)

    def serve_only(self, upscaler: AnyUpscaler) -> None:
        """Take `upscaler` for the one and only model."""
        metadata = upscaler.metadata
        self._loaded = {metadata.name: upscaler}
        self._listed = [ServedModel(metadata.name, "", metadata.scale, is_default=True)]

    def _find(self, default: str | None) -> None:
        file = Path(default) if default is not None and default.endswith(".onnx") else None
        if file is not None:
            weights = find_weights(file)
            self._sources[weights.name] = file
            scale = OpenVinoEngine(weights.onnx, name=str(file)).metadata.scale
            self._listed.append(ServedModel(weights.name, "", scale, is_default=True))
        for model in bundled_models():
            if model.name in self._sources:
                continue
            is_default = file is None and (model.is_default if default is None else model.name == default)
            self._sources[model.name] = model.name
            self._listed.append(ServedModel(model.name, model.description, model.scale, is_default))
        if not any(model.is_default for model in self._listed):
            raise UnknownModelError(f"no model {default!r}: choose one of {', '.join(self._sources)}")

    @property
    def listed(self) -> list[ServedModel]:
        """The models that requests may name."""
        return list(self._listed)

    @property
    def default(self) -> str:
        """The name of the model used when none is named."""
        return next(model.name for model in self._listed if model.is_default)

    def check(self, name: str | None) -> ServedModel:
        """Return the model of that name, or the default one for None. Raises UnknownModelError."""
        wanted = name or self.default
        for model in self._listed:
            if model.name == wanted:
                return model
        names = ", ".join(model.name for model in self._listed)
        raise UnknownModelError(f"there is no such model; choose one of {names}")

    def get(self, name: str | None = None) -> AnyUpscaler:
        """Return the upscaler of a model, loading it if it is the first time."""
        wanted = self.check(name).name
        with self._lock:
            if wanted not in self._loaded:
                engine, _ = load_engine(self._sources[wanted], device=self._on, precision=self._precision)
                self._loaded[wanted] = Upscaler(
                    engine=self._device.share(engine),
                    tile_lr_px=self._tile_lr_px,
                    memory_bytes=self._memory_bytes,
                    max_output_megapixels=self._max_output_megapixels,
                )
            return self._loaded[wanted]

    def prove(self) -> None:
        """Load the default model and upscale a small picture: then it is `ready`, or `failure` says why not.

        Raises what loading or upscaling raises.
        """
        try:
            levels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
            result = self.get().upscale(Picture(levels))
            if result.pixels.shape != (48 * self.get().scale, 48 * self.get().scale, 3):
                raise WeightsError("the model's results have the wrong size")
        except Exception as error:
            self.failure = type(error).__name__
            raise
        self.failure = None
        self.ready = True
