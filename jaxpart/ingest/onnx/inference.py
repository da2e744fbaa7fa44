"""Infers the shapes of ONNX models, and folds the nodes that only compute shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import onnx
import onnx.shape_inference
from google.protobuf.message import DecodeError, EncodeError
from onnx import GraphProto, ModelProto, NodeProto

from jaxpart.errors import FileFormatError, InputError
from jaxpart.ingest.onnx import shapes
from jaxpart.ingest.onnx.operation import label, reads
from jaxpart.ingest.onnx.shapes import Array

T = TypeVar("T")


def checked(action: Callable[[], T], where: str) -> T:
    """Calls the onnx package, and turns its errors into one line.

    Args:
      action: the call.
      where: name of the model, for messages.

    Returns:
      The result of the call.

    Raises:
      FileFormatError: the call failed.
    """
    try:
        return action()
    except (
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
        DecodeError,
        EncodeError,
        RuntimeError,
        ValueError,
        TypeError,
    ) as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"{where}: broken ONNX model ({reason[:300]})") from error


def live(graph: GraphProto, order: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes that an output of the graph depends on.

    Args:
      graph: states the outputs.
      order: its nodes in a topological order.

    Returns:
      Those nodes, in the same order.
    """
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(order):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
            kept.append(node)
    return kept[::-1]


def with_shapes(model: ModelProto, where: str) -> tuple[ModelProto, dict[str, Array]]:
    """Infers all shapes of a model.

    Nodes that only compute shapes become initializers if inference cannot finish without them.

    Args:
      model: its nodes are in a topological order; it is changed in place.
      where: name of the model, for messages.

    Returns:
      The model with all inferred shapes; type and shape of each value by name.

    Raises:
      InputError: a shape is not known before the model runs; the message names the value.
      FileFormatError: the model is broken, or a value is not a tensor.
    """

    def infer(strict: bool) -> ModelProto:
        return onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True)

    while True:
        inferred = checked(lambda: infer(strict=False), where)
        arrays = shapes.known_arrays(inferred.graph)
        needed = {output.name for output in model.graph.output}
        needed.update(name for node in model.graph.node for name in reads(node))
        unknown = [
            (node, name)
            for node in model.graph.node
            for name in node.output
            if name in needed and name not in arrays
        ]
        if not unknown:
            return inferred, arrays
        if not _fold(model, arrays, where):
            node, name = unknown[0]
            if shapes.is_no_tensor(inferred.graph, name):
                raise FileFormatError(
                    f"{where}: {name!r}, made by {label(node)}, is no tensor, expected one"
                )
            checked(lambda: infer(strict=True), where)  # strict mode may name the cause
            raise InputError(
                f"{where}: the shape of {name!r}, made by {label(node)}, cannot be inferred; "
                "expected sizes that are known before the model runs"
            )


def _fold(model: ModelProto, arrays: Mapping[str, Array], where: str) -> bool:
    """Turns values that can be computed now into initializers, and Ifs into the branch they take.

    Returns:
      Whether the model changed.
    """
    graph = model.graph
    values = shapes.fold_shapes(model, arrays, where)
    known = {**shapes.small_values(graph, where), **values}
    nodes: list[NodeProto] = []
    opened = False
    for node in graph.node:
        if set(filter(None, node.output)) <= values.keys():
            continue
        if node.op_type == "If" and node.input[0] in known:
            opened = True
            side = "then_branch" if known[node.input[0]].all() else "else_branch"
            branch = shapes.attributes(node)[side].g
            nodes.extend(branch.node)
            graph.initializer.extend(branch.initializer)
            graph.value_info.extend(branch.value_info)
            for inner, outer in zip(branch.output, node.output, strict=True):
                nodes.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
        else:
            nodes.append(node)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in values.items() if name
    )
    nodes = live(graph, nodes)  # drops nodes that fed only a branch not taken
    del graph.node[:]
    graph.node.extend(nodes)
    return opened or bool(values)
