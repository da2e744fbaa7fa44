"""The default: what is best, in the order of what it costs."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from jaxpart.search.orders import slice_search
from jaxpart.search.proofs import ideals
from jaxpart.search.state import Search
from jaxpart.search.workers import Workers

# Beyond this many bits (blocks x chips) the integer program takes longer to state than to be of
# use.
_PROVABLE_BITS = 8000


def auto(search: Search) -> Generator[None]:
    """The program order cut optimally, then ideals, then evolution of orders beside the solver.

    Without a time limit the solver only repairs, so that the same seed gives the same answer.

    Where ideals are few, the second step proves the optimum and the search is over. Elsewhere the
    device evolves orders while SCIP repairs what memory forbids, polishes the best and, on small
    graphs, works on a proof.
    """
    # Fewest chips and nothing sent: the best where transfers cost more than they save.
    search.samples += 1
    search.offer(np.zeros((search.problem.num_nodes, 1), np.int64))
    yield
    slicing = slice_search(search)
    next(slicing)
    yield
    yield from ideals(search)
    search.enter("slicing, solver")
    problem = search.problem
    with Workers(search) as workers:
        if problem.num_blocks * problem.num_chips <= _PROVABLE_BITS:
            workers.prove()
        for _ in slicing:
            workers.repair_promising()
            workers.polish_best()
            workers.collect()
            yield
