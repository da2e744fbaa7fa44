"""How matrix products can be divided."""

from __future__ import annotations

import collections
from collections.abc import Hashable

from jaxpart.ingest.axes import AxisCut
from jaxpart.ingest.onnx.divisions.labels import WHOLE, Axes, cuts, spread
from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.shapes import Array


def _factors(a: Array, b: Array) -> tuple[Axes, Axes, Axes]:
    """Labels of the factors and of the result of `matmul`; the batch is broadcast."""
    batch = max(len(a.shape), len(b.shape)) - 2
    labels = tuple(range(-max(batch, 0), 0))

    def matrix(array: Array, rows: str, columns: str) -> Axes:
        rank = len(array.shape)
        return (*labels[len(labels) + 2 - rank :], rows, columns) if rank > 1 else ("k",)

    left, right = matrix(a, "m", "k"), matrix(b, "k", "n")
    kept = [*(["m"] if "m" in left else []), *(["n"] if "n" in right else [])]
    return left, right, (*labels, *kept)


def _scale(operation: Operation, position: int, factor: Axes, label: str) -> Axes:
    """Labels of a scale or zero point: one for all, one a row (or column), or as its factor's."""
    rank = len(operation.shape(position).shape) if operation.has(position) else 0
    return factor if rank == len(factor) and rank > 1 else (label,) * rank


def matmul(operation: Operation) -> list[AxisCut]:
    """Rows, columns, batches; the contracted dimension with a sum."""
    left, right, out = _factors(operation.shape(0), operation.shape(1))
    return cuts(operation, [left, right], [out], summed="k")


def matmul_integer(operation: Operation) -> list[AxisCut]:
    """As `matmul`, with zero points of rows and columns."""
    left, right, out = _factors(operation.shape(0), operation.shape(1))
    zeros = [_scale(operation, 2, left, "m"), _scale(operation, 3, right, "n")]
    return cuts(operation, [left, right, *zeros], [out], summed="k")


def qlinear_matmul(operation: Operation) -> list[AxisCut]:
    """As `matmul`, without a sum: the result is rounded."""
    if operation.shape(6).elements > 1:  # of rows or of columns: the specification says both
        return []
    left, right, out = _factors(operation.shape(0), operation.shape(3))
    rows = [_scale(operation, position, left, "m") for position in (1, 2)]
    columns = [_scale(operation, position, right, "n") for position in (4, 5)]
    of_result = [_scale(operation, position, out, "m") for position in (6, 7)]
    return cuts(operation, [left, *rows, right, *columns, *of_result], [out])


def matmul_to_float(operation: Operation) -> list[AxisCut]:
    """MatMulIntegerToFloat: factors, scales, zero points, bias."""
    left, right, out = _factors(operation.shape(0), operation.shape(1))
    rows = [_scale(operation, position, left, "m") for position in (2, 4)]
    columns = [_scale(operation, position, right, "n") for position in (3, 5)]
    operands = [left, right, rows[0], columns[0], rows[1], columns[1], "n"]
    return cuts(operation, operands, [out], summed="" if operation.has(6) else "k")


def dynamic_matmul(operation: Operation) -> list[AxisCut]:
    """DynamicQuantizeMatMul: the columns alone, because one scale holds for all rows."""
    _, right, out = _factors(operation.shape(0), operation.shape(1))
    scales = [_scale(operation, position, right, "n") for position in (2, 3)]
    kept = tuple(label if label == "n" else WHOLE for label in out)
    return cuts(operation, ["", right, *scales, "n"], [kept])


def fused_matmul(operation: Operation) -> list[AxisCut]:
    """FusedMatMul and TransposeMatMul: `matmul` of factors that are transposed first."""
    left, right, out = _factors(operation.shape(0), operation.shape(1))
    operands = [_turned(operation, left, "A"), _turned(operation, right, "B")]
    return cuts(operation, operands, [out], summed="k")


def _turned(operation: Operation, axes: Axes, side: str) -> Axes:
    """Labels of a factor of FusedMatMul before its transposition, from those after it."""
    if operation.whole(f"trans{side}", 0) and len(axes) > 1:
        axes = (*axes[:-2], axes[-1], axes[-2])
    if operation.whole(f"transBatch{side}", 0):
        axes = (axes[-2], *axes[:-2], axes[-1])
    return axes


def packed_matmul(operation: Operation) -> list[AxisCut]:
    """MatMulBnb4: rows and batches; the weight is one sequence of blocks."""
    data = operation.shape(0)
    return cuts(operation, [spread(data, {-1})], [spread(operation.result, {-1})])


def nbits_matmul(operation: Operation) -> list[AxisCut]:
    """MatMulNBits: rows, batches, and columns, which are the rows of the packed weight."""
    if len(operation.inputs) > 6:
        return packed_matmul(operation)
    packed: list[Axes] = []  # weight, scales, zero points, order of the blocks, bias
    for position in range(1, 6):
        rank = len(operation.shape(position).shape) if operation.has(position) else 0
        packed.append((WHOLE if position == 4 else "n", *(WHOLE,) * (rank - 1))[:rank])
    out = (*spread(operation.result)[:-1], "n")
    return cuts(operation, [spread(operation.shape(0), {-1}), *packed], [out])


def gemm(operation: Operation) -> list[AxisCut]:
    """Rows and columns; the contracted dimension with a sum, unless something is added."""
    left = "km" if operation.whole("transA", 0) else "mk"
    right = "nk" if operation.whole("transB", 0) else "kn"
    bias = "mn"[2 - len(operation.shape(2).shape) :] if operation.has(2) else ""
    # Each part would add the bias, or apply the activation.
    plain = not operation.has(2) and operation.node.op_type == "Gemm"
    return cuts(operation, [left, right, bias], ["mn"], summed="k" if plain else "")


def einsum(operation: Operation) -> list[AxisCut]:
    """The labels of the equation; those that it sums over with a sum."""
    given, arrow, made = operation.text("equation", "").replace(" ", "").partition("->")
    terms = given.split(",")
    ranks = [len(array.shape) if array is not None else 0 for array in operation.inputs]
    operands = [_term(term, rank) for term, rank in zip(terms, ranks, strict=False)]
    if len(terms) != len(ranks) or not all(
        len(axes) == rank for axes, rank in zip(operands, ranks, strict=True)
    ):
        return []
    if arrow:
        result = _term(made, len(operation.result.shape))
    else:  # the broadcast dimensions, and the letters that stand once, in their order
        counts = collections.Counter(k for axes in operands for k in axes)
        broadcast = sorted(k for k in counts if isinstance(k, int))
        letters = sorted(k for k, n in counts.items() if isinstance(k, str) and n == 1)
        result = (*broadcast, *letters)
    summed = {k: None for axes in operands for k in axes if k not in result}
    return cuts(operation, operands, [result], summed=list(summed))


def _term(term: str, rank: int) -> tuple[Hashable, ...]:
    """Labels of a term: letters, and -1, -2, ... for the dimensions of its ellipsis."""
    head, ellipsis, tail = term.partition("...")
    middle = range(-(rank - len(head) - len(tail)), 0) if ellipsis else ()
    return (*head, *middle, *tail)
