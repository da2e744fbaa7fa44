"""Methods that need no luck: the baseline, and the exact programs."""

from __future__ import annotations

from collections.abc import Iterator

from jaxpart.bound import Bound, bound_of
from jaxpart.ideals import list_ideals, solve
from jaxpart.search.engine import Search

# A graph with more ideals than this is not narrow: listing them is a second, pairs are many.
MOST_IDEALS = 40_000
# With memory tight, the program is run again with a smaller share of it for what it sees.
_ROOMS = (1.0, 0.95, 0.9, 0.8, 0.65, 0.5)


def greedy(search: Search) -> Iterator[None]:
    """The baseline alone, which the engine has run already."""
    search.start_clock()
    yield


def ideals(search: Search) -> Iterator[None]:
    """Bounds by the dynamic program over ideals, and the best partition within the span rule."""
    search.enter("ideals")
    problem = search.problem
    search.start_clock()
    found = list_ideals(problem, MOST_IDEALS) if problem.mcm.constraints.acyclic else None
    if found is None:
        search.notes.append(f"more than {MOST_IDEALS} ideals: no bound from them")
        return
    yield
    cutoff_s = search.best_s if search.best is not None else float(found.load_s[-1].max()) * 4
    relaxed = solve(problem, found, cutoff_s, span=False)
    if relaxed is None:
        search.notes.append("too many pairs of ideals: no bound from them")
        return
    search.samples += 1
    if relaxed.assignment is not None:
        search.offer(relaxed.assignment[:, None])
    search.raise_bound(bound_of(relaxed, cutoff_s))
    yield
    for room in _ROOMS:
        outcome = solve(problem, found, cutoff_s, span=True, room=room)
        search.samples += 1
        if outcome is None or outcome.assignment is None:
            return
        search.offer(outcome.assignment[:, None])
        yield
        if search.best_s <= outcome.bottleneck_s * (1 + 1e-9):
            return


def exact(search: Search) -> Iterator[None]:
    raise NotImplementedError
    yield


_ = Bound
