"""Cuts of ONNX products, convolutions, attention and recurrent layers, run in parts."""

import numpy as np
import pytest

from tests.support.onnx_cuts import (
    Arrays,
    Share,
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


def heads(dim, *names):
    def adjust(attributes: dict, operands: Arrays, share: Share):
        if share.cut.results[0] == dim:
            attributes.update((name, share.part(attributes[name])) for name in names)

    return adjust


def one_way(attributes: dict, operands: Arrays, share: Share):
    """A part of a bidirectional layer runs in one direction."""
    if share.cut.operands[1] == 0:
        attributes["direction"] = "forward" if share.start == 0 else "reverse"


GROUPED = counted("group", 1)

CASES = [
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
        *("QLinearConv", u8(2, 4, 8, 7), positive(1), u8(1), u8(6, 4, 3, 3), positive(6), u8(6)),
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
    case("DeformConv", (2, 1, 3, 3), (3, 1, 2, 2), (2, 8, 2, 2), (3,), cuts="0/2"),
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
    case("GridSample", (2, 3, 4, 5), (2, 6, 7, 2), cuts="0/2 1/3 2/6 3/7", runtime=True),
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


@pytest.mark.parametrize("wanted", CASES, ids=name_of)
def test_parts_along_every_axis_make_what_the_whole_makes(wanted):
    check(wanted)
