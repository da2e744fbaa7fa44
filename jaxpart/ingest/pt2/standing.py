"""Which nodes of a graph stand for a node of `torch.fx`, by the names in a `.pt2`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from jaxpart.files import stem_of
from jaxpart.ingest.jaxpr.importer import imported_of
from jaxpart.ingest.pt2.importer import traced_pt2
from jaxpart.ingest.pt2.retrace import node_of
from jaxpart.problem.graph import Graph


def standing_for(
    path: str | os.PathLike[str], dims: Mapping[str, int] | None = None
) -> tuple[Graph, dict[str, tuple[int, ...]]]:
    """The graph of a program, and the nodes that stand for each node of its `torch.fx` graph.

    Errors are those of `from_pt2`.

    Args:
      path: of the archive.
      dims: as in `from_pt2`.

    Returns:
      The graph as `from_pt2` gives it, and by the name of a node of torch the positions of the
      graph's nodes. A node of torch that is folded, or only shows data in another shape, has none.
    """
    traced = traced_pt2(path, dims)
    name = stem_of(os.fspath(path))
    imported = imported_of(traced.closed, traced.roles, name, None, None, False, record=True)
    assert imported.expansion is not None
    found: dict[str, set[int]] = {}
    for visit in imported.expansion.visits:
        for op in imported.program.ops[visit.start : visit.stop]:
            nodes = {v for r in op.results if (v := imported.node_of.get(r)) is not None}
            if nodes:
                found.setdefault(node_of(visit.eqn), set()).update(nodes)
    return imported.graph, {fx: tuple(sorted(nodes)) for fx, nodes in found.items()}
