"""The engine for processors: a generator in an ONNX file, run by OpenVINO."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srgan.engines.protocol import ReadRows, StripFacts
from srgan.errors import EngineError, OutOfMemoryError, UsageError, WeightsError
from srgan.machine import available_cores
from srgan.texts import first_line
from srgan.weights import METADATA_KEY, ModelMetadata

if TYPE_CHECKING:
    import numpy as np
    import openvino

    from srgan.engines.strips import StripGraph


# Compiled models that are kept: to compile one costs as much as half a picture of 90 pixels a side. Each holds its
# own working memory, kilobytes per LR pixel, so their sum is bounded by pixels and not only by their number.
_KEPT_MODELS = 12
_KEPT_LR_PX = 320 * 320

# What OpenVINO and oneDNN say when an allocation fails.
_NO_MEMORY = ("bad_alloc", "allocate", "out of memory", "out_of_memory", "Cannot allocate")


class OpenVinoEngine:
    """A generator in an ONNX file, run by OpenVINO on the CPU in float32.

    `model`: the file or its bytes, which errors call `name`. Where it carries no metadata of this package, its
    scale and halo are found by running it (`probing.py`); `halo_lr_px`: its halo, where that is known. A model
    for one channel is run on red, green and blue apart. `threads`: how many cores one inference uses; by default
    all that this process may use. One model is compiled per input shape, because a static shape runs fastest, and
    a few are kept. Any number of threads may call `run`. `blend`: a second model with the same layers, and its
    share of every weight, 0..1.
    Raises WeightsError if the file is no such model, or the second one has other layers; UsageError for a halo of
    a model that has its own.
    """

    def __init__(
        self,
        model: bytes | Path,
        *,
        threads: int | None = None,
        name: str = "the model",
        blend: tuple[bytes, float] | None = None,
        halo_lr_px: int | None = None,
    ) -> None:
        source = str(model) if isinstance(model, Path) else name
        self._model = _read(model, source)
        if blend is not None:
            _interpolate(self._model, _read(blend[0], source), share=blend[1])
        self._core = _core()
        self._settings = {
            # OpenVINO would choose bfloat16 where the processor has it: two digits, visible as bands.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",  # all cores on one picture
            "INFERENCE_NUM_THREADS": threads or available_cores(),
            # Pinned threads of two processes sit on the same cores while others idle.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._lock = threading.Lock()
        self._channels = _channels_of(self._model, source)
        self.metadata = self._metadata(source, halo_lr_px)

    def _metadata(self, source: str, halo_lr_px: int | None) -> ModelMetadata:
        written = _metadata_of(self._model, source)
        if written is None:
            from srgan.engines.probing import measured

            _check_foreign(self._model, source)
            try:
                return measured(self._infer, Path(source).stem, source, halo_lr_px)
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
        import numpy as np

        if self._channels == 1 and lr.shape[1] == 3:
            grey = all(np.array_equal(lr[:, 0], lr[:, channel]) for channel in (1, 2))
            planes = [self._infer(np.ascontiguousarray(lr[:, [channel]])) for channel in range(1 if grey else 3)]
            return np.concatenate(planes * 3 if grey else planes, axis=1)
        with _openvino_errors(f"a tile of shape {lr.shape}"):
            # A request of its own for every call: two threads never share input or output memory.
            request = self._compiled_for(lr.shape).create_infer_request()
            sr: np.ndarray = request.infer([lr], share_inputs=True)[0]
        return sr

    @cached_property
    def strip_facts(self) -> StripFacts | None:
        """What strips cost, or None if this model's graph cannot be cut into them."""
        from srgan.engines.strips import UnsuitableGraphError, strip_graph

        if self._channels != 3:
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
            task = _StripTask(graph, compiled, height, width)
        scale, wanted, finished = self.metadata.scale, height * self.metadata.scale, 0
        number = 0
        while finished < wanted:
            start, stop = (min(height, row) for row in (number * rows, (number + 1) * rows))
            lr = read(start, stop) if start < stop else None
            with _openvino_errors(f"strips of {rows}x{width}"):
                sr = task.next(number, lr)
            first = number * rows * scale - graph.lag
            begin, end = max(0, first), min(wanted, first + rows * scale)
            if begin < end:
                piece = sr[:, :, begin - first : end - first]
                _check_finite(piece)
                yield slice(begin, end), piece
                finished = end
            number += 1

    def forget(self) -> None:
        """Drop all compiled models; they are made again when needed."""
        with self._lock:
            self._compiled.clear()

    def _compiled_for(self, shape: tuple[int, ...]) -> openvino.CompiledModel:
        def build() -> openvino.CompiledModel:
            self._model.reshape(list(shape))
            return self._core.compile_model(self._model, "CPU", self._settings)

        return self._kept(shape, build)

    def _strips_for(self, rows: int, width: int) -> tuple[StripGraph, openvino.CompiledModel]:
        from srgan.engines.strips import strip_graph

        def build() -> tuple[StripGraph, openvino.CompiledModel]:
            graph = strip_graph(self._model, rows, width)
            return graph, self._core.compile_model(graph.model, "CPU", self._settings)

        kept: tuple[StripGraph, openvino.CompiledModel] = self._kept((rows, width), build)
        return kept

    def _kept(self, shape: tuple[int, ...], build: Callable[[], Any]) -> Any:
        with self._lock:
            compiled = self._compiled.pop(shape, None)
            if compiled is None:
                self._forget_until_fits(shape)
                compiled = build()
            self._compiled[shape] = compiled  # now the most recent
            return compiled

    def _forget_until_fits(self, shape: tuple[int, ...]) -> None:
        """Drop the longest unused models until one for `shape` fits beside the rest, or none is left."""
        while self._compiled and (
            len(self._compiled) >= _KEPT_MODELS or sum(map(_lr_px, self._compiled)) + _lr_px(shape) > _KEPT_LR_PX
        ):
            self._compiled.popitem(last=False)


class _StripTask:
    """One picture on its way through a strip graph: the rows that are kept, and where the next ones go."""

    def __init__(self, graph: StripGraph, compiled: openvino.CompiledModel, height: int, width: int) -> None:
        import numpy as np
        import openvino

        self._graph, self._height = graph, height
        self._request = compiled.create_infer_request()
        self._lr = [openvino.Tensor(np.zeros((1, 3, graph.rows, width), np.float32)) for _ in range(2)]
        self._masks = [
            openvino.Tensor(np.zeros(graph.mask(scale, 0, height).shape, np.float32))
            for scale in graph.mask_scales
        ]
        # What one strip leaves is what the next one takes: two sets that change places.
        self._states, self._next = (
            [openvino.Tensor(np.zeros(shape, np.float32)) for shape in graph.states] for _ in range(2)
        )
        for port, tensor in enumerate([*self._lr, *self._masks]):
            self._request.set_input_tensor(port, tensor)

    def next(self, number: int, lr: np.ndarray | None) -> np.ndarray:
        """Run strip `number`, whose rows inside the picture are `lr`; return its output, good until the next."""
        graph, (strip, edges) = self._graph, (tensor.data for tensor in self._lr)
        inside = 0 if lr is None else lr.shape[2]
        if lr is not None:
            strip[:, :, :inside] = edges[:, :, :inside] = lr
            edges[:, :, inside:] = lr[:, :, -1:]
        else:
            edges[:] = edges[:, :, -1:]
        strip[:, :, inside:] = 0
        if number == 0 and lr is not None:
            for index in graph.edge_states:
                self._states[index].data[:] = lr[:, :, :1].transpose(0, 2, 3, 1)
        for scale, mask in zip(graph.mask_scales, self._masks, strict=True):
            mask.data[:] = graph.mask(scale, number, self._height)
        for port, tensor in enumerate(self._states, start=len(self._lr) + len(self._masks)):
            self._request.set_input_tensor(port, tensor)
        for port, tensor in enumerate(self._next):
            self._request.set_output_tensor(port, tensor)
        self._request.infer()
        self._states, self._next = self._next, self._states
        sr: np.ndarray = self._request.get_output_tensor(len(self._next)).data
        return sr


def openvino_ir(model: bytes, *, fp16: bool = False) -> tuple[bytes, bytes]:
    """Return an ONNX model as OpenVINO's own IR: the content of its .xml and of its .bin file.

    `fp16`: weights stored in half the bytes. Raises WeightsError if the model cannot be read.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(_read(model, "the model"), path, compress_to_fp16=fp16)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def run_openvino_ir(xml: bytes, weights: bytes, lr: np.ndarray) -> np.ndarray:
    """Return what the IR makes of `lr`, once, on the CPU in float32."""
    core = _core()
    with _openvino_errors(f"a picture of shape {lr.shape}"):
        compiled = core.compile_model(core.read_model(xml, weights), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        sr: np.ndarray = compiled(lr)[0]
    return sr


@cache
def _core() -> openvino.Core:
    """Return OpenVINO's core, one for the life of the process.

    It gives the thread it begins to work in a stack for signals, and takes the memory back when it ends, maybe in
    another thread: the next signal to the first, such as Ctrl-C, would then end the process.
    """
    import openvino  # 0.1 s and 30 MB, so only where it is needed

    return openvino.Core()


def _read(model: bytes | Path, source: str) -> openvino.Model:
    from openvino.frontend import FrontEndManager

    try:
        # The ONNX frontend by name: `Core.read_model` would offer the bytes to every other parser too.
        frontend = FrontEndManager().load_by_framework("onnx")
        content = model.read_bytes() if isinstance(model, Path) else model
        return frontend.convert(frontend.load(io.BytesIO(content)))
    except OSError as error:
        raise WeightsError(f"{source}: cannot be read: {error.strerror}") from error
    except Exception as error:  # RuntimeError and, for an operation it does not know, a kind of its own
        raise WeightsError(
            f"{source}: OpenVINO cannot read it as an ONNX model; export it again with `srgan export`"
        ) from error


def _metadata_of(model: openvino.Model, source: str) -> ModelMetadata | None:
    """Return what the file says of itself, or None if it was not written by this package."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise WeightsError(f"{source}: a generator has one input and one output, this model has more")
    path = ["framework", METADATA_KEY]  # where OpenVINO puts an ONNX file's metadata_props
    return ModelMetadata.from_json(model.get_rt_info(path).value, source) if model.has_rt_info(path) else None


def _channels_of(model: openvino.Model, source: str) -> int:
    """Return how many channels the model takes, 1 or 3; other inputs than pictures are refused."""
    shape = model.inputs[0].get_partial_shape() if model.inputs else None
    if shape is None or shape.rank.is_dynamic or len(shape) != 4 or str(shape[1]) not in ("1", "3"):
        raise WeightsError(f"{source}: its input is not a picture of 1 or 3 channels, (N,C,H,W)")
    return int(str(shape[1]))


def _check_foreign(model: openvino.Model, source: str) -> None:
    shape = model.inputs[0].get_partial_shape()
    if not (shape[2].is_dynamic and shape[3].is_dynamic):
        raise WeightsError(
            f"{source}: it takes pictures of one size only; export it with dynamic height and width"
        )
    types = {port.get_element_type().get_type_name() for port in (model.inputs[0], model.outputs[0])}
    if types != {"f32"}:
        raise WeightsError(f"{source}: its input and output are not both float32")


def _interpolate(model: openvino.Model, other: openvino.Model, share: float) -> None:
    """Move every weight of `model` towards that of `other` by `share` of the way.

    All layers are linear in their weights, so this is the interpolation of the two generators. Raises WeightsError
    if the graphs differ in anything but weights.
    """
    from openvino import opset13

    pairs = list(zip(model.get_ordered_ops(), other.get_ordered_ops(), strict=False))
    alike = len(pairs) == len(model.get_ordered_ops()) == len(other.get_ordered_ops())
    if not alike or any(_kind(one) != _kind(two) for one, two in pairs):
        raise WeightsError("the two models have different layers, so there is nothing between them")
    for one, two in pairs:
        if one.get_type_name() != "Constant":
            continue
        before, after = one.get_data(), two.get_data()
        if (before == after).all():
            continue
        if before.dtype != "float32":
            raise WeightsError("the two models have different layers, so there is nothing between them")
        between = opset13.constant(((1 - share) * before.astype("float64") + share * after).astype("float32"))
        between.set_friendly_name(one.get_friendly_name())
        for target in one.output(0).get_target_inputs():
            target.replace_source_output(between.output(0))


def _kind(op: openvino.Node) -> tuple[object, ...]:
    inputs = [value.get_node().get_type_name() for value in op.input_values()]
    return op.get_type_name(), str(op.get_attributes()), str(op.get_output_partial_shape(0)), inputs


@contextlib.contextmanager
def _openvino_errors(piece: str) -> Iterator[None]:
    """Turn what OpenVINO raises while it works on `piece` into errors of this package."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(f"not enough memory for {piece}") from error
    except RuntimeError as error:
        said = first_line(error)
        if any(sign in str(error) for sign in _NO_MEMORY):
            raise OutOfMemoryError(f"not enough memory for {piece} ({said})") from error
        raise EngineError(f"OpenVINO failed on {piece}: {said}") from error


def _check_finite(sr: np.ndarray) -> None:
    # min and max carry a NaN or an infinity through, and need no array of flags.
    if not (math.isfinite(sr.min()) and math.isfinite(sr.max())):
        raise EngineError("the model returned values that are not finite; the weights are damaged")


def _lr_px(shape: tuple[int, ...]) -> int:
    return math.prod(shape) // (3 if len(shape) == 4 else 1)  # (N,3,H,W), or rows and width of a strip
