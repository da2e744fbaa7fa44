"""Seconds of nodes in their context: what nodes take together is shared out among them.

A node that is measured alone is a program of its own: it is started by itself, nothing is fused
into it, and its operands come from memory. Stages are programs of many nodes. So programs of
consecutive nodes are measured too, and the seconds of the nodes are those that explain them best.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import lsq_linear

from jaxpart.problem.problem import FloatArray

PIECES = (1, 2, 3, 5, 8, 13, 21)  # numbers of programs that the nodes are cut into, one by one
_FEWEST = 4  # nodes of a program
# How far seconds may be from the truth or from a guess; each is a ratio.
_NOISE = 0.02  # a program's, as measured
_OPERATOR = 1.0  # what operators take in context for each second alone, from that of all
_NODE = 0.3  # likewise a node of the mean time, from its operator's
_NOTHING_S = 1e-12
_LEAST = 0.002  # of the mean node: also a node that took no time alone may take some


def piece_cuts(count: int) -> list[list[int]]:
    """Where `count` nodes in order are cut into programs of about equal numbers of nodes.

    Returns:
      For each of `PIECES` that leaves a few nodes to a program, the ascending places of cuts.
    """
    numbers = [pieces for pieces in PIECES if pieces == 1 or count >= _FEWEST * pieces]
    return [[count * i // pieces for i in range(1, pieces)] for pieces in numbers]


def segments_of(cuts: Sequence[int], kept: Sequence[int], count: int) -> list[tuple[int, int]]:
    """The programs between cuts, as `shared_out` takes them.

    Args:
      cuts: ascending places among `count` nodes.
      kept: ascending numbers of the nodes that are looked at.
      count: of all nodes.

    Returns:
      For each program the first of its nodes among those kept, and the one after its last.
    """
    ends = np.searchsorted(kept, [0, *cuts, count]).tolist()
    return list(itertools.pairwise(ends))


def shared_out(
    segments: Sequence[tuple[int, int]],
    seconds: Sequence[float],
    alone: Sequence[float],
    operators: Sequence[str],
) -> tuple[FloatArray, float]:
    """The seconds of nodes, of which those of programs are the sums, and of starting a program.

    Node v takes a[operator of v] * alone[v] + d[v], 0 or more; a program takes what its nodes do,
    and the time of starting it. A least-squares problem weighs how far programs are from what was
    measured, each a from that of all nodes, and each d from 0; all are thought to be normal.

    Args:
      segments: [S] the first node of a program, and the one after its last.
      seconds: [S] of the programs, above 0.
      alone: [N] seconds of nodes alone, without starting them.
      operators: [N] their names.

    Returns:
      [N] seconds of the nodes in the programs, and those that starting a program takes.
    """
    taken = np.asarray(seconds, np.float64)
    guess = np.maximum(np.asarray(alone, np.float64), 0.0)
    guess += _LEAST * guess.mean() if guess.any() else taken.max() / len(guess)
    member = sparse.csr_array(
        np.array([[first <= v < end for v in range(len(guess))] for first, end in segments], float)
    )
    guess *= float(np.median(taken / (member @ guess)))
    kinds, kind = np.unique(np.asarray(operators), return_inverse=True)
    # The unknowns: seconds of nodes in units of their spread, a, and the start in its own unit.
    unit, start_s = np.sqrt(guess * guess.mean()), float(taken.min())
    programs = sparse.diags_array(1 / (_NOISE * taken))
    starts = sparse.csr_array(np.full((len(taken), 1), start_s))
    nodes = sparse.eye_array(len(guess)) / _NODE
    of_kind = sparse.csr_array(
        (guess / unit / _NODE, (np.arange(len(guess)), kind)), shape=(len(guess), len(kinds))
    )
    system = sparse.block_array(
        [
            [
                programs @ member @ sparse.diags_array(unit),
                None,
                programs @ starts,
            ],
            [nodes, -of_kind, None],
            [None, sparse.eye_array(len(kinds)) / _OPERATOR, None],
        ],
        format="csr",
    )
    wanted = np.concatenate(
        [np.full(len(taken), 1 / _NOISE), np.zeros(len(guess)), np.full(len(kinds), 1 / _OPERATOR)]
    )
    found = lsq_linear(system, wanted, (0.0, np.inf), lsq_solver="lsmr", tol=1e-9).x
    inside = found[: len(guess)] * unit
    inside[inside < _NOTHING_S] = 0.0  # the solver comes near 0, not to it
    start_s *= float(found[-1])
    return inside, start_s if start_s >= _NOTHING_S else 0.0
