"""Photographs four times larger, by SRGAN (Ledig et al. 2017).

    from srgan import Upscaler

    Upscaler().upscale("photo.jpg").save("photo_x4.png")

The names below are loaded when they are first used: `import srgan` itself reads nothing and imports nothing large.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from srgan.errors import SrganError

if TYPE_CHECKING:
    from srgan.client import AsyncClient, Client
    from srgan.engines.openvino import OpenVinoEngine
    from srgan.engines.protocol import Engine
    from srgan.pictures import Mask, Picture, Region, decode, encode
    from srgan.upscale import Request, Upscaler
    from srgan.weights import bundled_models

    __version__: str

__all__ = [
    "AsyncClient",
    "Client",
    "Engine",
    "Mask",
    "OpenVinoEngine",
    "Picture",
    "Region",
    "Request",
    "SrganError",
    "Upscaler",
    "bundled_models",
    "decode",
    "encode",
]

_HOMES = {
    "AsyncClient": "srgan.client",
    "Client": "srgan.client",
    "Engine": "srgan.engines.protocol",
    "Mask": "srgan.pictures",
    "OpenVinoEngine": "srgan.engines.openvino",
    "Picture": "srgan.pictures",
    "Region": "srgan.pictures",
    "Request": "srgan.upscale",
    "Upscaler": "srgan.upscale",
    "bundled_models": "srgan.weights",
    "decode": "srgan.pictures",
    "encode": "srgan.pictures",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("srgan")
    if name not in _HOMES:
        raise AttributeError(f"module 'srgan' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "__version__"])
