"""Scores any partition, valid or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxpart.bounds.combinatorial import combinatorial_bound
from jaxpart.cost.evaluate import score
from jaxpart.cost.greedy import baseline_s_of
from jaxpart.cost.verdicts import Verdict, verdicts
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.results import report
from jaxpart.results.file import in_node_order
from jaxpart.results.scored import ScoredPartition


class Evaluation(ScoredPartition):
    """The result of `evaluate`: exact costs, and the verdict of every rule."""

    def verdicts(self) -> tuple[Verdict, ...]:
        """For each rule: whether it is on, whether it holds, and an example if it does not."""
        return verdicts(self.problem, self.assignment, self.costs)

    def summary(self) -> str:
        """A page of text: the costs, the verdicts, and a table of the chips."""
        return report.evaluation(self)


def evaluate(
    graph: Graph, mcm: MCM, assignment: Sequence[int] | IntArray | Mapping[str, int]
) -> Evaluation:
    """Scores and checks one partition of `graph` on `mcm`, in float64.

    Args:
      graph: of N nodes.
      mcm: of C chips.
      assignment: [N] chip of each node, or the chip of each node by the node's name. The partition
        may be invalid.

    Raises:
      InputError: the assignment does not give one chip of the module for each node, or a node is
        fixed to a chip that the module does not have.
    """
    problem = Problem.build(graph, mcm)
    if isinstance(assignment, Mapping):
        chips = in_node_order(dict(assignment), graph, mcm, graph.name)
    else:
        chips = problem.assignment_of(assignment)
    return evaluation_of(problem, chips, rescaling_notes(graph, problem))


def evaluation_of(problem: Problem, assignment: IntArray, notes: Sequence[str] = ()) -> Evaluation:
    """Scores one assignment [N] on a problem; the lower bound is the combinatorial one.

    Args:
      problem: of N nodes.
      assignment: [N] chip of each node; valid or not.
      notes: sentences for the user.
    """
    bound = combinatorial_bound(problem)
    return Evaluation(
        problem,
        assignment,
        score(problem, assignment),
        baseline_s_of(problem),
        bound.seconds,
        bound.method,
        tuple(notes),
    )


def rescaling_notes(graph: Graph, problem: Problem) -> tuple[str, ...]:
    """What the user should know where the module rescaled the bytes of the graph's floats."""
    if problem.graph is graph:
        return ()
    new = problem.graph.element_bytes
    note = f"bytes rescaled from {graph.element_bytes:g} to {new:g} per element"
    kept = sum(weight.bytes for weight in graph.weights if weight.fixed) / 2**20
    if kept:
        note += f" of a float; {kept:,.4g} MiB of integer and quantised weights keep their size"
    return (note,)
