"""The engine for processors, and what else OpenVINO runs on: a generator in an ONNX file."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from srgan.engines import graphs
from srgan.engines.bfloat16 import in_bfloat16
from srgan.engines.compiled import CompiledModels
from srgan.engines.faithful import REACH_LR_PX, made_faithful
from srgan.engines.int8 import Int8Form, in_int8
from srgan.engines.probing import measured
from srgan.engines.protocol import Precision, ReadRows, StripFacts
from srgan.engines.runtime import openvino
from srgan.engines.strips import StripGraph, StripTask, UnsuitableGraphError, strip_graph
from srgan.errors import EngineError, OutOfMemoryError, UsageError
from srgan.machine import available_cores, bfloat16_pays
from srgan.texts import first_line
from srgan.weights import ModelMetadata, name_of_file

# What OpenVINO and oneDNN say when an allocation fails.
_NO_MEMORY = ("bad_alloc", "allocate", "out of memory", "out_of_memory", "Cannot allocate")


class OpenVinoEngine:
    """A generator in an ONNX file, run by OpenVINO on `device`: "cpu", "gpu", "gpu:N" or "npu".

    `model`: the file or its bytes, which errors call `name`. Where it carries no metadata of this package, its
    scale and halo are found by running it (`probing.py`); `halo_lr_px`: its halo, where that is known. A model
    for one channel is run on red, green and blue apart. `threads`: how many cores one inference uses; by default
    all that this process may use. One model is compiled per input shape, because a static shape runs fastest, and
    a few are kept. Any number of threads may call `run`. `blend`: a second model with the same layers, and its
    share of every weight, 0..1. `precision`: one of `precisions(device)`, or "auto": on a processor that is faster
    in bfloat16 that, for models whose last sum can stay in float32, else float32 where the device has it. "int8"
    is for processors, and models with their form for it, `int8`; it is run in tiles. `faithful`: whether results
    are corrected until they reduce to what they were made from (`faithful.py`); None for yes where the model says
    it was trained on clean pictures.
    Raises WeightsError if the file is no such model, or the second one has other layers; UsageError for a halo of
    a model that has its own, or if there is no such device, or not this precision of it or of the model.
    """

    def __init__(
        self,
        model: bytes | Path,
        *,
        threads: int | None = None,
        name: str = "the model",
        blend: tuple[bytes, float] | None = None,
        halo_lr_px: int | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        faithful: bool | None = False,
        int8: Int8Form | None = None,
    ) -> None:
        source = str(model) if isinstance(model, Path) else name
        self._model = graphs.read_graph(model, source)
        if blend is not None:
            graphs.interpolate(self._model, graphs.read_graph(blend[0], source), share=blend[1])
        self._core = core()
        self._device = _listed(device)
        available = precisions(device)
        self._settings = _settings(self._device, available[0], threads)
        self._compiled = CompiledModels()
        self._lock = threading.Lock()
        self._channels = graphs.channels_of(self._model, source)
        self.metadata = self._metadata(source, halo_lr_px)
        self.weights_sha256 = ""  # who knows the file says it
        self.precision: Precision = "int8"
        if precision == "int8" and device == "cpu":
            if int8 is None:
                raise UsageError(
                    f"{source}: there is no int8 form of it, it runs in {' and '.join(available)}; `srgan export` "
                    "with --int8 makes one"
                )
            in_int8(self._model, int8, source)
        else:
            self.precision = self._chosen(precision, available, device, source)
        self._settings = _settings(self._device, self.precision, threads)
        self.faithful = self.metadata.of_clean_pictures if faithful is None else faithful
        if self.faithful:
            made_faithful(self._model, self.metadata.scale)
            self.metadata = replace(self.metadata, halo_lr_px=self.metadata.halo_lr_px + REACH_LR_PX)

    def _chosen(self, precision: str, available: tuple[Precision, ...], device: str, source: str) -> Precision:
        """Return in what to compute, with the graph made ready for it."""
        if precision == "auto":
            half = "bf16" in available and bfloat16_pays() and in_bfloat16(self._model)
            return "bf16" if half else available[0]
        for known in available:
            if known == precision:
                if known == "bf16" and not in_bfloat16(self._model):
                    raise UsageError(
                        f"{source}: runs in fp32, not in bf16, which shows as bands without a last sum with the "
                        "enlarged input"
                    )
                return known
        raise UsageError(f"the {device} runs in {' and '.join(available)}, not in {precision}")

    def _metadata(self, source: str, halo_lr_px: int | None) -> ModelMetadata:
        written = graphs.metadata_of(self._model, source)
        if written is None:
            graphs.check_foreign(self._model, source)
            try:
                return measured(self._infer, name_of_file(Path(source)), source, halo_lr_px)
            finally:
                self.forget()
        if halo_lr_px is not None:
            raise UsageError(f"{source}: its halo is known to be {written.halo_lr_px}; leave --halo out")
        return written

    def run(self, lr: np.ndarray) -> np.ndarray:
        """Return SR (N,3,sH,sW) float32, not clamped, of `lr` (N,3,H,W) float32 in [0,1].

        Raises EngineError if OpenVINO fails, or returns another shape or values that are not finite.
        """
        if lr.ndim != 4 or lr.shape[1] != 3 or lr.dtype != "float32":
            raise EngineError(f"expected (N,3,H,W) float32, got {lr.shape} {lr.dtype}")
        sr = self._infer(lr)
        scale = self.metadata.scale
        expected = (lr.shape[0], 3, lr.shape[2] * scale, lr.shape[3] * scale)
        if sr.shape != expected:
            raise EngineError(f"the model returned shape {sr.shape} instead of {expected}; its metadata is wrong")
        _check_finite(sr)
        return sr

    def _infer(self, lr: np.ndarray) -> np.ndarray:
        if self._channels == 1 and lr.shape[1] == 3:
            grey = all(np.array_equal(lr[:, 0], lr[:, channel]) for channel in (1, 2))
            planes = [self._infer(np.ascontiguousarray(lr[:, [channel]])) for channel in range(1 if grey else 3)]
            return np.concatenate(planes * 3 if grey else planes, axis=1)
        with _openvino_errors(f"a tile of shape {lr.shape}"):
            # A request of its own for every call: two threads never share input or output memory.
            request = self.compiled_for(lr.shape).create_infer_request()
            sr: np.ndarray = request.infer([lr], share_inputs=True)[0]
        return sr

    @cached_property
    def strip_facts(self) -> StripFacts | None:
        """What strips cost, or None if this model's graph cannot be cut into them."""
        if self._channels != 3 or self._device != "CPU":
            return None
        try:
            with self._lock:
                graph = strip_graph(self._model, rows=1, width=1)
        except UnsuitableGraphError:
            return None
        if graph.scale != self.metadata.scale:
            return None  # `run` says what is wrong
        return StripFacts(math.ceil(graph.lag / graph.scale), graph.state_bytes)

    def strips(self, height: int, width: int, rows: int, read: ReadRows) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield SR in strips, as `StripEngine` says; exactly what `run` returns for the whole picture."""
        with _openvino_errors(f"strips of {rows}x{width}"):
            graph, compiled = self._strips_for(rows, width)
            task = StripTask(graph, compiled, height, width)
        scale, sr_height, finished = self.metadata.scale, height * self.metadata.scale, 0
        number = 0
        while finished < sr_height:
            start, stop = (min(height, row) for row in (number * rows, (number + 1) * rows))
            lr = read(start, stop) if start < stop else None
            with _openvino_errors(f"strips of {rows}x{width}"):
                sr = task.next(number, lr)
            first = number * rows * scale - graph.lag
            begin, end = max(0, first), min(sr_height, first + rows * scale)
            if begin < end:
                piece = sr[:, :, begin - first : end - first]
                _check_finite(piece)
                yield slice(begin, end), piece
                finished = end
            number += 1

    @property
    def kept_shapes(self) -> list[tuple[int, ...]]:
        """Shapes whose models are kept, the longest unused first: (N,C,H,W), or (rows, width) of strips."""
        with self._lock:
            return self._compiled.shapes

    def compiled_for(self, shape: tuple[int, ...]) -> openvino.CompiledModel:
        """Return OpenVINO's model for input of `shape`, (N,C,H,W): the kept one, or compiled now."""

        def build() -> openvino.CompiledModel:
            self._model.reshape(list(shape))
            return self._core.compile_model(self._model, self._device, self._settings)

        with self._lock:
            return self._compiled.get(shape, build)

    def forget(self) -> None:
        """Drop all compiled models; they are made again when needed."""
        with self._lock:
            self._compiled.clear()

    def _strips_for(self, rows: int, width: int) -> tuple[StripGraph, openvino.CompiledModel]:
        def build() -> tuple[StripGraph, openvino.CompiledModel]:
            graph = strip_graph(self._model, rows, width)
            return graph, self._core.compile_model(graph.model, self._device, self._settings)

        with self._lock:
            graph, compiled = self._compiled.get((rows, width), build)
        return graph, compiled


def run_openvino_ir(xml: bytes, weights: bytes, lr: np.ndarray) -> np.ndarray:
    """Return what the IR makes of `lr`, once, on the CPU in float32."""
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    with _openvino_errors(f"a picture of shape {lr.shape}"):
        compiled = core().compile_model(core().read_model(xml, weights), "CPU", settings)
        sr: np.ndarray = compiled(lr)[0]
    return sr


def precisions(device: str = "cpu") -> tuple[Precision, ...]:
    """Return in what `device` computes, the one with most digits first.

    Of a processor, bf16 is among them if it has instructions for it; others would only emulate it.
    Raises UsageError if OpenVINO lists no such device.
    """
    name = _listed(device)
    capabilities = core().get_property(name, "OPTIMIZATION_CAPABILITIES")
    if name == "CPU":
        return ("fp32", "bf16") if "BF16" in capabilities else ("fp32",)
    return ("fp32", "fp16") if "FP32" in capabilities else ("fp16",)


def listed_devices() -> dict[str, str]:
    """Return the devices that OpenVINO could use ("cpu", "gpu:1") and what each is called by who makes it."""
    names = core().available_devices
    return {
        name.lower().replace(".", ":"): str(core().get_property(name, "FULL_DEVICE_NAME")).strip()
        for name in names
    }


def _listed(device: str) -> str:
    """Return OpenVINO's name of a device: "CPU", "GPU", "GPU.1", "NPU"."""
    name = device.upper().replace(":", ".")
    names = core().available_devices
    if not any(listed == name or listed.split(".")[0] == name for listed in names):
        there = ", ".join(listed.lower().replace(".", ":") for listed in names)
        raise UsageError(f"there is no device {device} that OpenVINO could use; it lists {there}")
    return name


def _settings(device: str, precision: Precision, threads: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        # What is in bfloat16 is so by its types. Left to itself, OpenVINO takes it for all where the processor has
        # it: two digits, visible as bands.
        "INFERENCE_PRECISION_HINT": "f16" if precision == "fp16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",  # all cores on one picture
    }
    if device == "CPU":
        settings["INFERENCE_NUM_THREADS"] = threads or available_cores()
        # Pinned threads of two processes sit on the same cores while others idle.
        settings["ENABLE_CPU_PINNING"] = False
    return settings


@cache
def core() -> openvino.Core:
    """Return OpenVINO's core, one for the life of the process.

    It gives the thread it begins to work in a stack for signals, and takes the memory back when it ends, maybe in
    another thread: the next signal to the first, such as Ctrl-C, would then end the process.
    """
    return openvino.Core()


@contextlib.contextmanager
def _openvino_errors(piece: str) -> Iterator[None]:
    """Turn what OpenVINO raises while it works on `piece` into errors of this package."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(f"not enough memory for {piece}") from error
    except RuntimeError as error:
        message = first_line(error)
        if any(sign in str(error) for sign in _NO_MEMORY):
            raise OutOfMemoryError(f"not enough memory for {piece} ({message})") from error
        raise EngineError(f"OpenVINO failed on {piece}: {message}") from error


def _check_finite(sr: np.ndarray) -> None:
    # min and max carry a NaN or an infinity through, and need no array of flags.
    if not (math.isfinite(sr.min()) and math.isfinite(sr.max())):
        raise EngineError("the model returned values that are not finite; the weights are damaged")
