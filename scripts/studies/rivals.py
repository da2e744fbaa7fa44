"""The rivals of the benchmark: CP-SAT and SCIP on the full program, and graph partitioners.

The solvers get the program of `jaxpart/solvers/model.py` for all nodes and chips. They start from
the greedy baseline, and get no reduction, cut-off, bound or incumbent of jaxpart. Constraints with
millions of rows are lazy: a row is added when a solution breaks it, and this takes time of the
rival. If the triangle rule has too many rows, the program requires the span rule instead (no edge
skips a chip). With it the solvers find far more than with a lazy triangle rule.

The partitioners (METIS, Mt-KaHyPar) minimise the cut at balanced compute, repeatedly with other
seeds, tolerances and numbers of parts. The parts become chips in the order of the mean position of
their nodes, and jaxpart's repair makes the result valid.

The clock of a rival starts after its model is stated, as jaxpart's clock starts after compilation.
Partitions are verified (`verify` in `jaxpart/cost/evaluate.py`) after the clock has stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxpart.bounds.reachability import reachability_matrix
from jaxpart.cost.evaluate import verify
from jaxpart.cost.greedy import baseline
from jaxpart.cost.host import bottleneck_s
from jaxpart.problem.problem import IntArray, Problem
from jaxpart.solvers.minimum_cut import squeeze
from jaxpart.solvers.model import Model
from jaxpart.solvers.program import ONE, Terms
from jaxpart.solvers.repair import repair
from jaxpart.solvers.triangle import state_triangles

# CP-SAT needs integers. Rows with time count steps of 1 / _STEPS of the unit of time.
_STEPS = 2**28
# The bottleneck counts coarse steps of _COARSE steps each. Else it would fall in tiny steps.
_COARSE = 2**11
# A row without time is scaled so that its terms sum to at most this.
_LARGEST_ROW = 2.0**46
_IMBALANCES = (0.03, 0.1, 0.3)  # imbalance of the parts that is allowed
_PARTS_PER_CHIP = (1.0, 0.75, 0.5)  # number of parts per chip
_LARGEST_WEIGHT = 10_000  # integer that the largest weight becomes
_REPAIR_S = 5.0  # time limit of a repair, seconds
_FULL, _SPAN = "full", "span"  # how the triangle rule is stated


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits that every rival gets."""

    seconds: float
    threads: int
    seed: int
    gap: float  # relative gap at which a solver may stop


@dataclasses.dataclass(frozen=True)
class Run:
    """The verified result of a rival.

    Attributes:
      history: (seconds, bottleneck in seconds), both monotone; it begins with the greedy baseline.
      assignment: [N] the best partition; None: nothing was found.
      setup_s: time to state the model, not on the clock.
      seconds: on the clock, until the rival ended.
      is_proven: whether the rival proved, with every rule in full, that no partition is better.
      refused: number of candidates that proved invalid.
      note: how the problem was stated.
    """

    history: list[tuple[float, float]]
    assignment: IntArray | None
    setup_s: float
    seconds: float
    is_proven: bool = False
    refused: int = 0
    note: str = ""


class _Track:
    """The clock of a rival, and the partitions that it found.

    Attributes:
      problem: of N nodes.
      setup_s: time to state the model.
      is_proven: see `Run`.
      best: [N] the best partition by the host's costs, not yet verified; None: none yet.
      best_s: its bottleneck in seconds.
    """

    def __init__(self, problem: Problem, setup_s: float) -> None:
        self.problem, self.setup_s = problem, setup_s
        self.is_proven = False
        self.best: IntArray | None = None
        self.best_s = math.inf
        self._found: list[tuple[float, IntArray]] = []
        greedy = baseline(problem)
        self._began_s = time.perf_counter()
        if greedy is not None:
            self.offer(greedy)

    @property
    def elapsed_s(self) -> float:
        """Seconds on the clock."""
        return time.perf_counter() - self._began_s

    def offer(self, f: IntArray) -> None:
        """Records f [N] if its bottleneck, computed on the host, is the lowest so far."""
        seconds = bottleneck_s(self.problem, f)
        if seconds < self.best_s:
            self.best, self.best_s = f, seconds
            self._found.append((self.elapsed_s, f))

    def run(self, note: str = "") -> Run:
        """Stops the clock and verifies all partitions."""
        seconds = self.elapsed_s
        history: list[tuple[float, float]] = []
        best, refused = None, 0
        for at_s, f in self._found:
            costs = verify(self.problem, f[:, None])
            if not costs.valid[0]:
                refused += 1
            elif not history or costs.bottleneck_s[0] < history[-1][1]:
                history.append((at_s, float(costs.bottleneck_s[0])))
                best = f
        return Run(history, best, self.setup_s, seconds, self.is_proven, refused, note)


def by_cpsat(problem: Problem, limits: Limits) -> Run:
    """Runs OR-Tools CP-SAT on the full program.

    When a solution breaks a lazy constraint, the search stops and begins again with the new rows.
    """
    from ortools.sat.python import cp_model

    began_s = time.perf_counter()
    program, note = full_program(problem)
    stated = _CpsatModel(program)
    track = _Track(problem, time.perf_counter() - began_s)
    track.is_proven = program.is_infeasible and note == _FULL

    class Found(cp_model.CpSolverSolutionCallback):
        is_broken = False

        def on_solution_callback(self) -> None:
            f = program.assignment([self.value(x) for x in stated.columns[: stated.ends]])
            if program.separate(f, stated.rows):
                self.is_broken = True
                self.stop_search()
            else:
                track.offer(_squeezed(program, f[problem.contraction]))

    while not program.is_infeasible and track.elapsed_s < limits.seconds:
        stated.follow()
        if track.best is not None:
            stated.hint(problem.contracted_assignment(track.best))
        solver, found = cp_model.CpSolver(), Found()
        solver.parameters.max_time_in_seconds = max(0.01, limits.seconds - track.elapsed_s)
        solver.parameters.num_workers = limits.threads
        solver.parameters.random_seed = limits.seed
        solver.parameters.relative_gap_limit = limits.gap
        solver.parameters.catch_sigint_signal = False
        ended = solver.solve(stated.model, found)
        if not found.is_broken:
            has_ended = ended in (cp_model.OPTIMAL, cp_model.INFEASIBLE)
            track.is_proven = has_ended and note == _FULL
            break
    return track.run(note)


class _CpsatModel:
    """A CP-SAT model of a program that grows by lazy constraints.

    Attributes:
      model: the CP-SAT model.
      columns: its variables, one per column of the program.
      rows: number of rows stated so far.
      ends: columns before this one determine the partition.
    """

    def __init__(self, program: Model) -> None:
        from ortools.sat.python import cp_model

        self.model = cp_model.CpModel()
        self.columns: list[Any] = []
        self.rows = 0
        self.ends = 1 + int(np.maximum(program.high - program.low, 0).sum())
        self._program = program
        if not program.is_infeasible:
            self.follow()
            self.model.minimize(self.columns[program.bottleneck or 0])

    def follow(self) -> None:
        """States the columns and rows that were added to the program since the last call."""
        program, model = self._program, self.model
        for j in range(len(self.columns), len(program.lower)):
            if j == ONE:
                self.columns.append(model.new_constant(1))
            elif j == program.bottleneck:
                # 2**20 units are far above every bottleneck of interest.
                self.columns.append(model.new_int_var(0, 2**20 * _STEPS // _COARSE, ""))
            else:
                self.columns.append(model.new_bool_var(""))
        for i in range(self.rows, len(program.rows)):
            self._add(program.rows[i], program.row_upper[i])
        self.rows = len(program.rows)

    def hint(self, chips: IntArray) -> None:
        """Makes the partition chips [M] the hint."""
        self.model.clear_hints()
        for j, value in enumerate(self._program.point(chips).tolist()):
            if j == self._program.bottleneck:
                self.model.add_hint(self.columns[j], math.ceil(value * _STEPS / _COARSE))
            elif j != ONE:
                self.model.add_hint(self.columns[j], round(value))

    def _add(self, terms: Terms, upper: float) -> None:
        """States one row with integer coefficients."""
        from ortools.sat.python import cp_model

        time_column = self._program.bottleneck
        if any(j == time_column for j, _ in terms):
            scale = float(_STEPS)
        elif all(a == round(a) for _, a in terms) and upper == round(upper):
            scale = 1.0
        else:
            total = sum(abs(a) for _, a in terms) + abs(upper)
            scale = 2.0 ** math.floor(math.log2(_LARGEST_ROW / total))
        whole = [round(a * scale / (_COARSE if j == time_column else 1)) for j, a in terms]
        whole = [
            -_COARSE if j == time_column else a for (j, _), a in zip(terms, whole, strict=True)
        ]
        columns = [self.columns[j] for j, _ in terms]
        self.model.add(cp_model.LinearExpr.weighted_sum(columns, whole) <= round(upper * scale))


def by_scip(problem: Problem, limits: Limits) -> Run:
    """Runs SCIP on the full program with one thread and default settings.

    When a solution breaks a lazy constraint, the search stops and begins again with the new rows.
    """
    from pyscipopt import Eventhdlr, quicksum
    from pyscipopt import Model as ScipModel
    from pyscipopt.scip import PY_SCIP_EVENTTYPE as SCIP_EVENTTYPE

    began_s = time.perf_counter()
    program, note = full_program(problem)
    ends = 1 + int(np.maximum(program.high - program.low, 0).sum())
    scip, variables, rows = ScipModel(), [], 0

    def follow() -> int:
        for j in range(len(variables), len(program.lower)):
            upper = program.upper[j] if math.isfinite(program.upper[j]) else None
            kind = "B" if program.integer[j] else "C"
            variables.append(scip.addVar(vtype=kind, lb=program.lower[j], ub=upper))
        for i in range(rows, len(program.rows)):
            total = quicksum(a * variables[j] for j, a in program.rows[i])
            scip.addCons(total <= program.row_upper[i])
        return len(program.rows)

    def assignment_of(solution: Any) -> IntArray:
        return program.assignment([scip.getSolVal(solution, x) for x in variables[:ends]])

    class Found(Eventhdlr):
        is_broken = False

        def eventinit(self) -> None:
            self.model.catchEvent(SCIP_EVENTTYPE.BESTSOLFOUND, self)

        def eventexit(self) -> None:
            self.model.dropEvent(SCIP_EVENTTYPE.BESTSOLFOUND, self)

        def eventexec(self, event: Any) -> None:
            del event
            f = assignment_of(self.model.getBestSol())
            if program.separate(f, rows):
                self.is_broken = True
                self.model.interruptSolve()
            else:
                track.offer(_squeezed(program, f[problem.contraction]))

    scip.hideOutput()
    scip.setParam("misc/catchctrlc", False)
    scip.setParam("randomization/randomseedshift", limits.seed)
    scip.setParam("limits/gap", limits.gap)
    found = Found()
    scip.includeEventhdlr(found, "found", "notes every better solution")
    if not program.is_infeasible:
        rows = follow()
        scip.setObjective(variables[program.bottleneck or 0] * 1.0)
    track = _Track(problem, time.perf_counter() - began_s)
    track.is_proven = program.is_infeasible and note == _FULL
    while not program.is_infeasible and track.elapsed_s < limits.seconds:
        if found.is_broken:
            scip.freeTransform()
            found.is_broken, rows = False, follow()
        if track.best is not None:
            start = scip.createSol()
            values = program.point(problem.contracted_assignment(track.best)).tolist()
            for variable, value in zip(variables, values, strict=True):
                scip.setSolVal(start, variable, value)
            scip.addSol(start, free=True)
        scip.setParam("limits/time", max(0.01, limits.seconds - track.elapsed_s))
        scip.optimize()
        if not found.is_broken:
            has_ended = scip.getStatus() in ("optimal", "gaplimit", "infeasible")
            track.is_proven = has_ended and note == _FULL
            break
    return track.run(note)


def full_program(problem: Problem) -> tuple[Model, str]:
    """States the program of all contracted nodes and chips that minimises T.

    Returns:
      The program, and how it states the triangle rule. `_SPAN` covers only some of the valid
      partitions, so its optimum proves nothing.
    """
    low = np.zeros(problem.num_contracted, np.int64)
    high = low + problem.num_chips - 1
    greedy = baseline(problem)
    unit_s = 2 * problem.mean_load_s if greedy is None else bottleneck_s(problem, greedy)
    rules, note = problem.mcm.constraints, _FULL
    program = Model(problem, low, high, unit_s=unit_s or 1.0)
    if (
        rules.triangle
        and not program.is_infeasible
        and not state_triangles(program, reachability_matrix(problem.contracted))
    ):
        program, note = Model(problem, low, high, span=True, unit_s=unit_s or 1.0), _SPAN
    if not program.is_infeasible:
        program.seek_bottleneck()
    return program, note


def _squeezed(program: Model, f: IntArray) -> IntArray:
    """f [N] without unused chips, if that is a rule: rounding may leave some."""
    if not program.problem.mcm.constraints.no_skip:
        return f
    squeezed = squeeze(program.problem, f)
    return f if squeezed is None else squeezed


# (contracted problem, parts, tolerance, seed, threads) -> [M] part of each contracted node.
PartsOf = Callable[[Problem, int, float, int, int], IntArray]


def _by_parts(parts_of: PartsOf, problem: Problem, limits: Limits) -> Run:
    """Runs a partitioner, orders its parts and repairs, again and again until the time limit."""
    contracted = problem.contracted
    positions = np.arange(problem.num_nodes)
    track = _Track(problem, 0.0)
    settings = itertools.cycle(itertools.product(_IMBALANCES, _PARTS_PER_CHIP))
    for attempt, (tolerance, share) in enumerate(settings):
        left_s = limits.seconds - track.elapsed_s
        count = min(math.ceil(share * problem.num_chips), contracted.num_nodes)
        if left_s <= 0 or count < 2:
            break
        seed = limits.seed * 100_000 + attempt
        parts = parts_of(contracted, count, tolerance, seed, limits.threads)[problem.contraction]
        sizes = np.maximum(np.bincount(parts, minlength=count), 1)
        middle = np.bincount(parts, positions, count) / sizes
        rank = np.argsort(np.argsort(middle, kind="stable"))
        repaired = repair(problem, rank[parts], time_limit_s=min(left_s, _REPAIR_S), seed=seed)
        if repaired.assignment is not None:
            track.offer(repaired.assignment)
    return track.run()


def metis_parts(
    contracted: Problem, count: int, tolerance: float, seed: int, threads: int
) -> IntArray:
    """Partitions by METIS with one thread; its edges connect producers and consumers.

    Args:
      contracted: the problem of M contracted nodes.
      count: number of parts.
      tolerance: imbalance of compute that is allowed.
      seed: of METIS.
      threads: not used.

    Returns:
      [M] part of each contracted node.
    """
    del threads
    pymetis = importlib.import_module("pymetis")  # a package of the extra `benchmark`
    shares = 1 / np.bincount(contracted.edge_tensor, minlength=contracted.num_tensors).clip(1)
    size = (contracted.tensor_bytes * shares)[contracted.edge_tensor]
    u, v = contracted.edge_producer, contracted.edge_consumer
    n = contracted.num_nodes
    pairs, which = np.unique(np.minimum(u, v) * n + np.maximum(u, v), return_inverse=True)
    weights = _whole(np.bincount(which, size, len(pairs)))
    u, v = pairs // n, pairs % n
    ends, others = np.concatenate([u, v]), np.concatenate([v, u])
    order = np.argsort(ends, kind="stable")
    _, parts = pymetis.part_graph(
        count,
        xadj=np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=n))]).tolist(),
        adjncy=others[order].tolist(),
        vweights=_whole(contracted.node_s.mean(axis=1)).tolist(),
        eweights=np.concatenate([weights, weights])[order].tolist(),
        options=pymetis.Options(seed=seed, ufactor=round(1000 * tolerance)),
        recursive=False,
    )
    return np.asarray(parts, np.int64)


def kahypar_parts(
    contracted: Problem, count: int, tolerance: float, seed: int, threads: int
) -> IntArray:
    """Partitions by Mt-KaHyPar; a hyperedge is the producer and all consumers of a tensor.

    The arguments and the result are those of `metis_parts`; `threads` is used.
    """
    mtkahypar = importlib.import_module("mtkahypar")
    initializer = _kahypar(threads)
    mtkahypar.set_seed(seed % 2**31)
    context = initializer.context_from_preset(mtkahypar.PresetType.DEFAULT)
    context.set_partitioning_parameters(count, tolerance, mtkahypar.Objective.KM1)
    context.logging = False
    start = np.searchsorted(contracted.edge_tensor, np.arange(contracted.num_tensors + 1))
    nets, sizes = [], []
    for k, producer in enumerate(contracted.tensor_producer.tolist()):
        consumers = contracted.edge_consumer[start[k] : start[k + 1]].tolist()
        net = sorted({producer, *consumers})
        if len(net) > 1:
            nets.append(net)
            sizes.append(float(contracted.tensor_bytes[k]))
    graph = initializer.create_hypergraph(
        context,
        contracted.num_nodes,
        len(nets),
        nets,
        _whole(contracted.node_s.mean(axis=1)).tolist(),
        _whole(np.array(sizes)).tolist(),
    )
    return np.asarray(graph.partition(context).get_partition(), np.int64)


@functools.cache
def _kahypar(threads: int) -> Any:
    return importlib.import_module("mtkahypar").initialize(threads, print_warnings=False)


def _whole(weights: np.ndarray) -> IntArray:
    """Positive integers in proportion to the weights, which the partitioners need."""
    most = float(weights.max(initial=0.0)) or 1.0
    return np.maximum(1, np.round(weights / most * _LARGEST_WEIGHT)).astype(np.int64)


RIVALS: dict[str, Callable[[Problem, Limits], Run]] = {
    "cpsat": by_cpsat,
    "scip": by_scip,
    "metis": functools.partial(_by_parts, metis_parts),
    "mt-kahypar": functools.partial(_by_parts, kahypar_parts),
}
_PACKAGES = {"cpsat": "ortools", "scip": "pyscipopt", "metis": "pymetis", "mt-kahypar": "mtkahypar"}


def missing(rival: str) -> str | None:
    """The Python package that a rival needs, if it is not installed; else None."""
    package = _PACKAGES[rival]
    return None if importlib.util.find_spec(package) else package
