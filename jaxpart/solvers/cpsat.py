"""OR-Tools CP-SAT takes a `Model`, as SCIP does: for proofs, where it is the sooner of the two.

CP-SAT wants whole numbers. Columns beside the bits are whole at every partition (their rows have
coefficients of one), but for the bottleneck, which is counted in steps of a part of the gap. A
row with real coefficients is multiplied by a power of two and rounded, and its right-hand side
grows by what rounding can have added; so every partition of the program stays in, and a bound here
is a bound there.
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

# What a unit of time counts in rows; the bottleneck's own steps may be coarser.
_STEPS = 2**28
# Magnitudes of a row's terms add up to at most this: CP-SAT sums in 64 bits, with room to combine.
_LARGEST = 2.0**46
# Beyond the bottleneck's own bound; given away so that float64 sums never lift a bound too high.
_SAFETY = 1e-9


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
      program: that seeks its bottleneck. Rows on demand make it grow.
      limits: of the whole call; `nodes` is not looked at.
      starts: [M] partitions in the window; the first is the hint.
      cutoff: only partitions with a smaller objective are wanted; INFEASIBLE means that none has.
      floor: a lower bound on the objective, known already.
      workers: threads.

    Returns:
      FEASIBLE where a limit ended the search with an assignment in hand.
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
    proven = program.is_relaxed and bound >= best_value * (1 - _SAFETY) - _LEAST
    if best is None:
        return Solution(Status.INFEASIBLE if proven else Status.TIME_LIMIT, None, None, bound)
    status = Status.OPTIMAL if proven else Status.FEASIBLE
    return Solution(status, best, best_value, min(bound, best_value))


# Steps and roundings: a bound this near to the objective is as near as it gets.
_LEAST = 1e-5


class _Run:
    """One run of CP-SAT on the program as it stands.

    Attributes:
      bound: no partition of the program has a smaller objective.
      best, best_value: what was found below the cut-off that keeps every rule.
      is_broken: it ended at a partition that broke a rule stated on demand, stated by now.
    """

    def __init__(self, program: Model, limits: Limits, cutoff: float, floor: float) -> None:
        from ortools.sat.python import cp_model

        self.bound = floor
        self.best: IntArray | None = None
        self.best_value = cutoff
        self.is_broken = False
        self._program, self._limits = program, limits
        self._model = cp_model.CpModel()
        # A step of an eighth of the gap: CP-SAT should not creep by less.
        self._fine = 2 ** math.floor(math.log2(max(limits.gap / 8 * _STEPS, 1.0)))
        self._steps = _STEPS // self._fine
        bottom = max(0, math.floor(floor * (1 - _SAFETY) * self._steps) - 1)
        top = math.ceil(min(cutoff, _most(program)) * self._steps) + 1
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
        """Begins with the partition f [M], from the window."""
        for variable, value in zip(
            self._variables[1:], self._program.point(f)[1:].tolist(), strict=True
        ):
            is_time = variable is self._variables[self._program.bottleneck or 0]
            self._model.add_hint(
                variable, math.ceil(value * self._steps) if is_time else round(value)
            )

    def solve(self, time_s: float, workers: int, seen: int) -> None:
        """Runs until proven, out of time, or at a partition that breaks a rule."""
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
                self.bound = max(self.bound, (steps - 1) / self._steps * (1 - _SAFETY))

    def _take(self, values: list[int], seen: int) -> bool:
        """Whether the search must stop: the point breaks a rule that it did not know."""
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
        """States a row so that nothing is cut off that keeps it."""
        from ortools.sat.python import cp_model

        time_column = self._program.bottleneck
        has_time = any(j == time_column for j, _ in terms)
        # Every row with the bottleneck in it takes it with the same coefficient, -1.
        is_whole = all(a == round(a) for j, a in terms) and upper == math.floor(upper)
        if is_whole and not has_time:
            scale = 1.0
        elif has_time:
            scale = float(_STEPS)
        else:
            total = sum(abs(a) for _, a in terms) + abs(upper)
            scale = 2.0 ** math.floor(math.log2(_LARGEST / total))
        whole: list[int] = []
        slack = 0.0
        for j, a in terms:
            if j == time_column:
                whole.append(-self._fine)  # the column counts coarse steps itself
                continue
            rounded = round(a * scale)
            slack += max(0.0, rounded - a * scale)
            whole.append(rounded)
        right = math.floor(upper * scale + slack * (1 + _SAFETY) + abs(upper * scale) * 1e-15)
        if scale != 1.0:
            right += 1
        columns = [self._variables[j] for j, _ in terms]
        self._model.add(cp_model.LinearExpr.weighted_sum(columns, whole) <= right)


def _most(program: Model) -> float:
    """No partition has a larger bottleneck."""
    most = 1.0
    for terms, upper in zip(program.rows, program.row_upper, strict=True):
        if any(j == program.bottleneck for j, _ in terms):
            most = max(most, sum(a for _, a in terms if a > 0) - upper)
    return most
