"""Puts values that are known before the model runs in the place of the nodes that make them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

import numpy as np
import onnx
from onnx import GraphProto, NodeProto

from jaxpart.ingest.onnx import shapes
from jaxpart.ingest.onnx.bodies import Value
from jaxpart.ingest.onnx.evaluation import COMMON, Evaluator
from jaxpart.ingest.onnx.folding import Folded, fold
from jaxpart.ingest.onnx.operation import STANDARD, live, reads, subgraphs
from jaxpart.ingest.onnx.renaming import with_fresh_names


def replace_known(graph: GraphProto, folded: Folded, unknown: AbstractSet[str]) -> bool:
    """Turns values that are known into initializers, and Ifs into the branch they take.

    Args:
      graph: it is changed in place.
      folded: the values that are known.
      unknown: results whose shapes are not known.

    Returns:
      Whether the graph changed.
    """
    hidden = [node for node in graph.node if not unknown.isdisjoint(node.output)]
    needed = {name for node in hidden for name in reads(node)}
    values: dict[str, np.ndarray] = {}
    nodes: list[NodeProto] = []
    opened = False
    taken = {name for node in graph.node for name in node.output if name}
    taken.update(each.name for each in (*graph.input, *graph.initializer))
    for node in graph.node:
        results = _results(node, folded, needed)
        if results is not None:
            values.update(results)
        elif node.op_type == "If" and node.domain in STANDARD and node.input[0] in folded.known:
            opened = True
            condition = folded.known[node.input[0]]
            side = "then_branch" if np.asarray(condition).all() else "else_branch"
            branch = shapes.attributes(node)[side].g
            branch = with_fresh_names(branch, taken, next(filter(None, node.output)))
            taken.update(name for inner in branch.node for name in inner.output)
            taken.update(tensor.name for tensor in branch.initializer)
            nodes.extend(branch.node)
            graph.initializer.extend(branch.initializer)
            graph.value_info.extend(branch.value_info)
            for inner, outer in zip(branch.output, node.output, strict=True):
                if not outer:
                    continue
                nodes.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
        else:
            nodes.append(node)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in values.items()
    )
    # Nodes that fed only a branch not taken, or a value that is known, go.
    nodes = live((output.name for output in graph.output), nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    return opened or bool(values)


def place_constants(
    graph: GraphProto,
    inferred: GraphProto,
    known: Mapping[str, Value],
    evaluator: Evaluator,
) -> bool:
    """Stores the sizes that nodes in bodies read in these bodies: inference sees no others there.

    Args:
      graph: a graph or a body; it is changed in place.
      inferred: the same with the shapes that inference has found.
      known: contents of values of the graph and around it, by name.
      evaluator: computes the nodes.

    Returns:
      Whether it stored one.

    Raises:
      FileFormatError: a computation fails.
    """
    changed = False
    for node, seen in zip(graph.node, inferred.node, strict=True):
        for body, seen_body in zip(subgraphs(node), subgraphs(seen), strict=True):
            inputs = {value.name for value in body.input}
            constants = shapes.small_values(body, evaluator.where)
            inner = {k: v for k, v in known.items() if k not in inputs}
            inner.update((k, v) for k, v in constants.items() if shapes.followed(v))
            arrays = shapes.known_arrays(seen_body)
            hidden = [n for n in body.node if any(k and k not in arrays for k in n.output)]
            read = {name for each in hidden for name in reads(each)}
            folded = Folded(inner, {})
            fold(live(read, body.node), arrays, folded, evaluator)
            stored = {tensor.name for tensor in body.initializer}
            # The inner bodies first: nodes of this one may go.
            changed |= place_constants(body, seen_body, folded.known, evaluator)
            changed |= _store(body, hidden, folded.known, stored)
    return changed


def _store(
    body: GraphProto, nodes: Iterable[NodeProto], known: Mapping[str, Value], stored: set[str]
) -> bool:
    """Stores the integers that nodes of a body read; returns whether it stored one.

    Args:
      body: it is changed in place.
      nodes: nodes of the body.
      known: contents of values, by name.
      stored: names of the tensors that the body stores.
    """
    changed = False
    for node in nodes:
        for i, name in enumerate(node.input):
            content = known.get(name)
            if name in stored or not isinstance(content, np.ndarray):
                continue
            if content.dtype.kind not in "biu":
                continue
            fresh = f"{name}/known"
            if fresh not in stored:
                body.initializer.append(onnx.numpy_helper.from_array(content, fresh))
                stored.add(fresh)
            node.input[i] = fresh
            changed = True
    if changed:  # what made them goes
        kept = live((output.name for output in body.output), list(body.node))
        del body.node[:]
        body.node.extend(kept)
    return changed


def _results(
    node: NodeProto, folded: Folded, needed: AbstractSet[str]
) -> dict[str, np.ndarray] | None:
    """The results of a node that become initializers; None if the node stays.

    Floats that no shape needs stay as they are: a weight counts as it is stored, not as what a node
    makes of it.
    """
    found: dict[str, np.ndarray] = {}
    for name in filter(None, node.output):
        value = folded.known.get(name)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
            return None
        found[name] = value
    floats = any(value.dtype.kind not in "biu" for value in found.values())
    if floats and node.op_type not in COMMON and needed.isdisjoint(found):
        return None
    return found
