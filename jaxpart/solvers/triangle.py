"""The chip triangle as rows for all chips at once, for proofs.

With lazy constraints, the solver starts anew whenever a solution breaks the rule, and its bound
ignores the rule. With few chips, it costs less to state the rule in full.
"""

from __future__ import annotations

import numpy as np

from jaxpart.problem.problem import FloatArray
from jaxpart.solvers.model import Model
from jaxpart.solvers.program import ONE, Terms

# Most rows for the rule; above it, the rule stays lazy, because stating it takes several seconds.
_MOST_ROWS = 250_000


def state_triangles(model: Model, reach: FloatArray) -> bool:
    """Adds the triangle rule to a model of dataflow.

    Let e[a, b] be at least [some edge leads from chip a to chip b] and r[a, b] at least [some path
    does]. The rule forbids e[a, c] together with r[a, b] and e[b, c].

    The consequence for the contracted nodes between the ends of an edge (`bounds/intervals.py`) is
    stated too, because solvers do not derive it.

    Args:
      model: of a problem with the triangle rule and acyclic dataflow.
      reach: [M, M] positive where a path leads from one contracted node to the other.

    Returns:
      Whether the rule was added; False where it would take too many rows.
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
    """Returns terms, for chips a < b, that are at least [some edge leads from chip a to chip b]."""
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
    """States that, for an edge (u, v), all that is on a path from u to v is on the chip of u or v.

    Otherwise a contracted node's chip is strictly between those of u and v, and the chip edge of
    (u, v) has a longer path. Rows are added only until a quarter of `_MOST_ROWS` is used up.
    """
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
            # left is [f(w) > f(u)]. If it is 1, the rows make f(v) <= f(w), and so f(w) = f(v).
            left = model.maximum([(model.z(w, c), 1.0), (model.z(u, c), -1.0)] for c in levels)
            for c in levels:
                model.add_row([(model.z(v, c), 1.0), (model.z(w, c), -1.0), *left], 1.0)
