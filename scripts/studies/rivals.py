"""What a user would pick instead: CP-SAT and SCIP on the full program, and graph partitioners.

The solvers take the package's own statement of the problem (`jaxpart.solver.model.Model`) for all
nodes and chips: no reduction, no cut-off, no bound and no incumbent of ours, but the greedy
baseline to begin with. Rows that would number in the millions come as a solution breaks them, with
the time that this takes; where the chip triangle would be among those, the program asks instead
that no edge skip a chip (`span`), which finds far more than a rule met by trial and error.

The partitioners (METIS, Mt-KaHyPar) minimise what is cut at balanced compute, again and again with
other seeds, tolerances and numbers of parts; parts become chips in the order of their nodes' mean
position, and jaxpart's repair makes that valid.

Clocks start when a model is stated: that is beside the time, as compilation is for jaxpart. What is
found is verified by `jaxpart.cost.verify` when the clock has stopped.
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
from jaxpart.solvers.minimum_cut import contracted_chips, squeeze
from jaxpart.solvers.model import Model
from jaxpart.solvers.program import ONE, Terms
from jaxpart.solvers.repair import repair
from jaxpart.solvers.triangle import state_triangles

# CP-SAT counts whole steps: a unit of time is so many in rows, and the bottleneck counts coarser
# ones (7.6e-6 of the unit), lest it creep.
_STEPS = 2**28
_FINE = 2**11
# A row without time is scaled so that its terms add up to at most this.
_LARGEST = 2.0**46
_TOLERANCES = (0.03, 0.1, 0.3)  # of the balance of parts
_SHARES = (1.0, 0.75, 0.5)  # of the chips, as the number of parts
_WEIGHTS = 10_000  # whole numbers that the largest weight is rounded to
_REPAIR_S = 5.0
_FULL, _SPAN = "full", "span"  # how the triangle rule is stated


@dataclasses.dataclass(frozen=True)
class Limits:
    """What every competitor gets."""

    seconds: float
    threads: int
    seed: int
    gap: float  # relative, at which a solver may stop


@dataclasses.dataclass(frozen=True)
class Run:
    """What a rival found; all of it verified.

    Attributes:
      history: (seconds, bottleneck in seconds), falling; it begins with the greedy baseline.
      assignment: [N] the best; None where nothing was found.
      setup_s: stating the model, beside the time.
      seconds: until it ended.
      is_proven: whether it says that nothing is better, of the program with every rule in full.
      refused: candidates that turned out not to be valid.
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
    """The clock, and what was found when."""

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
        return time.perf_counter() - self._began_s

    def offer(self, f: IntArray) -> None:
        """Notes f [N] if it is better by the host's reckoning."""
        seconds = bottleneck_s(self.problem, f)
        if seconds < self.best_s:
            self.best, self.best_s = f, seconds
            self._found.append((self.elapsed_s, f))

    def run(self, note: str = "") -> Run:
        """Stops the clock and verifies."""
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
    """OR-Tools CP-SAT on the full program."""
    from ortools.sat.python import cp_model

    began_s = time.perf_counter()
    program, note = full_program(problem)
    stated = _Stated(program)
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
            stated.hint(contracted_chips(problem, track.best))
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


class _Stated:
    """A CP-SAT model that follows a growing program."""

    def __init__(self, program: Model) -> None:
        from ortools.sat.python import cp_model

        self.model = cp_model.CpModel()
        self.columns: list[Any] = []
        self.rows = 0
        self.ends = 1 + int(np.maximum(program.high - program.low, 0).sum())  # of the bits
        self._program = program
        if not program.is_infeasible:
            self.follow()
            self.model.minimize(self.columns[program.bottleneck or 0])

    def follow(self) -> None:
        """States the columns and rows that the program has by now."""
        program, model = self._program, self.model
        for j in range(len(self.columns), len(program.lower)):
            if j == ONE:
                self.columns.append(model.new_constant(1))
            elif j == program.bottleneck:
                # Far more than any partition that is worth having.
                self.columns.append(model.new_int_var(0, 2**20 * _STEPS // _FINE, ""))
            else:
                self.columns.append(model.new_bool_var(""))
        for i in range(self.rows, len(program.rows)):
            self._add(program.rows[i], program.row_upper[i])
        self.rows = len(program.rows)

    def hint(self, chips: IntArray) -> None:
        """Begins with the partition chips [M]."""
        self.model.clear_hints()
        for j, value in enumerate(self._program.point(chips).tolist()):
            if j == self._program.bottleneck:
                self.model.add_hint(self.columns[j], math.ceil(value * _STEPS / _FINE))
            elif j != ONE:
                self.model.add_hint(self.columns[j], round(value))

    def _add(self, terms: Terms, upper: float) -> None:
        from ortools.sat.python import cp_model

        time_column = self._program.bottleneck
        if any(j == time_column for j, _ in terms):
            scale = float(_STEPS)
        elif all(a == round(a) for _, a in terms) and upper == round(upper):
            scale = 1.0
        else:
            total = sum(abs(a) for _, a in terms) + abs(upper)
            scale = 2.0 ** math.floor(math.log2(_LARGEST / total))
        whole = [round(a * scale / (_FINE if j == time_column else 1)) for j, a in terms]
        whole = [-_FINE if j == time_column else a for (j, _), a in zip(terms, whole, strict=True)]
        columns = [self.columns[j] for j, _ in terms]
        self.model.add(cp_model.LinearExpr.weighted_sum(columns, whole) <= round(upper * scale))


def by_scip(problem: Problem, limits: Limits) -> Run:
    """SCIP on the full program, as SCIP comes: one thread, every setting at its default."""
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
            values = program.point(contracted_chips(problem, track.best)).tolist()
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
    """The program of all contracted nodes and chips, minimising T; and which one it is.

    `_SPAN` is a part of what is valid: its optimum proves nothing.
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
    """Without unused chips where that is a rule; the program keeps it already but for rounding."""
    if not program.problem.mcm.constraints.no_skip:
        return f
    squeezed = squeeze(program.problem, f)
    return f if squeezed is None else squeezed


PartsOf = Callable[[Problem, int, float, int, int], IntArray]


def _by_parts(parts_of: PartsOf, problem: Problem, limits: Limits) -> Run:
    """Partitions, orders the parts and repairs, until the time is over."""
    contracted = problem.contracted
    positions = np.arange(problem.num_nodes)
    track = _Track(problem, 0.0)
    settings = itertools.cycle(itertools.product(_TOLERANCES, _SHARES))
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
    """[M] parts by METIS: its edges are producer and consumer; it has one thread."""
    del threads
    pymetis = importlib.import_module("pymetis")  # of the extra `benchmark`
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
    """[M] parts by Mt-KaHyPar: a tensor and all its consumers are one hyperedge."""
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
    """Whole numbers from 1 in proportion to the weights, as the partitioners ask for."""
    most = float(weights.max(initial=0.0)) or 1.0
    return np.maximum(1, np.round(weights / most * _WEIGHTS)).astype(np.int64)


RIVALS: dict[str, Callable[[Problem, Limits], Run]] = {
    "cpsat": by_cpsat,
    "scip": by_scip,
    "metis": functools.partial(_by_parts, metis_parts),
    "mt-kahypar": functools.partial(_by_parts, kahypar_parts),
}
_PACKAGES = {"cpsat": "ortools", "scip": "pyscipopt", "metis": "pymetis", "mt-kahypar": "mtkahypar"}


def missing(rival: str) -> str | None:
    """The package that a rival lacks here."""
    package = _PACKAGES[rival]
    return None if importlib.util.find_spec(package) else package
