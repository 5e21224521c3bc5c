"""`srgan doctor`: what is here, whether it works, and how to get what is missing."""

from __future__ import annotations

import importlib.util
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

import srgan
from srgan.commands.extras import PACKAGES
from srgan.commands.terminal import say
from srgan.conversion.loading import devices
from srgan.engines.openvino import precisions
from srgan.errors import SrganError
from srgan.installed import remedy
from srgan.machine import available_bytes, available_cores
from srgan.texts import first_line, one_line
from srgan.upscale import Upscaler
from srgan.weights import bundled_models, find_weights

# What each extra is for, in the order of how many want it.
_FOR = {
    "train": "srgan train, evaluate, export, import and more",
    "service": "srgan serve",
    "client": "srgan.Client",
    "page": "srgan page",
    "heic": "the pictures of telephones",
    "codecs": "AVIF without loss",
    "watch": "srgan upscale --watch",
    "cluster": "srgan upscale --runner ray",
    "models": "models of other programs",
}


def doctor() -> bool:
    """Print what there is, a line for each matter, and return whether upscaling works."""
    try:
        for name, text in _facts():
            print(one_line(f"{name:10} {text}"))
    except SrganError as error:
        say("error", str(error))
        return False
    return True


def _facts() -> Iterator[tuple[str, str]]:
    yield "srgan", f"{version('srgan')}, in {Path(srgan.__file__).parent}"
    yield "python", f"{platform.python_version()}, {sys.executable}"
    yield "system", platform.platform()
    yield "packages", ", ".join(f"{name} {version(name)}" for name in ("openvino", "numpy", "pillow"))
    yield "cores", f"{available_cores()}"
    yield "memory", f"{available_bytes() / 1e9:.1f} GB free"
    for device, name in devices().items():
        yield "device", f"{device}: {name}"
    for model in bundled_models():
        find_weights(model.name)
        yield "weights", f"{model.name}{' (default)' if model.is_default else ''}, intact"
    began = time.perf_counter()
    upscaler = Upscaler()
    upscaler.upscale(np.zeros((64, 64, 3), np.uint8))
    took = time.perf_counter() - began
    yield "engine", f"works: {upscaler.metadata.name} in {upscaler.precision}, begun and tried in {took:.1f} s"
    yield "precision", f"of a processor: {', '.join(precisions())}; auto takes {upscaler.precision}"
    for extra, purpose in _FOR.items():
        missing = sorted(package for package in PACKAGES[extra] if not _is_there(package))
        if missing:
            yield extra, f"missing {', '.join(missing)}, for {purpose}: {remedy(extra)}"
        else:
            yield extra, f"there, for {purpose}"


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError) as error:
        say("warning", f"{package}: {first_line(error)}")
        return False
