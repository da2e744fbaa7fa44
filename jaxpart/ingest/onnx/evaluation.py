"""Computes one node whose operands are known, with bounds on memory and time.

The reference implementation of the onnx package does the arithmetic. It neither bounds its results
nor what it needs on the way, so that is done here, before it is called:

1. Operators with which exporters compute sizes have a bound each (`_elements`).
2. For the others shape inference gives the sizes of the results, `rules.py` the work, and the
   numbers among their attributes (pads, dilations) how much wider their operands become.
3. Operators with bodies run node by node (`bodies.py`), so that each node is bounded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx.defs
from onnx import NodeProto
from onnx.reference import ReferenceEvaluator

from jaxpart.errors import FileFormatError, JaxpartError
from jaxpart.ingest.onnx.bodies import RUNNERS, NotComputedError, Value
from jaxpart.ingest.onnx.operation import STANDARD, Operation, label
from jaxpart.ingest.onnx.propagation import inferred_results
from jaxpart.ingest.onnx.rules import flops_of
from jaxpart.ingest.onnx.shapes import SMALL, Array, attributes

_MOST_EVALUATED = 2**20  # elements of a result that is computed, even if it is not kept
_MOST_STEPS = 20_000  # nodes of bodies that are computed for one model
# Operators that are not computed: their results are random, or their time is not bounded.
_NEVER = frozenset(
    (
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
        *("RandomUniformLike", "ImageDecoder", "RegexFullMatch", "RoiAlign", "TfIdfVectorizer"),
    )
)
# Operators whose results are their operand.
_SAME = frozenset(("Identity", "Optional", "OptionalGetElement"))
# Operators on sequences of tensors: their results have no more elements than their operands.
_SEQUENCES = frozenset(
    (
        *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty"),
        *("SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence"),
    )
)
# Operators with which exporters compute sizes. `_elements` bounds the result of each.
# fmt: off
COMMON = frozenset(
    [
        "Abs", "Add", "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot",
        "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Clip", "Compress", "Concat",
        "Constant", "ConstantOfShape", "CumProd", "CumSum", "Div", "Equal", "Erf", "Exp", "Expand",
        "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater",
        "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "MatMul",
        "Max", "Mean", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "Pad", "Pow",
        "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round", "Scatter",
        "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign", "Size", "Slice", "Split",
        "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unique",
        "Unsqueeze", "Where", "Xor",
    ]
)
# fmt: on
# Operators whose operands are broadcast against each other.
# fmt: off
_BROADCAST = frozenset(
    [
        "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal",
        "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul",
        "Or", "Pow", "Sub", "Sum", "Where", "Xor",
    ]
)
# fmt: on


# Operators whose operand 1 has indices into operand 0.
_INDEXING = frozenset(("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"))


@dataclasses.dataclass
class Evaluator:
    """Computes the nodes of one model.

    Attributes:
      opset: version of the standard operators.
      where: name of the model, for messages.
      steps: nodes of bodies that may still be computed.
      prepared: a node, as bytes -> its reference implementation.
    """

    opset: int
    where: str
    steps: int = _MOST_STEPS
    prepared: dict[bytes, ReferenceEvaluator] = dataclasses.field(default_factory=dict)

    def results(self, node: NodeProto, known: Mapping[str, Value]) -> list[Value]:
        """All results of a node.

        Args:
          node: all that it reads is known.
          known: name of a value -> contents.

        Returns:
          The contents of each result; those without a name are empty.

        Raises:
          NotComputedError: the operator is none that is computed, or the results may be large.
          FileFormatError: the computation fails, or divides an integer by zero.
        """
        if node.domain not in STANDARD or node.op_type in _NEVER:
            domain = "" if node.domain in STANDARD else f"{node.domain}."
            raise NotComputedError(f"operator {domain}{node.op_type} is not computed on import")
        try:
            made = self._made(node, known)
        except (NotComputedError, JaxpartError):
            raise
        except NotImplementedError:
            raise NotComputedError(
                f"operator {node.op_type} has no reference implementation"
            ) from None
        except Exception as error:  # the reference can raise any exception
            reason = " ".join(str(error).split())[:200]
            if node.op_type not in COMMON and node.op_type not in _SEQUENCES:
                raise NotComputedError(f"operator {node.op_type} fails ({reason})") from error
            raise FileFormatError(
                f"{self.where}: {label(node)} fails on its constants: {reason}"
            ) from error
        results = [_small(result) for result in made]
        _check_finite(node, known)
        return results

    def _made(self, node: NodeProto, known: Mapping[str, Value]) -> list[Value]:
        """As `results`, without the checks of what was made."""
        operands = [known[name] for name in node.input if name]
        if node.op_type in _SAME and len(operands) == 1:
            return operands
        if node.op_type == "OptionalHasElement":
            return [np.array(bool(operands))]
        if node.op_type in RUNNERS:
            return RUNNERS[node.op_type](node, known, self._step)
        if not _bound(node, known, self.opset) <= _MOST_EVALUATED:  # also if it is no number
            raise NotComputedError(f"it may take over {_MOST_EVALUATED:,} elements; expected fewer")
        _check_divisor(node, known, self.where)
        names = [name for name in node.output if name]
        with np.errstate(all="ignore"):
            results = self._reference(node, names).run(
                None, {name: known[name] for name in node.input if name}
            )
        made = dict(zip(names, results, strict=True))
        return [_value(made.get(name, np.empty(0))) for name in node.output]

    def _step(self, node: NodeProto, known: Mapping[str, Value]) -> list[Value]:
        """The results of a node in a body; it counts."""
        self.steps -= 1
        if self.steps < 0:
            raise NotComputedError(f"bodies of nodes take more than {_MOST_STEPS:,} steps")
        return self.results(node, known)

    def _reference(self, node: NodeProto, names: Sequence[str]) -> ReferenceEvaluator:
        """The reference implementation of a node."""
        key = node.SerializeToString(deterministic=True)
        if key not in self.prepared:
            alone = NodeProto()
            alone.CopyFrom(node)
            alone.domain = ""
            blank = onnx.helper.make_empty_tensor_value_info
            operands = dict.fromkeys(name for name in node.input if name)
            graph = onnx.helper.make_graph(
                [alone], "one", [blank(name) for name in operands], [blank(name) for name in names]
            )
            opsets = [onnx.helper.make_opsetid("", self.opset)]
            single = onnx.helper.make_model(graph, opset_imports=opsets)
            self.prepared[key] = ReferenceEvaluator(single)
        return self.prepared[key]


def _value(result: object) -> Value:
    """A result of the reference implementation: an array, or a list of arrays."""
    if isinstance(result, list | tuple):
        return [np.asarray(part) for part in result]
    return np.asarray(result)


def _small(result: Value) -> Value:
    """The result, if it is small enough to be kept."""
    parts = result if isinstance(result, list) else [result]
    count = sum(max(part.size, 1) if isinstance(result, list) else part.size for part in parts)
    if count > SMALL:
        raise NotComputedError(f"it has {count:,} elements; expected at most {SMALL:,}")
    if any(not isinstance(e, str | bytes) for p in parts if p.dtype == object for e in p.flat):
        raise NotComputedError("it is neither numbers nor text")
    return result


def _check_divisor(node: NodeProto, known: Mapping[str, Value], where: str) -> None:
    """Refuses the division of an integer by zero: numpy gives 0, a run stops or gives junk."""
    operands = [known[name] for name in node.input if name]
    arrays = [operand for operand in operands if isinstance(operand, np.ndarray)]
    if not arrays or arrays[0].dtype.kind not in "iu":
        return
    if node.op_type in ("Div", "Mod"):
        size = math.prod(_broadcast([operand.shape for operand in arrays]))
        zero = min(size, *(operand.size for operand in arrays)) > 0 and not arrays[1].all()
    else:
        zero = node.op_type == "ReduceMean" and arrays[0].size == 0
    if zero:
        names = " by ".join(repr(name) for name in node.input if name)
        raise FileFormatError(
            f"{where}: {label(node)} divides integers by zero ({names}) as it computes sizes, "
            "expected a divisor other than 0"
        )


def _check_finite(node: NodeProto, known: Mapping[str, Value]) -> None:
    """Follows no infinity and no nan that a cast makes an integer: that is not defined."""
    operand = known[node.input[0]] if node.op_type in ("Cast", "CastLike") else None
    if not isinstance(operand, np.ndarray) or operand.dtype.kind not in "fc":
        return
    target = onnx.TensorProto.FLOAT
    if node.op_type == "Cast":
        target = attributes(node)["to"].i
    elif isinstance(like := known[node.input[1]], np.ndarray):
        target = onnx.helper.np_dtype_to_tensor_dtype(like.dtype)
    integer = onnx.helper.tensor_dtype_to_np_dtype(target).kind in "iu"
    if integer and not np.isfinite(operand).all():
        bad = operand[~np.isfinite(operand)].reshape(-1)[0]
        raise NotComputedError(
            f"it makes an integer of {node.input[0]!r}, which is {bad}; expected a finite number"
        )


def _bound(node: NodeProto, known: Mapping[str, Value], opset: int) -> float:
    """Bound on the elements that a node makes, and on its operations."""
    operands = [known[name] if name else np.empty(0) for name in node.input]
    if node.op_type in _SEQUENCES:
        parts = [part for o in operands for part in (o if isinstance(o, list) else [o])]
        return float(sum(part.size + 1 for part in parts))
    arrays = {
        name: operand
        for name, operand in zip(node.input, operands, strict=True)
        if isinstance(operand, np.ndarray)
    }
    if len(arrays) < len(set(node.input)):
        raise NotComputedError(f"operator {node.op_type} is not computed on sequences")
    if node.op_type in COMMON:
        return _elements(node, arrays)
    return _inferred_bound(node, arrays, opset)


def _inferred_bound(node: NodeProto, known: Mapping[str, np.ndarray], opset: int) -> float:
    """Bound for an operator of which nothing is written here; the docstring gives the rule."""
    arrays = {
        name: Array(onnx.helper.np_dtype_to_tensor_dtype(content.dtype), content.shape)
        for name, content in known.items()
        if name
    }
    found = inferred_results(node, arrays, known, opset)
    if not all(name in found for name in node.output if name):
        raise NotComputedError(f"the size of its results is not bounded (operator {node.op_type})")
    inputs = [arrays.get(name) for name in node.input]
    outputs = [found.get(name) for name in node.output]
    operation = Operation(node, inputs, outputs, known, arrays, opset)
    widened = float(sum(array.elements for array in arrays.values()) + 1)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.INTS:
            widened *= math.prod(1.0 + abs(number) for number in attribute.ints)
    return max(float(operation.out), float(flops_of(operation) or 0), widened)


def _elements(node: NodeProto, known: Mapping[str, np.ndarray]) -> float:
    """Bound on the number of elements of the results of a node."""
    operands = [known[name] if name else np.empty(0) for name in node.input]
    if node.op_type in _INDEXING and np.any(np.abs(operands[1].astype(float)) > operands[0].size):
        raise ValueError("an index is out of range")
    if node.op_type in _BOUNDS:
        return _BOUNDS[node.op_type](operands)
    if node.op_type in _BROADCAST:
        return float(math.prod(_broadcast([operand.shape for operand in operands])))
    if node.op_type == "Gather":
        axes = operands[0].shape or (1,)
        return float(operands[0].size // max(min(axes), 1) * operands[1].size)
    return float(sum(operand.size for operand in operands))


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Size of each axis after broadcasting; the operands may not fit."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return [max(sizes) for sizes in zip(*padded, strict=True)]


def _range(operands: Sequence[np.ndarray]) -> float:
    start, limit, delta = (float(operand.reshape(-1)[0]) for operand in operands)
    return max((limit - start) / delta, 0.0) if delta else math.inf


def _product(sizes: np.ndarray) -> float:
    return float(np.prod(np.abs(sizes.astype(np.float64))))


def _expanded(operands: Sequence[np.ndarray]) -> float:
    # An axis of the result has the size of the shape, or that of the data where it is 1.
    return _product(operands[1]) * operands[0].size


def _padded(operands: Sequence[np.ndarray]) -> float:
    if len(operands) < 2:
        return math.inf  # opset 2 has the pads among the attributes
    rank = max(operands[0].ndim, 1)
    extents = [*operands[0].shape] or [1]
    pads = np.abs(operands[1].astype(np.float64)).max(initial=0.0)
    return math.prod(extent + 2 * pads for extent in extents) if rank else 1.0


def _one_hot(operands: Sequence[np.ndarray]) -> float:
    return operands[0].size * abs(float(operands[1].reshape(-1)[0]))


def _matmul(operands: Sequence[np.ndarray]) -> float:
    return float(operands[0].size * operands[1].size)


# Operators whose results can have more elements than their operands -> the bound.
_BOUNDS: dict[str, Callable[[Sequence[np.ndarray]], float]] = {
    "ConstantOfShape": lambda operands: _product(operands[0]),
    "Expand": _expanded,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "Pad": _padded,
    "Range": _range,
    "Tile": lambda operands: operands[0].size * _product(operands[1]),
    "NonZero": lambda operands: float(operands[0].size * max(operands[0].ndim, 1)),
    # Its results: values, and three lists of indices.
    "Unique": lambda operands: float(operands[0].size),
    "GatherND": lambda operands: float(operands[0].size * max(operands[1].size, 1)),
}
