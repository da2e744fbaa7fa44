"""FLOPs and bytes of one ONNX node, from shapes alone.

The counting is that of the importer of JAX functions where both have the operation:

- Conv, ConvTranspose: 2 per multiply-add whose input element is real (padding is not counted),
  1 per result element for the bias. Gemm, MatMul, Einsum: 2 per multiply-add.
- reductions: one FLOP per element folded in (elements in - elements out), and what their name says
  beside (a mean divides); ArgMax and ArgMin nine. Pools: (window - 1) per result, AveragePool one
  more.
- elementwise: one per result element; operators that stand for several (Gelu, Softmax,
  normalisations) as many as their formula in the ONNX specification has, BatchNormalization two
  (its statistics are constants).
- LSTM, GRU, RNN: 2 per multiply-add of input and recurrent weights, and the gates.
- layout (Reshape, Transpose, Concat, Slice, Gather, ...): none.
- If: the costlier branch. Scan: length * body. Loop: trips * body where the trip count is
  a constant, else one trip.

Bytes: operands and results, each once; of tables that are indexed (Gather, Slice, Scatter, ...) the
bytes touched.
"""

from __future__ import annotations

import dataclasses

from onnx import GraphProto

from jaxpart.errors import FileFormatError
from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.rules import flops_of
from jaxpart.ingest.onnx.shapes import attributes, known_arrays, small_values

_BRANCHES = ("then_branch", "else_branch")
# Operators that touch as much of their first operand as they give.
_INDEXED = frozenset(
    ("ArrayFeatureExtractor", "Compress", "Gather", "GatherElements", "GatherND", "Slice")
)
# Operators that write into their first operand: the position of what they write.
_UPDATES = {"Scatter": 2, "ScatterElements": 2, "ScatterND": 2, "TensorScatter": 1}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one node costs.

    Attributes:
      flops: FLOP.
      reads: share of each operand's bytes that is touched, 0 to 1.
      writes: share of each result's bytes that is written, 0 to 1.
      unknown: names of operators, here or in a body, that have no rule (one FLOP per result
        element), or of which a shape is not known within a body (no FLOP).
    """

    flops: float
    reads: tuple[float, ...]
    writes: tuple[float, ...]
    unknown: frozenset[str] = frozenset()


def operation_cost(operation: Operation, where: str) -> Cost:
    """The cost of one node; see the module for the rules."""
    flops, unknown = _work(operation, where)
    reads, writes = [1.0] * len(operation.inputs), [1.0] * len(operation.outputs)
    name = operation.node.op_type
    if name in _INDEXED:
        table = max(operation.shape(0).elements, 1)
        reads[0] = min(operation.result.elements / table, 1.0)
    elif name in _UPDATES and operation.has(_UPDATES[name]):
        table = max(operation.shape(0).elements, 1)
        reads[0] = writes[0] = min(operation.shape(_UPDATES[name]).elements / table, 1.0)
    return Cost(flops, tuple(reads), tuple(writes), unknown)


def _work(operation: Operation, where: str) -> tuple[float, frozenset[str]]:
    """FLOPs, and the names of operators without a rule."""
    node = operation.node
    given = attributes(node)
    if node.domain not in ("", "ai.onnx"):
        return float(operation.out), frozenset((f"{node.domain}.{node.op_type}",))
    if node.op_type == "If":
        branches = [_body_work(given[key].g, operation, where) for key in _BRANCHES if key in given]
        return max(flops for flops, _ in branches), frozenset().union(*(u for _, u in branches))
    if node.op_type in ("Loop", "Scan"):
        flops, unknown = _body_work(given["body"].g, operation, where)
        return _trips(operation) * flops, unknown
    try:
        flops = flops_of(operation)
    except (ValueError, IndexError, ZeroDivisionError) as error:  # rules trust what they index
        raise FileFormatError(
            f"{where}: node {node.name or node.output[0]!r} ({node.op_type}): its attributes do "
            f"not fit its shapes ({error})"
        ) from error
    if flops is None:
        return float(operation.out), frozenset((node.op_type,))
    return float(flops), frozenset()


def _body_work(body: GraphProto, operation: Operation, where: str) -> tuple[float, frozenset[str]]:
    arrays = {**operation.outer, **known_arrays(body)}
    values = {**operation.values, **small_values(body, where)}
    total, unknown = 0.0, frozenset[str]()
    for node in body.node:
        names = [name for name in (*node.input, *node.output) if name]
        if not all(name in arrays for name in names):
            unknown |= {f"{node.op_type} of unknown shape"}
            continue
        inner = Operation(
            node,
            [arrays[name] if name else None for name in node.input],
            [arrays[name] if name else None for name in node.output],
            values,
            arrays,
        )
        flops, names_unknown = _work(inner, where)
        total += flops
        unknown |= names_unknown
    return total, unknown


def _trips(operation: Operation) -> int:
    node = operation.node
    if node.op_type == "Loop":
        count = operation.values.get(node.input[0])
        return 1 if count is None else max(int(count.reshape(-1)[0]), 0)
    # The scanned operands come last (before opset 9 the first operand is a sequence length).
    axes = operation.wholes("scan_input_axes", [0])
    scanned = operation.shape(len(operation.inputs) - 1).shape
    return scanned[axes[-1]] if scanned else 1
