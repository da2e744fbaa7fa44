"""Cuts of the operators that ONNX Runtime adds, run in parts."""

import numpy as np
import pytest

from tests.support.onnx_cuts import Arrays, Share, below, case, check, ints, name_of, positive, u8


def heads(dim, *names):
    def adjust(attributes: dict, operands: Arrays, share: Share):
        if share.cut.results[0] == dim:
            attributes.update((name, share.part(attributes[name])) for name in names)

    return adjust


def columns(attributes: dict, operands: Arrays, share: Share):
    if share.cut.operands[1] == 0:
        attributes["N"] = share.part(attributes["N"])


def sums(attributes: dict, operands: Arrays):
    return [sum(operands)]


def by_groups(attributes: dict, operands: Arrays):
    """GroupNorm: channels are last, and a group has all positions."""
    data, gamma, beta = operands
    groups = data.reshape(
        len(data), -1, attributes["groups"], data.shape[-1] // attributes["groups"]
    )
    mean, deviation = groups.mean((1, 3), keepdims=True), groups.std((1, 3), keepdims=True)
    return [((groups - mean) / (deviation + 1e-3)).reshape(data.shape) * gamma + beta]


def scaled(attributes: dict, operands: Arrays):
    """SimplifiedLayerNormalization: no mean is subtracted."""
    data, scale = operands
    return [data / np.sqrt((data**2).mean(-1, keepdims=True)) * scale]


MICROSOFT = "com.microsoft"

CASES = [
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
        (
            "TransposeMatMul",
            [(2, 4, 3), (2, 4, 5)],
            {"cuts": "0/2 1/3 2/5 +/4", "transA": 1},
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
        (
            "MatMulBnb4",
            [(2, 3, 32), u8(96), positive(12)],
            {"cuts": "0/2 1/3", "K": 32, "N": 6, "block_size": 16, "quant_type": 0},
        ),
        (
            "GroupNorm",
            [(2, 3, 4, 6), (6,), (6,)],
            {"cuts": "0/2", "groups": 3, "activation": 0, "by": by_groups},
        ),
        ("SimplifiedLayerNormalization", [(2, 3, 4), (4,)], {"cuts": "0/2 1/3", "by": scaled}),
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
            "QAttention",
            [u8(2, 3, 4), u8(4, 12), (12,), positive(), positive(12), None, u8(), u8(12)],
            {"cuts": "0/2", "num_heads": 2},
        ),
        (
            "GatherBlockQuantized",
            [u8(9, 16), below(9, 2, 3), positive(9, 2)],
            {"cuts": "0/2 1/3", "block_size": 16, "bits": 4, "quantize_axis": 1},
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
CASES += [case("SimplifiedLayerNormalization", (2, 3, 4), (4,), cuts="0/2 1/3", by=scaled)]


@pytest.mark.parametrize("wanted", CASES, ids=name_of)
def test_parts_along_every_axis_make_what_the_whole_makes(wanted):
    check(wanted)
