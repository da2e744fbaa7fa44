"""Gives the values of a branch new names where it becomes part of the graph around it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from onnx import GraphProto

from jaxpart.ingest.onnx.operation import subgraphs


def with_fresh_names(branch: GraphProto, taken: AbstractSet[str], owner: str) -> GraphProto:
    """A branch of an If none of whose values has the name of another one.

    Two branches may use the same names inside. In one graph they must not.

    Args:
      branch: it takes no inputs.
      taken: names of values outside the branch.
      owner: name of a result of the If; new names begin with it.

    Returns:
      The branch itself if all its names are free, else a copy.
    """
    made = [name for node in branch.node for name in node.output if name]
    made += [tensor.name for tensor in branch.initializer]
    names: dict[str, str] = {}
    for name in made:
        if name not in taken:
            continue
        fresh = f"{owner}/{name}"
        while fresh in taken or fresh in made:
            fresh = f"{owner}/{fresh}"
        names[name] = fresh
    if not names:
        return branch
    copy = GraphProto()
    copy.CopyFrom(branch)
    _rename(copy, names)
    return copy


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Renames values of a graph, and in its bodies what they read of them."""
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for body in subgraphs(node):
            own = {value.name for value in body.input}
            own.update(tensor.name for tensor in body.initializer)
            own.update(name for inner in body.node for name in inner.output)
            _rename(body, {old: new for old, new in names.items() if old not in own})
