"""What passes between a worker and its asker: a length, a description in JSON, and the bytes that it announces."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from typing import Any, cast

import numpy as np

from srgan.pictures import GainMap, Picture
from srgan.pictures.guarded import shared

READY = b"ready"  # a worker's first word

# The most that the description of an answer may take; pixels and profiles come behind it.
_MAX_DESCRIPTION_BYTES = 16 << 20

_RECORDS: dict[str, type[Picture | GainMap]] = {"picture": Picture, "gain map": GainMap}

_LENGTH = struct.Struct(">Q")


@dataclass
class Budget:
    """How many bytes may still be received."""

    left_bytes: int

    def spend(self, count: int) -> None:
        """Take `count` of them; raises ValueError if that is more than are left, or less than none."""
        if not 0 <= count <= self.left_bytes:
            raise ValueError(f"{count} bytes announced, {self.left_bytes} allowed")
        self.left_bytes -= count


def send(stream: FileIO, description: dict[str, object], blobs: Sequence[bytes | np.ndarray]) -> None:
    """Write a message: `description`, and the bytes that it announces."""
    text = json.dumps(description).encode()
    parts: list[Any] = [_LENGTH.pack(len(text)), text, *blobs]
    for part in parts:
        view = memoryview(part).cast("B") if len(part) else memoryview(b"")  # an empty array cannot be cast
        while view:
            view = view[stream.write(view) :]


def receive(stream: FileIO, count: int) -> bytearray:
    """Return the next `count` bytes; raises EOFError if there are less."""
    buffer = bytearray(count)
    _receive_into(stream, memoryview(buffer))
    return buffer


def _receive_into(stream: FileIO, view: memoryview) -> None:
    while view:
        count = stream.readinto(view)
        if not count:
            raise EOFError("the other side is gone")
        view = view[count:]


def receive_description(stream: FileIO) -> dict[str, Any]:
    """Return the description that a message begins with; raises ValueError for one that is none or too long."""
    (length,) = _LENGTH.unpack(receive(stream, _LENGTH.size))
    if length > _MAX_DESCRIPTION_BYTES:
        raise ValueError(f"a description of {length} bytes")
    description: dict[str, Any] = json.loads(receive(stream, length))
    return description


def pack(value: object, blobs: list[bytes | np.ndarray]) -> object:
    """Return `value` as JSON knows it; arrays and bytes go to `blobs`, in order, but for what can be mapped."""
    if isinstance(value, np.ndarray):
        if path := shared.path_of(value):
            return {"mapped": path, "array": value.dtype.str, "shape": value.shape}
        blobs.append(np.ascontiguousarray(value).reshape(-1))
        return {"array": value.dtype.str, "shape": value.shape}
    if isinstance(value, bytes):
        blobs.append(value)
        return {"bytes": len(value)}
    if isinstance(value, tuple):
        return [pack(item, blobs) for item in value]
    for name, record in _RECORDS.items():
        if isinstance(value, record):
            fields = {field.name: pack(getattr(value, field.name), blobs) for field in dataclasses.fields(value)}
            return {name: fields}
    return value


def unpack(tree: Any, stream: FileIO, budget: Budget, *, maps: bool = False) -> object:
    """Return what `pack` was given, reading arrays and bytes from `stream`.

    `maps`: whether the other side may name what is to be mapped. Raises ValueError, TypeError or KeyError for what
    it never wrote; EOFError if the stream ends.
    """
    if isinstance(tree, list):
        return tuple(unpack(item, stream, budget, maps=maps) for item in tree)
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        dtype, shape = np.dtype(tree["array"]), tuple(map(int, tree["shape"]))
        if dtype.kind not in "bfiu" or min(shape, default=0) < 0:
            raise ValueError(f"an array of {dtype} with shape {shape}")
        if maps and "mapped" in tree:
            return shared.mapped(tree["mapped"], shape, dtype)
        budget.spend(dtype.itemsize * math.prod(shape))
        array = np.empty(shape, dtype)
        if array.size:
            flat: Any = array.reshape(-1)
            _receive_into(stream, memoryview(flat).cast("B"))
        return array
    if "bytes" in tree:
        budget.spend(tree["bytes"])
        return bytes(receive(stream, tree["bytes"]))
    ((kind, packed),) = tree.items()
    record = _RECORDS[kind]
    fields = {name: unpack(field, stream, budget, maps=maps) for name, field in packed.items()}
    return record(**cast(dict[str, Any], fields))
