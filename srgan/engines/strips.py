"""A generator's graph rewritten to take a picture in strips of rows, without computing anything twice.

Strip after strip goes through the whole graph. A convolution needs rows above and below each row of its output:
the last rows of its input are kept from one strip to the next, and its output lags behind by the rows that are
still to come. So every tensor has a lag: in strip k it holds the rows from k·rows - lag on. Where tensors of
different lag meet in a sum, the earlier one is held back as well. Rows outside the picture are set to zero before
every convolution, as its padding would; in front of replicated edges the picture's own edge rows take their place.
The columns are padded as ever. The sums are those of the whole picture in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from srgan.engines.runtime import ConstantFolding, Manager, Node, Output, PartialShape, openvino
from srgan.engines.runtime import opset13 as ops

# Graph operations that work on each pixel alone.
_PIXELWISE = {
    "Add",
    "Clamp",
    "Convert",
    "Divide",
    "Multiply",
    "Negative",
    "PRelu",
    "Relu",
    "Sigmoid",
    "Subtract",
    "Tanh",
}


class UnsuitableGraphError(Exception):
    """The graph holds something that this module does not know how to cut into strips."""


@dataclass(frozen=True)
class StripGraph:
    """A graph for strips of `rows` LR rows, and what its inputs and outputs mean.

    Inputs: 0 the strip of LR, (1,3,rows,W) with rows of zeros outside the picture; 1 the same with rows of the
    picture's edge there; then the `mask` for each of `mask_scales`; then the kept rows of `states`, (1,h,W,C)
    each in the type of its rows, zeros before the first strip but for those of `edge_states`, which hold the first
    row repeated. Outputs:
    the kept rows for the next strip, then the strip of SR, (1,3,rows·scale,W·scale), which lags by `lag` SR rows.
    """

    model: openvino.Model
    rows: int
    scale: int
    lag: int
    mask_scales: tuple[int, ...]
    largest_lag: int
    states: tuple[tuple[openvino.Type, tuple[int, ...]], ...]
    edge_states: tuple[int, ...]

    def mask(self, scale: int, strip: int, height: int) -> np.ndarray:
        """Return 1 for every row inside the picture, from `largest_lag` rows before strip number `strip` on."""
        row = np.arange(strip * self.rows * scale - self.largest_lag, (strip + 1) * self.rows * scale)
        return ((row >= 0) & (row < height * scale)).astype(np.float32).reshape(1, 1, -1, 1)

    @property
    def state_bytes(self) -> int:
        """Size of all kept rows together."""
        return sum(kind.size * math.prod(shape) for kind, shape in self.states)


class StripTask:
    """One picture on its way through a strip graph: the rows that are kept, and where the next ones go."""

    def __init__(self, graph: StripGraph, compiled: openvino.CompiledModel, height: int, width: int) -> None:
        self._graph, self._height = graph, height
        self._request = compiled.create_infer_request()
        self._lr = [openvino.Tensor(np.zeros((1, 3, graph.rows, width), np.float32)) for _ in range(2)]
        self._masks = [
            openvino.Tensor(np.zeros(graph.mask(scale, 0, height).shape, np.float32))
            for scale in graph.mask_scales
        ]
        # What one strip leaves is what the next one takes: two sets that change places.
        self._states, self._next = (
            [openvino.Tensor(kind, openvino.Shape(shape)) for kind, shape in graph.states] for _ in range(2)
        )
        for state in self._states:
            state.data.fill(0)
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


def strip_graph(model: openvino.Model, rows: int, width: int) -> StripGraph:
    """Return `model`, with one input (N,3,H,W) and one output, for strips of `rows` × `width` LR pixels.

    `model` itself is left alone. Raises UnsuitableGraphError if an operation is not known here, or a convolution
    is not one of stride 1 whose output is as large as its input.
    """
    model = model.clone()
    model.reshape([1, 3, rows, width])
    folding = Manager()  # what the graph computes from its own shapes becomes constant
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    return _Rewriting(model, rows, width).finished()


@dataclass(frozen=True)
class _Place:
    """Where the rows of a tensor lie: `scale` rows for one of LR, `lag` rows late.

    `padded`: how many rows more it has on either side, of replicated edges; only until the next convolution.
    """

    scale: int
    lag: int
    padded: int = 0


class _Rewriting:
    """One graph while it is rewritten, operation by operation from the input to the output."""

    def __init__(self, model: openvino.Model, rows: int, width: int) -> None:
        self.rows = rows
        self.model = model
        (self.lr,) = model.get_parameters()
        self.edges = ops.parameter([1, 3, rows, width], np.float32, name="lr_edges")
        self.places: dict[tuple[str, int], _Place] = {}
        self.masks: dict[int, Node] = {}
        self.mask_slices: list[tuple[Node, int, int]] = []  # to be set once the largest lag is known
        self.states: list[Node] = []
        self.next_states: list[Node] = []
        self.edge_states: list[int] = []
        self.joined: dict[tuple[tuple[str, int], int, bool], Output] = {}

    def finished(self) -> StripGraph:
        """Rewrite all and return the result."""
        self._put(self.lr.output(0), _Place(1, 0))
        self._put(self.edges.output(0), _Place(1, 0))
        steps = {
            "Convolution": self._convolution,
            "Pad": self._pad,
            "DepthToSpace": self._shuffle,
            "SpaceToDepth": self._unshuffle,
        }
        for op in self.model.get_ordered_ops():
            kind = op.get_type_name()
            if kind in ("Constant", "Parameter", "Result"):
                continue
            if kind not in steps and kind not in _PIXELWISE:
                raise UnsuitableGraphError(kind)
            steps.get(kind, self._pixelwise)(op)
        result = self.model.get_results()[0]
        end = self._place(result.input_value(0))
        largest_lag = self._cut_masks()
        inputs = [self.lr, self.edges, *self.masks.values(), *self.states]
        # Kept rows first: OpenVINO computes in this order, and rows are cut out before what held them is given up.
        outputs = [*(ops.result(state) for state in self.next_states), result]
        return StripGraph(
            model=openvino.Model(outputs, inputs, "strips"),
            rows=self.rows,
            scale=end.scale,
            lag=end.lag,
            mask_scales=tuple(self.masks),
            largest_lag=largest_lag,
            states=tuple((state.get_element_type(), tuple(state.get_output_shape(0))) for state in self.states),
            edge_states=tuple(self.edge_states),
        )

    def _convolution(self, op: Node) -> None:
        source, kernel = op.input_value(0), op.input_value(1)
        place = self._place(source)
        facts = op.get_attributes()
        reach, odd = divmod(kernel.get_shape()[2] - 1, 2)
        above, beside = facts["pads_begin"]
        plain = facts["pads_begin"] == facts["pads_end"] and facts["strides"] == facts["dilations"] == [1, 1]
        if not plain or odd or above + place.padded != reach or (above and place.padded):
            raise UnsuitableGraphError(f"{op.get_friendly_name()}: a convolution of another kind")
        if above:
            source = self._join(source, 2 * reach, masked=source.get_node() != self.lr)
        new = ops.convolution(
            source,
            kernel,
            strides=[1, 1],
            pads_begin=[0, beside],
            pads_end=[0, beside],
            dilations=[1, 1],
        )
        self._replace(op, new, _Place(place.scale, place.lag + (reach if above else 0)))

    def _pad(self, op: Node) -> None:
        """Replicate the edges of the picture: its columns here, its rows by what the caller gives."""
        before, after = (list(op.input_value(port).get_node().get_data()) for port in (1, 2))
        replicates = op.get_attributes()["pad_mode"] == "edge" and before == after and before[:2] == [0, 0]
        if not replicates or op.input_value(0).get_node() != self.lr:
            raise UnsuitableGraphError(f"{op.get_friendly_name()}: padding of another kind")
        height, width = int(before[2]), int(before[3])
        self.edge_states.append(len(self.states))
        source = self._join(self.edges.output(0), 2 * height, masked=False)
        columns = np.array([0, 0, 0, width])
        new = ops.pad(source, columns, columns, "edge", np.float32(0))
        self._replace(op, new, _Place(1, height, padded=height))

    def _shuffle(self, op: Node) -> None:
        place, factor = self._place(op.input_value(0)), op.get_attributes()["block_size"]
        self._put(op.output(0), _Place(place.scale * factor, place.lag * factor))

    def _unshuffle(self, op: Node) -> None:
        source, factor = op.input_value(0), op.get_attributes()["block_size"]
        place = self._place(source)
        if place.scale % factor:
            raise UnsuitableGraphError(f"{op.get_friendly_name()}: smaller than the picture")
        if late := -place.lag % factor:  # squares begin at whole rows of the smaller size
            op.input(0).replace_source_output(self._held_back(source, late))
        self._put(op.output(0), _Place(place.scale // factor, (place.lag + late) // factor))

    def _pixelwise(self, op: Node) -> None:
        ports = [port for port in range(op.get_input_size()) if self._key(op.input_value(port)) in self.places]
        places = [self._place(op.input_value(port)) for port in ports]
        if any(place.scale != places[0].scale or place.padded for place in places):
            raise UnsuitableGraphError(f"{op.get_friendly_name()}: inputs of several sizes")
        for port in set(range(op.get_input_size())) - set(ports):
            shape = op.input_value(port).get_shape()
            if op.input_value(port).get_node().get_type_name() != "Constant" or shape[-2:] not in (
                [1, 1],
                [1],
                [],
            ):
                raise UnsuitableGraphError(f"{op.get_friendly_name()}: a constant that differs between rows")
        lag = max(place.lag for place in places)
        for port, place in zip(ports, places, strict=True):
            if place.lag < lag:
                op.input(port).replace_source_output(self._held_back(op.input_value(port), lag - place.lag))
        self._put(op.output(0), _Place(places[0].scale, lag))

    def _held_back(self, tensor: Output, by: int) -> Output:
        """Return `tensor` as it was `by` rows earlier."""
        node = tensor.get_node()
        if (
            node.get_type_name() == "Convert"
            and node.get_input_element_type(0).size < node.get_element_type().size
        ):
            narrow = self._held_back(node.input_value(0), by)  # of which rows are kept for a convolution, too
            wide: Output = ops.convert(narrow, node.get_element_type().to_string()).output(0)
            return wide
        rows = tensor.get_shape()[2]
        joined = self.joined.get((self._key(tensor), by, True)) or self._join(tensor, by, masked=False)
        return self._rows(joined, 0, rows)

    def _join(self, tensor: Output, kept: int, *, masked: bool) -> Output:
        """Return `tensor` behind its own last `kept` rows of the strip before."""
        key = self._key(tensor), kept, masked
        if key not in self.joined:
            _, channels, rows, width = tensor.get_shape()
            # Rows outermost in memory, as OpenVINO has them within: otherwise each strip would reorder them all.
            kind = tensor.get_element_type()
            state = ops.parameter([1, kept, width, channels], kind, name=f"kept_{len(self.states)}")
            earlier = ops.transpose(state, np.array([0, 3, 1, 2]))
            joined = ops.concat([earlier.output(0), self._masked(tensor) if masked else tensor], 2).output(0)
            last = self._rows(joined, rows, rows + kept)
            self.states.append(state)
            self.next_states.append(ops.transpose(last, np.array([0, 2, 3, 1])))
            self.joined[key] = joined
        return self.joined[key]

    def _masked(self, tensor: Output) -> Output:
        """Return `tensor` with zeros in the rows that lie outside the picture."""
        place = self._place(tensor)
        if place.scale not in self.masks:
            self.masks[place.scale] = ops.parameter([1, 1, -1, 1], np.float32, name=f"mask_{place.scale}")
        inside = ops.slice(self.masks[place.scale], *map(np.array, ([0], [1], [1], [2])))
        self.mask_slices.append((inside, place.scale, place.lag))
        mask = inside if tensor.get_element_type() == openvino.Type.f32 else ops.convert(inside, "bf16")
        product: Output = ops.multiply(tensor, mask).output(0)
        return product

    def _cut_masks(self) -> int:
        """Give every mask its length and cut each tensor's part out of it; return the largest lag."""
        largest = max((lag for _, _, lag in self.mask_slices), default=0)
        for scale, mask in self.masks.items():
            mask.set_partial_shape(PartialShape([1, 1, self.rows * scale + largest, 1]))
        for node, scale, lag in self.mask_slices:
            for port, row in ((1, largest - lag), (2, largest - lag + self.rows * scale)):
                node.input(port).replace_source_output(ops.constant(np.array([row])).output(0))
        return largest

    def _rows(self, tensor: Output, start: int, stop: int) -> Output:
        rows: Output = ops.slice(tensor, *map(np.array, ([start], [stop], [1], [2]))).output(0)
        return rows

    def _replace(self, old: Node, new: Node, place: _Place) -> None:
        for target in old.output(0).get_target_inputs():
            target.replace_source_output(new.output(0))
        self._put(new.output(0), place)

    def _put(self, tensor: Output, place: _Place) -> None:
        self.places[self._key(tensor)] = place

    def _place(self, tensor: Output) -> _Place:
        key = self._key(tensor)
        if key not in self.places:
            raise UnsuitableGraphError(f"{key[0]}: comes from no row of the picture")
        return self.places[key]

    @staticmethod
    def _key(tensor: Output) -> tuple[str, int]:
        return tensor.get_node().get_name(), tensor.get_index()
