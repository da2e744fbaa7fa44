"""Figures of the benchmark from its rows: seconds to quality, shares of headroom, exponents."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
History = Sequence[Sequence[float]]  # (seconds, bottleneck in seconds), falling

NEAR = 1.01  # largest ratio to the best known bottleneck that counts as reaching it
# Bottlenecks up to this ratio are equal: searches stop when proven this close to the optimum.
EQUAL = 1 + 1e-4
LEARNABLE = 1.02  # largest headroom that counts as none
LARGE = 300  # nodes of the smallest large graph
_SHORTEST_S = 1e-3  # times below the resolution of clocks count as this in means


@dataclasses.dataclass(frozen=True)
class Judged:
    """One run, judged by the best of all runs of its pair.

    Attributes:
      pair: graph and module.
      nodes: number of nodes.
      method: the method that ran.
      seed: of the run.
      limit_s: its time limit in seconds.
      history: of the run, within the limit.
      near_s: seconds until the bottleneck was within 1% of the best known; inf: never.
      cold_s: the same, from the start of the process. If never: start-up, compilation and limit.
      ratio: final bottleneck over the best known; inf: nothing valid was found.
      share: share of the headroom that was taken (`headroom_share`); None: no headroom.
      is_best: whether no other run of the pair ended better, beyond 0.01%.
    """

    pair: tuple[str, str]
    nodes: int
    method: str
    seed: int
    limit_s: float
    history: History
    near_s: float
    cold_s: float
    ratio: float
    share: float | None
    is_best: bool


def within(history: History, limit_s: float) -> History:
    """The part of a history up to a time limit in seconds."""
    return [point for point in history if point[0] <= limit_s]


def final_s(history: History) -> float:
    """The last bottleneck of a history, in seconds; inf if nothing was found."""
    return history[-1][1] if history else math.inf


def seconds_to(history: History, target_s: float) -> float:
    """Seconds until the bottleneck was at most the target, also in seconds; inf: never."""
    return next((at_s for at_s, value_s in history if value_s <= target_s), math.inf)


def headroom_share(
    order_s: float | None, bottleneck_s: float, bound_s: float | None
) -> float | None:
    """The share of the headroom that a run took: log(order / T) / log(order / bound).

    Args:
      order_s: bottleneck of the program order cut optimally, in seconds; None: unknown.
      bottleneck_s: T, the final bottleneck; inf: nothing was found.
      bound_s: the lower bound; None: unknown.

    Returns:
      1 at the bound, 0 at the program order cut optimally or if nothing was found, negative for a
      worse T. None if the headroom (order / bound) is at most 1.02 or unknown.
    """
    if not order_s or not bound_s or order_s / bound_s <= LEARNABLE:
        return None
    if math.isinf(bottleneck_s):
        return 0.0
    return math.log(order_s / bottleneck_s) / math.log(order_s / bound_s)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Fits k in values ~ sizes^k, by least squares of the logarithms.

    Args:
      sizes: positive numbers.
      values: a positive number for each size.

    Returns:
      k; None for fewer than two different sizes.
    """
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def judge(rows: Sequence[Row], limit_s: float) -> list[Judged]:
    """Judges all runs of all pairs.

    A pair is left out if some run proved that it has no valid partition, or if no run found one. A
    run that died counts as one that found nothing.

    Args:
      rows: runs with graph, mcm, nodes, method, seed, history and cold_history, and with start_s,
        compile_s and lower_bound_s where these are known. Rows without a history have what is known
        of a pair: program_order_s, infeasible.
      limit_s: time limit of each run in seconds.
    """
    judged = []
    for pair in dict.fromkeys((row["graph"], row["mcm"]) for row in rows):
        chosen = [row for row in rows if (row["graph"], row["mcm"]) == pair]
        runs = [row for row in chosen if "history" in row]
        best_s = min((final_s(within(row["history"], limit_s)) for row in runs), default=math.inf)
        if math.isinf(best_s) or any("infeasible" in row for row in chosen):
            continue
        order_s = next((row["program_order_s"] for row in chosen if "program_order_s" in row), None)
        bound_s = max(row.get("lower_bound_s") or 0.0 for row in runs)
        judged += [_judged(row, best_s, order_s, bound_s, limit_s) for row in runs]
    return judged


def _judged(
    row: Row, best_s: float, order_s: float | None, bound_s: float, limit_s: float
) -> Judged:
    history = within(row["history"], limit_s)
    near_s, reached_s = seconds_to(history, best_s * NEAR), final_s(history)
    if math.isinf(near_s):
        cold_s = row.get("start_s", 0.0) + row.get("compile_s", 0.0) + limit_s
    else:
        cold_s = seconds_to(row["cold_history"], best_s * NEAR)
    return Judged(
        (row["graph"], row["mcm"]),
        row["nodes"],
        row["method"],
        row["seed"],
        limit_s,
        history,
        near_s,
        cold_s,
        reached_s / best_s if best_s > 0 else 1.0,
        headroom_share(order_s, reached_s, bound_s),
        reached_s <= best_s * EQUAL,
    )


def by_size(judged: Sequence[Judged]) -> Iterator[tuple[str, list[Judged]]]:
    """Groups runs by the size of the graph.

    Args:
      judged: the runs.

    Yields:
      (name, runs) of small graphs, large graphs and all, without empty groups. With one size there
      is only "all".
    """
    classes: tuple[tuple[str, Callable[[int], bool]], ...] = (
        (f"< {LARGE} nodes", lambda nodes: nodes < LARGE),
        (f">= {LARGE} nodes", lambda nodes: nodes >= LARGE),
        ("all", lambda nodes: True),
    )
    for name, holds in classes:
        chosen = [run for run in judged if holds(run.nodes)]
        if chosen and (name == "all" or len(chosen) < len(judged)):
            yield name, chosen


def mean_seconds(seconds: Sequence[float], limit_s: float = math.inf) -> float | None:
    """The geometric mean of times in seconds.

    Args:
      seconds: the times; each counts as at least a millisecond.
      limit_s: longer times, inf included, count as this.

    Returns:
      The mean; None without times.
    """
    capped = [min(max(value, _SHORTEST_S), limit_s) for value in seconds]
    return statistics.geometric_mean(capped) if capped else None


_METHODS = "{:<12} {:<12} {:>5} {:>8} {:>6} {:>8} {:>8} {:>8} {:>7} {:>10} {:>5}"
_BEHIND = "{:<22} {:<9} {:>6} {:>5} {:>9}  {}"
_AGAINST = "{:<12} {:<12} {:>5} {:>13} {:>13} {:>6} {:>6}"


def method_table(judged: Sequence[Judged]) -> list[str]:
    """A table by size and method: seconds to 1%, final bottlenecks, share of the headroom."""
    head = ("runs", "s to 1%", "never", "cold s", "final x", "worst x", "nothing", "headroom %")
    lines = [_METHODS.format("nodes", "method", *head, "best")]
    for size, chosen in by_size(judged):
        for method in dict.fromkeys(run.method for run in chosen):
            runs = [run for run in chosen if run.method == method]
            lines.append(_METHODS.format(size, method, *_figures(runs)))
    return lines


def _figures(runs: Sequence[Judged]) -> tuple[object, ...]:
    limit_s = runs[0].limit_s
    shares = [run.share for run in runs if run.share is not None]
    ratios = [run.ratio for run in runs if math.isfinite(run.ratio)]
    return (
        len(runs),
        _number(mean_seconds([run.near_s for run in runs], limit_s), 2),
        sum(math.isinf(run.near_s) for run in runs),
        _number(mean_seconds([run.cold_s for run in runs]), 2),
        _number(statistics.geometric_mean(ratios) if ratios else None, 4),
        _number(max(ratios, default=None), 3),
        len(runs) - len(ratios),
        _number(100 * statistics.fmean(shares) if shares else None, 1),
        sum(run.is_best for run in runs),
    )


@dataclasses.dataclass(frozen=True)
class Race:
    """How soon one method reaches the final bottleneck of another method.

    Attributes:
      runs: compared pairs of runs. Pairs where both methods found nothing are left out.
      of_limit: the method's seconds over the time limit, geometric mean.
      of_theirs: its seconds over those of the other method, geometric mean.
      never: runs that never reach it; they count as the time limit.
      worse: runs that end worse than the other method's, beyond 0.01%. This differs from `never`
        only in ties.
    """

    runs: int
    of_limit: float
    of_theirs: float
    never: int
    worse: int


def race(judged: Sequence[Judged], method: str, other: str) -> Race | None:
    """Compares two methods, run by run of the same pair and seed.

    Args:
      judged: the runs.
      method: whose time is measured.
      other: whose final bottleneck is to be reached.

    Returns:
      The comparison; None without a pair and seed that both have.
    """
    found = {(run.pair, run.seed): run for run in judged if run.method == method}
    of_limit, of_theirs, never, worse = [], [], 0, 0
    for run in judged:
        mine = found.get((run.pair, run.seed))
        if run.method != other or mine is None:
            continue
        target_s = final_s(run.history)
        if math.isinf(target_s) and not mine.history:
            continue
        mine_s = seconds_to(mine.history, target_s * EQUAL)
        theirs_s = seconds_to(run.history, target_s) if run.history else run.limit_s
        never += math.isinf(mine_s)
        worse += final_s(mine.history) > target_s * EQUAL
        mine_s = min(max(mine_s, _SHORTEST_S), run.limit_s)
        of_limit.append(mine_s / run.limit_s)
        of_theirs.append(mine_s / max(theirs_s, _SHORTEST_S))
    if not of_limit:
        return None
    mean = statistics.geometric_mean
    return Race(len(of_limit), mean(of_limit), mean(of_theirs), never, worse)


def race_table(judged: Sequence[Judged], method: str, others: Sequence[str]) -> list[str]:
    """A table by size: how soon `method` reaches the final bottleneck of each other method."""
    head = ("runs", "x of limit", "x of theirs", "never", "worse")
    lines = [_AGAINST.format("nodes", f"{method} to", *head)]
    for size, chosen in by_size(judged):
        for other in others:
            result = race(chosen, method, other)
            if result is not None:
                times = (f"{result.of_limit:.4f}", f"{result.of_theirs:.4f}")
                row = (size, other, result.runs, *times, result.never, result.worse)
                lines.append(_AGAINST.format(*row))
    return lines


@dataclasses.dataclass(frozen=True)
class Behind:
    """A pair on which a method ends worse than another.

    Attributes:
      pair: graph and module.
      nodes: number of nodes.
      seeds: runs of each method that were compared.
      ratio: its final bottleneck over the other's, means over seeds; inf if it found nothing with
        some seed.
      best: the other method, the one with the best mean.
    """

    pair: tuple[str, str]
    nodes: int
    seeds: int
    ratio: float
    best: str


def behind(judged: Sequence[Judged], method: str) -> list[Behind]:
    """Finds the pairs on which a method ends worse than the best method, beyond 0.01%.

    Geometric means over the seeds that all methods have are compared, because a single run depends
    on luck.

    Args:
      judged: the runs.
      method: the method.

    Returns:
      The pairs, the worst first.
    """
    found = []
    for pair in dict.fromkeys(run.pair for run in judged):
        runs = [run for run in judged if run.pair == pair]
        methods = list(dict.fromkeys(run.method for run in runs))
        seeds = set[int].intersection(
            *({run.seed for run in runs if run.method == each} for each in methods)
        )
        if method not in methods or not seeds:
            continue
        finals = {
            each: _mean_ratio(r for r in runs if r.method == each and r.seed in seeds)
            for each in methods
        }
        best = min(finals, key=finals.__getitem__)
        if finals[method] > finals[best] * EQUAL:
            ratio = finals[method] / finals[best]
            found.append(Behind(pair, runs[0].nodes, len(seeds), ratio, best))
    return sorted(found, key=lambda entry: -entry.ratio)


def _mean_ratio(runs: Iterable[Judged]) -> float:
    """The geometric mean of final bottlenecks over the best known; inf if a run found nothing."""
    return math.exp(statistics.fmean(math.log(run.ratio) for run in runs))


def behind_table(judged: Sequence[Judged], method: str) -> list[str]:
    """A table of `behind`, or one line if the method is never behind."""
    lines = [_BEHIND.format("graph", "mcm", "nodes", "seeds", f"{method} x", "best by")]
    for entry in behind(judged, method):
        more = f"{entry.ratio:.4f}" if math.isfinite(entry.ratio) else "nothing"
        row = (entry.pair[0][:22], entry.pair[1], entry.nodes, entry.seeds, more, entry.best)
        lines.append(_BEHIND.format(*row))
    return lines if len(lines) > 1 else [f"{method} never ends worse than another"]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
