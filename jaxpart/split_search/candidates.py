"""Split graphs with a partition each: ways to split, compared by cuts of the node order."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxpart.bounds.ideals.lattice import prefixes
from jaxpart.bounds.ideals.pairs import solve, with_figures
from jaxpart.bounds.ideals.parametric_search import ParametricSearch, can_count, compile_counting
from jaxpart.cost.greedy import baseline
from jaxpart.cost.host import bottleneck_s
from jaxpart.ingest.rewrite.relays import relayed
from jaxpart.ingest.rewrite.split import Split
from jaxpart.ingest.rewrite.split import split as rewritten
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.solvers.construct import keeps_rules
from jaxpart.split_search.budget import Turn
from jaxpart.splitting import GROWTH, LOAD_SHARE, refine, split, within_growth

# Each way to split is tried with a cut of the node order: shares of the mean load above which an
# operation is split, and by how much the graph may grow before parts on one chip are joined.
LOAD_SHARES = tuple(LOAD_SHARE / 2**i for i in range(4))
GROWTHS = (GROWTH, 3 * GROWTH, 9 * GROWTH)
# Seconds of one try for each node of the graph as split, about.
NODE_S = 0.7e-3
# Most tries and refinements; fewer where no time limit ends them.
_MOST_REFINEMENTS, _MOST_UNTIMED = 60, 6
_GAP = 1e-3  # of a cut of the order, which only gives a start
# Share of a chip's memory that a search leaves free for the copies that come after it.
_FREE_SHARE = 0.02
# Most contracted nodes for the program over pairs of prefixes, which then takes about a second.
_MOST_PAIRED = 1000
# Segments whose memory that program weighs exactly.
_FEW_WEIGHINGS = 2000


class Candidate(NamedTuple):
    """A partition of a split graph, found without the triangle rule."""

    made: Split
    assignment: IntArray  # [M]
    seconds: float  # bottleneck after copies were added; inf if it is not valid then


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be split, and for which module."""

    graph: Graph
    mcm: MCM
    most: int  # parts of an operation

    @property
    def relaxed(self) -> MCM:
        """The module without the triangle rule, with some memory kept free for copies."""
        if not self.mcm.constraints.triangle:
            return self.mcm
        chips = tuple(
            dataclasses.replace(chip, sram_bytes=chip.sram_bytes * (1 - _FREE_SHARE))
            for chip in self.mcm.chips
        )
        # The triangle rule implies that data never flows to a lower chip.
        rules = dataclasses.replace(self.mcm.constraints, triangle=False, acyclic=True)
        return dataclasses.replace(self.mcm, chips=chips, constraints=rules)


@dataclasses.dataclass
class Found:
    """What the tries have found so far, where another thread can read it.

    Attributes:
      best: the best candidate.
      finest: the last graph with parts that was tried.
      is_complete: whether every way was tried.
    """

    best: Candidate | None = None
    finest: Split | None = None
    is_complete: bool = False


def try_ways(task: Task, whole: IntArray | None, whole_s: float, found: Found, turn: Turn) -> None:
    """Finds the split with the best cut of its order, or with the partition that is known.

    Args:
      task: what is to be split.
      whole: [N] a partition of the graph as it is; None: there is none.
      whole_s: its bottleneck; inf: there is none.
      found: receives the outcome.
      turn: the time for it.
    """
    relaxed = task.relaxed
    nodes = len(task.graph.nodes)
    tries = 0
    for growth, make in _ways(task):
        is_over = not turn.is_timed and tries == _MOST_UNTIMED
        if is_over or turn.left_s <= (1 + growth) * nodes * NODE_S * turn.is_timed:
            return
        made = make()
        if made is None:
            continue
        tries += 1
        found.finest = made if made.cuts else found.finest
        problem = Problem.build(made.graph, relaxed)
        starts = [_order_cut(problem, whole_s, turn)]
        if whole is not None:
            starts.append(np.array(made.extended(whole.tolist())))
        for f in starts:
            if f is None:
                continue
            one = candidate(made, f, task.mcm)
            # Unlike chips have poor cuts: joined, they would leave nothing to search.
            one = joined(one, task.mcm) if can_count(problem) else one
            if within_growth(one.made, task.mcm) and (
                found.best is None or one.seconds < found.best.seconds
            ):
                found.best = one
    found.is_complete = True


def _ways(task: Task) -> Iterator[tuple[float, Callable[[], Split | None]]]:
    """How much a graph may grow, and a function that makes it; None: nothing is split."""
    if task.mcm.constraints.triangle:  # copies alone may serve
        yield 0.0, lambda: rewritten(task.graph, {})
    for growth, share in itertools.product(GROWTHS, LOAD_SHARES):
        yield growth, lambda growth=growth, share=share: _with_parts(task, growth, share)


def _with_parts(task: Task, growth: float, share: float) -> Split | None:
    made = split(task.graph, task.mcm, most=task.most, load_share=share, growth=growth)
    return made if made.cuts else None


def is_anything_split(task: Task) -> bool:
    """Whether the finest way to split has parts."""
    return _with_parts(task, GROWTHS[-1], LOAD_SHARES[-1]) is not None


def refine_further(task: Task, found: Found, turn: Turn) -> None:
    """Splits what binds further, and cuts the order again, as long as the graph may grow.

    Args:
      task: what is to be split.
      found: has a best candidate, and receives better ones.
      turn: the time for it.
    """
    best = last = found.best
    if best is None or last is None:
        return
    relaxed = task.relaxed
    for _ in range(_MOST_REFINEMENTS if turn.is_timed else _MOST_UNTIMED):
        if turn.left_s <= len(last.made.graph.nodes) * NODE_S * turn.is_timed:
            return
        finer = refine(last.made, relaxed, last.assignment.tolist(), most_parts=task.most)
        if finer is None:
            return
        made, carried = finer
        cut = _order_cut(Problem.build(made.graph, relaxed), last.seconds, turn)
        starts = [np.array(carried), *([] if cut is None else [cut])]
        last = min((candidate(made, f, task.mcm) for f in starts), key=lambda one: one.seconds)
        if last.seconds < best.seconds:
            smaller = joined(last, task.mcm)
            if within_growth(smaller.made, task.mcm):
                found.best = best = smaller


def _order_cut(problem: Problem, cutoff_s: float, turn: Turn) -> IntArray | None:
    """The best cut of the node order without the triangle rule; a good one for unlike chips.

    Args:
      problem: without the triangle rule.
      cutoff_s: for unlike chips, what a cut should be better than.
      turn: the time for it.
    """
    turn.count_sample()

    if can_count(problem):
        compile_counting()
        search = ParametricSearch(problem, prefixes(problem))
        chain = search.best(0.0, math.inf, gap=_GAP, give_up=lambda: turn.is_late)
        return None if chain is None else chain.assignment
    if problem.mcm.constraints.acyclic and problem.num_contracted <= _MOST_PAIRED:
        outcome = solve(
            problem,
            with_figures(problem, prefixes(problem)),
            cutoff_s,
            span=False,
            is_bound=False,
            weighings=_FEW_WEIGHINGS,
            give_up=lambda: turn.is_late,
        )
        if outcome is not None and outcome.assignment is not None:
            return outcome.assignment
    return baseline(problem)


def joined(one: Candidate, mcm: MCM) -> Candidate:
    """The candidate with neighbouring parts on one chip joined, where that costs nothing."""
    made, chips = one.made.joined(one.assignment.tolist())
    merged = candidate(made, np.array(chips), mcm)
    return merged if merged.seconds <= one.seconds else one


def candidate(made: Split, assignment: IntArray, mcm: MCM) -> Candidate:
    """A candidate with its bottleneck on the module, copies included."""
    after, f = handed_on(made, assignment, mcm)
    problem = Problem.build(after.graph, mcm)
    valid = keeps_rules(problem, f)
    return Candidate(made, assignment, bottleneck_s(problem, f) if valid else math.inf)


def handed_on(made: Split, assignment: IntArray, mcm: MCM) -> tuple[Split, IntArray]:
    """The split with copies where the triangle rule needs them, and its partition.

    Copies cannot help where data flows to a lower chip: the split is returned as it is.
    """
    chips = assignment.tolist()
    flows_back = any(chips[k.producer] > chips[q] for k in made.graph.tensors for q in k.consumers)
    if flows_back or not mcm.constraints.triangle:
        return made, assignment
    after, chips = relayed(made, chips)
    return after, np.array(chips)
