"""FLOPs and bytes of one ONNX node, computed from shapes alone.

Operations that JAX has too are counted as in `ingest/jaxpr/costs.py`.

- Conv, ConvTranspose: 2 per multiply-add that reads a real input element (padding counts nothing),
  plus 1 per result element for the bias.
- Gemm, MatMul, Einsum: 2 per multiply-add; Gemm also 1 per result element for the bias.
- Reductions: one per element folded in, that is (elements in - elements out), plus the extra
  operations that their name implies (a mean divides). ArgMax and ArgMin: nine.
- Pools: (window - 1) per result element; AveragePool one more.
- Elementwise: one per result element. An operator that stands for several operations (Gelu,
  Softmax, normalisations) counts those of its formula in the ONNX specification.
  BatchNormalization: two, because its statistics are constants.
- LSTM, GRU, RNN: 2 per multiply-add with the input weights and the recurrent weights, plus the
  gates.
- Layout (Reshape, Transpose, Concat, Slice, Gather, ...): zero.
- If: the branch with the most FLOPs. Scan: length * body. Loop: trips * body if the trip count is
  a constant, else one trip.

Bytes: operands and results, each once. Operators that index a table (Gather, Slice, Scatter, ...)
count only the bytes that they touch.
"""

from __future__ import annotations

import dataclasses

from onnx import GraphProto

from jaxpart.errors import FileFormatError
from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.rules import flops_of
from jaxpart.ingest.onnx.shapes import attributes, known_arrays, small_values

_BRANCHES = ("then_branch", "else_branch")
# Operators that read only as many elements of their first operand as they return.
_INDEXED = frozenset(
    ("ArrayFeatureExtractor", "Compress", "Gather", "GatherElements", "GatherND", "Slice")
)
# Operators that write into their first operand -> position of the operand that they write there.
_UPDATES = {"Scatter": 2, "ScatterElements": 2, "ScatterND": 2, "TensorScatter": 1}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one node.

    Attributes:
      flops: FLOP.
      reads: share of the bytes of each operand that is read, 0 to 1.
      writes: share of the bytes of each result that is written, 0 to 1.
      unknown: names of the operators that could not be counted, in the node or its bodies. An
        operator without a rule counts one FLOP per result element. An operator in a body with an
        unknown shape counts zero.
    """

    flops: float
    reads: tuple[float, ...]
    writes: tuple[float, ...]
    unknown: frozenset[str] = frozenset()


def operation_cost(operation: Operation, where: str) -> Cost:
    """The cost of one node; the docstring of this module gives the rules.

    Args:
      operation: the node with the types and shapes of its values.
      where: name of the model, for messages.

    Returns:
      FLOPs of the node, and the shares of its operands and results that it touches.

    Raises:
      FileFormatError: the attributes of the node do not fit its shapes.
    """
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
    """FLOPs of one node with its bodies, and names of the operators that are not counted."""
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
    except (ValueError, IndexError, ZeroDivisionError) as error:  # rules do not check
        raise FileFormatError(
            f"{where}: node {node.name or node.output[0]!r} ({node.op_type}): its attributes do "
            f"not fit its shapes ({error})"
        ) from error
    if flops is None:
        return float(operation.out), frozenset((node.op_type,))
    return float(flops), frozenset()


def _body_work(body: GraphProto, operation: Operation, where: str) -> tuple[float, frozenset[str]]:
    """As `_work`, for one run of a body of the node."""
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
    """Number of times that a Loop or Scan runs its body; 1 if it is not known."""
    node = operation.node
    if node.op_type == "Loop":
        count = operation.values.get(node.input[0])
        return 1 if count is None else max(int(count.reshape(-1)[0]), 0)
    # The last operand is a scanned one; the first need not be (in opset 8 it is a length).
    axes = operation.wholes("scan_input_axes", [0])
    scanned = operation.shape(len(operation.inputs) - 1).shape
    return scanned[axes[-1]] if scanned else 1
