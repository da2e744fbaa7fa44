"""Proofs by OR-Tools CP-SAT: it takes the same `Model` as SCIP and often proves sooner.

CP-SAT needs integers.

1. All columns but the bottleneck are integers at every partition, because their rows have
   coefficients of one.
2. The bottleneck is counted in steps, each a fraction of the gap.
3. A row with real coefficients is multiplied by a power of two and rounded. Its right-hand side
   grows by the most that rounding can add to its left-hand side.

So every partition of the program stays feasible, and a lower bound here is one of the program.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxpart.problem.problem import IntArray
from jaxpart.solvers.model import Model
from jaxpart.solvers.program import ONE, Terms
from jaxpart.solvers.scip import Limits, Solution, Status

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

# Fine steps per unit of time, in rows with the bottleneck; a step of its column may be coarser.
_FINE_STEPS = 2**28
# Largest sum of magnitudes in a scaled row; CP-SAT sums rows and combinations of them in 64 bits.
_MAX_ROW_SUM = 2.0**46
# Relative margin taken off bounds, so that float64 rounding never lifts a bound too high.
_BOUND_SAFETY = 1e-9


def solve(
    program: Model,
    limits: Limits,
    starts: Sequence[IntArray] = (),
    cutoff: float = math.inf,
    *,
    floor: float = 0.0,
    workers: int = 1,
) -> Solution:
    """Minimises the program's bottleneck.

    Args:
      program: whose objective is its bottleneck. Lazy constraints add rows to it.
      limits: time and gap of the whole call; `nodes` is ignored.
      starts: [M] partitions in the window; the first is the hint.
      cutoff: only partitions with a smaller objective are wanted, in units of `program.unit_s`.
      floor: a known lower bound on the objective, in the same unit.
      workers: threads of CP-SAT.

    Returns:
      The best partition found, with its objective and the bound in the same unit. FEASIBLE where a
      limit ended the search with an assignment; INFEASIBLE where no objective is below `cutoff`.

    Raises:
      ValueError: the program was stated without time.
      AssertionError: CP-SAT refuses the program.
    """
    deadline = time.monotonic() + limits.time_s
    best: IntArray | None = None
    best_value, bound = cutoff, floor
    while True:
        if program.is_infeasible:
            bound = best_value
            break
        seen = len(program.rows)
        left = deadline - time.monotonic()
        if left <= 0 or bound >= best_value * (1 - limits.gap):
            break
        run = _Run(program, limits, best_value, bound)
        hint = best if best is not None else next(iter(starts), None)
        if hint is not None and program.contains(hint):
            run.hint(hint)
        run.solve(left, workers, seen)
        if program.is_relaxed:
            bound = max(bound, min(run.bound, best_value))
        if run.best is not None:
            best, best_value = run.best, run.best_value
        if not run.is_broken:
            break
    proven = program.is_relaxed and bound >= best_value * (1 - _BOUND_SAFETY) - _PROOF_TOLERANCE
    if best is None:
        return Solution(Status.INFEASIBLE if proven else Status.TIME_LIMIT, None, None, bound)
    status = Status.OPTIMAL if proven else Status.FEASIBLE
    return Solution(status, best, best_value, min(bound, best_value))


# In units of time: steps and rounding can keep a proven bound this far below the objective.
_PROOF_TOLERANCE = 1e-5


class _Run:
    """One run of CP-SAT on the program as it stands.

    Attributes:
      bound: no partition of the program has a smaller objective.
      best, best_value: the best partition found below the cutoff that keeps every rule, [M] chips,
        and its objective.
      is_broken: whether the run ended at a partition that breaks a lazy constraint, which the
        program now has as rows.
    """

    def __init__(self, program: Model, limits: Limits, cutoff: float, floor: float) -> None:
        from ortools.sat.python import cp_model

        self.bound = floor
        self.best: IntArray | None = None
        self.best_value = cutoff
        self.is_broken = False
        self._program, self._limits = program, limits
        self._model = cp_model.CpModel()
        # A step is at most an eighth of the gap: CP-SAT should not improve by much less.
        self._fine_per_step = 2 ** math.floor(math.log2(max(limits.gap / 8 * _FINE_STEPS, 1.0)))
        self._steps_per_unit = _FINE_STEPS // self._fine_per_step
        bottom = max(0, math.floor(floor * (1 - _BOUND_SAFETY) * self._steps_per_unit) - 1)
        top = math.ceil(min(cutoff, _max_bottleneck(program)) * self._steps_per_unit) + 1
        self._variables: list[cp_model.IntVar] = []
        for j in range(len(program.lower)):
            if j == ONE:
                variable = self._model.new_constant(1)
            elif j == program.bottleneck:
                variable = self._model.new_int_var(bottom, max(bottom, top), "")
            else:
                variable = self._model.new_bool_var("")
            self._variables.append(variable)
        for terms, upper in zip(program.rows, program.row_upper, strict=True):
            self._add(terms, upper)
        if program.bottleneck is None:
            raise ValueError("the program was stated without time")
        self._model.minimize(self._variables[program.bottleneck])

    def hint(self, f: IntArray) -> None:
        """Hints at the partition f [M] from the window."""
        for variable, value in zip(
            self._variables[1:], self._program.point(f)[1:].tolist(), strict=True
        ):
            is_time = variable is self._variables[self._program.bottleneck or 0]
            self._model.add_hint(
                variable, math.ceil(value * self._steps_per_unit) if is_time else round(value)
            )

    def solve(self, time_s: float, workers: int, seen: int) -> None:
        """Runs until the optimum is proven, time is over, or a partition breaks a rule.

        Args:
          time_s: time limit in seconds.
          workers: threads.
          seen: number of rows that this run knows, as in `Model.separate`.

        Raises:
          AssertionError: CP-SAT refuses the program.
        """
        from ortools.sat.python import cp_model

        run = self

        class Found(cp_model.CpSolverSolutionCallback):
            def on_solution_callback(self) -> None:
                if run._take([self.value(x) for x in run._variables], seen):
                    self.stop_search()

        solver = cp_model.CpSolver()
        parameters = solver.parameters
        parameters.max_time_in_seconds = time_s
        parameters.num_workers = workers
        parameters.random_seed = self._limits.seed
        parameters.relative_gap_limit = self._limits.gap
        parameters.catch_sigint_signal = False
        ended = solver.solve(self._model, Found())
        if ended == cp_model.MODEL_INVALID:
            raise AssertionError(f"CP-SAT refuses the program: {self._model.validate()}")
        if ended == cp_model.INFEASIBLE:
            self.bound = math.inf
        else:
            steps = solver.best_objective_bound
            if math.isfinite(steps):
                self.bound = max(
                    self.bound, (steps - 1) / self._steps_per_unit * (1 - _BOUND_SAFETY)
                )

    def _take(self, values: list[int], seen: int) -> bool:
        """Takes a solution; returns whether to stop because it breaks a rule that the run lacks."""
        program = self._program
        f = program.assignment(np.array(values, np.float64))
        if program.separate(f, seen):
            self.is_broken = True
            return True
        value = float(program.point(f)[program.bottleneck or 0])
        if value < self.best_value:
            self.best, self.best_value = f, value
        return False

    def _add(self, terms: Terms, upper: float) -> None:
        """Adds a row in integers, such that every point that keeps the row stays feasible."""
        from ortools.sat.python import cp_model

        time_column = self._program.bottleneck
        has_time = any(j == time_column for j, _ in terms)
        # Every row that contains the bottleneck has it with the coefficient -1.
        is_whole = all(a == round(a) for j, a in terms) and upper == math.floor(upper)
        if is_whole and not has_time:
            scale = 1.0
        elif has_time:
            scale = float(_FINE_STEPS)
        else:
            total = sum(abs(a) for _, a in terms) + abs(upper)
            scale = 2.0 ** math.floor(math.log2(_MAX_ROW_SUM / total))
        whole: list[int] = []
        slack = 0.0
        for j, a in terms:
            if j == time_column:
                whole.append(-self._fine_per_step)  # the column counts steps, not fine steps
                continue
            rounded = round(a * scale)
            slack += max(0.0, rounded - a * scale)
            whole.append(rounded)
        right = math.floor(upper * scale + slack * (1 + _BOUND_SAFETY) + abs(upper * scale) * 1e-15)
        if scale != 1.0:
            right += 1
        columns = [self._variables[j] for j, _ in terms]
        self._model.add(cp_model.LinearExpr.weighted_sum(columns, whole) <= right)


def _max_bottleneck(program: Model) -> float:
    """Returns an upper bound on the bottleneck of every partition, in units of time."""
    highest = 1.0
    for terms, upper in zip(program.rows, program.row_upper, strict=True):
        if any(j == program.bottleneck for j, _ in terms):
            highest = max(highest, sum(a for _, a in terms if a > 0) - upper)
    return highest
