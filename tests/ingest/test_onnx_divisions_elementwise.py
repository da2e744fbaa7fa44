"""Cuts of elementwise ONNX operators, of normalisations and reductions, run in parts."""

import numpy as np
import pytest

from tests.support.onnx_cuts import (
    Arrays,
    below,
    case,
    check,
    counted,
    floats,
    ints,
    name_of,
    positive,
    u8,
)

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


GROUPS = counted("num_groups", 1)
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
    case("SwiGLU", (3, 4), (3, 4), cuts="0/3 1/4", opset=28),
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
        adjust=GROUPS,
    ),
    case(
        "GroupNormalization",
        (2, 6, 4),
        (3,),
        (3,),
        num_groups=3,
        cuts="0/2 1/3",
        opset=18,
        adjust=GROUPS,
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
]


@pytest.mark.parametrize("wanted", CASES, ids=name_of)
def test_parts_along_every_axis_make_what_the_whole_makes(wanted):
    check(wanted)
