"""What is in an ONNX file, read before any runtime sees it: only what a generator needs is let through.

A few rules of protobuf's encoding are all it takes, so nothing is installed for it: fields one after another, each
a number and a value, and messages within messages (onnx.proto of ONNX 1.17 gives the numbers). Weights are stepped
over, not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from srgan.errors import WeightsError

# More than any generator has, and a second to read: fields that are looked at, weights counting as one.
_MOST_FIELDS = 1_000_000

# What generators are made of, as they come from the exporters in use: arithmetic, convolutions, attention,
# resampling, and the shapes between them. No loops and branches, whose cost their sizes do not tell; nothing drawn
# at random, no text, no lists.
_OPERATORS = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BitShift
    BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Concat Constant
    ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DFT DeformConv DepthToSpace DequantizeLinear Div
    Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max
    MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QLinearConv
    QLinearMatMul QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
    Upsample Where Xor
"""
OPERATORS = frozenset(_OPERATORS.split())

_Value = int | memoryview


def check(content: bytes, source: str) -> None:
    """Raise WeightsError, which names `source`, if an ONNX file holds what no generator needs, or is none.

    Let through are the operators of `OPERATORS`, in ONNX's own domain, each after what it takes; no functions, no
    graphs within graphs, no weights in other files. Nothing is computed.
    """
    try:
        _Reader(source).model(memoryview(content))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{source}: not an ONNX model, or a damaged one ({error})") from error


@dataclass
class _Reader:
    source: str
    fields_left: int = _MOST_FIELDS
    known: set[bytes] = field(
        default_factory=lambda: {b""}
    )  # values that there are so far; an input may be absent

    def model(self, content: memoryview) -> None:
        graphs = []
        for number, value in self.fields(content):
            match number:
                case 7:
                    graphs.append(_message(value))
                case 25:
                    self.refuse("functions of its own")
                case 20:
                    self.refuse("training")
        if not graphs:
            raise ValueError("it has no graph")
        nodes = []
        for graph in graphs:  # a message that comes in pieces is all of them together
            for number, value in self.fields(graph):
                match number:
                    case 1:
                        nodes.append(_message(value))
                    case 5:
                        self.tensor(_message(value))
                    case 11:  # an input
                        self.known |= {bytes(_message(name)) for part, name in self.fields(value) if part == 1}
                    case 15:
                        self.refuse("sparse weights")
        for node in nodes:
            self.node(node)

    def node(self, node: memoryview) -> None:
        kinds, attributes, inputs, outputs = [], [], [], []
        for number, value in self.fields(node):
            match number:
                case 1:
                    inputs.append(bytes(_message(value)))
                case 2:
                    outputs.append(bytes(_message(value)))
                case 4:
                    kinds.append(str(_message(value), "utf-8"))
                case 5:
                    attributes.append(_message(value))
                case 7:
                    if (domain := str(_message(value), "utf-8")) not in ("", "ai.onnx"):
                        self.refuse(f"operators of {domain[:80]!r}")
        if not kinds:
            raise ValueError("an operator without a name")
        for kind in kinds:
            if kind not in OPERATORS:
                self.refuse(f"the operator {kind[:80]!r}")
        for attribute in attributes:
            self.attribute(attribute)
        if not self.known.issuperset(inputs):
            raise ValueError(f"{kinds[0]} takes what nothing before it makes")
        self.known.update(outputs)

    def attribute(self, attribute: memoryview) -> None:
        for number, value in self.fields(attribute):
            match number:
                case 5 | 10:
                    self.tensor(_message(value))
                case 6 | 11:
                    self.refuse("a graph within its graph")
                case 22 | 23:
                    self.refuse("sparse weights")

    def tensor(self, tensor: memoryview) -> None:
        for number, value in self.fields(tensor):
            if number == 8:
                self.known.add(bytes(_message(value)))
            if number == 13 or (number == 14 and value):  # where its bytes are; 0 is here
                self.refuse("weights in another file; save it as one file")

    def fields(self, message: _Value) -> Iterator[tuple[int, _Value]]:
        """Yield number and value of each field: numbers, or the bytes of all else."""
        data, position = _message(message), 0
        while position < len(data):
            self.fields_left -= 1
            if self.fields_left < 0:
                raise ValueError("more parts than any generator has")
            key, position = _varint(data, position)
            value: _Value
            match key & 7:
                case 0:
                    value, position = _varint(data, position)
                case 1 | 5 as kind:
                    size = 8 if kind == 1 else 4
                    value, position = data[position : position + size], position + size
                case 2:
                    size, position = _varint(data, position)
                    value, position = data[position : position + size], position + size
                case kind:
                    raise ValueError(f"a field of kind {kind}")
            if position > len(data):
                raise ValueError("it ends too early")
            if key >= 2**32:
                raise ValueError("a field of no number")
            yield key >> 3, value

    def refuse(self, what: str) -> None:
        raise WeightsError(
            f"{self.source}: holds {what}, which no generator needs; export it again, as a plain network"
        )


def _message(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number in place of bytes")
    return value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it ends too early")
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & (2**64 - 1), position
    raise ValueError("a number of more than 64 bits")
