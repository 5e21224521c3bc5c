"""`srgan import`."""

from __future__ import annotations

from pathlib import Path

from srgan.conversion import importing
from srgan.engines.openvino import OpenVinoEngine
from srgan.texts import one_line


def import_(source: Path, out: Path, name: str | None = None, halo_lr_px: int | None = None) -> None:
    """Write a generator that another program trained into the folder `out`, and print what it is and the paths."""
    paths = importing.import_model(source, out, name, halo_lr_px)
    metadata = OpenVinoEngine(next(path for path in paths if path.suffix == ".onnx")).metadata
    kind = metadata.architecture.get("layout", "ONNX")
    print(one_line(f"{source}: {kind}, x{metadata.scale}, {metadata.halo_lr_px} pixels of context"))
    for written in paths:
        print(one_line(str(written)))
