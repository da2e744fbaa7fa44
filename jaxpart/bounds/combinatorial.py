"""Combinatorial lower bounds on the bottleneck of every valid partition, each with its proof."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxpart.bounds.ideals.pairs import PairSolution
from jaxpart.bounds.intervals import heaviest_interval, sums
from jaxpart.problem.problem import Problem

# Relative amount by which float64 bounds are lowered, so that rounding never makes one too high.
_SAFETY = 1e-9


class Bound(NamedTuple):
    """A proven lower bound."""

    seconds: float
    method: str  # the name of its proof


def combinatorial_bound(problem: Problem) -> Bound:
    """The best of three bounds: mean load, largest contracted node, and widest edge interval."""
    return max(_mean_load(problem), _largest_contracted(problem), _widest_interval(problem))


def _mean_load(problem: Problem) -> Bound:
    """Bound from all the work, spread evenly over the chips.

    Proof.
    1. Let r be a kind of chip, and for each kind s let x_s = max_v tau(v, r) / tau(v, s). So kind s
       is at most x_s times as fast as kind r.
    2. A chip of kind s computes for at most T. On kind r its nodes would take at most x_s T.
    3. All nodes take sum_v tau(v, r) on kind r, so sum_v tau(v, r) <= T sum_c x_kind(c), summed
       over the chips c.
    4. This holds for every kind r; the bound takes the best one.
    """
    node_s = problem.node_s
    best = 0.0
    for r in range(node_s.shape[1]):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(node_s > 0, node_s[:, [r]] / node_s, 0.0)
        # A node that takes no time on s but some on r makes x_s infinite: r gives no bound.
        if ((node_s == 0) & (node_s[:, [r]] > 0)).any():
            continue
        share = ratio.max(axis=0)[problem.chip_kind].sum()
        if share > 0:
            best = max(best, float(node_s[:, r].sum() / share))
    return Bound(best * (1 - _SAFETY), "mean load")


def _largest_contracted(problem: Problem) -> Bound:
    """Bound from the largest contracted node.

    Proof. The nodes of a contracted node share a chip (`Problem.contraction`). This chip computes
    for at least as long as the contracted node takes on the fastest chip that it may be on.
    """
    contracted_s = np.zeros((problem.num_contracted, problem.node_s.shape[1]))
    np.add.at(contracted_s, problem.contraction, problem.node_s)
    fixed = problem.contracted_fixed_chip >= 0
    fastest = contracted_s.min(axis=1)
    kind = problem.chip_kind[problem.contracted_fixed_chip[fixed]]
    fastest[fixed] = contracted_s[fixed, kind]
    return Bound(float(fastest.max()) * (1 - _SAFETY), "largest node")


def _widest_interval(problem: Problem) -> Bound:
    """Bound from the edge interval with the most work.

    Proof. Two chips run the whole interval (`bounds/intervals.py`). One of them does at least half
    of its work, where the work of each node is taken on the fastest kind of chip.
    """
    rules = problem.mcm.constraints
    if not (rules.triangle and rules.acyclic):
        return Bound(0.0, "edge interval")
    found = heaviest_interval(problem, sums(problem.contracted.node_s.min(axis=1)))
    seconds = 0.0 if found is None else found.amount / 2
    return Bound(seconds * (1 - _SAFETY), "edge interval")


def bound_of(relaxed: PairSolution, incumbent_s: float) -> Bound:
    """The bound that the dynamic program over all ideals proves.

    Proof.
    1. With acyclic dataflow every partition is a chain of ideals I_0 <= I_1 <= ...; chip c runs the
       segment I_c - I_{c-1}. On a chain of chips, link (c, c + 1) carries every tensor that is made
       in I_c and consumed outside.
    2. The program minimises over a superset of the valid partitions, with costs that are at most
       the true ones.
    3. It leaves out segments that cost more than `incumbent_s`, so it proves at most that value.

    Args:
      relaxed: outcome of the program (`bounds/ideals/pairs.py`), run without the rules that it
        cannot check completely.
      incumbent_s: the limit of a segment's cost in seconds.
    """
    return Bound(min(relaxed.bottleneck_s, incumbent_s) * (1 - _SAFETY), "ideals")
