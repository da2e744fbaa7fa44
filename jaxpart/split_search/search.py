"""Searches a graph whose large operations are split, beside the graph as it is.

On a chain of chips, parts of one operation on neighbouring chips read one tensor, and the triangle
rule forbids most ways to give it to them. So the graph as split is searched without that rule, and
copies then hand on what would take a short cut (`ingest/rewrite/relays.py`). The outcome is a graph
with parts and copies, on which a last search begins under all rules. Its bound is that of this
graph, not of the graph as it was.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NoReturn

from jaxpart.bounds.combinatorial import combinatorial_bound
from jaxpart.bounds.ideals.parametric_search import compile_counting
from jaxpart.bounds.infeasible import why_infeasible
from jaxpart.cost.evaluate import score
from jaxpart.errors import InfeasibleError, JaxpartError, NothingFoundError
from jaxpart.ingest.rewrite.split import Split
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results.evaluation import rescaling_notes
from jaxpart.results.result import Result
from jaxpart.results.splitting import SplitInfo
from jaxpart.split_search.budget import Searches
from jaxpart.split_search.candidates import (
    GROWTHS,
    NODE_S,
    Candidate,
    Found,
    Task,
    candidate,
    handed_on,
    is_anything_split,
    joined,
    refine_further,
    try_ways,
)

# Shares of the time and of the samples: for the graph as it is, and for the graph as split.
_WHOLE_SHARE, _RELAXED_SHARE = 0.2, 0.5
# Shares for trying ways to split, and for splitting what binds further.
_TRY_SHARE, _REFINE_SHARE = 0.15, 0.15
_LOOK_SHARE = 0.02  # for a look whether anything would be split


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
      InfeasibleError: the graph as it is has no valid partition, and nothing can be split or the
        graph as split has none either.
      NothingFoundError: none was found.
      KeyboardInterrupt: interrupted before anything valid was found.
    """
    task = Task(graph, mcm, most)
    if not _may_split(task, run):
        return run(graph, mcm, None, 1.0)
    result = _SplitSearch(task, run, relative_gap).best()
    return dataclasses.replace(result, search=run.total(result.search))


def _may_split(task: Task, run: Searches) -> bool:
    """Whether anything but a search of the graph as it is can come of it."""
    if not any(node.divide for node in task.graph.nodes):
        return False
    look_s = len(task.graph.nodes) * (1 + GROWTHS[-1]) * NODE_S
    if task.mcm.constraints.triangle or look_s > _LOOK_SHARE * run.left_s:
        return True
    return is_anything_split(task)


class _SplitSearch:
    """The steps of one search with splitting."""

    def __init__(self, task: Task, run: Searches, relative_gap: float) -> None:
        self.task, self.run, self.relative_gap = task, run, relative_gap
        self.graph, self.mcm, self.relaxed = task.graph, task.mcm, task.relaxed
        self.whole: Result | None = None
        self.failure: JaxpartError | None = None  # of the search of the graph as it is

    def best(self) -> Result:
        """The better one of the graph as it is and the graph as split."""
        run = self.run
        self.whole, self.failure = self._tried(self.graph, self.mcm, None, _WHOLE_SHARE)
        whole, found = self.whole, Found()
        if whole is not None:
            least_s = whole.problem.mean_load_s  # parts take no less
            if whole.bottleneck_s <= least_s * (1 + self.relative_gap):
                return whole
        if not run.may_go_on:
            return self._whole_or_raise(found)
        run.compile(compile_counting)
        f = None if whole is None else whole.assignment
        whole_s = math.inf if whole is None else whole.bottleneck_s
        run.in_time(lambda turn: try_ways(self.task, f, whole_s, found, turn), _TRY_SHARE)
        if found.best is None:
            return self._whole_further(found)
        if run.may_go_on:
            run.in_time(lambda turn: refine_further(self.task, found, turn), _REFINE_SHARE)
        one = found.best
        if run.may_go_on:
            one = self._searched(one)
        return self._last(joined(one, self.mcm), found)

    def _tried(
        self,
        graph: Graph,
        mcm: MCM,
        start: IntArray | None,
        share: float,
        *,
        is_valid: bool = True,
    ) -> tuple[Result | None, JaxpartError | None]:
        """A search's result, or why there is none; neither after an interrupt."""
        try:
            return self.run(graph, mcm, start, share, is_valid=is_valid), None
        except (InfeasibleError, NothingFoundError) as error:
            return None, error
        except KeyboardInterrupt:
            self.run.note_interrupt()
            return None, None

    def _searched(self, start: Candidate) -> Candidate:
        """Searches the graph as split without the triangle rule."""
        made = start.made
        found, _ = self._tried(
            made.graph,
            self.relaxed,
            start.assignment,
            _RELAXED_SHARE,
            is_valid=self.relaxed == self.mcm,
        )
        if found is None:
            return start
        better = joined(candidate(made, found.assignment, self.mcm), self.mcm)
        return min(start, better, key=lambda one: one.seconds)

    def _last(self, one: Candidate, found: Found) -> Result:
        """Searches the graph with parts and copies, which may only improve the candidate."""
        whole = self.whole
        if whole is not None and one.seconds >= whole.bottleneck_s and not self.run.may_go_on:
            return _unsplit(whole)
        made, assignment = handed_on(one.made, one.assignment, self.mcm)
        if not made.cuts and not made.passes:  # it is the graph as it was
            self.whole = _better(self.whole, self._result(self.graph, assignment))
            return self._whole_further(found)
        kept, error = self._result(made.graph, assignment), None
        last = None
        if self.run.may_go_on:
            last, error = self._tried(made.graph, self.mcm, assignment, 1.0)
        best = _better(kept, last)
        if best is None:
            return self._whole_or_raise(found, error)
        if whole is not None and best.bottleneck_s >= whole.bottleneck_s:
            return _unsplit(whole)
        return dataclasses.replace(
            best,
            baseline_s=None if whole is None else whole.baseline_s,
            bound_method=f"{best.bound_method}, of the graph with these parts and copies",
            split=SplitInfo.of(made, self.mcm, None if whole is None else whole.bottleneck_s),
        )

    def _result(self, graph: Graph, assignment: IntArray) -> Result | None:
        """A partition as a result; None if it is not valid."""
        problem = Problem.build(graph, self.mcm)
        costs = score(problem, assignment)
        if not costs.valid:
            return None
        seconds, bound = float(costs.bottleneck_s), combinatorial_bound(problem)
        self.run.note_valid(seconds)
        return Result(
            problem,
            assignment,
            costs,
            None if self.whole is None else self.whole.baseline_s,
            min(bound.seconds, seconds),
            bound.method,
            rescaling_notes(graph, problem),
            self.run.info(seconds),
        )

    def _whole_further(self, found: Found) -> Result:
        """Searches the graph as it is for the rest of the time, from what is known of it."""
        whole = self.whole
        if self.run.may_go_on and not isinstance(self.failure, InfeasibleError):
            start = None if whole is None else whole.assignment
            more, self.failure = self._tried(self.graph, self.mcm, start, 1.0)
            self.whole = _better(whole, more)
        return self._whole_or_raise(found)

    def _whole_or_raise(self, found: Found, error: JaxpartError | None = None) -> Result:
        """What is known of the graph as it is, or why nothing was found.

        Args:
          found: what the tries have found.
          error: of the search of the graph with parts and copies.
        """
        if self.whole is not None:
            return self.whole
        self._raise(found, error)

    def _raise(self, found: Found, error: JaxpartError | None) -> NoReturn:
        if self.run.is_interrupted:
            raise KeyboardInterrupt
        failure = self.failure or NothingFoundError("no valid partition found in the time")
        if not isinstance(failure, InfeasibleError):
            raise failure
        if found.is_complete and found.finest is None:
            raise InfeasibleError(f"{failure}; no way to split its operations serves")
        proof = str(error) if isinstance(error, InfeasibleError) else self._proof(found.finest)
        before = f"as it is, the graph has no valid partition ({failure})"
        if proof is not None:
            raise InfeasibleError(f"{before}; nor has it as it was split: {proof}")
        raise NothingFoundError(
            f"{before}; with operations split, none was found, but one may exist"
        )

    def _proof(self, finest: Split | None) -> str | None:
        """Why the graph with the finest parts has no valid partition, whatever copies there are."""
        if finest is None:
            return None
        rules = dataclasses.replace(self.mcm.constraints, triangle=False)
        module = dataclasses.replace(self.mcm, constraints=rules)
        return why_infeasible(Problem.build(finest.graph, module))


def _unsplit(whole: Result) -> Result:
    note = "splitting operations brought nothing; the graph is as it was"
    return dataclasses.replace(whole, notes=(*whole.notes, note))


def _better(one: Result | None, other: Result | None) -> Result | None:
    """The faster of two results on one graph, with the higher bound."""
    if one is None or other is None:
        return one if other is None else other
    best = one if one.bottleneck_s < other.bottleneck_s else other
    proof = max(one, other, key=lambda result: result.lower_bound_s)
    return dataclasses.replace(
        best,
        lower_bound_s=min(proof.lower_bound_s, best.bottleneck_s),
        bound_method=proof.bound_method,
        baseline_s=one.baseline_s if best.baseline_s is None else best.baseline_s,
    )
