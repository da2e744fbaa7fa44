"""Repair by OR-Tools CP-SAT under the same rules and for the same objective, for `repair.py`.

Without the memory rule, the chip of each contracted node is an integer variable, as is usual with
CP-SAT; rows bound the differences along edges and give the distance. With the memory rule, the
program is that of `jaxpart/solvers/model.py` with every contracted node free, lazy constraints
included. A model is stated once per problem. A candidate changes the objective, and is itself the
hint.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
from ortools.sat.python import cp_model

from jaxpart.problem.problem import Problem
from jaxpart.solvers.minimum_cut import squeeze
from jaxpart.solvers.model import Model
from jaxpart.solvers.program import ONE

# A row with real coefficients is scaled so that its terms sum to about this, and rounded.
_LARGEST = 2.0**40


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer of CP-SAT for one candidate."""

    assignment: np.ndarray | None  # [N]; None: none was found in time
    is_optimal: bool  # whether it is proven to be nearest
    seconds: float


class Rival:
    """CP-SAT on one problem, under dataflow, the span rule and memory where it is a rule.

    Attributes:
      seconds: that it took to state the model.
    """

    def __init__(self, problem: Problem, workers: int, time_limit_s: float, seed: int) -> None:
        """States the model.

        Args:
          problem: of N nodes.
          workers: threads of CP-SAT.
          time_limit_s: of one repair.
          seed: of CP-SAT.
        """
        began = time.perf_counter()
        self._problem, self._limit_s = problem, time_limit_s
        self._workers, self._seed = workers, seed
        self._model = cp_model.CpModel()
        self._program: Model | None = None
        if problem.mcm.constraints.memory:
            low = np.zeros(problem.num_contracted, np.int64)
            self._program = Model(problem, low, low + problem.num_chips - 1, span=True)
            self._columns: list[cp_model.IntVar] = []
            self._rows = 0
            self._follow(self._program)
        else:
            last = problem.num_chips - 1
            self._chips = [
                self._model.new_int_var(0 if fixed < 0 else fixed, last if fixed < 0 else fixed, "")
                for fixed in problem.contracted_fixed_chip.tolist()
            ]
            for u, v in problem.contracted_pairs.tolist():
                self._model.add_linear_constraint(self._chips[v] - self._chips[u], 0, 1)
            self._far = [self._model.new_int_var(0, last, "") for _ in range(problem.num_nodes)]
        self.seconds = time.perf_counter() - began

    def repair(self, y: np.ndarray) -> Answer:
        """Finds the partition nearest to y [N], with weights of one, within the time limit."""
        began = time.perf_counter()
        deadline = began + self._limit_s
        if self._program is None:
            f, is_optimal = self._differences(y, deadline)
        else:
            f, is_optimal = self._bits(self._program, y, deadline)
        return Answer(f, is_optimal, time.perf_counter() - began)

    def _differences(self, y: np.ndarray, deadline: float) -> tuple[np.ndarray | None, bool]:
        """Solves the model with integer variables, without memory.

        Args:
          y: [N] the candidate.
          deadline: on the clock of `time.perf_counter`.

        Returns:
          [N] chips or None, and whether they are proven to be nearest.
        """
        problem, model = self._problem, self._model.clone()
        for v, (b, chip) in enumerate(zip(problem.contraction.tolist(), y.tolist(), strict=True)):
            model.add(self._far[v] >= self._chips[b] - chip)
            model.add(self._far[v] >= chip - self._chips[b])
            model.add_hint(self._far[v], 0)
        hinted = set()
        for b, chip in zip(problem.contraction.tolist(), y.tolist(), strict=True):
            if b not in hinted:
                hinted.add(b)
                model.add_hint(self._chips[b], chip)
        model.minimize(sum(self._far))
        solver, status = self._solve(model, deadline)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, False
        f = np.array([solver.value(x) for x in self._chips])[problem.contraction]
        squeezed = squeeze(problem, f) if problem.mcm.constraints.no_skip else f
        return squeezed, status == cp_model.OPTIMAL

    def _bits(
        self, program: Model, y: np.ndarray, deadline: float
    ) -> tuple[np.ndarray | None, bool]:
        """Like `_differences`, for the program with memory."""
        problem = self._problem
        program.seek_nearest(problem.contraction, y, np.ones(problem.num_nodes))
        chips = np.zeros(problem.num_contracted, np.int64)
        chips[problem.contraction] = y
        while True:
            model = self._model.clone()
            costs = {j: round(a) for j, a in program.objective.items()}
            model.minimize(sum(a * self._columns[j] for j, a in costs.items()))
            for j, value in enumerate(program.point(chips)[: len(self._columns)].tolist()):
                if j != ONE:
                    model.add_hint(self._columns[j], round(value))
            solver, status = self._solve(model, deadline)
            if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
                return None, False
            f = program.assignment([solver.value(x) for x in self._columns])
            if not program.separate(f):
                return f[problem.contraction], status == cp_model.OPTIMAL
            self._follow(program)

    def _follow(self, program: Model) -> None:
        """States the columns and rows that were added to the program since the last call."""
        model = self._model
        for j in range(len(self._columns), len(program.lower)):
            self._columns.append(model.new_constant(1) if j == ONE else model.new_bool_var(""))
        for terms, upper in zip(
            program.rows[self._rows :], program.row_upper[self._rows :], strict=True
        ):
            whole = all(a == round(a) for _, a in terms) and upper == round(upper)
            total = sum(abs(a) for _, a in terms) + abs(upper)
            scale = 1.0 if whole else 2.0 ** np.floor(np.log2(_LARGEST / total))
            model.add(
                sum(round(a * scale) * self._columns[j] for j, a in terms) <= round(upper * scale)
            )
        self._rows = len(program.rows)

    def _solve(
        self, model: cp_model.CpModel, deadline: float
    ) -> tuple[cp_model.CpSolver, cp_model.CpSolverStatus]:
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = self._workers
        solver.parameters.random_seed = self._seed
        solver.parameters.max_time_in_seconds = max(0.01, deadline - time.perf_counter())
        solver.parameters.catch_sigint_signal = False
        return solver, solver.solve(model)
