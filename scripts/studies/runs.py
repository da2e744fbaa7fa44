"""What the benchmark runs in processes of their own: one method on one pair, one size of a model.

Every history is there on two clocks. `history` is on the clock that a time limit counts: without
start-up, and without what jaxpart compiles, or a rival states, before it searches. `cold_history`
has the same partitions in seconds since the process was started, all of that included. Compiled
programs are kept from one process to the next, as the command keeps them.
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

GAP = 1e-4  # relative, at which everybody may stop
WITHOUT_POLICY = "no-policy"  # `auto` without one, as though it were a method
_SLACK = 2.0  # of memory, for growing models


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
    """One run of a method of jaxpart, or of a rival.

    Args:
      graph: a shipped graph's name, or a file.
      mcm: a preset, or a file; the machine that a graph brings comes before it.
      method: in `METHODS` or `RIVALS`, or `WITHOUT_POLICY`.
      seconds: on the clock of the search.
      threads: that a rival may use; jaxpart takes the cores it is given.
      seed: of the run.
      began: when the process was started, `time.time()`.
      warm_s: seconds of `auto` on the pair before it, in the same process: the other methods have
        all that they compile beside their clocks.
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
    from rivals import RIVALS

    from jaxpart.problem.problem import Problem

    problem = Problem.build(graph, mcm)
    start_s = time.time() - began
    run = RIVALS[rival](problem, limits)
    if run.assignment is None and run.is_proven:
        return {"history": [], "cold_history": [], "infeasible": f"proven by {rival}"}
    beside_s = start_s + run.setup_s
    return {
        "history": run.history,
        "cold_history": [(beside_s + at_s, value_s) for at_s, value_s in run.history],
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
    """One run of `partition`: a row's figures, and the result where there is one."""
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
    """Notes what a search finds, on both clocks. The engine shows it the state at every gain."""

    began: float
    search: Search | None = None
    points: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)

    def watched(self, method: Method) -> Method:
        """The method, with a look into the search that it works on."""

        def watched(search: Search) -> Generator[None]:
            self.search = search
            yield from method(search)

        return watched

    def __call__(self, state: Progress) -> None:
        if state.best_s is None or (self.points and state.best_s >= self.points[-1][2]):
            return
        # What is found before the method begins, the baseline, is found at 0.
        searched_s = 0.0 if self.search is None else self.search.searched_s
        self.points.append((searched_s, time.time() - self.began, state.best_s))

    def figures(self) -> dict[str, Any]:
        """Both histories; start-up up to the search, what is beside its clock, and the clock."""
        found: dict[str, Any] = {
            "history": [(at_s, value_s) for at_s, _, value_s in self.points],
            "cold_history": [(cold_s, value_s) for _, cold_s, value_s in self.points],
        }
        if self.search is None:  # nothing to search: infeasible, or over with the baseline
            return found | {"start_s": time.time() - self.began, "compile_s": 0.0, "search_s": 0.0}
        elapsed_s, searched_s = self.search.elapsed_s, self.search.searched_s
        return found | {
            "start_s": time.time() - self.began - elapsed_s,
            "compile_s": elapsed_s - searched_s,
            "search_s": searched_s,
        }


def by_size(nodes: int, chips: int, seconds: float, began: float) -> dict[str, Any]:
    """`auto` on a decoder of at least so many nodes, on a chain of so many chips that hold it."""
    from child import peak_bytes
    from models.growth import grown  # the decoder stands with the data set's models
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
    """The presets' chain, longer; where it would not hold the weights twice, with larger chips."""
    from jaxpart.problem.mcm import load_mcm

    mcm = load_mcm("mcm64")
    held_bytes = sum(weight.bytes for weight in graph.weights)
    sram_bytes = max(mcm.chips[0].sram_bytes, _SLACK * held_bytes / chips)
    chip = dataclasses.replace(mcm.chips[0], sram_bytes=sram_bytes)
    return dataclasses.replace(mcm, name=f"mcm{chips}", chips=(chip,) * chips)
