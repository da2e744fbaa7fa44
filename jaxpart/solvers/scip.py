"""SCIP on a `Model`: it solves, checks the answer for broken lazy constraints, and solves again.

Importing this module does not import SCIP, because the main process needs `Status` only.
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

# Margin taken off bounds: ten times SCIP's tolerance of 1e-6 on rows and bounds, where a program
# is scaled to values of about 1. Larger bounds lose the same part.
_BOUND_SAFETY = 1e-5


class Status(enum.IntEnum):
    """How a solver task ended."""

    OPTIMAL = 0  # an assignment; none within the task is better
    FEASIBLE = 1  # an assignment; a better one may exist
    TIME_LIMIT = 2  # no assignment found within the limits; one may exist
    INFEASIBLE = 3  # proven: the task has no assignment
    ERROR = 4  # the worker died or hung

    @property
    def has_assignment(self) -> bool:
        """Whether an assignment comes with this status."""
        return self in (Status.OPTIMAL, Status.FEASIBLE)


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a solver stops."""

    time_s: float
    gap: float = 0.0  # relative, between the best objective and the bound
    nodes: int = -1  # of the search tree, over all rounds; -1: no limit
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """The outcome of one program; objective and bound are in its units."""

    status: Status
    assignment: IntArray | None  # [M]; it keeps every rule by the host's arithmetic
    objective: float | None  # of the assignment
    bound: float  # no partition in the window has a smaller objective; -inf: none proven


def solve(
    program: Model,
    limits: Limits,
    starts: Sequence[IntArray] = (),
    cutoff: float = math.inf,
) -> Solution:
    """Minimises the program's objective.

    Lazy constraints add rows to the program, so a second call starts with the rows of the first.

    Args:
      program: with an objective set.
      limits: of the whole call.
      starts: [M] partitions to start from; those outside the window are ignored, and those that
        break a rule do no harm.
      cutoff: only assignments with a smaller objective are wanted.

    Returns:
      The best assignment found, with its objective and the bound. FEASIBLE where a limit (of the
      gap too) ended the search with an assignment; INFEASIBLE where no objective is below `cutoff`.
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
        # SCIP's defaults cost several times what they save, for proofs too: the 32 layers of a BERT
        # on 6 chips take 0.7 s with these settings and 2.4 s with the defaults.
        self.model.setPresolve(SCIP_PARAMSETTING.FAST)
        self.model.setHeuristics(SCIP_PARAMSETTING.FAST)
        self.model.setSeparating(SCIP_PARAMSETTING.OFF)

    def run(self, time_s: float, nodes: int, starts: Sequence[IntArray]) -> str:
        """Solves the program as it stands and returns SCIP's word for how it ended.

        Args:
          time_s: time limit in seconds.
          nodes: limit on the search tree; -1: none.
          starts: [M] partitions; those outside the window are ignored.
        """
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
        """Returns a safe lower bound on all objectives, at most the cutoff, from SCIP's own."""
        bound = self.cutoff if ended == "infeasible" else self.model.getDualbound()
        bound = min(bound, self.cutoff)
        return bound - _BOUND_SAFETY * max(1.0, abs(bound)) if abs(bound) < 1e20 else bound

    def assignments(self) -> Iterator[tuple[float, IntArray]]:
        """Yields objective and chips [M] of SCIP's solutions, best first by SCIP's own values."""
        program, model = self.program, self.model
        for solution in model.getSols():
            f = program.assignment([model.getSolVal(solution, x) for x in self.variables])
            point = program.point(f)
            value = sum(a * point[j] for j, a in program.objective.items())
            yield value + program.objective_constant, f

    def _follow(self) -> None:
        """Adds the program's new columns and rows to SCIP, and sets the objective."""
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
