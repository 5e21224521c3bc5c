"""Packages that only an extra brings: their absence becomes what to install."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from srgan.errors import UsageError
from srgan.installed import remedy

# What only training and evaluation, or the service, need; where one of them is missing, the extra is.
PACKAGES = {
    "train": {
        *("jinja2", "lightning", "lpips", "markupsafe", "onnx", "onnxscript", "skimage", "tensorboard"),
        *("torch", "torchmetrics", "torchvision"),
    },
    "cuda": {"torch"},
    "models": {"spandrel"},
    "client": {"httpx"},
    "heic": {"pillow_heif"},
    "codecs": {"imagecodecs"},
    "watch": {"watchfiles"},
    "cluster": {"ray", "pyarrow", "pandas"},
    "page": {"onnx"},
    "service": {
        *("dbos", "fastapi", "fsspec", "h11", "jinja2", "markupsafe", "prometheus_client", "pydantic_settings"),
        *("python_multipart", "starlette", "structlog", "uvicorn"),
    },
}


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn the absence of a package that only `extra` brings into a UsageError that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in PACKAGES[extra]:
            raise
        raise UsageError(f"this needs {missing}, which is not installed: {remedy(extra)}") from error
