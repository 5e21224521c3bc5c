"""What runs a generator: the `Engine` protocol and its OpenVINO implementation for CPUs."""

from __future__ import annotations

import io
import math
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from srgan.errors import EngineError, WeightsError
from srgan.weights import METADATA_KEY, ModelMetadata

if TYPE_CHECKING:
    import numpy as np
    import openvino

# Compiled models that are kept. Each holds its own working memory, kilobytes per LR pixel, so their sum is
# bounded by pixels and not only by their number.
_KEPT_MODELS = 4
_KEPT_LR_PX = 320 * 320


class Engine(Protocol):
    """Something that runs a generator; what `Upscaler` needs of it, and what a test can fake."""

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says of itself: its scale and halo among it."""
        ...

    def run(self, lr: np.ndarray) -> np.ndarray:
        """Return SR (N,3,sH,sW) float32, not clamped, of `lr` (N,3,H,W) float32 in [0,1].

        Called from several threads at once. Raises EngineError rather than return anything but a full result.
        """
        ...


class OpenVinoEngine:
    """A generator in an ONNX file, run by OpenVINO on the CPU in float32.

    `model`: the file or its bytes, which errors call `name`; it must carry this package's metadata. `threads`:
    how many cores one inference uses; by default all that this process may use. One model is compiled per input
    shape, because a static shape runs fastest, and a few are kept. Any number of threads may call `run`.
    Raises WeightsError if the file is not such a model.
    """

    def __init__(self, model: bytes | Path, *, threads: int | None = None, name: str = "the model") -> None:
        import openvino  # 0.1 s and 30 MB, so only where it is needed

        source = str(model) if isinstance(model, Path) else name
        self._model = _read(model, source)
        self.metadata = _metadata_of(self._model, source)
        self._core = openvino.Core()
        self._settings = {
            # OpenVINO would choose bfloat16 where the processor has it: two digits, visible as bands.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",  # all cores on one picture
            "INFERENCE_NUM_THREADS": threads or available_cores(),
            # Pinned threads of two processes sit on the same cores while others idle.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled: OrderedDict[tuple[int, ...], openvino.CompiledModel] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, lr: np.ndarray) -> np.ndarray:
        """Return SR (N,3,sH,sW) float32, not clamped, of `lr` (N,3,H,W) float32 in [0,1].

        Raises EngineError if OpenVINO fails, or returns another shape or values that are not finite.
        """
        if lr.ndim != 4 or lr.shape[1] != 3 or lr.dtype != "float32":
            raise EngineError(f"expected (N,3,H,W) float32, got {lr.shape} {lr.dtype}")
        try:
            # A request of its own for every call: two threads never share input or output memory.
            request = self._compiled_for(lr.shape).create_infer_request()
            sr: np.ndarray = request.infer([lr], share_inputs=True)[0]
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on a tile of shape {lr.shape}: {_first_line(error)}") from error
        scale = self.metadata.scale
        expected = (lr.shape[0], 3, lr.shape[2] * scale, lr.shape[3] * scale)
        if sr.shape != expected:
            raise EngineError(f"the model returned shape {sr.shape} instead of {expected}; its metadata is wrong")
        # min and max carry a NaN or an infinity through, and need no array of flags.
        if not (math.isfinite(sr.min()) and math.isfinite(sr.max())):
            raise EngineError("the model returned values that are not finite; the weights are damaged")
        return sr

    def _compiled_for(self, shape: tuple[int, ...]) -> openvino.CompiledModel:
        with self._lock:
            compiled = self._compiled.pop(shape, None)
            if compiled is None:
                self._forget_until_fits(shape)
                self._model.reshape(list(shape))
                compiled = self._core.compile_model(self._model, "CPU", self._settings)
            self._compiled[shape] = compiled  # now the most recent
            return compiled

    def _forget_until_fits(self, shape: tuple[int, ...]) -> None:
        """Drop the longest unused models until one for `shape` fits beside the rest, or none is left."""
        while self._compiled and (
            len(self._compiled) >= _KEPT_MODELS or sum(map(_lr_px, self._compiled)) + _lr_px(shape) > _KEPT_LR_PX
        ):
            self._compiled.popitem(last=False)


def available_cores() -> int:
    """Return how many cores this process may use: those it is bound to, within its control group's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(bound, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such group, or the quota reads "max"
        return bound


def available_bytes() -> int:
    """Return how much memory may be taken: what is free, within the limit of this process's control group.

    Where the system does not say, 2 GiB.
    """
    try:
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(meminfo["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        free = 2 * 2**30
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or the limit reads "max"
        return free
    return max(0, min(free, limit))


def _read(model: bytes | Path, source: str) -> openvino.Model:
    from openvino.frontend import FrontEndManager

    try:
        # The ONNX frontend by name: `Core.read_model` would offer the bytes to every other parser too.
        frontend = FrontEndManager().load_by_framework("onnx")
        content = model.read_bytes() if isinstance(model, Path) else model
        return frontend.convert(frontend.load(io.BytesIO(content)))
    except OSError as error:
        raise WeightsError(f"{source}: cannot be read: {error.strerror}") from error
    except RuntimeError as error:
        raise WeightsError(
            f"{source}: OpenVINO cannot read it as an ONNX model; export it again with `srgan export`"
        ) from error


def _metadata_of(model: openvino.Model, source: str) -> ModelMetadata:
    path = ["framework", METADATA_KEY]  # where OpenVINO puts an ONNX file's metadata_props
    if not model.has_rt_info(path):
        raise WeightsError(f"{source}: a model without srgan's metadata; only files by `srgan export` can be used")
    metadata = ModelMetadata.from_json(model.get_rt_info(path).value, source)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise WeightsError(f"{source}: a generator has one input and one output, this model has more")
    return metadata


def _lr_px(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[2] * shape[3]


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
