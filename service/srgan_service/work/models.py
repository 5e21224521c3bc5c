"""The models that are served: which there are, loaded once, ready when they have proved it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from srgan.conversion.loading import load_engine
from srgan.engines.protocol import Precision, precision_of
from srgan.errors import UnknownModelError, UsageError, WeightsError
from srgan.pictures import Picture
from srgan.upscale import AnyUpscaler, Upscaler
from srgan.weights import (
    LossyRule,
    balance_models,
    bundled_models,
    is_file_name,
    lossy_rule,
    name_of_file,
    partner_of,
    suited,
)
from srgan_service.work.device import Device

# Generators that are kept loaded beside the models themselves: every balance is one, and a model that is faithful
# where it is not by itself, or the other way round.
_MOST_VARIANTS = 4

# Of a model: the balance, and whether it is faithful where that is not as it is by itself.
_Variant = tuple[str, float | None, bool | None]


@dataclass(frozen=True)
class ServedModel:
    """A model that requests may name."""

    name: str
    description: str
    scale: int
    is_default: bool
    is_faithful: bool = False


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
        self._variants: dict[_Variant, AnyUpscaler] = {}
        self.balance: tuple[str, str] | None = None
        self._lossy: LossyRule | None = None
        self._lock = threading.Lock()
        self._listed: list[ServedModel] = []
        self.failure: str | None = None
        self.ready = False
        if upscaler is not None:
            metadata = upscaler.metadata
            served = ServedModel(metadata.name, "", metadata.scale, is_default=True)
            self.serve_only({served: upscaler})
        else:
            self._find(default)

    def serve_only(
        self,
        upscalers: Mapping[ServedModel, AnyUpscaler],
        balance: tuple[str, str] | None = None,
        balanced: Mapping[float, AnyUpscaler] | None = None,
        lossy: LossyRule | None = None,
    ) -> None:
        """Take these for the only models, one of them the default; nothing is loaded.

        `balance`: the names of two of them that requests may balance; `balanced`: what lies between, by balance.
        `lossy`: which pictures another than the default takes.
        """
        self._listed = list(upscalers)
        self._loaded = {model.name: upscaler for model, upscaler in upscalers.items()}
        self.balance = balance
        self._variants = {self._variant(None, share): upscaler for share, upscaler in (balanced or {}).items()}
        self._lossy = lossy

    def _find(self, default: str | None) -> None:
        file = Path(default) if default is not None and is_file_name(default) else None
        if file is not None:
            name = name_of_file(file)
            self._sources[name] = file
            # Loaded at once: of some files this alone tells what they are.
            self._loaded[name] = upscaler = self._upscaler(file)
            self._listed.append(
                ServedModel(name, "", upscaler.scale, is_default=True, is_faithful=upscaler.faithful)
            )
        for model in bundled_models():
            if model.name in self._sources:
                continue
            is_default = file is None and (model.is_default if default is None else model.name == default)
            self._sources[model.name] = model.name
            self._listed.append(
                ServedModel(model.name, model.description, model.scale, is_default, model.is_faithful)
            )
        self.balance = balance_models()
        if default is None:
            self._lossy = lossy_rule()
        if not any(model.is_default for model in self._listed):
            raise UnknownModelError(f"no model {default!r}: choose one of {', '.join(self._sources)}")

    @property
    def listed(self) -> list[ServedModel]:
        """The models that requests may name."""
        return list(self._listed)

    @property
    def loaded_balances(self) -> list[float]:
        """The balances whose generators are kept, those asked for first first."""
        return [balance for _, balance, _ in self._variants if balance is not None]

    @property
    def default(self) -> str:
        """The name of the model used when none is named."""
        return next(model.name for model in self._listed if model.is_default)

    def check(self, name: str | None, balance: float | None = None) -> ServedModel:
        """Return the model of that name, or the default one for None.

        Raises UnknownModelError, or UsageError if there is no `balance` of it.
        """
        if balance is not None and self.balance is None:
            raise UsageError("balance: this service has no two models that it could lie between")
        if balance is not None and self.balance is not None and name not in (None, *self.balance):
            raise UsageError(f"balance lies between {' (0) and '.join(self.balance)} (1); leave the model away")
        name = name or self.default
        for model in self._listed:
            if model.name == name:
                return model
        names = ", ".join(model.name for model in self._listed)
        raise UnknownModelError(f"there is no such model; choose one of {names}")

    def for_picture(
        self, picture: Picture, name: str | None, balance: float | None = None, scale: float | None = None
    ) -> str | None:
        """Return the name of the model that takes `picture`: that asked for, or the one that suits it."""
        if name is not None or balance is not None:
            return name
        if self._lossy is not None and self._lossy.takes(picture.format, picture.lossy_quality):
            return self._lossy.model
        return suited(self.default, {model.name: model.scale for model in self._listed}, scale)

    def loaded(
        self, name: str | None = None, balance: float | None = None, faithful: bool | None = None
    ) -> AnyUpscaler | None:
        """Return what `get` would if it is loaded already, else None; waits for nobody."""
        variant = self._variant(name, balance, faithful)
        return self._loaded.get(variant[0]) if variant[1:] == (None, None) else self._variants.get(variant)

    def precision(self, name: str) -> Precision | None:
        """Return in what a model computes, or None if it is not loaded yet, so that nobody knows."""
        upscaler = self._loaded.get(name)
        return None if upscaler is None else precision_of(upscaler)

    def get(
        self, name: str | None = None, balance: float | None = None, faithful: bool | None = None
    ) -> AnyUpscaler:
        """Return the upscaler of a model, or of a point between two, loading it if it is the first time.

        `faithful`: whether its results are to be so; None for as it is by itself.
        """
        variant = source, *unusual = self._variant(name, balance, faithful)
        with self._lock:
            if (known := self.loaded(name, balance, faithful)) is not None:
                return known
            if unusual == [None, None]:
                self._loaded[source] = self._upscaler(self._sources[source])
                return self._loaded[source]
            while len(self._variants) >= _MOST_VARIANTS:
                self._variants.pop(next(iter(self._variants)))
            self._variants[variant] = self._upscaler(
                self._sources[source] if balance is None else None, balance, variant[2]
            )
            return self._variants[variant]

    def _variant(self, name: str | None, balance: float | None, faithful: bool | None = None) -> _Variant:
        """Return the key of a model; of all that lies between the two of a balance, the first is it."""
        model = self.check(name, balance)
        if balance is not None and self.balance is not None:
            model = self.check(self.balance[0])
        return model.name, balance, None if faithful == model.is_faithful else faithful

    def _upscaler(
        self, source: str | Path | None, balance: float | None = None, faithful: bool | None = None
    ) -> Upscaler:
        engine, _ = load_engine(
            source, device=self._on, precision=self._precision, balance=balance, faithful=faithful
        )
        partner = None
        named = partner_of(source) if source is None or isinstance(source, str) else None
        if named is not None:
            partner = functools.partial(self.get, named, None, faithful)
        return Upscaler(
            engine=self._device.share(engine),
            partner=partner,
            tile_lr_px=self._tile_lr_px,
            working_bytes=self._memory_bytes,
            max_output_megapixels=self._max_output_megapixels,
        )

    def prove(self) -> None:
        """Load the default model and upscale a small picture: then it is `ready`, or `failure` says why not.

        Raises what loading or upscaling raises.
        """
        try:
            levels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
            self.get().upscale(Picture(levels))
            self._device.forget_speed()  # the first time, the model was compiled
            result = self.get().upscale(Picture(levels))
            if result.pixels.shape != (48 * self.get().scale, 48 * self.get().scale, 3):
                raise WeightsError("the model's results have the wrong size")
        except Exception as error:
            self.failure = type(error).__name__
            raise
        self.failure = None
        self.ready = True
