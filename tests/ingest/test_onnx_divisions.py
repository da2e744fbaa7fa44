"""Each rule of `divisions/` is proven: the operator is run on slices of its operands.

What the parts make, joined or summed, is what the operator makes of the whole.
"""

import numpy as np
import pytest

from jaxpart.ingest.onnx.divisions.table import cuts_of
from tests.support.onnx_cuts import Arrays, Case, Share, case, operation_of, prove

MICROSOFT = "com.microsoft"
random = np.random.default_rng(3)


def ints(*values):
    return np.array(values, np.int64)


def below(limit, *shape, dtype: type = np.int64):
    return random.integers(0, limit, shape).astype(dtype)


def u8(*shape):
    return below(200, *shape, dtype=np.uint8)


def floats(*values):
    return np.array(values, np.float32)


def positive(*shape):
    return random.uniform(0.2, 1, shape).astype(np.float32)


# How the parts of an operation differ from the whole, beside their operands.


def shape_at(position):
    """The operand that says the shape of the result."""

    def adjust(attributes: dict, operands: Arrays, share: Share):
        operands[position] = ints(*share.shape or ())

    return adjust


def repeated(attributes: dict, operands: Arrays, share: Share):
    at = share.cut.results[0]
    assert at is not None
    assert share.shape is not None
    operands[1] = operands[1].copy()
    operands[1][at] = share.shape[at] // operands[0].shape[at]


def counted(name, dim):
    """The attribute that counts groups or heads, in cuts along a dimension."""

    def adjust(attributes: dict, operands: Arrays, share: Share):
        if share.cut.results[0] == dim:
            attributes[name] = share.part(attributes[name])

    return adjust


def heads(dim, *names):
    def adjust(attributes: dict, operands: Arrays, share: Share):
        if share.cut.results[0] == dim:
            attributes.update((name, share.part(attributes[name])) for name in names)

    return adjust


def looked_up(attributes: dict, operands: Arrays, share: Share):
    """Each part finds the rows that it has, and zeros for all others: one more row."""
    if share.cut.results[0] is not None:
        return
    table, at = operands
    axis = attributes.get("axis", 0)
    zeros = np.zeros_like(np.take(table, [0], axis))
    operands[0] = np.concatenate([table, zeros], axis)
    at = at % table.shape[axis]
    inside = (at >= share.start) & (at < share.stop)
    operands[1] = np.where(inside, at - share.start, share.stop - share.start)


def cropped(attributes: dict, operands: Arrays, share: Share):
    assert share.shape is not None
    operands[1] = ints(*(share.shape[axis] for axis in attributes["axes"]))


def sized(attributes: dict, operands: Arrays, share: Share):
    assert share.shape is not None
    operands[3] = ints(*(share.shape[axis] for axis in attributes["axes"]))


def one_way(attributes: dict, operands: Arrays, share: Share):
    """A part of a bidirectional layer runs in one direction."""
    if share.cut.operands[1] == 0:
        attributes["direction"] = "forward" if share.start == 0 else "reverse"


def columns(attributes: dict, operands: Arrays, share: Share):
    if share.cut.operands[1] == 0:
        attributes["N"] = share.part(attributes["N"])


GROUPED = counted("group", 1)


# Operators that neither the onnx package nor ONNX Runtime runs.


def at_axis(attributes: dict, operands: Arrays):
    """Add before opset 7: the second operand starts at an axis of the first."""
    first, second = operands
    start = attributes.get("axis", first.ndim - second.ndim)
    return [first + second.reshape(second.shape + (1,) * (first.ndim - start - second.ndim))]


def slopes(attributes: dict, operands: Arrays):
    """PRelu before opset 7: a slope for each channel."""
    data, slope = operands
    return [np.where(data < 0, data * slope.reshape(-1, 1), data)]


def sums(attributes: dict, operands: Arrays):
    return [sum(operands)]


UNARY = (
    *("Abs", "Acos", "Asin", "Asinh", "Atan", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp"),
    *("Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu"),
    *("Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin"),
    *("Sinh", "Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu"),
)
BINARY = ("Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Sub")
BINARY += ("Max", "Min", "Sum")
BITS = ("BitwiseAnd", "BitwiseOr", "BitwiseXor")

CASES = [
    *(case(op, (3, 1, 4), cuts="0/3 2/4") for op in UNARY),
    *(case(op, (3, 1, 4), (2, 1), cuts="0/3 1/2 2/4") for op in BINARY),
    *(case(op, below(9, 3, 1), below(9, 4), cuts="0/3 1/4") for op in BITS),
    *(case(op, below(2, 3, 1) > 0, below(2, 4) > 0, cuts="0/3 1/4") for op in ("And", "Or", "Xor")),
    *(case(op, positive(3, 4), cuts="0/3 1/4") for op in ("Atanh", "Log", "Sqrt")),
    case("Acosh", positive(3, 4) + 1, cuts="0/3 1/4"),
    case("Swish", (3, 4), cuts="0/3 1/4", opset=24),
    case("BitwiseNot", below(9, 3, 4), cuts="0/3 1/4"),
    case("BitShift", u8(3, 4), below(3, 4, dtype=np.uint8), direction="LEFT", cuts="0/3 1/4"),
    case("Not", below(2, 3, 4) > 0, cuts="0/3 1/4"),
    case("Mod", below(9, 3, 4), below(4, 4) + 1, cuts="0/3 1/4"),
    case("Pow", positive(3, 4), (4,), cuts="0/3 1/4"),
    case("Cast", (3, 4), to=7, cuts="0/3 1/4"),
    case("CastLike", (3, 4), ints(1, 2), cuts="0/3 1/4"),
    case("Clip", (3, 4), floats(-0.5)[0], floats(0.5)[0], cuts="0/3 1/4"),
    case("Clip", (3, 4), min=-0.5, max=0.5, cuts="0/3 1/4", opset=6),
    case("Where", below(2, 3, 1) > 0, (1, 4), (2, 1, 1), cuts="0/2 1/3 2/4"),
    case("Mean", (3, 1, 4), (2, 1), cuts="0/3 1/2 2/4", runtime=True),
    case("Sum", (3, 4), (3, 1), (4,), cuts="0/3 1/4"),
    case("Add", (2, 3, 4), (3,), broadcast=1, axis=1, cuts="0/2 1/3 2/4", opset=6, by=at_axis),
    case("Add", (2, 3, 4), (4,), broadcast=1, cuts="0/2 1/3 2/4", opset=6, by=at_axis),
    case("PRelu", (2, 3, 4), (3, 1), cuts="0/2 1/3 2/4"),
    case("PRelu", (2, 3, 4), (3,), cuts="0/2 1/3 2/4", opset=6, by=slopes),
    case("Dropout", (3, 4), cuts="0/3 1/4", results="y mask"),
    case("Dropout", (3, 4), floats(0.5)[0], np.array(True), cuts="", results="y mask"),
    case("QuantizeLinear", (2, 3, 4), positive(3), u8(3), axis=1, cuts="0/2 1/3 2/4"),
    case("QuantizeLinear", (2, 3, 4), positive(), u8(), cuts="0/2 1/3 2/4"),
    case("DequantizeLinear", u8(2, 3, 4), positive(4), u8(4), axis=-1, cuts="0/2 1/3 2/4"),
    case("DequantizeLinear", u8(6, 4), positive(2, 4), axis=0, block_size=3, cuts="0/2 1/4"),
    case("DequantizeLinear", u8(6, 4), positive(2, 4), axis=0, block_size=4, cuts="1/4"),
    case("DequantizeLinear", u8(5), positive(), cuts="0/5", opset=10, runtime=True),
    # Products.
    case("MatMul", (3, 4), (4, 5), cuts="0/3 1/5 +/4"),
    case("MatMul", (2, 1, 3, 4), (6, 4, 5), cuts="0/2 1/6 2/3 3/5 +/4"),
    case("MatMul", (4,), (2, 4, 5), cuts="0/2 1/5 +/4"),
    case("MatMul", (2, 3, 4), (4,), cuts="0/2 1/3 +/4"),
    case("MatMul", (4,), (4,), cuts="+/4"),
    case("Gemm", (3, 4), (4, 5), cuts="0/3 1/5 +/4"),
    case("Gemm", (4, 3), (5, 4), transA=1, transB=1, alpha=0.5, cuts="0/3 1/5 +/4"),
    case("Gemm", (3, 4), (4, 5), (5,), cuts="0/3 1/5"),
    case("Gemm", (3, 4), (4, 5), (3, 1), beta=2.0, cuts="0/3 1/5"),
    case("Gemm", (3, 4), (4, 5), (5,), broadcast=1, cuts="0/3 1/5", opset=6),
    case("MatMulInteger", u8(3, 4), u8(4, 5), cuts="0/3 1/5 +/4"),
    case("MatMulInteger", u8(3, 4), u8(4, 5), u8(1)[0], u8(5), cuts="0/3 1/5 +/4", runtime=True),
    case(
        *("QLinearMatMul", u8(3, 4), positive()[()], u8()[()], u8(4, 5), positive(5), u8(5)),
        *(np.float32(900), u8()[()]),
        cuts="0/3 1/5",
        runtime=True,
    ),
    case("Einsum", (2, 3, 4), (4, 5), equation="bij,jk->bik", cuts="0/2 1/3 2/5 +/4"),
    case("Einsum", (2, 3, 4), (2, 5, 4), equation="bhi, bji -> bhj", cuts="0/2 1/3 2/5 +/4"),
    case("Einsum", (2, 3, 4), (4, 5), equation="...j,jk", cuts="0/2 1/3 2/5 +/4"),
    case("Einsum", (2, 3, 4), (1, 4, 5), equation="...ij,...jk->...ik", cuts="0/2 1/3 2/5 +/4"),
    case("Einsum", (3, 3, 4), equation="iij->j", cuts="0/4"),
    case("Einsum", (3, 4), equation="ij->", cuts="+/3 +/4"),
    case("Einsum", (4, 2), equation="ba", cuts="0/2 1/4"),
    # Windows.
    case("Conv", (2, 4, 8, 7), (6, 4, 3, 3), (6,), pads=[1, 1, 1, 1], cuts="0/2 1/6 2/8"),
    case("Conv", (2, 4, 9, 7), (6, 4, 3, 3), strides=[2, 2], cuts="0/2 1/6 2/4 +/4"),
    case("Conv", (1, 4, 12, 5), (6, 4, 1, 1), strides=[2, 1], cuts="1/6 2/6 +/4"),
    case(
        "Conv",
        (2, 6, 9, 9),
        (4, 3, 3, 3),
        group=2,
        dilations=[2, 2],
        cuts="0/2 1/2 2/5",
        adjust=GROUPED,
    ),
    case(
        "Conv",
        (1, 6, 12),
        (6, 1, 3),
        group=6,
        auto_pad="SAME_UPPER",
        cuts="1/6 2/12",
        adjust=GROUPED,
    ),
    case(
        "Conv",
        (1, 2, 13, 5),
        (3, 2, 4, 2),
        auto_pad="SAME_LOWER",
        strides=[2, 1],
        cuts="1/3 2/7 +/2",
    ),
    case("Conv", (1, 2, 6, 5, 4), (3, 2, 2, 2, 2), cuts="1/3 2/5 +/2"),
    case("ConvInteger", u8(2, 4, 8, 7), u8(6, 4, 3, 3), u8(), u8(6), cuts="0/2 1/6 2/6 +/4"),
    case(
        *("QLinearConv", u8(2, 4, 8, 7), positive()[()], u8(), u8(6, 4, 3, 3), positive(6), u8(6)),
        *(np.float32(300), u8(), below(99, 6, dtype=np.int32)),
        pads=[1, 1, 1, 1],
        cuts="0/2 1/6 2/8",
        runtime=True,
    ),
    case("ConvTranspose", (2, 4, 5, 5), (4, 6, 3, 3), strides=[2, 2], cuts="0/2 1/6 +/4"),
    case("ConvTranspose", (2, 4, 5), (4, 6, 3), (6,), cuts="0/2 1/6"),
    case(
        "ConvTranspose",
        (2, 4, 5),
        (4, 3, 3),
        (6,),
        group=2,
        cuts="0/2 1/2",
        adjust=GROUPED,
        runtime=True,
    ),
    case("DeformConv", (2, 4, 4, 4), (3, 4, 2, 2), (2, 8, 3, 3), (3,), cuts="0/2 1/3"),
    case("MaxPool", (2, 3, 8, 8), kernel_shape=[2, 2], strides=[2, 2], cuts="0/2 1/3 2/4"),
    case(
        "MaxPool",
        (2, 3, 9, 8),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        cuts="0/2 1/3 2/5",
    ),
    case(
        "MaxPool",
        (2, 3, 9),
        kernel_shape=[2],
        strides=[2],
        ceil_mode=1,
        cuts="0/2 1/3 2/5",
        runtime=True,
    ),
    case("MaxPool", (2, 3, 8, 8), kernel_shape=[2, 2], results="y i", cuts=""),
    case(
        "AveragePool",
        (2, 3, 8, 8),
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
        cuts="0/2 1/3 2/8",
        runtime=True,
    ),
    case(
        "AveragePool",
        (2, 3, 8),
        kernel_shape=[3],
        auto_pad="SAME_UPPER",
        strides=[2],
        cuts="0/2 1/3 2/4",
        runtime=True,
    ),
    case("LpPool", (2, 3, 8, 8), kernel_shape=[2, 2], p=2, cuts="0/2 1/3 2/7"),
    *(case(f"Global{kind}Pool", (2, 3, 4, 5), cuts="0/2 1/3") for kind in ("Average", "Max")),
    case("GlobalLpPool", (2, 3, 4, 5), cuts="0/2 1/3", runtime=True),
    case("LRN", (2, 3, 4, 5), size=3, cuts="0/2 2/4 3/5", runtime=True),
    case("GridSample", (2, 3, 4, 5), (2, 6, 7, 2), cuts="0/2 1/3 2/6 3/7"),
    case("AffineGrid", (2, 2, 3), ints(2, 3, 4, 5), cuts="0/2"),
    case(
        "RoiAlign",
        (2, 3, 8, 8),
        positive(4, 4) * 4,
        ints(0, 1, 1, 0),
        output_height=2,
        output_width=2,
        cuts="0/4 1/3",
    ),
    case(
        *("MaxRoiPool", (2, 3, 8, 8), floats([0, 0, 0, 3, 3], [1, 1, 1, 5, 5], [0, 2, 2, 6, 6])),
        pooled_shape=[2, 2],
        cuts="0/3 1/3",
        runtime=True,
    ),
    # Axes that are treated alike.
    case("Softmax", (2, 3, 4), cuts="0/2 1/3"),
    case("Softmax", (2, 3, 4), axis=1, cuts="0/2 2/4"),
    case("Softmax", (2, 3, 4), axis=1, cuts="0/2", opset=11, runtime=True),
    case("Softmax", (2, 3, 4), cuts="0/2", opset=11, runtime=True),
    case("LogSoftmax", (2, 3, 4), axis=-2, cuts="0/2 2/4"),
    case("LogSoftmax", (2, 3, 4), axis=2, cuts="0/2 1/3", opset=9, runtime=True),
    case("Hardmax", (2, 3, 4), axis=0, cuts="1/3 2/4"),
    case("LayerNormalization", (2, 3, 4), (4,), (4,), cuts="0/2 1/3", results="y m s"),
    case("LayerNormalization", (2, 3, 4), (3, 4), axis=1, cuts="0/2"),
    case("RMSNormalization", (2, 3, 4), (4,), cuts="0/2 1/3", opset=23),
    case("InstanceNormalization", (2, 3, 4, 5), (3,), (3,), cuts="0/2 1/3"),
    case(
        "GroupNormalization",
        (2, 6, 4),
        (6,),
        (6,),
        num_groups=3,
        cuts="0/2 1/3",
        adjust=counted("num_groups", 1),
    ),
    case(
        "GroupNormalization",
        (2, 6, 4),
        (3,),
        (3,),
        num_groups=3,
        cuts="0/2 1/3",
        opset=18,
        adjust=counted("num_groups", 1),
    ),
    case("BatchNormalization", (2, 3, 4), (3,), (3,), (3,), positive(3), cuts="0/2 1/3 2/4"),
    case(
        *("BatchNormalization", (2, 3, 4), (3,), (3,), (3,), positive(3)),
        opset=9,
        cuts="0/2 1/3 2/4",
        runtime=True,
    ),
    case(
        *("BatchNormalization", (2, 3, 4), (3,), (3,), (3,), positive(3)),
        training_mode=1,
        results="y m v",
        cuts="1/3",
    ),
    case("MeanVarianceNormalization", (2, 3, 4, 5), cuts="1/3"),
    case("MeanVarianceNormalization", (2, 3, 4), axes=[-1], cuts="0/2 1/3"),
    case("LpNormalization", (2, 3, 4), axis=1, p=1, cuts="0/2 2/4"),
    case("CumSum", (2, 3, 4), np.array(1, np.int32), cuts="0/2 2/4"),
    case("CumProd", (2, 3, 4), ints(-1)[0], cuts="0/2 1/3", opset=26),
    case("TopK", (2, 3, 4), ints(2), results="y i", cuts="0/2 1/3"),
    case("TopK", (2, 5, 4), ints(2), axis=1, results="y i", cuts="0/2 2/4"),
    case("Compress", (3, 4), np.array([True, False, True]), axis=0, cuts="1/4"),
    case("Compress", (3, 4), np.array([True, False, True]), cuts=""),
    case("Trilu", (2, 3, 4), cuts="0/2"),
    case("Det", (2, 5, 3, 3), cuts="0/2 1/5"),
    case("DFT", (2, 3, 8, 1), ints(8)[0], axis=2, cuts="0/2 1/3", opset=17),
    case("DFT", (2, 3, 8, 1), None, ints(1)[0], cuts="0/2 2/8", opset=20),
    case("STFT", (2, 16, 1), ints(4)[0], None, ints(8)[0], cuts="0/2"),
    case("ReverseSequence", (4, 3, 5), ints(1, 4, 2), cuts="1/3 2/5"),
    case("ReverseSequence", (3, 4, 5), ints(1, 4, 2), batch_axis=0, time_axis=1, cuts="0/3 2/5"),
    # Reductions.
    *(
        case(f"Reduce{kind}", positive(2, 3, 4), axes=[1], cuts="0/2 2/4", opset=11)
        for kind in ("L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod")
    ),
    *(
        case(f"Reduce{kind}", (2, 3, 4), ints(-1), keepdims=0, cuts="0/2 1/3 +/4", opset=18)
        for kind in ("L1", "Sum", "SumSquare")
    ),
    case("ReduceSum", (2, 3, 4), axes=[0, -1], keepdims=0, cuts="0/3 +/2 +/4", opset=11),
    case("ReduceMean", (2, 3, 4), cuts=""),
    case("ReduceMean", (2, 3, 4), ints(1), keepdims=0, cuts="0/2 1/4"),
    case("ReduceSum", (2, 3, 4), None, noop_with_empty_axes=1, cuts="0/2 1/3 2/4"),
    case("ReduceSum", (2, 3), cuts="+/2 +/3"),
    case("ArgMax", (2, 3, 4), cuts="1/3 2/4"),
    case("ArgMin", (2, 3, 4), axis=-1, keepdims=0, cuts="0/2 1/3"),
    # What is looked up, and written.
    case("Gather", (6, 4), below(6, 2, 3), cuts="0/2 1/3 2/4 +/6", adjust=looked_up),
    case("Gather", (2, 6, 4), below(6, 3), axis=1, cuts="0/2 1/3 2/4 +/6", adjust=looked_up),
    case("Gather", (2, 6, 4), ints(2)[0], axis=1, cuts="0/2 1/4 +/6", adjust=looked_up),
    case("Gather", below(9, 6, 4), below(6, 2), cuts="0/2 1/4"),
    case("GatherElements", (2, 3, 4), below(3, 2, 5, 4), axis=1, cuts="0/2 1/5 2/4"),
    case("GatherElements", (8, 3), below(3, 4, 2), axis=1, cuts="1/2", runtime=True),
    case("GatherND", (3, 4, 5), below(3, 2, 6, 1), cuts="0/2 1/6 2/4 3/5"),
    case("GatherND", (2, 3, 4), below(3, 2, 5, 1), batch_dims=1, cuts="0/2 1/5 2/4", runtime=True),
    *(
        case(op, (4, 3), below(4, 2, 3), (2, 3), cuts="1/3", opset=opset, runtime=True)
        for op, opset in (("Scatter", 9), ("ScatterElements", 18))
    ),
    case("ScatterElements", (4, 3), below(4, 2, 2), (2, 2), cuts=""),
    case("ScatterElements", (4, 3), below(3, 4, 2), (4, 2), axis=1, reduction="add", cuts="0/4"),
    case("ScatterND", (4, 3, 5), ints([0], [2]), (2, 3, 5), cuts="1/3 2/5"),
    case("TensorScatter", (2, 3, 6, 4), (2, 3, 2, 4), ints(1, 3), cuts="0/2 1/3 3/4", opset=24),
    case("OneHot", below(4, 2, 3), ints(4)[0], floats(0, 1), axis=1, cuts="0/2 2/3"),
    # Layout.
    case("Reshape", (6, 4), ints(24), cuts="0/6", adjust=shape_at(1)),
    case("Reshape", (24,), ints(2, 3, 4), cuts="0/2", adjust=shape_at(1)),
    case("Reshape", (6, 4), ints(4, 6), cuts="0/2", adjust=shape_at(1)),
    case("Reshape", (2, 3, 20), ints(2, 3, 4, -1), cuts="0/2 1/3 2/4", adjust=shape_at(1)),
    case("Reshape", (2, 1, 12, 5), ints(6, 4, 1, 5), cuts="0/2 3/5", adjust=shape_at(1)),
    case("Flatten", (2, 3, 4), axis=2, cuts="0/2 1/4"),
    case("Flatten", (2, 3, 4), axis=-1, cuts="0/2 1/4"),
    case("Squeeze", (1, 3, 1, 4), ints(0), cuts="0/3 2/4"),
    case("Unsqueeze", (3, 4), axes=[0, 2], cuts="1/3 3/4", opset=11),
    case("Transpose", (2, 3, 4), perm=[2, 0, 1], cuts="0/4 1/2 2/3"),
    case("Transpose", (2, 3, 4), cuts="0/4 1/3 2/2"),
    case("Expand", (3, 1), ints(2, 3, 4), cuts="0/2 1/3 2/4", adjust=shape_at(1)),
    case("Tile", (2, 3), ints(3, 1), cuts="0/3 1/3", adjust=repeated),
    case("Tile", (1, 3), ints(4, 2), cuts="0/4 1/2", adjust=repeated),
    case("Concat", (2, 3, 4), (2, 5, 4), axis=1, cuts="0/2 2/4"),
    case("Split", (2, 6, 4), ints(2, 4), axis=1, results="y z", cuts="0/2 2/4"),
    case("Split", (2, 6, 4), ints(2, 4), axis=-2, results="y _", cuts="0/2 2/4"),
    case("Split", (4, 3), axis=0, results="y z", cuts="1/3", opset=11),
    case("Slice", (4, 6, 3), ints(0, 1), ints(99, 5), ints(0, 1), ints(1, 2), cuts="0/4 2/3"),
    case("Slice", (4, 6, 3), ints(-1, 0), ints(-9, 9), ints(0, 2), ints(-1, 1), cuts="1/6 2/3"),
    case("Slice", (4, 6, 3), starts=[1], ends=[5], axes=[1], cuts="0/4 2/3", opset=9, runtime=True),
    case("Pad", (2, 3, 4), ints(0, 1, 0, 0, 0, 0), cuts="0/2 2/4"),
    case("Pad", (2, 3, 4), ints(1, -1), None, ints(2), cuts="0/2 1/3", runtime=True),
    case("Pad", (2, 3), pads=[0, 1, 0, 1], cuts="0/2", opset=10, runtime=True),
    case("CenterCropPad", (4, 3, 5), ints(6, 5), axes=[0, 2], cuts="1/3 2/5", adjust=cropped),
    case("Resize", (2, 3, 4, 4), None, floats(1, 1, 2, 2), cuts="0/2 1/3"),
    case("Resize", (2, 3, 4, 5), None, floats(1, 1, 2, 1), mode="linear", cuts="0/2 1/3 3/5"),
    case(
        "Resize",
        (2, 3, 4, 4),
        None,
        None,
        ints(8, 4),
        axes=[2, 3],
        cuts="0/2 1/3 3/4",
        adjust=sized,
    ),
    case("Resize", (2, 3, 4), None, floats(1, 1, 1.1), cuts="0/2 1/3"),
    case("Resize", (2, 3, 4), floats(1, 1, 2), cuts="0/2 1/3", opset=10, runtime=True),
    case("Upsample", (2, 3, 4), floats(1, 1, 2), cuts="0/2 1/3", opset=9, runtime=True),
    case(
        "Upsample", (2, 3, 4, 4), scales=[1.0, 1.0, 2.0, 2.0], cuts="0/2 1/3", opset=7, runtime=True
    ),
    case("DepthToSpace", (2, 12, 3, 4), blocksize=2, cuts="0/2 2/3 3/4"),
    case("DepthToSpace", (2, 12, 3, 4), blocksize=2, mode="CRD", cuts="0/2 1/3 2/3 3/4"),
    case("SpaceToDepth", (2, 3, 4, 6), blocksize=2, cuts="0/2 2/2 3/3"),
    case("Col2Im", (2, 12, 4), ints(4, 4), ints(2, 2), strides=[2, 2], cuts="0/2 1/3"),
    # Attention and recurrent layers.
    case("Attention", (2, 4, 5, 3), (2, 4, 6, 3), (2, 4, 6, 3), cuts="0/2 1/4 2/5", opset=23),
    case(
        "Attention", (2, 4, 5, 3), (2, 2, 5, 3), (2, 2, 5, 3), is_causal=1, cuts="0/2 1/2", opset=23
    ),
    case(
        *("Attention", (2, 5, 12), (2, 6, 6), (2, 6, 6), (2, 1, 5, 6)),
        q_num_heads=4,
        kv_num_heads=2,
        cuts="0/2 1/5 2/2",
        opset=23,
        adjust=heads(2, "q_num_heads", "kv_num_heads"),
    ),
    case(
        *("Attention", (2, 4, 5, 3), (2, 4, 6, 3), (2, 4, 6, 3), None, (2, 4, 1, 3), (2, 4, 1, 3)),
        cuts="0/2 1/4",
        results="y k v",
        opset=23,
    ),
    case("RotaryEmbedding", (2, 4, 5, 6), (2, 5, 3), (2, 5, 3), cuts="0/2 1/4 2/5", opset=23),
    case(
        *("RotaryEmbedding", (2, 5, 24), (9, 3), (9, 3), below(9, 2, 5)),
        num_heads=4,
        cuts="0/2 1/5 2/4",
        opset=23,
        adjust=counted("num_heads", 2),
    ),
    case(
        *("LSTM", (5, 4, 3), (2, 24, 3), (2, 24, 6), (2, 48), np.array([5, 3, 1, 2], np.int32)),
        *((2, 4, 6), (2, 4, 6), (2, 18)),
        direction="bidirectional",
        hidden_size=6,
        results="y h c",
        cuts="1/2 2/4",
        adjust=one_way,
        runtime=True,
    ),
    case("GRU", (5, 4, 3), (1, 18, 3), (1, 18, 6), hidden_size=6, results="y h", cuts="2/4"),
    case(
        "RNN", (4, 5, 3), (1, 6, 3), (1, 6, 6), hidden_size=6, layout=1, results="y h", cuts="0/4"
    ),
]
# Operators of ONNX Runtime.
CASES += [
    case(op, *operands, domain=MICROSOFT, **more)
    for op, operands, more in [
        ("BiasAdd", [(2, 3, 4), (4,), (2, 3, 4)], {"cuts": "0/2 1/3 2/4", "by": sums}),
        ("BiasGelu", [(2, 3, 4), (4,)], {"cuts": "0/2 1/3 2/4"}),
        ("FastGelu", [(2, 3, 4), (4,)], {"cuts": "0/2 1/3 2/4"}),
        ("Gelu", [(2, 3, 4)], {"cuts": "0/2 1/3 2/4"}),
        ("QuickGelu", [(2, 3, 4)], {"cuts": "0/2 1/3 2/4"}),
        ("FusedMatMul", [(2, 3, 4), (2, 4, 5)], {"cuts": "0/2 1/3 2/5 +/4", "alpha": 0.5}),
        ("FusedMatMul", [(2, 4, 3), (5, 4)], {"cuts": "0/2 1/3 2/5 +/4", "transA": 1, "transB": 1}),
        (
            "FusedMatMul",
            [(6, 2, 3, 4), (2, 3, 5, 4)],
            {"cuts": "0/2 1/3 2/6 3/5 +/4", "transBatchA": 1, "transB": 1},
        ),
        ("FusedGemm", [(3, 4), (4, 5), (5,)], {"cuts": "0/3 1/5", "activation": "Relu"}),
        (
            "FusedConv",
            [(2, 4, 8, 7), (6, 4, 3, 3), (6,)],
            {"cuts": "0/2 1/6 2/6", "activation": "Relu"},
        ),
        (
            "MatMulIntegerToFloat",
            [u8(3, 4), u8(4, 5), positive(1), positive(5), u8(1), u8(5)],
            {"cuts": "0/3 1/5 +/4"},
        ),
        (
            "MatMulIntegerToFloat",
            [u8(3, 4), u8(4, 5), positive(1), positive(1), u8(1), u8(1), (5,)],
            {"cuts": "0/3 1/5"},
        ),
        (
            "DynamicQuantizeMatMul",
            [(3, 4), u8(4, 5), positive(5), u8(5), (5,)],
            {"cuts": "1/5"},
        ),
        (
            "MatMulNBits",
            [(2, 3, 32), u8(6, 2, 8), positive(12), u8(6)],
            {
                "cuts": "0/2 1/3 2/6",
                "K": 32,
                "N": 6,
                "bits": 4,
                "block_size": 16,
                "adjust": columns,
            },
        ),
        ("SkipLayerNormalization", [(2, 3, 4), (2, 3, 4), (4,), (4,), (4,)], {"cuts": "0/2 1/3"}),
        (
            "SkipSimplifiedLayerNormalization",
            [(2, 3, 4), (2, 3, 4), (4,)],
            {"cuts": "0/2 1/3", "results": "y _ _ s"},
        ),
        (
            "EmbedLayerNormalization",
            [
                *(below(6, 2, 3, dtype=np.int32), below(2, 2, 3, dtype=np.int32), (6, 4), (3, 4)),
                *((2, 4), (4,), (4,)),
            ],
            {"cuts": "0/2", "results": "y i"},
        ),
        ("QLinearSigmoid", [u8(3, 4), positive(), u8(), positive(), u8()], {"cuts": "0/3 1/4"}),
        (
            "QLinearLeakyRelu",
            [u8(3, 4), positive(), u8(), positive(), u8()],
            {"cuts": "0/3 1/4", "alpha": 0.1},
        ),
        *(
            (
                op,
                [u8(3, 1), positive(), u8(), u8(4), positive(), u8(), np.float32(2), u8()],
                {"cuts": "0/3 1/4"},
            )
            for op in ("QLinearAdd", "QLinearMul")
        ),
        ("QuantizeLinear", [(2, 3), positive(3), u8(3)], {"cuts": "0/2 1/3", "axis": 1}),
        ("DequantizeLinear", [u8(2, 3), positive(3), u8(3)], {"cuts": "0/2 1/3", "axis": 1}),
        (
            "Attention",
            [(2, 3, 4), (4, 12), (12,), np.array([2, 3], np.int32)],
            {"cuts": "0/2", "num_heads": 2},
        ),
        (
            "MultiHeadAttention",
            [(2, 3, 8), (2, 5, 8), (2, 5, 8)],
            {"cuts": "0/2 2/4", "num_heads": 4, "adjust": heads(2, "num_heads")},
        ),
        (
            "MultiHeadAttention",
            [(2, 3, 8), (2, 5, 8), (2, 5, 8), (24,), np.array([2, 5], np.int32)],
            {"cuts": "0/2", "num_heads": 4},
        ),
        (
            "GroupQueryAttention",
            [
                *((2, 3, 32), (2, 3, 16), (2, 3, 16), (2, 2, 8, 8), (2, 2, 8, 8)),
                *(np.array([2, 2], np.int32), np.array([3], np.int32)),
            ],
            {
                "cuts": "0/2 2/2",
                "num_heads": 4,
                "kv_num_heads": 2,
                "results": "y k v",
                "adjust": heads(2, "num_heads", "kv_num_heads"),
            },
        ),
        (
            "RotaryEmbedding",
            [(2, 3, 8), below(6, 2, 3), (6, 2), (6, 2)],
            {"cuts": "0/2 1/3 2/2"},
        ),
        (
            "RotaryEmbedding",
            [(2, 2, 3, 4), ints(1), (6, 2), (6, 2)],
            {"cuts": "0/2 1/2"},
        ),
    ]
]


def name_of(wanted: Case):
    return f"{wanted.op}-{wanted.opset}"


def dims_of(cuts):
    """The cuts as a `Case` says them."""
    found = []
    for cut in cuts:
        at = next((dim for dim in cut.results if dim is not None), None)
        found.append(f"{'+' if at is None else at}/{cut.ways}")
    return " ".join(sorted(found))


@pytest.mark.parametrize("wanted", CASES, ids=name_of)
def test_parts_along_every_axis_make_what_the_whole_makes(wanted):
    cuts = cuts_of(operation_of(wanted))

    assert dims_of(cuts) == " ".join(sorted(wanted.cuts.split()))
    for cut in cuts:
        prove(wanted, cut)
