"""Shapes and FLOPs of operators that shape inference of the onnx package does not know.

Most are those of domain com.microsoft, which ONNX Runtime writes into models that it has optimised.
Each counts what its definition says (ContribOperators.md of ONNX Runtime):

- Matrix products and convolutions: as in `rules.py`, and one per result element for each fused sum
  or activation. Unpacking quantised weights costs no FLOPs, as it does where it is a node: there it
  is folded.
- Attention: the two products, scaling and softmax; Attention and QAttention also the product with
  the weights of query, key and value.
- Normalisations: those of `rules.py`, and one per result element for each fused sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.rules import convolution, gemm
from jaxpart.ingest.onnx.shapes import Array, attributes

Results = list[Array | None]
Shapes = Callable[[Operation], Results]

MICROSOFT = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What is known about one operator.

    Attributes:
      results: function to the types and shapes of its results; None: those of `standard`.
      flops: function to its FLOPs.
      standard: the operator of ONNX with results of the same shapes, if there is one.
      rows: function to the number of rows that are read of each table; None: no operand is one.
      tables: positions of the operands that are tables.
    """

    flops: Callable[[Operation], float]
    results: Shapes | None = None
    standard: str | None = None
    rows: Callable[[Operation], int] | None = None
    tables: tuple[int, ...] = ()


def is_known(operation: Operation) -> bool:
    """Whether the operator has a rule here."""
    return _key(operation) in _RULES


def standard_operator(operation: Operation) -> str | None:
    """The operator of ONNX with results of the same shapes and types; None if there is none."""
    rule = _RULES.get(_key(operation))
    return rule.standard if rule is not None else None


def results(operation: Operation) -> Results:
    """Types and shapes of the results of an operator that has a rule.

    Args:
      operation: a node whose operands are known; its results are not read.

    Returns:
      One entry for each result that the rule knows, in order.

    Raises:
      ValueError, IndexError, ZeroDivisionError: the operands do not fit the operator.
    """
    rule = _RULES.get(_key(operation))
    return rule.results(operation) if rule is not None and rule.results is not None else []


def flops_of(operation: Operation) -> float | None:
    """FLOPs of an operator; None if it has no rule.

    Raises:
      ValueError, IndexError, ZeroDivisionError: the attributes do not fit the shapes.
    """
    rule = _RULES.get(_key(operation))
    return rule.flops(operation) if rule is not None else None


def read_shares(operation: Operation) -> Mapping[int, float]:
    """Position of each operand that is a table -> share of its elements that is read, 0 to 1."""
    rule = _RULES.get(_key(operation))
    if rule is None or rule.rows is None:
        return {}
    rows, axis = rule.rows(operation), operation.whole("gather_axis", 0)
    return {
        position: min(rows / max(operation.shape(position).shape[axis], 1), 1.0)
        for position in rule.tables
        if operation.has(position)
    }


def _key(operation: Operation) -> tuple[str, str]:
    return ("" if operation.is_standard else operation.node.domain, operation.node.op_type)


def _like(position: int, *positions: int) -> Shapes:
    """Results with the types and shapes of these operands."""
    return lambda operation: [operation.shape(p) for p in (position, *positions)]


def _normalised(operation: Operation) -> Results:
    """Results of a normalisation with a sum before it: output, mean, deviation, sum."""
    data = operation.shape(0)
    each = Array(TensorProto.FLOAT, (*data.shape[:-1], 1))
    return [data, each, each, data]


def _embedded(operation: Operation) -> Results:
    batch, length = operation.shape(0).shape
    table = operation.shape(2)
    rows = Array(table.dtype, (batch, length, table.shape[1]))
    return [rows, Array(TensorProto.INT32, (batch,)), rows]


def _product(operation: Operation) -> Results:
    """Result of FusedMatMul or TransposeMatMul."""
    a, b = operation.shape(0), operation.shape(1)
    left, right = _turned(operation, a.shape, "A"), _turned(operation, b.shape, "B")
    if left[-1] != right[-2]:
        raise ValueError(f"a product of {a.shape} and {b.shape}")
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    return [Array(a.dtype, (*batch, left[-2], right[-1]))]


def _turned(operation: Operation, shape: tuple[int, ...], side: str) -> tuple[int, ...]:
    """Shape of a factor of FusedMatMul after its transposition."""
    if operation.whole(f"transBatch{side}", 0):
        shape = (*shape[1:-1], shape[0], shape[-1])
    if operation.whole(f"trans{side}", 0):
        shape = (*shape[:-2], shape[-1], shape[-2])
    return shape


def _product_flops(operation: Operation) -> float:
    depth = _turned(operation, operation.shape(0).shape, "A")[-1]
    given = attributes(operation.node).get("alpha")
    scaled = given is not None and given.f != 1
    return (2 * depth + scaled) * operation.result.elements


def _times_packed(operation: Operation) -> Results:
    """Result of a product with a packed weight: the attribute N says how many columns it has."""
    data = operation.shape(0)
    return [Array(data.dtype, (*data.shape[:-1], operation.whole("N", 0)))]


def _packed_flops(operation: Operation) -> float:
    bias = operation.node.op_type == "MatMulNBits" and operation.has(5)
    return (2 * operation.whole("K", 0) + bias) * operation.result.elements


def _times(dtype_of: int | None) -> Shapes:
    """Result of a product of the first two operands, with the type of another (None: FLOAT)."""

    def shapes(operation: Operation) -> Results:
        a, b = operation.shape(0).shape, operation.shape(1).shape
        dtype = TensorProto.FLOAT if dtype_of is None else operation.shape(dtype_of).dtype
        return [Array(dtype, (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]))]

    return shapes


def _times_flops(operation: Operation) -> float:
    return 2 * operation.shape(0).shape[-1] * operation.result.elements


def _broadcast(operation: Operation) -> Results:
    """Result of QLinearAdd or QLinearMul: operands 0 and 3 are the data."""
    a, b = operation.shape(0), operation.shape(3)
    return [Array(a.dtype, np.broadcast_shapes(a.shape, b.shape))]


def _quantised(operation: Operation) -> Results:
    dtype = operation.shape(2).dtype if operation.has(2) else TensorProto.UINT8
    return [Array(dtype, operation.shape(0).shape)]


def _dequantised(operation: Operation) -> Results:
    return [Array(operation.shape(1).dtype, operation.shape(0).shape)]


def _gathered(operation: Operation) -> Results:
    """Result of GatherBlockQuantized: rows of a quantised table, unpacked."""
    table, indices = operation.shape(0), operation.shape(1)
    packed = 8 // operation.whole("bits", 4) if table.dtype == TensorProto.UINT8 else 1
    shape = (*table.shape[:-1], table.shape[-1] * packed)
    axis = operation.whole("gather_axis", 0) % len(shape)
    gathered = (*shape[:axis], *indices.shape, *shape[axis + 1 :])
    return [Array(operation.shape(2).dtype, gathered)]


def _rows(position: int) -> Callable[[Operation], int]:
    """Number of rows that are read: as many as operand `position` has indices."""
    return lambda operation: operation.shape(position).elements


def _turned_rows(operation: Operation) -> int:
    """Number of rows of its tables that a rotary embedding reads: one for each position."""
    shape = operation.shape(0).shape  # [batch, length, ...] or [batch, heads, length, ...]
    return shape[0] * shape[1 if len(shape) == 3 else 2]


def _attention_sizes(operation: Operation) -> tuple[int, int, int]:
    """Width of queries, width of values, and length of the past of Attention or QAttention."""
    columns = operation.shape(1).shape[-1]
    sizes = operation.wholes("qkv_hidden_sizes", [columns // 3] * 3)
    past = 8 if operation.node.op_type == "QAttention" else 4
    return sizes[0], sizes[2], operation.shape(past).shape[3] if operation.has(past) else 0


def _attended(operation: Operation) -> Results:
    """Results of Attention or QAttention: output, and keys and values with those of the past."""
    batch, length, _ = operation.shape(0).shape
    queries, values, past = _attention_sizes(operation)
    heads = operation.whole("num_heads", 0)
    dtype = operation.shape(3 if operation.node.op_type == "QAttention" else 0).dtype
    present = (2, batch, heads, past + length, queries // heads)
    return [Array(dtype, (batch, length, values)), Array(dtype, present)]


def _attention_flops(operation: Operation) -> float:
    batch, length, width = operation.shape(0).shape
    queries, values, past = _attention_sizes(operation)
    heads = operation.whole("num_heads", 0)
    columns = operation.shape(1).shape[-1]
    projected = batch * length * columns * (2 * width + operation.has(2))
    keys = past + length
    return projected + _scores(batch, heads, length, keys, queries // heads, values // heads)


def _scores(batch: int, heads: int, queries: int, keys: int, depth: int, width: int) -> int:
    """FLOPs of attention: both products, scaling and softmax (6 per score)."""
    return batch * heads * queries * keys * (2 * depth + 2 * width + 6)


@dataclasses.dataclass(frozen=True)
class _Heads:
    """Sizes of a MultiHeadAttention or GroupQueryAttention.

    Attributes:
      batch: size of the batch.
      heads: number of heads of the queries.
      kv_heads: number of heads of keys and values.
      queries: length of the queries.
      keys: length of keys and values, those of the past included.
      depth: elements of a query or key of one head.
      width: elements of a value of one head.
    """

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    depth: int
    width: int


def _many_heads(operation: Operation) -> _Heads:
    """Sizes of a MultiHeadAttention."""
    query, key, value = (operation.shape(position).shape for position in range(3))
    heads = operation.whole("num_heads", 0)
    past = operation.shape(6).shape[2] if operation.has(6) else 0
    batch, length = query[:2]
    if len(query) == 5:  # query, key and value packed: [batch, length, heads, 3, depth]
        return _Heads(batch, heads, heads, length, past + length, query[4], query[4])
    depth = query[2] // heads
    if len(key) == 5:  # key and value packed: [batch, keys, heads, 2, depth]
        return _Heads(batch, heads, heads, length, past + key[1], depth, key[4])
    if len(key) == 4:  # [batch, heads, keys, depth]: not of this step alone
        return _Heads(batch, heads, heads, length, past + key[2], depth, value[3])
    return _Heads(batch, heads, heads, length, past + key[1], depth, value[2] // heads)


def _grouped_heads(operation: Operation) -> _Heads:
    """Sizes of a GroupQueryAttention."""
    batch, length, width = operation.shape(0).shape
    heads, kv_heads = operation.whole("num_heads", 0), operation.whole("kv_num_heads", 0)
    depth = width // (heads if operation.has(1) else heads + 2 * kv_heads)
    past = operation.shape(3).shape[2] if operation.has(3) else 0
    # The past may be a buffer, longer than what is in it.
    total = operation.number(6, -1)
    keys = max(past, total) if total >= 0 else past + length
    return _Heads(batch, heads, kv_heads, length, keys, depth, depth)


def _from_heads(sizes_of: Callable[[Operation], _Heads]) -> Shapes:
    """Results of an attention: output, present keys, present values."""

    def shapes(operation: Operation) -> Results:
        sizes, dtype = sizes_of(operation), operation.shape(0).dtype
        held = operation.shape(3).dtype if operation.has(3) else dtype
        held = held if operation.node.op_type == "GroupQueryAttention" else dtype
        cache = (sizes.batch, sizes.kv_heads, sizes.keys)
        return [
            Array(dtype, (sizes.batch, sizes.queries, sizes.heads * sizes.width)),
            Array(held, (*cache, sizes.depth)),
            Array(held, (*cache, sizes.width)),
        ]

    return shapes


def _many_heads_flops(operation: Operation) -> float:
    s = _many_heads(operation)
    biased = s.heads * (s.queries * s.depth + s.keys * (s.depth + s.width))
    bias = operation.has(3) * s.batch * biased
    return bias + _scores(s.batch, s.heads, s.queries, s.keys, s.depth, s.width)


def _grouped_heads_flops(operation: Operation) -> float:
    s = _grouped_heads(operation)
    window = operation.whole("local_window_size", -1)
    keys = min(s.keys, window) if window > 0 else s.keys
    turned = s.batch * s.queries * s.depth * (s.heads + s.kv_heads)
    rotary = 3 * turned if operation.whole("do_rotary", 0) else 0
    return rotary + _scores(s.batch, s.heads, s.queries, keys, s.depth, s.width)


def _each(flops: int, *sums: int) -> Callable[[Operation], float]:
    """FLOPs per element of the first operand; one more for each operand of `sums` that is there."""

    def rule(operation: Operation) -> float:
        fused = sum(operation.has(position) for position in sums)
        return (flops + fused) * operation.shape(0).elements

    return rule


def _embedded_flops(operation: Operation) -> float:
    return (7 + 1 + operation.has(4)) * operation.result.elements


def _fused_conv(operation: Operation) -> float:
    bias = operation.has(2) + operation.has(3) + ("activation" in attributes(operation.node))
    weight = operation.shape(1).shape
    return convolution(operation, weight) + bias * operation.result.elements


def _fused_gemm(operation: Operation) -> float:
    return gemm(operation) + operation.result.elements


def _per_result(flops: int) -> Callable[[Operation], float]:
    return lambda operation: flops * math.prod(operation.result.shape)


_SAME, _GELU = _like(0), 5
_ATTENTION = _Rule(_attention_flops, _attended)
_RULES: dict[tuple[str, str], _Rule] = {
    # ONNX itself has these, without shape inference.
    ("", "GroupNormalization"): _Rule(_each(7), _SAME),
    ("", "MeanVarianceNormalization"): _Rule(_each(6), _SAME),
    ("", "SimplifiedLayerNormalization"): _Rule(_each(4), _SAME),
    **{
        (MICROSOFT, name): rule
        for name, rule in {
            "Attention": _ATTENTION,
            "BiasAdd": _Rule(_each(2), _SAME),
            "BiasGelu": _Rule(_each(_GELU + 1), _SAME),
            "DequantizeLinear": _Rule(_each(2), _dequantised),
            "DynamicQuantizeMatMul": _Rule(_times_flops, _times(None)),
            "EmbedLayerNormalization": _Rule(
                _embedded_flops, _embedded, rows=_rows(0), tables=(2, 3, 4)
            ),
            "FastGelu": _Rule(_each(9, 1), _SAME),
            "FusedConv": _Rule(_fused_conv, standard="Conv"),
            "FusedGemm": _Rule(_fused_gemm, standard="Gemm"),
            "FusedMatMul": _Rule(_product_flops, _product),
            "GatherBlockQuantized": _Rule(
                _per_result(2), _gathered, rows=_rows(1), tables=(0, 2, 3)
            ),
            "Gelu": _Rule(_each(_GELU), _SAME),
            "GroupNorm": _Rule(_each(7), _SAME),
            "GroupQueryAttention": _Rule(
                _grouped_heads_flops, _from_heads(_grouped_heads), rows=_turned_rows, tables=(7, 8)
            ),
            "MatMulBnb4": _Rule(_packed_flops, _times_packed),
            "MatMulIntegerToFloat": _Rule(_times_flops, _times(2)),
            "MatMulNBits": _Rule(_packed_flops, _times_packed),
            "MultiHeadAttention": _Rule(_many_heads_flops, _from_heads(_many_heads)),
            "QAttention": _ATTENTION,
            "QLinearAdd": _Rule(_per_result(7), _broadcast),
            "QLinearLeakyRelu": _Rule(_each(6), _SAME),
            "QLinearMul": _Rule(_per_result(7), _broadcast),
            "QLinearSigmoid": _Rule(_each(5), _SAME),
            "QuantizeLinear": _Rule(_each(2), _quantised),
            "QuickGelu": _Rule(_each(3), _SAME),
            "RotaryEmbedding": _Rule(_each(3), _SAME, rows=_turned_rows, tables=(2, 3)),
            "SimplifiedLayerNormalization": _Rule(_each(4), _SAME),
            "SkipLayerNormalization": _Rule(_each(8, 4), _normalised),
            "SkipSimplifiedLayerNormalization": _Rule(_each(5, 3), _normalised),
            "TransposeMatMul": _Rule(_product_flops, _product),
        }.items()
    },
}
