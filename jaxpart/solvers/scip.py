"""SCIP takes a `Model`: solve, look whether the answer breaks a rule stated on demand, solve again.

Importing this starts no SCIP: the process that hands out tasks wants `Status` alone.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxpart.problem.problem import IntArray
from jaxpart.solvers.model import Model

if TYPE_CHECKING:
    import pyscipopt

# SCIP accepts rows broken by 1e-6, and bounds off by as much, relative to the values around 1 that
# programs are scaled to; ten times as much is given away before a bound is called one.
_SAFETY = 1e-5


class Status(enum.IntEnum):
    """How a task of the solver ended."""

    OPTIMAL = 0  # an assignment, and none is better within the task
    FEASIBLE = 1  # an assignment; a better one may exist
    TIME_LIMIT = 2  # no assignment within the limits; one may exist
    INFEASIBLE = 3  # proven: there is none within the task
    ERROR = 4  # the worker died or hung

    @property
    def has_assignment(self) -> bool:
        """Whether an assignment comes with it."""
        return self in (Status.OPTIMAL, Status.FEASIBLE)


@dataclasses.dataclass(frozen=True)
class Limits:
    """When SCIP stops."""

    time_s: float
    gap: float = 0.0  # relative, between the best and the bound
    nodes: int = -1  # of the search tree, over all rounds; -1: no limit
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """The outcome of one program."""

    status: Status
    assignment: IntArray | None  # [M], keeps every rule as far as the host can tell
    objective: float | None  # of the assignment
    bound: float  # no partition in the window has a smaller objective; -inf where none is proven


def solve(
    program: Model,
    limits: Limits,
    starts: Sequence[IntArray] = (),
    cutoff: float = math.inf,
) -> Solution:
    """Minimises the program's objective.

    Rows on demand grow the program, so a second call begins where the first ended.

    Args:
      program: with an objective set.
      limits: of the whole call.
      starts: [M] partitions in the window to begin with; those that break a rule do no harm.
      cutoff: only assignments with a smaller objective are wanted; INFEASIBLE means that none has.

    Returns:
      FEASIBLE where a limit (the gap's too) ended the search with an assignment in hand.
    """
    deadline = time.monotonic() + limits.time_s
    nodes_left = limits.nodes
    scip = _Scip(program, limits, cutoff)
    best: IntArray | None = None
    best_value, bound = cutoff, -math.inf
    is_broken = False
    while True:
        if program.is_infeasible:
            ended = "infeasible"
        elif deadline <= time.monotonic() or nodes_left == 0:
            ended = "timelimit"
        else:
            ended = scip.run(deadline - time.monotonic(), nodes_left, starts)
            if nodes_left > 0:
                nodes_left = max(0, nodes_left - scip.model.getNTotalNodes())
            if program.is_relaxed:
                bound = max(bound, scip.bound(ended))
        if ended == "infeasible" or not scip.ran:
            break
        is_broken = False
        for value, f in scip.assignments():
            if value >= best_value:
                break
            if program.separate(f, scip.num_rows):
                is_broken = True
                continue
            best, best_value = f, value
            starts = [f]
            break
        if not is_broken or ended not in ("optimal", "gaplimit"):
            break
    proven = program.is_relaxed and (
        ended == "infeasible" or (ended == "optimal" and not is_broken)
    )
    if best is None:
        status = Status.INFEASIBLE if proven else Status.TIME_LIMIT
        return Solution(status, None, None, bound)
    status = Status.OPTIMAL if proven else Status.FEASIBLE
    return Solution(status, best, best_value, min(bound, best_value))


class _Scip:
    """One SCIP model that follows a growing program."""

    def __init__(self, program: Model, limits: Limits, cutoff: float) -> None:
        from pyscipopt import Model as ScipModel
        from pyscipopt.scip import PY_SCIP_PARAMSETTING as SCIP_PARAMSETTING

        self.program = program
        self.ran = False
        self.variables: list[Any] = []
        self.num_rows = 0
        self.cutoff = cutoff
        self.model: pyscipopt.Model = ScipModel()
        self.model.hideOutput()
        self.model.setParam("misc/catchctrlc", False)
        self.model.setParam("randomization/randomseedshift", limits.seed)
        self.model.setParam("limits/gap", limits.gap)
        self.model.setParam("heuristics/completesol/maxunknownrate", 1.0)
        # At their defaults these cost several times what they save, for proofs too: the 32 layers
        # of a BERT on 6 chips take 0.7 s so, and 2.4 s otherwise.
        self.model.setPresolve(SCIP_PARAMSETTING.FAST)
        self.model.setHeuristics(SCIP_PARAMSETTING.FAST)
        self.model.setSeparating(SCIP_PARAMSETTING.OFF)

    def run(self, time_s: float, nodes: int, starts: Sequence[IntArray]) -> str:
        """Solves the program as it stands; SCIP's word for how it ended."""
        model = self.model
        if self.ran:
            model.freeTransform()
        self._follow()
        model.setParam("limits/time", time_s)
        model.setParam("limits/nodes", nodes)
        if math.isfinite(self.cutoff):
            model.setObjlimit(self.cutoff)
        for f in starts:
            if self.program.contains(f):
                start = model.createSol()
                values = self.program.point(f)
                for variable, value in zip(self.variables, values.tolist(), strict=True):
                    model.setSolVal(start, variable, value)
                model.addSol(start, free=True)
        model.optimizeNogil()
        self.ran = True
        return model.getStatus()

    def bound(self, ended: str) -> float:
        """What SCIP proved, made safe: nothing within the cutoff is better."""
        bound = self.cutoff if ended == "infeasible" else self.model.getDualbound()
        bound = min(bound, self.cutoff)
        return bound - _SAFETY * max(1.0, abs(bound)) if abs(bound) < 1e20 else bound

    def assignments(self) -> Iterator[tuple[float, IntArray]]:
        """Objective and assignment of what SCIP found, best first by its own reckoning."""
        program, model = self.program, self.model
        for solution in model.getSols():
            f = program.assignment([model.getSolVal(solution, x) for x in self.variables])
            point = program.point(f)
            value = sum(a * point[j] for j, a in program.objective.items())
            yield value + program.objective_constant, f

    def _follow(self) -> None:
        from pyscipopt import quicksum

        program, model = self.program, self.model
        for j in range(len(self.variables), len(program.lower)):
            kind = "B" if program.integer[j] else "C"
            upper = program.upper[j] if math.isfinite(program.upper[j]) else None
            self.variables.append(model.addVar(vtype=kind, lb=program.lower[j], ub=upper))
        x = self.variables
        for i in range(self.num_rows, len(program.rows)):
            model.addCons(quicksum(a * x[j] for j, a in program.rows[i]) <= program.row_upper[i])
        self.num_rows = len(program.rows)
        model.setObjective(
            quicksum(a * x[j] for j, a in program.objective.items()) + program.objective_constant
        )
