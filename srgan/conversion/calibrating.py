"""What a model is calibrated with for eight bits: small pieces of LR, made of photographs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from srgan import pictures
from srgan.engines.calibration import calibrated
from srgan.engines.graphs import read_graph
from srgan.engines.int8 import Int8Form
from srgan.errors import UsageError
from srgan.files import write_atomically
from srgan.pictures import Picture
from srgan.weights import int8_path, read_file

_CROPS = 120
_SIDE_LR_PX = 48


def write_int8_form(model: Path, crops: Sequence[np.ndarray]) -> None:
    """Write the int8 form of an ONNX file beside it. Raises UsageError if it has nothing that eight bits suit."""
    form = int8_form(read_file(model), model.stem, crops)
    write_atomically(int8_path(model), form.to_json().encode())


def int8_form(onnx: bytes, name: str, crops: Sequence[np.ndarray]) -> Int8Form:
    """Return the int8 form of an ONNX file's content. Raises UsageError if it has nothing that eight bits suit."""
    form = calibrated(read_graph(onnx, name), hashlib.sha256(onnx).hexdigest(), crops)
    if form is None:
        raise UsageError(f"{name}: a network of this kind has nothing that eight bits would do for")
    return form


def lr_crops(folder: Path, scale: int) -> list[np.ndarray]:
    """Return crops, (1,3,48,48) float32 in [0,1], of the pictures below `folder`, reduced `scale` times.

    They are 120, less the share of pictures that are too small. The same folder gives the same crops. Raises
    UsageError if there is no picture that is large enough, else what the decoder raises.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give --calibrate a folder of photographs")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in pictures.PICTURE_SUFFIXES)
    paths = [paths[index * len(paths) // _CROPS] for index in range(min(_CROPS, len(paths)) and _CROPS)]
    rng, side, crops = np.random.default_rng(0), _SIDE_LR_PX * scale, list[np.ndarray]()
    for path in dict.fromkeys(paths):
        pixels, _ = pictures.flattened(pictures.decode(path))
        if min(pixels.shape[:2]) < side:
            continue
        for _ in range(paths.count(path)):
            top, left = (int(rng.integers(size - side + 1)) for size in pixels.shape[:2])
            hr = Picture(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
            lr = pictures.resized(hr, _SIDE_LR_PX, _SIDE_LR_PX).pixels
            crops.append(np.ascontiguousarray(lr.transpose(2, 0, 1)[None].astype(np.float32) / 255))
    if not crops:
        raise UsageError(f"{folder}: no picture of {side} pixels a side or more to calibrate with")
    return crops
