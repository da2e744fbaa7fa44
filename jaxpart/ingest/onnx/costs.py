"""FLOPs and bytes of one ONNX node, computed from shapes alone.

Operations that JAX has too are counted as in `ingest/jaxpr/flops.py`.

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
- If: the branch with the most FLOPs. Scan: length * body. Loop: trips * body; `loops.py` says how
  many trips, one if only the run knows.
- Operators of com.microsoft: `contrib.py`.

Bytes: operands and results, each once. Operators that index a table (Gather, Slice, Scatter, ...)
count only the bytes that they touch. An operator that runs in steps counts them per step, as FLOPs:

- LSTM, GRU, RNN: each step reads its weights and the states and writes the states. The sequences
  are read and written once.
- Loop, Scan: trips * (operands and results of the nodes of the body). If: the branch with the most
  FLOPs. None of these counts less than its own operands and results once.
"""

from __future__ import annotations

import dataclasses

from onnx import GraphProto

from jaxpart.errors import FileFormatError, JaxpartError
from jaxpart.ingest.onnx import contrib
from jaxpart.ingest.onnx.evaluation import Evaluator
from jaxpart.ingest.onnx.loops import trip_count
from jaxpart.ingest.onnx.operation import Operation, label, reads
from jaxpart.ingest.onnx.rules import flops_of
from jaxpart.ingest.onnx.shapes import Array, attributes, known_arrays, small_values

_BRANCHES = ("then_branch", "else_branch")
_RECURRENT = {"LSTM": 2, "GRU": 1, "RNN": 1}  # number of states
# Operators that read only as many elements of their first operand as they return.
_INDEXED = frozenset(
    ("ArrayFeatureExtractor", "Compress", "Gather", "GatherElements", "GatherND", "Slice")
)
# Operators that write into their first operand -> position of the operand that they write there.
_UPDATES = {"Scatter": 2, "ScatterElements": 2, "ScatterND": 2, "TensorScatter": 1}
# Operators that touch no element: constants, names of values, and facts about shapes.
_FREE = frozenset(("Constant", "Identity", "Shape", "Size"))


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What bodies access in all their runs.

    Attributes:
      captured: name of a value from outside -> how many times all its elements are read.
      inner: a value that lives in a body -> how many times all its elements are read or written.
    """

    captured: dict[str, float] = dataclasses.field(default_factory=dict)
    inner: list[tuple[Array, float]] = dataclasses.field(default_factory=list)

    def add(self, other: Traffic, times: float) -> None:
        """Adds `other`, run `times` times."""
        for name, count in other.captured.items():
            self.captured[name] = self.captured.get(name, 0.0) + count * times
        self.inner.extend((array, count * times) for array, count in other.inner)


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one node.

    Attributes:
      flops: FLOP.
      reads: how many times all elements of each operand are read; below 1 if some are not touched.
      writes: how many times all elements of each result are written.
      states: values that stay in the node, and how many times they are read or written.
      body: what the bodies of the node access; None if it has none.
      unknown: names of the operators that could not be counted, in the node or its bodies. An
        operator without a rule counts one FLOP per result element. An operator in a body with an
        unknown shape counts zero.
      assumed: what was assumed of Loops, in words: only the run knows how often they run.
    """

    flops: float
    reads: tuple[float, ...]
    writes: tuple[float, ...]
    states: tuple[tuple[Array, float], ...] = ()
    body: Traffic | None = None
    unknown: frozenset[str] = frozenset()
    assumed: frozenset[str] = frozenset()


@dataclasses.dataclass
class _Run:
    """One run of a body: FLOPs, what it accesses, and what could not be counted (see `Cost`)."""

    flops: float = 0.0
    traffic: Traffic = dataclasses.field(default_factory=Traffic)
    unknown: frozenset[str] = frozenset()
    assumed: frozenset[str] = frozenset()


def operation_cost(operation: Operation, evaluator: Evaluator) -> Cost:
    """The cost of one node; the docstring of this module gives the rules.

    Args:
      operation: the node with the types and shapes of its values.
      evaluator: computes the conditions of Loops; it has the name of the model, for messages.

    Returns:
      FLOPs of the node, and how often it reads and writes its operands and results.

    Raises:
      FileFormatError: the attributes of the node do not fit its shapes.
    """
    try:
        return _cost(operation, evaluator)
    except JaxpartError:  # of a node in a body
        raise
    except (ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        # The rules do not check.
        raise FileFormatError(
            f"{evaluator.where}: {label(operation.node)}: its attributes do not fit its shapes "
            f"({error})"
        ) from error


def _cost(operation: Operation, evaluator: Evaluator) -> Cost:
    """As `operation_cost`; errors of a rule are raised as they are."""
    read, written = [1.0] * len(operation.inputs), [1.0] * len(operation.outputs)
    name = operation.node.op_type
    if not operation.is_standard:
        flops, unknown = _flops(operation)
        for position, share in contrib.read_shares(operation).items():
            read[position] = share
        return Cost(flops, tuple(read), tuple(written), unknown=unknown)
    if name == "If":
        runs = [_run(graph, operation, evaluator) for graph in _branches(operation)]
        costliest = max(runs, key=lambda run: run.flops)
        return Cost(
            costliest.flops,
            tuple(read),
            tuple(written),
            body=costliest.traffic,
            unknown=frozenset().union(*(run.unknown for run in runs)),
            assumed=frozenset().union(*(run.assumed for run in runs)),
        )
    if name in ("Loop", "Scan"):
        once = _run(attributes(operation.node)["body"].g, operation, evaluator)
        trips, assumed = _trips(operation, evaluator)
        body = Traffic()
        body.add(once.traffic, trips)
        return Cost(
            trips * once.flops,
            tuple(read),
            tuple(written),
            body=body,
            unknown=once.unknown,
            assumed=once.assumed.union((assumed,) if assumed else ()),
        )
    flops, unknown = _flops(operation)
    if name in _RECURRENT:
        return _recurrent_cost(operation, flops)
    if name in _INDEXED:
        read[0] = _share(operation.result.elements, operation.shape(0).elements)
    elif name in _UPDATES and operation.has(_UPDATES[name]):
        updates = operation.shape(_UPDATES[name]).elements
        read[0] = written[0] = _share(updates, operation.shape(0).elements)
    return Cost(flops, tuple(read), tuple(written), unknown=unknown)


def _share(touched: int, table: int) -> float:
    """Share of the elements of a table that are touched, 0 to 1."""
    return min(touched / max(table, 1), 1.0)


def _flops(operation: Operation) -> tuple[float, frozenset[str]]:
    """FLOPs of a node without bodies, and its name if it has no rule."""
    node = operation.node
    flops = flops_of(operation) if operation.is_standard else contrib.flops_of(operation)
    if flops is not None:
        return float(flops), frozenset()
    name = node.op_type if operation.is_standard else f"{node.domain}.{node.op_type}"
    return float(operation.out), frozenset((name,))


def _recurrent_cost(operation: Operation, flops: float) -> Cost:
    """Cost of an LSTM, GRU or RNN."""
    # Operands: the sequence, W, R, B, the lengths, the first states, P.
    # Results: the sequence, the last states.
    sequence = operation.shape(0).shape
    steps = sequence[1 if operation.whole("layout", 0) else 0]
    batch = sequence[0 if operation.whole("layout", 0) else 1]
    once = (0, 4, 5, 6)
    read = tuple(1.0 if i in once else float(steps) for i in range(len(operation.inputs)))
    directions, _, hidden = operation.shape(2).shape
    state = Array(operation.shape(0).dtype, (directions, batch, hidden))
    # The first read and the last write of a state are those of operands and results.
    between = 2.0 * max(steps - 1, 0) * _RECURRENT[operation.node.op_type]
    return Cost(flops, read, (1.0,) * len(operation.outputs), states=((state, between),))


def _branches(operation: Operation) -> list[GraphProto]:
    """The branches of an If that may run."""
    given = attributes(operation.node)
    condition = operation.values.get(operation.node.input[0])
    taken = _BRANCHES if condition is None else (_BRANCHES[0 if condition.all() else 1],)
    return [given[key].g for key in taken if key in given]


def _run(body: GraphProto, operation: Operation, evaluator: Evaluator) -> _Run:
    """One run of a body."""
    own = known_arrays(body)
    arrays = {**operation.outer, **own}
    values = {**operation.values, **small_values(body, evaluator.where)}
    made = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    made.update(name for node in body.node for name in node.output)
    run = _Run()
    used = {value.name for value in body.output}.union(*(reads(node) for node in body.node))
    for node in body.node:
        results = [name if name in arrays or name in used else "" for name in node.output]
        if not all(name in arrays for name in (*node.input, *results) if name):
            run.unknown |= {f"{node.op_type} of unknown shape"}
            continue
        inner = Operation(
            node,
            [arrays[name] if name else None for name in node.input],
            [arrays[name] if name else None for name in results],
            values,
            arrays,
            operation.opset,
            operation.told,
        )
        cost = operation_cost(inner, evaluator)
        run.flops += cost.flops
        run.unknown |= cost.unknown
        run.assumed |= cost.assumed
        captured = run.traffic.captured
        for name, times in _accesses(inner, cost).items():
            if name in made:
                run.traffic.inner.append((arrays[name], times))
            else:
                captured[name] = captured.get(name, 0.0) + times
        run.traffic.inner.extend(cost.states)
        run.traffic.inner.extend(cost.body.inner if cost.body else ())
    return run


def _accesses(operation: Operation, cost: Cost) -> dict[str, float]:
    """Name of each value that a node in a body reads or writes -> how many times."""
    node = operation.node
    if operation.is_standard and node.op_type in _FREE:
        return {}
    if cost.body is not None:  # the nodes of the bodies read and write
        return dict(cost.body.captured)
    accesses = dict.fromkeys(reads(node), 0.0)
    for name, times in zip(node.input, cost.reads, strict=True):
        if name:
            accesses[name] = max(accesses[name], times)
    for name, times, array in zip(node.output, cost.writes, operation.outputs, strict=True):
        if array is not None:
            accesses[name] = times
    return accesses


def _trips(operation: Operation, evaluator: Evaluator) -> tuple[int, str]:
    """Number of times that a Loop or Scan runs its body; what was assumed, "" if nothing."""
    if operation.node.op_type == "Loop":
        return trip_count(operation, operation.told, evaluator)
    # The last operand is a scanned one; the first need not be (in opset 8 it is a length).
    scanned = operation.shape(len(operation.inputs) - 1).shape
    if operation.opset < 9:  # [batch, length, ...]: the body sees one element of the batch
        return scanned[0] * scanned[1], ""
    axes = operation.wholes("scan_input_axes", [0])
    return scanned[axes[-1]], ""
