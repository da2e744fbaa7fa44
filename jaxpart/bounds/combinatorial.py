"""Lower bounds on the bottleneck of every valid partition, each with its proof."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpart.bounds.ideals.pairs import PairSolution
from jaxpart.bounds.intervals import heaviest_interval, sums
from jaxpart.problem.problem import Problem

# Bounds come from float64 sums; this much is given away so that rounding never lifts one too high.
_SAFETY = 1e-9


class Bound(NamedTuple):
    """A proven lower bound and the name of its proof."""

    seconds: float
    method: str


def combinatorial_bound(problem: Problem) -> Bound:
    """The best of the mean load, the largest contracted node and, by the triangle rule, edges'
    intervals.
    """
    return max(_mean_load(problem), _largest_contracted(problem), _widest_interval(problem))


def _mean_load(problem: Problem) -> Bound:
    """All the work, spread evenly.

    Proof. Let r be a kind of chip and x_s = max over nodes of tau(v, r) / tau(v, s), how much
    faster kind s is than r at best. A chip of kind s busy for at most T does work that takes r at
    most x_s T. All work takes r sum_v tau(v, r), so T >= sum_v tau(v, r) / sum_c x_kind(c). The
    best r.
    """
    node_s = problem.node_s
    best = 0.0
    for r in range(node_s.shape[1]):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(node_s > 0, node_s[:, [r]] / node_s, 0.0)
        # A node that is free on s but not on r makes s infinitely fast: no bound from this r.
        if ((node_s == 0) & (node_s[:, [r]] > 0)).any():
            continue
        share = ratio.max(axis=0)[problem.chip_kind].sum()
        if share > 0:
            best = max(best, float(node_s[:, r].sum() / share))
    return Bound(best * (1 - _SAFETY), "mean load")


def _largest_contracted(problem: Problem) -> Bound:
    """Some chip runs the largest block.

    Proof. The nodes of a contracted node share a chip (colocation and, with acyclic dataflow, the
    cycles that it makes), whose compute is at least the contracted node's on the fastest chip that
    it may be on.
    """
    contracted_s = np.zeros((problem.num_contracted, problem.node_s.shape[1]))
    np.add.at(contracted_s, problem.contraction, problem.node_s)
    pinned = problem.contracted_fixed_chip >= 0
    fastest = contracted_s.min(axis=1)
    kind = problem.chip_kind[problem.contracted_fixed_chip[pinned]]
    fastest[pinned] = contracted_s[pinned, kind]
    return Bound(float(fastest.max()) * (1 - _SAFETY), "largest node")


def _widest_interval(problem: Problem) -> Bound:
    """Two chips run all that lies between and at the ends of an edge.

    Proof: `intervals`. One of the two takes at least half of it, on the fastest chips there are.
    """
    rules = problem.mcm.constraints
    if not (rules.triangle and rules.acyclic):
        return Bound(0.0, "edge interval")
    found = heaviest_interval(problem, sums(problem.contracted.node_s.min(axis=1)))
    seconds = 0.0 if found is None else found.amount / 2
    return Bound(seconds * (1 - _SAFETY), "edge interval")


def bound_of(relaxed: PairSolution, incumbent_s: float) -> Bound:
    """The bound that the dynamic program over all ideals proves; `relaxed` is its outcome.

    Proof. With acyclic dataflow every partition is a chain of ideals I_0 < I_1 < ...; chip c runs
    I_c - I_{c-1}, and on a chain of chips link (c, c+1) carries every tensor made in I_c and
    consumed outside. The program takes the best chain by costs that are no higher than the true
    ones, over a superset of what is valid. Pieces beyond `incumbent_s` are left out, so it says
    nothing there.
    """
    return Bound(min(relaxed.bottleneck_s, incumbent_s) * (1 - _SAFETY), "ideals")
