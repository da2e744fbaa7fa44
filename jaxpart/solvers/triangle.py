"""The chip triangle in full, for proofs: rows for all chips at once instead of on demand.

A solver that meets the rule only where a solution breaks it begins anew each time, and its bound
knows nothing of it; where chips are few, stating it costs less.
"""

from __future__ import annotations

import numpy as np

from jaxpart.problem.problem import FloatArray
from jaxpart.solvers.model import Model
from jaxpart.solvers.program import ONE, Terms

# Rows beyond which the rule stays on demand: stating so many takes several seconds.
_MOST_ROWS = 250_000


def state_triangles(model: Model, reach: FloatArray) -> bool:
    """Adds the rule to a model of dataflow; whether it did.

    With e[a, b] at least [some edge leads from chip a to chip b] and r[a, b] at least [some path
    does], no e[a, c] comes with r[a, b] and e[b, c].

    Args:
      model: of a problem with the triangle rule and acyclic dataflow.
      reach: [M, contracted nodes] positive where a path leads from one to the other. What the rule
        says of the contracted nodes between the ends of an edge (`jaxpart.intervals`) is stated
        too: it follows, but solvers do not see it.
    """
    chips = int(model.high.max()) + 1
    low, high = model.low, model.high
    width = high - low + 1
    u, v = model.problem.contracted_pairs.T
    if (width[u] * width[v]).sum() + chips**3 / 3 > _MOST_ROWS:
        return False
    edges = _chip_edges(model, chips)
    paths: dict[tuple[int, int], Terms] = {}
    for a in range(chips):
        for c in range(a + 1, chips):
            # A path to c ends with an edge from some b.
            steps = [
                (paths[a, b], edges[b, c]) for b in range(a + 1, c) if paths[a, b] and edges[b, c]
            ]
            for path, edge in steps:
                if edges[a, c]:
                    model.add_row([*path, *edge, *edges[a, c]], 2.0)
            paths[a, c] = model.maximum(
                [edges[a, c], *([*path, *edge, (ONE, -1.0)] for path, edge in steps)]
            )
    _state_intervals(model, reach)
    return True


def _chip_edges(model: Model, chips: int) -> dict[tuple[int, int], Terms]:
    """At least [some edge leads from chip a to chip b], for a < b."""
    choices: dict[tuple[int, int], list[Terms]] = {
        (a, b): [] for a in range(chips) for b in range(a + 1, chips)
    }
    low, high = model.low.tolist(), model.high.tolist()
    for u, v in model.problem.contracted_pairs.tolist():
        for a in range(low[u], high[u] + 1):
            here = model.on(u, a)
            for b in range(max(a + 1, low[v]), high[v] + 1):
                choices[a, b].append([*here, *model.on(v, b), (ONE, -1.0)])
    return {pair: model.maximum(terms) for pair, terms in choices.items()}


def _state_intervals(model: Model, reach: FloatArray) -> None:
    """What lies between the ends u, v of an edge is on the chip of u or on that of v."""
    low, high = model.low.tolist(), model.high.tolist()
    room = _MOST_ROWS // 4
    for u, v in model.problem.contracted_pairs.tolist():
        between = np.flatnonzero((reach[u] > 0) & (reach[:, v] > 0))
        for w in between.tolist():
            if w in (u, v) or low[u] == high[v]:
                continue
            levels = range(min(low[u], low[w]) + 1, high[v] + 1)
            room -= 2 * len(levels)
            if room < 0:
                return
            # [f(w) > f(u)], and then f(w) = f(v).
            left = model.maximum([(model.z(w, c), 1.0), (model.z(u, c), -1.0)] for c in levels)
            for c in levels:
                model.add_row([(model.z(v, c), 1.0), (model.z(w, c), -1.0), *left], 1.0)
