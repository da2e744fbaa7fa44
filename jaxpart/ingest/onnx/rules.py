"""FLOPs of ONNX operators from their shapes; `ingest/onnx/costs.py` explains the rules."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from jaxpart.ingest.onnx.operation import Operation

_MAX_KERNEL = 2**24  # positions on one axis of a kernel; more would take memory and time


def flops_of(operation: Operation) -> float | None:
    """FLOPs of a standard ONNX operator without bodies.

    Args:
      operation: the node with the types and shapes of its values.

    Returns:
      FLOPs; None if the operator has no rule.

    Raises:
      ValueError, IndexError, ZeroDivisionError: the attributes do not fit the shapes.
    """
    name, operand = operation.node.op_type, operation.shape(0).elements
    if name in _PER_ELEMENT:
        return _PER_ELEMENT[name] * operation.out
    if name in _PER_INPUT_ELEMENT:
        return _PER_INPUT_ELEMENT[name] * operand
    if name in _REDUCTIONS:
        folded, inputs, results = _REDUCTIONS[name]
        results *= operation.result.elements
        return folded * operation.folded_in + inputs * operand + results
    rule = _RULES.get(name)
    return None if rule is None else rule(operation)


def _real_taps(out: int, length: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    """Number of pairs (output, kernel position) on one axis that read a real input element."""
    # 1. Kernel position k of output o reads element o * stride + k * dilation - pad.
    # 2. For one k, the outputs that read a real element form a range; its length is computed at
    #    once, because a signal can be long.
    # 3. The formula in 1 is symmetric in (o, stride) and (k, dilation). They are swapped if the
    #    kernel is longer than the output, so that the arrays are short.
    if kernel > out:
        out, kernel, stride, dilation = kernel, out, dilation, stride
    if kernel > _MAX_KERNEL:
        raise ValueError(f"a kernel of {kernel} positions, expected at most {_MAX_KERNEL}")
    if stride < 1 or dilation < 1:
        raise ValueError(f"stride and dilation are {stride} and {dilation}, expected 1 or more")
    shift = np.arange(kernel) * dilation - pad
    first = np.maximum(-(shift // stride), 0)
    past = np.minimum((length - 1 - shift) // stride + 1, out)
    return int(np.maximum(past - first, 0).sum())


def pads_of(operation: Operation, extents: tuple[list[int], ...]) -> list[int]:
    """Padding at the start of each spatial axis.

    Args:
      operation: a convolution or a pool.
      extents: wide side, narrow side, kernel, stride and dilation, each a list over the spatial
        axes. `_taps` explains the two sides.
    """
    wide, narrow, kernel, stride, dilation = extents
    mode = operation.text("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return operation.wholes("pads", [0] * 2 * len(kernel))[: len(kernel)]
    pads = []
    for w, n, k, s, d in zip(wide, narrow, kernel, stride, dilation, strict=True):
        total = max((n - 1) * s + (k - 1) * d + 1 - w, 0)
        pads.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return pads


def _taps(operation: Operation, wide: list[int], narrow: list[int], kernel: list[int]) -> int:
    """Number of pairs (narrow position, kernel position) that meet a real element of the wide side.

    A convolution reads the wide side and writes the narrow side. A transposed convolution reads
    the narrow side and writes the wide side.
    """
    stride = operation.wholes("strides", [1] * len(kernel))
    dilation = operation.wholes("dilations", [1] * len(kernel))
    pads = pads_of(operation, (wide, narrow, kernel, stride, dilation))
    axes = zip(narrow, wide, kernel, stride, pads, dilation, strict=True)
    return math.prod(_real_taps(*axis) for axis in axes)


def convolution(operation: Operation, weight: tuple[int, ...]) -> float:
    """FLOPs of the products and sums of a convolution, without its bias.

    Args:
      operation: its first operand is the data.
      weight: shape of the kernel, [out, in / groups, ...].

    Raises:
      ValueError, IndexError, ZeroDivisionError: the attributes do not fit the shapes.
    """
    data, out = operation.shape(0).shape, operation.result.shape
    taps = _taps(operation, list(data[2:]), list(out[2:]), list(weight[2:]))
    return 2 * math.prod(out[:2]) * weight[1] * taps


def _conv(operation: Operation) -> float:
    quantized = operation.node.op_type == "QLinearConv"
    bias = operation.has({"Conv": 2, "QLinearConv": 8}.get(operation.node.op_type, 99))
    weight = operation.shape(3 if quantized else 1).shape
    return convolution(operation, weight) + bias * operation.result.elements


def _conv_transpose(operation: Operation) -> float:
    data, weight, out = (operation.shape(0), operation.shape(1), operation.result)
    taps = _taps(operation, list(out.shape[2:]), list(data.shape[2:]), list(weight.shape[2:]))
    bias = operation.has(2) * out.elements
    return 2 * math.prod(data.shape[:2]) * weight.shape[1] * taps + bias


def _deform_conv(operation: Operation) -> float:
    # A sample is interpolated from four elements (7 FLOPs) once, for all output channels.
    data, weight, out = (operation.shape(0).shape, operation.shape(1).shape, operation.result)
    positions = math.prod(out.shape[2:]) * math.prod(weight[2:]) * out.shape[0]
    return 2 * positions * out.shape[1] * weight[1] + 7 * positions * data[1]


def gemm(operation: Operation) -> float:
    """FLOPs of a Gemm; errors are those of `flops_of`."""
    a, out = operation.shape(0).shape, operation.result.elements
    depth = a[0 if operation.whole("transA", 0) else 1]
    return 2 * out * depth + operation.has(2) * out


def _matmul(operation: Operation) -> float:
    return 2 * operation.result.elements * (operation.shape(0).shape or (1,))[-1]


def _einsum(operation: Operation) -> float:
    """2 FLOPs per multiplication and element of the index space of all labels.

    All operands are multiplied in one step; no cheaper order is assumed.
    """
    terms = operation.text("equation", "").replace(" ", "").split("->")[0].split(",")
    extents: dict[str, int] = {}
    rest = 1
    for term, array in zip(terms, operation.inputs, strict=True):
        shape = array.shape if array is not None else ()
        head, ellipsis, tail = term.partition("...")
        named = dict(zip(head, shape, strict=False))
        named.update(zip(reversed(tail), reversed(shape), strict=False))
        extents.update((k, max(size, extents.get(k, 1))) for k, size in named.items())
        if ellipsis:
            rest = max(rest, math.prod(shape[len(head) : len(shape) - len(tail)]))
    return max(2 * (len(terms) - 1), 1) * rest * math.prod(extents.values())


def _pool(operation: Operation) -> float:
    window = math.prod(operation.wholes("kernel_shape", [1]))
    extra = {"AveragePool": 1, "LpPool": window + 1}.get(operation.node.op_type, 0)
    return (window - 1 + extra) * operation.result.elements


def _recurrent(operation: Operation) -> float:
    gates, elementwise = {"LSTM": (4, 9), "GRU": (3, 8), "RNN": (1, 1)}[operation.node.op_type]
    steps_and_batch = math.prod(operation.shape(0).shape[:2])
    directions, _, inputs = operation.shape(1).shape
    hidden = operation.shape(2).shape[2]
    biases = 2 if operation.has(3) else 0
    per_gate = 2 * (inputs + hidden) + 1 + biases  # + 1: the sum of both products
    return steps_and_batch * directions * hidden * (gates * per_gate + elementwise)


def _attention(operation: Operation) -> float:
    q, k, v = (operation.shape(position).shape for position in range(3))
    if len(q) == 4:
        batch, heads, queries, depth = q
        keys, value_depth = k[2], v[3]
    else:
        batch, queries, _ = q
        heads = operation.whole("q_num_heads", 1)
        kv_heads = operation.whole("kv_num_heads", heads)
        depth, keys, value_depth = q[2] // heads, k[1], v[2] // kv_heads
    keys += operation.shape(4).shape[2] if operation.has(4) else 0  # keys of the past
    # 6 is softmax (5) and scaling; the rest is the two products.
    return batch * heads * queries * keys * (2 * depth + 2 * value_depth + 6)


def _resize(operation: Operation) -> float:
    taps = {"nearest": 0, "linear": 2, "bilinear": 2, "cubic": 4}
    each = taps.get(operation.text("mode", "nearest"), 2)
    pairs = zip(operation.shape(0).shape, operation.result.shape, strict=True)
    axes = sum(before != after for before, after in pairs)
    return (2 * each**axes - 1) * operation.result.elements if each and axes else 0


def _grid_sample(operation: Operation) -> float:
    taps = {"nearest": 0, "cubic": 4, "bicubic": 4}.get(operation.text("mode", "linear"), 2)
    axes = len(operation.shape(0).shape) - 2
    return (2 * taps**axes - 1) * operation.result.elements if taps else 0


def _lrn(operation: Operation) -> float:
    # Square, sum over the window, scale and shift, power, division.
    return (operation.whole("size", 1) + 4) * operation.result.elements


def _sorted(operation: Operation) -> float:
    axis = operation.whole("axis", -1)
    length = (operation.shape(0).shape or (1,))[axis]
    return operation.shape(0).elements * math.ceil(math.log2(max(length, 1)))


def _cumulative(operation: Operation) -> float:
    axis = operation.values.get(operation.node.input[1], np.array(-1)).reshape(-1)[0]
    length = operation.shape(0).shape[int(axis)]
    return operation.shape(0).elements * (length - 1) / max(length, 1)


def _scatter(operation: Operation) -> float:
    adds = operation.text("reduction", "none") != "none"
    return adds * operation.shape(2).elements


def _dft(operation: Operation) -> float:
    """5 N log2 N for each transform of length N, half of that if one side of it is real."""
    shape = operation.shape(0).shape
    axis = operation.whole("axis", 1 if operation.opset < 20 else -2)
    axis = operation.number(2, axis)  # since opset 20 the axis is an operand
    length = operation.result.shape[axis] if operation.whole("inverse", 0) else shape[axis]
    length = operation.number(1, length)
    transforms = math.prod(shape[:-1]) // max(shape[axis], 1)
    half = 0.5 if operation.whole("onesided", 0) else 1
    return half * 5 * transforms * length * math.log2(max(length, 1))


def _variadic(operation: Operation) -> float:
    inputs = sum(array is not None for array in operation.inputs)
    mean = operation.node.op_type == "Mean"
    return (max(inputs - 1, 0) + mean) * operation.result.elements


def _roi_align(operation: Operation) -> float:
    samples = max(operation.whole("sampling_ratio", 0), 1) ** 2
    return 8 * samples * operation.result.elements  # four taps and the sum


def _determinant(operation: Operation) -> float:
    side = operation.shape(0).shape[-1]
    return operation.shape(0).elements * side * 2 / 3


# FLOPs per element of all results.
# fmt: off
_PER_ELEMENT: dict[str, int] = {
    **dict.fromkeys(
        [
                "Bernoulli", "BitCast", "CategoryMapper", "CenterCropPad", "Col2Im", "Compress",
                "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "EyeLike",
                "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "ImageDecoder",
                "LabelEncoder", "MaxUnpool", "OneHot", "Pad", "Reshape", "ReverseSequence",
                "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "TensorScatter",
                "Tile", "Transpose", "Trilu", "Unsqueeze",
            ],
        0,
    ),
    **dict.fromkeys(
        [
                "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh",
                "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast",
                "CastLike", "Ceil", "Clip", "Cos", "Cosh", "Div", "Dropout", "Equal", "Erf",
                "Exp", "Floor", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less",
                "LessOrEqual", "Log", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "RandomNormal",
                "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal",
                "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Sub", "Tan", "Tanh",
                "Where", "Xor",
            ],
        1,
    ),
    **dict.fromkeys(
        [
                "BatchNormalization", "DequantizeLinear", "HardSigmoid", "LeakyRelu", "PRelu",
                "QuantizeLinear", "Softplus", "Softsign", "Swish", "ThresholdedRelu",
                "Binarizer", "Shrink",
            ],
        2,
    ),
    **dict.fromkeys(["HardSwish", "RotaryEmbedding", "Elu", "Hardmax"], 3),
    **dict.fromkeys(
        ["Celu", "LpNormalization", "Mish", "Normalizer", "RMSNormalization", "Selu", "SwiGLU"], 4
    ),
    **dict.fromkeys(["Gelu", "LogSoftmax", "Softmax"], 5),
}
# fmt: on
# FLOPs per element of the first operand.
_PER_INPUT_ELEMENT = {
    "MeanVarianceNormalization": 6,
    "GroupNormalization": 7,
    "SimplifiedLayerNormalization": 4,
    "InstanceNormalization": 7,
    "LayerNormalization": 7,
    "DynamicQuantizeLinear": 4,
    "NegativeLogLikelihoodLoss": 2,
    "SoftmaxCrossEntropyLoss": 7,
    "NonZero": 1,
}
# FLOPs per element folded in, per element of the operand, and per element of the result.
_REDUCTIONS = {
    "ArgMax": (9, 0, 0),
    "ArgMin": (9, 0, 0),
    "GlobalAveragePool": (1, 0, 1),
    "GlobalLpPool": (1, 1, 1),
    "GlobalMaxPool": (1, 0, 0),
    "ReduceL1": (1, 1, 0),
    "ReduceL2": (1, 1, 1),
    "ReduceLogSum": (1, 0, 1),
    "ReduceLogSumExp": (2, 2, 2),
    "ReduceMax": (1, 0, 0),
    "ReduceMean": (1, 0, 1),
    "ReduceMin": (1, 0, 0),
    "ReduceProd": (1, 0, 0),
    "ReduceSum": (1, 0, 0),
    "ReduceSumSquare": (1, 1, 0),
}
_RULES: dict[str, Callable[[Operation], float]] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "CumProd": _cumulative,
    "CumSum": _cumulative,
    "DFT": _dft,
    "DeformConv": _deform_conv,
    "Det": _determinant,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": gemm,
    "GridSample": _grid_sample,
    "LRN": _lrn,
    "LSTM": _recurrent,
    "LpPool": _pool,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "Max": _variadic,
    "MaxPool": _pool,
    "Mean": _variadic,
    "Min": _variadic,
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
    "Resize": _resize,
    "RoiAlign": _roi_align,
    "Scatter": _scatter,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Sum": _variadic,
    "TopK": _sorted,
    "Upsample": _resize,
}
