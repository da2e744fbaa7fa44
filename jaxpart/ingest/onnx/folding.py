"""Computes values that are known before the model runs: shapes, axes, sizes, trip counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from onnx import GraphProto, NodeProto

from jaxpart.ingest.onnx.bodies import NotComputedError, Value
from jaxpart.ingest.onnx.evaluation import Evaluator
from jaxpart.ingest.onnx.operation import STANDARD, is_shape, label, reads
from jaxpart.ingest.onnx.shapes import Array, attributes, followed, small_values


@dataclasses.dataclass(frozen=True)
class Folded:
    """What is known of values that depend on shapes and constants alone.

    Attributes:
      known: name -> contents, of constants and of results that could be computed.
      refused: name -> why the contents are not known, although they do not depend on an input.
    """

    known: dict[str, Value]
    refused: dict[str, str]


def fold_graph(
    graph: GraphProto,
    arrays: Mapping[str, Array],
    stored: Mapping[str, str],
    evaluator: Evaluator,
) -> Folded:
    """Computes the values of a graph that depend on shapes and small constants alone.

    Args:
      graph: its nodes are in a topological order.
      arrays: types and shapes that are known so far, by name.
      stored: name of a stored tensor whose contents are not read -> why.
      evaluator: computes the nodes.

    Returns:
      The values that could be computed, and why others could not.

    Raises:
      FileFormatError: a computation fails.
    """
    contents = small_values(graph, evaluator.where)
    known: dict[str, Value] = {k: v for k, v in contents.items() if followed(v)}
    refused = dict(stored)
    for name, content in contents.items():
        if name not in known:
            refused[name] = (
                f"it depends on {name!r}, {content.size:,} floats; expected sizes that depend on "
                "fewer"
            )
    folded = Folded(known, refused)
    fold(graph.node, arrays, folded, evaluator)
    return folded


def fold(
    nodes: Iterable[NodeProto],
    arrays: Mapping[str, Array],
    folded: Folded,
    evaluator: Evaluator,
) -> None:
    """Computes what nodes make of values that are known.

    Args:
      nodes: in a topological order.
      arrays: types and shapes that are known, by name.
      folded: what is known so far; it grows.
      evaluator: computes the nodes.

    Raises:
      FileFormatError: a computation fails.
    """
    known, refused = folded.known, folded.refused
    for node in nodes:
        standard = node.domain in STANDARD
        if standard and node.op_type == "Constant":
            name = node.output[0]
            if name not in known:
                refused.setdefault(name, f"it depends on the contents of {label(node)}")
        elif is_shape(node) and node.input[0] not in known:
            if node.input[0] in arrays:
                known[node.output[0]] = shape_of(node, arrays[node.input[0]])
        else:
            _fold_node(node, folded, evaluator)


def _fold_node(node: NodeProto, folded: Folded, evaluator: Evaluator) -> None:
    """Adds the results of a node to `folded`, if it depends on no input."""
    known, refused = folded.known, folded.refused
    names = reads(node)
    if any(name not in known and name not in refused for name in names):
        return
    results = [name for name in node.output if name]
    blamed = next((refused[name] for name in names if name in refused), None)
    if blamed is not None:
        refused.update(dict.fromkeys(results, blamed))
        return
    try:
        made = evaluator.results(node, known)
    except NotComputedError as reason:
        for name in results:
            refused[name] = f"it depends on {name!r}, made by {label(node)}: {reason}"
    else:
        known.update((k, v) for k, v in zip(node.output, made, strict=False) if k)


def shape_of(node: NodeProto, array: Array) -> np.ndarray:
    """Result of a Shape or Size node whose operand is `array`."""
    if node.op_type == "Size":
        return np.array(array.elements, np.int64)
    given = attributes(node)
    start = given["start"].i if "start" in given else 0
    stop = given["end"].i if "end" in given else None
    return np.array(array.shape[start:stop], np.int64)
