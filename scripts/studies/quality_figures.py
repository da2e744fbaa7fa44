"""What the benchmark makes of its rows: seconds to quality, shares of headroom, exponents."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
History = Sequence[Sequence[float]]  # (seconds, bottleneck in seconds), falling

NEAR = 1.01  # of the best known: what counts as there
# Searches may end when proven this close to the optimum: equal, as far as they were asked.
EQUAL = 1 + 1e-4
LEARNABLE = 1.02  # headroom up to which there is nothing to gain
LARGE = 300  # nodes
_SHORTEST_S = 1e-3  # what clocks tell apart, for means


@dataclasses.dataclass(frozen=True)
class Judged:
    """One run beside all others of its pair.

    Attributes:
      pair: graph and module.
      nodes: N.
      method: who ran.
      seed: of the run.
      limit_s: the seconds it had.
      history: of it, within the limit.
      near_s: seconds until within 1% of the best known; inf: never.
      cold_s: the same from the start of the process; where never, start-up, compilation and limit.
      ratio: final bottleneck over the best known; inf: nothing valid.
      share: of the headroom, taken; None where there is none to speak of.
      is_best: whether nobody's final is better.
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
    """What was found in time."""
    return [point for point in history if point[0] <= limit_s]


def final_s(history: History) -> float:
    """The last bottleneck; inf where nothing was found."""
    return history[-1][1] if history else math.inf


def seconds_to(history: History, target_s: float) -> float:
    """Seconds until the bottleneck was at most the target; inf: never."""
    return next((at_s for at_s, value_s in history if value_s <= target_s), math.inf)


def headroom_share(
    order_s: float | None, bottleneck_s: float, bound_s: float | None
) -> float | None:
    """log(order / T) / log(order / bound): 0 is the program order cut optimally, 1 the bound.

    Below 0 where that cut was missed, 0 where nothing was found; None where the headroom, order /
    bound, is at most 1.02 or not known.
    """
    if not order_s or not bound_s or order_s / bound_s <= LEARNABLE:
        return None
    if math.isinf(bottleneck_s):
        return 0.0
    return math.log(order_s / bottleneck_s) / math.log(order_s / bound_s)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The k of values ~ sizes^k by least squares of the logarithms; None for fewer than two."""
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def judge(rows: Sequence[Row], limit_s: float) -> list[Judged]:
    """All runs of all pairs, each beside the others of its pair.

    Pairs that anybody has proven to have no valid partition, or for which nobody found one, are
    left out; of those that died, as though they had found nothing.

    Args:
      rows: runs with graph, mcm, nodes, method, seed, history and cold_history, start_s, compile_s
        and lower_bound_s where these are known; and rows without a history, with what is known of a
        pair: program_order_s, infeasible.
      limit_s: the seconds that each had.
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
    """(name, runs) of small graphs, large ones and all; of those that there are."""
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
    """The geometric mean; what never came counts as the limit. None of none."""
    capped = [min(max(value, _SHORTEST_S), limit_s) for value in seconds]
    return statistics.geometric_mean(capped) if capped else None


_METHODS = "{:<12} {:<12} {:>5} {:>8} {:>6} {:>8} {:>8} {:>8} {:>7} {:>10} {:>5}"
_BEHIND = "{:<22} {:<9} {:>6} {:>5} {:>9}  {}"
_AGAINST = "{:<12} {:<12} {:>5} {:>13} {:>13} {:>6} {:>6}"


def method_table(judged: Sequence[Judged]) -> list[str]:
    """By class of size and method: seconds to 1%, finals, headroom."""
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
    """How soon one method has another's final quality.

    Attributes:
      runs: of the other that found something, or that are beaten for having found nothing.
      of_limit: seconds over the limit, geometric mean.
      of_theirs: seconds over those that the other took to get there, geometric mean.
      never: runs that never get there; they count as the limit.
      worse: runs that end worse than the other, beyond 0.01%; the same as `never` but for ties.
    """

    runs: int
    of_limit: float
    of_theirs: float
    never: int
    worse: int


def race(judged: Sequence[Judged], method: str, other: str) -> Race | None:
    """`method` against `other`, pair by pair and seed by seed; None without a pair of both."""
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
    """By class of size: how soon `method` has what each of the others has in the end."""
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
      nodes: N.
      seeds: runs of each that were compared.
      ratio: its final over the other's, means over seeds; inf where it found nothing in one.
      best: the other, whose mean is the best.
    """

    pair: tuple[str, str]
    nodes: int
    seeds: int
    ratio: float
    best: str


def behind(judged: Sequence[Judged], method: str) -> list[Behind]:
    """Where the method ends worse than the best on that pair, beyond 0.01%, the worst first.

    By geometric means over the seeds that all have: of one run, who is ahead is luck.
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
    """The geometric mean of finals over the best known; inf where a run found nothing."""
    return math.exp(statistics.fmean(math.log(run.ratio) for run in runs))


def behind_table(judged: Sequence[Judged], method: str) -> list[str]:
    """Pair by pair, the worst first: by how much the method ends worse than the best."""
    lines = [_BEHIND.format("graph", "mcm", "nodes", "seeds", f"{method} x", "best by")]
    for entry in behind(judged, method):
        more = f"{entry.ratio:.4f}" if math.isfinite(entry.ratio) else "nothing"
        row = (entry.pair[0][:22], entry.pair[1], entry.nodes, entry.seeds, more, entry.best)
        lines.append(_BEHIND.format(*row))
    return lines if len(lines) > 1 else [f"{method} never ends worse than another"]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
