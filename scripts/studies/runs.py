"""The runs of the benchmark: one method on one pair, or `auto` on one size of a model.

`quality.py` starts each run in a process of its own. A history has two clocks. `history` uses the
clock of the time limit, without start-up, and without the compilation before the search (for a
rival, the time to state its program). `cold_history` has the same partitions in seconds since the
process was started, all of this included. Compiled programs are stored for later processes, as the
command stores them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpart.problem.graph import Graph
    from jaxpart.problem.mcm import MCM
    from jaxpart.results.result import Result
    from jaxpart.runtime.state import Method, Progress, Search

GAP = 1e-4  # relative gap at which every method may stop
WITHOUT_POLICY = "no-policy"  # the name of `auto` without a policy
_MEMORY_PER_WEIGHTS = 2.0  # least memory of all chips of a growing model / bytes of its weights


def by_method(
    graph: str,
    mcm: str,
    method: str,
    seconds: float,
    threads: int,
    seed: int,
    began: float,
    warm_s: float = 0.0,
) -> dict[str, Any]:
    """Runs a method of jaxpart or a rival on one pair.

    Args:
      graph: a shipped graph's name, or a file.
      mcm: a preset, or a file. A graph that brings its own machine is run on that one.
      method: in `METHODS` or `RIVALS`, or `WITHOUT_POLICY`.
      seconds: time limit, on the clock of the search.
      threads: threads of a rival; jaxpart uses all cores of the process.
      seed: of the run.
      began: when the process was started, by `time.time()`.
      warm_s: before a run of `auto`, `auto` runs on the pair for this many seconds in the same
        process, to compile. The compilation of other methods is not on their clock.

    Returns:
      The figures of the row.
    """
    from rivals import RIVALS, Limits

    from jaxpart import datasets
    from jaxpart.methods.policy.search import NO_POLICY
    from jaxpart.problem.mcm import load_mcm

    loaded, machine = datasets.resolve(graph)
    module = machine or load_mcm(mcm)
    if method in RIVALS:
        return _by_rival(loaded, module, method, Limits(seconds, threads, seed, GAP), began)
    policy = NO_POLICY if method == WITHOUT_POLICY else None
    method = "auto" if method == WITHOUT_POLICY else method
    if method == "auto" and warm_s:
        by_jaxpart(loaded, module, "auto", warm_s, seed, began, policy=policy)
        began = time.time()
    return by_jaxpart(loaded, module, method, seconds, seed, began, policy=policy)[0]


def _by_rival(graph: Graph, mcm: MCM, rival: str, limits: Any, began: float) -> dict[str, Any]:
    """Runs a rival; the figures of the row."""
    from rivals import RIVALS

    from jaxpart.problem.problem import Problem

    problem = Problem.build(graph, mcm)
    start_s = time.time() - began
    run = RIVALS[rival](problem, limits)
    if run.assignment is None and run.is_proven:
        return {"history": [], "cold_history": [], "infeasible": f"proven by {rival}"}
    off_clock_s = start_s + run.setup_s
    return {
        "history": run.history,
        "cold_history": [(off_clock_s + at_s, value_s) for at_s, value_s in run.history],
        "bottleneck_s": run.history[-1][1] if run.history else None,
        "lower_bound_s": None,
        "is_proven": run.is_proven,
        "start_s": start_s,
        "compile_s": run.setup_s,
        "search_s": run.seconds,
        "notes": [run.note] * bool(run.note) + [f"{run.refused} refused"] * bool(run.refused),
    }


def by_jaxpart(
    graph: Graph,
    mcm: MCM,
    method: str,
    seconds: float,
    seed: int,
    began: float,
    policy: str | None = None,
) -> tuple[dict[str, Any], Result | None]:
    """Runs `partition`.

    Args:
      graph: to partition.
      mcm: the module.
      method: in `METHODS`.
      seconds: time limit.
      seed: of the search.
      began: when the process was started, by `time.time()`.
      policy: of `method_of`.

    Returns:
      The figures of the row, and the result; None where no valid partition exists or was found.
    """
    from jaxpart.engine import method_of, partition
    from jaxpart.environment import keep_compiled
    from jaxpart.errors import InfeasibleError, NothingFoundError

    keep_compiled()
    watch = _Watch(began)
    result, why = None, {}
    try:
        result = partition(
            graph,
            mcm,
            method=watch.watched(method_of(method, policy)),
            time_limit_s=seconds,
            seed=seed,
            relative_gap=GAP,
            count_compilation=False,
            callback=watch,
        )
    except InfeasibleError as error:
        why = {"infeasible": str(error)}
    except NothingFoundError as error:
        why = {"notes": [str(error)]}
    figures: dict[str, Any] = {**watch.figures(), **why}
    if result is not None:
        figures |= {
            "bottleneck_s": result.bottleneck_s,
            "lower_bound_s": result.lower_bound_s,
            "is_proven": result.bottleneck_s <= result.lower_bound_s * (1 + GAP),
            "notes": list(result.notes),
        }
    return figures, result


@dataclasses.dataclass
class _Watch:
    """Records the improvements of a search on both clocks; a callback of the engine.

    Attributes:
      began: when the process was started.
      search: the search, once its method has begun.
      points: (seconds on the search clock, seconds since `began`, bottleneck in seconds).
    """

    began: float
    search: Search | None = None
    points: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)

    def watched(self, method: Method) -> Method:
        """The same method, but `search` is set when it begins."""

        def watched(search: Search) -> Generator[None]:
            self.search = search
            yield from method(search)

        return watched

    def __call__(self, state: Progress) -> None:
        """Records an improvement, if there is one."""
        if state.best_s is None or (self.points and state.best_s >= self.points[-1][2]):
            return
        # The baseline is found before the method begins, at 0 s.
        searched_s = 0.0 if self.search is None else self.search.searched_s
        self.points.append((searched_s, time.time() - self.began, state.best_s))

    def figures(self) -> dict[str, Any]:
        """Both histories, and seconds: of start-up, of compilation off the clock, on the clock."""
        found: dict[str, Any] = {
            "history": [(at_s, value_s) for at_s, _, value_s in self.points],
            "cold_history": [(cold_s, value_s) for _, cold_s, value_s in self.points],
        }
        if self.search is None:  # no search: infeasible, or the baseline is optimal
            return found | {"start_s": time.time() - self.began, "compile_s": 0.0, "search_s": 0.0}
        elapsed_s, searched_s = self.search.elapsed_s, self.search.searched_s
        return found | {
            "start_s": time.time() - self.began - elapsed_s,
            "compile_s": elapsed_s - searched_s,
            "search_s": searched_s,
        }


def by_size(nodes: int, chips: int, seconds: float, began: float) -> dict[str, Any]:
    """Runs `auto` on a deep decoder.

    Args:
      nodes: least number of nodes.
      chips: number of chips, in a chain that holds the weights.
      seconds: time limit.
      began: when the process was started, by `time.time()`.

    Returns:
      The figures of the row; `growth.py` describes them.
    """
    from child import peak_bytes
    from models.growth import grown  # in scripts/dataset
    from quality_figures import NEAR, seconds_to

    start = time.time()
    graph = grown("decoder", nodes)
    called = time.time()
    figures, result = by_jaxpart(graph, _chain(graph, chips), "auto", seconds, 0, began)
    ended = time.time()
    cold, before_s = figures["cold_history"], called - began
    return {
        "nodes": len(graph.nodes),
        "trace_s": called - start,
        "first_s": cold[0][0] - before_s if cold else None,
        "near_s": seconds_to(cold, cold[-1][1] * NEAR) - before_s if cold else None,
        "compile_s": figures["compile_s"],
        "partition_s": ended - called,
        "improvement": result.improvement if result else None,
        "gap": result.gap if result else None,
        "bottleneck_s": result.bottleneck_s if result else None,
        "bound_method": result.bound_method if result else None,
        "history": figures["history"],
        "notes": figures.get("notes", []),
        **({"infeasible": figures["infeasible"]} if "infeasible" in figures else {}),
        **peak_bytes(),
    }


def _chain(graph: Graph, chips: int) -> MCM:
    """A chain of the presets' chips, with more memory if it cannot hold the weights twice."""
    from jaxpart.problem.mcm import load_mcm

    mcm = load_mcm("mcm64")
    held_bytes = sum(weight.bytes for weight in graph.weights)
    sram_bytes = max(mcm.chips[0].sram_bytes, _MEMORY_PER_WEIGHTS * held_bytes / chips)
    chip = dataclasses.replace(mcm.chips[0], sram_bytes=sram_bytes)
    return dataclasses.replace(mcm, name=f"mcm{chips}", chips=(chip,) * chips)
