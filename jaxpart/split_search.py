"""Searches a graph whose large operations are split, beside the graph as it is.

On a chain of chips, parts of one operation on neighbouring chips read one tensor, and the triangle
rule forbids most ways to give it to them. So the graph as split is searched without that rule, and
copies then hand on what would take a short cut (`ingest/rewrite/relays.py`). The outcome is a graph
with parts and copies, on which a last search begins under all rules. Its bound is that of this
graph, not of the graph as it was.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxpart.bounds.ideals.lattice import prefixes
from jaxpart.bounds.ideals.parametric_search import ParametricSearch, can_count, compile_counting
from jaxpart.cost.host import bottleneck_s, memory_bytes, triangle_conflicts
from jaxpart.errors import InfeasibleError, NothingFoundError
from jaxpart.ingest.rewrite.relays import relayed
from jaxpart.ingest.rewrite.split import Split
from jaxpart.ingest.rewrite.split import split as rewritten
from jaxpart.problem.graph import Graph, Node
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results.result import Result, SearchInfo
from jaxpart.results.splitting import SplitInfo
from jaxpart.runtime.state import Progress
from jaxpart.splitting import GROWTH, LOAD_SHARE, refine, split, within_growth

# Each way to split is tried with a cut of the node order: shares of the mean load above which an
# operation is split, and by how much the graph may grow before parts on one chip are joined.
_LOAD_SHARES = tuple(LOAD_SHARE / 2**i for i in range(4))
_GROWTHS = (GROWTH, 3 * GROWTH, 9 * GROWTH)
# Shares of the time and of the samples: for the graph as it is, and for the graph as split.
_WHOLE_SHARE, _RELAXED_SHARE = 0.2, 0.5
# Shares for trying ways to split, and for splitting what binds further.
_TRY_SHARE, _REFINE_SHARE = 0.15, 0.15
_MOST_REFINEMENTS = 60
_GAP = 1e-3  # of a cut of the order, which only gives a start
# Share of a chip's memory that a search leaves free for the copies that come after it.
_FREE_SHARE = 0.02
_LEAST_S = 0.5  # that one of several searches is worth


class Searches:
    """Searches one after the other, each with a share of what is left of one budget."""

    def __init__(
        self,
        run: Callable[..., Result],
        time_limit_s: float | None,
        max_samples: int | None,
        initial_assignment: ArrayLike | None,
        callback: Callable[[Progress], None] | None,
    ) -> None:
        """Begins the budget.

        Args:
          run: `partition` without splitting.
          time_limit_s: for all searches together; None: no limit.
          max_samples: likewise.
          initial_assignment: [N] the user's partition to start from; None: there is none.
          callback: the user's, for progress.
        """
        self._callback = callback
        self._run, self._initial_assignment = run, initial_assignment
        self._began_s = time.monotonic()
        self._ends_s = None if time_limit_s is None else self._began_s + time_limit_s
        self._max_samples, self._samples = max_samples, 0

    def is_late(self, share: float) -> Callable[[], bool]:
        """Tells whether a share of what is left now has passed; never without a time limit."""
        if self._ends_s is None:
            return lambda: False
        now_s = time.monotonic()
        until_s = now_s + share * (self._ends_s - now_s)
        return lambda: time.monotonic() > until_s

    def __call__(self, graph: Graph, mcm: MCM, start: np.ndarray | None, share: float) -> Result:
        """Searches with a share of what is left; errors are those of `partition`.

        Args:
          graph: of N nodes.
          mcm: the module.
          start: [N] a partition to start from. None: the user's for the first search, later none.
          share: of the time and samples that are left.
        """
        seconds = samples = None
        if self._ends_s is not None:
            seconds = max(share * (self._ends_s - time.monotonic()), _LEAST_S)
        if self._max_samples is not None:
            samples = max(math.ceil(share * (self._max_samples - self._samples)), 1)
        first, self._initial_assignment = self._initial_assignment, None
        result = self._run(
            graph,
            mcm,
            time_limit_s=seconds,
            max_samples=samples,
            initial_assignment=first if start is None else start,
            callback=self._progress_of_all(),
        )
        self._samples += result.search.samples
        return result

    def total(self, last: SearchInfo) -> SearchInfo:
        """What all searches took; the history is that of the last one."""
        wall_s = time.monotonic() - self._began_s
        return dataclasses.replace(last, samples=self._samples, wall_s=wall_s)

    def _progress_of_all(self) -> Callable[[Progress], None] | None:
        """A callback that adds the searches before."""
        callback, samples = self._callback, self._samples
        before_s = time.monotonic() - self._began_s
        if callback is None:
            return None

        def show(progress: Progress) -> None:
            callback(
                dataclasses.replace(
                    progress,
                    elapsed_s=progress.elapsed_s + before_s,
                    samples=progress.samples + samples,
                )
            )

        return show


class _Candidate(NamedTuple):
    """A partition of a split graph, found without the triangle rule."""

    made: Split
    assignment: IntArray  # [M]
    seconds: float  # bottleneck after copies were added; inf if it is not valid then


def split_search(
    graph: Graph, mcm: MCM, run: Searches, *, most: int, relative_gap: float
) -> Result:
    """The best partition of a graph, or of the graph with large operations split.

    Args:
      graph: the graph; only nodes with `divide` can be split.
      mcm: the module.
      run: searches.
      most: most parts of an operation.
      relative_gap: how close to the mean load a partition is good enough.

    Returns:
      The result on the graph as split (`Result.split`), or on the graph as it is where nothing is
      split or that is better.

    Raises:
      InfeasibleError: neither has a valid partition.
      NothingFoundError: none was found.
    """
    result = _best(graph, mcm, run, most, relative_gap)
    return dataclasses.replace(result, search=run.total(result.search))


def _best(graph: Graph, mcm: MCM, run: Searches, most: int, relative_gap: float) -> Result:
    whole, failure = None, None
    try:
        whole = run(graph, mcm, None, _WHOLE_SHARE)
    except (InfeasibleError, NothingFoundError) as error:
        failure = error
    if whole is not None:
        least_s = whole.problem.mean_load_s  # parts take no less
        if whole.search.interrupted or whole.bottleneck_s <= least_s * (1 + relative_gap):
            return whole
    relaxed = _relaxed(mcm)
    found = _started(graph, mcm, relaxed, most, whole, run.is_late(_TRY_SHARE))
    if found is None:
        return _or_raised(whole, failure)
    found = _refined(found, mcm, relaxed, run.is_late(_REFINE_SHARE))
    found = _searched(found, mcm, relaxed, run)
    made, assignment = _handed_on(found.made, found.assignment, mcm)
    try:
        last = run(made.graph, mcm, assignment, 1.0)
    except (InfeasibleError, NothingFoundError):
        return _or_raised(whole, failure)
    if whole is not None and last.bottleneck_s >= whole.bottleneck_s:
        note = "splitting operations brought nothing; the graph is as it was"
        return dataclasses.replace(whole, notes=(*whole.notes, note))
    return dataclasses.replace(
        last,
        bound_method=f"{last.bound_method}, of the graph as split",
        split=_info(graph, made, mcm, whole),
    )


def _or_raised(whole: Result | None, failure: Exception | None) -> Result:
    if whole is not None:
        return whole
    assert failure is not None
    raise failure


def _relaxed(mcm: MCM) -> MCM:
    """The module without the triangle rule, with some memory kept free for copies."""
    if not mcm.constraints.triangle:
        return mcm
    chips = tuple(
        dataclasses.replace(chip, sram_bytes=chip.sram_bytes * (1 - _FREE_SHARE))
        for chip in mcm.chips
    )
    rules = dataclasses.replace(mcm.constraints, triangle=False)
    return dataclasses.replace(mcm, chips=chips, constraints=rules)


def _started(
    graph: Graph,
    mcm: MCM,
    relaxed: MCM,
    most: int,
    whole: Result | None,
    is_late: Callable[[], bool],
) -> _Candidate | None:
    """The split with the best cut of the order; None if there is nothing to split or to hand on."""
    best: _Candidate | None = None
    for made in _splits(graph, mcm, most):
        starts = [_order_cut(Problem.build(made.graph, relaxed))]
        if whole is not None:
            starts.append(np.array(made.extended(whole.assignment.tolist())))
        for f in starts:
            one = None if f is None else _joined(_candidate(made, f, mcm), mcm)
            if (
                one is not None
                and within_growth(one.made, mcm)
                and (best is None or one.seconds < best.seconds)
            ):
                best = one
        if best is not None and is_late():
            break
    return best


def _splits(graph: Graph, mcm: MCM, most: int) -> Iterator[Split]:
    if mcm.constraints.triangle:  # copies alone may serve
        yield rewritten(graph, {})
    for growth, share in itertools.product(_GROWTHS, _LOAD_SHARES):
        made = split(graph, mcm, most=most, load_share=share, growth=growth)
        if made.cuts:
            yield made


def _joined(one: _Candidate, mcm: MCM) -> _Candidate:
    """The candidate with neighbouring parts on one chip joined, where that costs nothing."""
    made, chips = one.made.joined(one.assignment.tolist())
    merged = _candidate(made, np.array(chips), mcm)
    return merged if merged.seconds <= one.seconds else one


def _refined(start: _Candidate, mcm: MCM, relaxed: MCM, is_late: Callable[[], bool]) -> _Candidate:
    """Splits what binds further, and cuts the order again, as long as the graph may grow."""
    best = last = start
    for _ in range(_MOST_REFINEMENTS):
        finer = refine(last.made, relaxed, last.assignment.tolist())
        if finer is None or is_late():
            break
        made, carried = finer
        cut = _order_cut(Problem.build(made.graph, relaxed))
        starts = [np.array(carried), *([] if cut is None else [cut])]
        last = min((_candidate(made, f, mcm) for f in starts), key=lambda one: one.seconds)
        if last.seconds < best.seconds:
            joined = _joined(last, mcm)
            best = joined if within_growth(joined.made, mcm) else best
    return best


def _order_cut(problem: Problem) -> IntArray | None:
    """The best cut of the node order without the triangle rule; None where chips are unlike."""
    if not can_count(problem):
        return None
    compile_counting()
    chain = ParametricSearch(problem, prefixes(problem)).best(0.0, math.inf, gap=_GAP)
    return None if chain is None else chain.assignment


def _candidate(made: Split, assignment: IntArray, mcm: MCM) -> _Candidate:
    """A candidate with its bottleneck on the module, copies included."""
    after, f = _handed_on(made, assignment, mcm)
    problem = Problem.build(after.graph, mcm)
    fits = not mcm.constraints.memory or bool(
        (memory_bytes(problem, f) <= problem.capacity_bytes).all()
    )
    keeps = not mcm.constraints.triangle or not triangle_conflicts(problem, f)
    return _Candidate(made, assignment, bottleneck_s(problem, f) if fits and keeps else math.inf)


def _handed_on(made: Split, assignment: IntArray, mcm: MCM) -> tuple[Split, IntArray]:
    """The split with copies where the triangle rule needs them, and its partition."""
    if not mcm.constraints.triangle:
        return made, assignment
    after, chips = relayed(made, assignment.tolist())
    return after, np.array(chips)


def _searched(start: _Candidate, mcm: MCM, relaxed: MCM, run: Searches) -> _Candidate:
    """Searches the graph as split without the triangle rule."""
    try:
        found = run(start.made.graph, relaxed, start.assignment, _RELAXED_SHARE)
    except (InfeasibleError, NothingFoundError):
        return start
    better = _joined(_candidate(start.made, found.assignment, mcm), mcm)
    return min(start, better, key=lambda one: one.seconds)


def _info(graph: Graph, made: Split, mcm: MCM, whole: Result | None) -> SplitInfo:
    before, after = Problem.build(graph, mcm), Problem.build(made.graph, mcm)
    return SplitInfo(
        operations=len(made.cuts),
        parts=sum(cut.parts for cut in made.cuts.values()),
        sums=sum(node.op == "sum" and v is None for node, v in _nodes(made)),
        copies=sum(node.op == "copy" and v is None for node, v in _nodes(made)),
        nodes=len(graph.nodes),
        compute_ratio=after.mean_load_s / before.mean_load_s if before.mean_load_s else 1.0,
        whole_s=None if whole is None else whole.bottleneck_s,
        whole_mean_load_s=before.mean_load_s,
    )


def _nodes(made: Split) -> Iterator[tuple[Node, int | None]]:
    return zip(made.graph.nodes, made.whole_of, strict=True)
