"""The least bottleneck over chains of ideals where chips are alike, by parametric search.

For a limit on the bottleneck, the search computes the fewest chips that each ideal needs. It then
bisects the limit. The test of one limit is the probe of chains-on-chains partitioning (Pinar and
Aykanat, J. Parallel Distrib. Comput. 64, 2004, section 3), on the lattice of ideals instead of one
order:

    chips_needed[y] = 1 + min of chips_needed[x] over ideals x < y whose segment y - x is within
    the limit.

Chips are alike and no node is fixed to a chip, so fewer chips for the same ideal are never worse.
The program therefore needs no axis for chips: a long graph on a thousand chips takes seconds.

Only few pairs of ideals are examined: the smallest x come first, and the loop ends as soon as no
larger x can need fewer chips. Each pair costs a few words of bit sets.

Memory of a segment is bounded: from above when a chain is sought, so that what is found is valid;
from below when a bound is sought, so that what is proven is true.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxpart.bounds.ideals.bitsets import Words, entry, has, inner
from jaxpart.bounds.ideals.lattice import Lattice, compile_lattice
from jaxpart.bounds.ideals.walks import WORD
from jaxpart.cost import host
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Relative rounding error allowed for: well above that of a sum of a few thousand float64 values.
_SLACK = 1e-11
# Pairs of ideals examined between two calls of `give_up`: about 0.1 s.
_PAIRS = 20_000_000
# Ideals per contracted node beyond which there are too many pairs of them.
_MAX_PER_NODE = 30


def can_count(problem: Problem) -> bool:
    """Whether fewer chips are never worse: alike chips, no fixed chips, and acyclic dataflow."""
    is_alike = bool((problem.chip_kind == problem.chip_kind[0]).all())
    return is_alike and problem.mcm.constraints.acyclic and bool((problem.fixed_chip < 0).all())


def is_narrow(lattice: Lattice) -> bool:
    """Whether there are few enough ideals per contracted node to examine pairs of them."""
    return len(lattice) <= _MAX_PER_NODE * lattice.num_contracted


@functools.cache
def compile_counting() -> None:
    """Compiles the functions of this search, or loads them from numba's cache."""
    compile_lattice()
    one, many = np.zeros(1, np.int64), np.zeros(2, np.int64)
    ideals = _Ideals(
        np.arange(3),
        many,
        np.array([[0], [1]], np.uint64),
        np.zeros((2, 1), np.uint64),
        np.array([0.0, 1.0]),
        np.array([0.0, 1.0]),
        np.zeros(2),
        np.zeros(2),
        np.zeros(2),
        many,
        many + 1,
        np.zeros((1, 1)),
    )
    rules = _Rules(True, True, True, True, True, True, 1.0, 0.0, 1.0)
    chips_needed, parent, least = _start(ideals)
    _advance(ideals, rules, 2.0, 1, 1, _PAIRS, chips_needed, parent, least)
    _labels(ideals, parent, chips_needed, one)
    _extents(ideals.layer_start, ideals.first_word, ideals.window)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A chain of ideals within a limit."""

    bottleneck_s: float  # seconds, as the rules of the search count it
    assignment: IntArray  # [N] chips


class _Ideals(NamedTuple):
    """I ideals of M contracted nodes, with what the compiled functions read of them.

    The first four fields are those of `Lattice`.
    """

    layer_start: IntArray
    first_word: IntArray
    window: Words
    needed: Words
    load_s: FloatArray  # [I] compute of the members
    most_load_s: FloatArray  # [layers] largest load of an ideal of the layer
    cut_s: FloatArray  # [I] transfer of the whole cut over one link
    own_bytes: FloatArray  # [I] of weights that a single contracted node uses
    shared_bytes: FloatArray  # [I] of the other weights, once per contracted node that uses them
    begin: IntArray  # [I] first contracted node outside
    end: IntArray  # [I] one past the last contracted node inside
    peak_bytes: FloatArray  # [levels, M] most bytes alive at any of the 2^level nodes from v on


class _Rules(NamedTuple):
    """The rules that a segment must keep."""

    has_span: bool  # all consumers of the cut before a segment are in that segment
    has_links: bool  # one link carries the whole cut
    has_transfers: bool  # the cuts at both ends add to compute
    has_memory: bool  # a chip must be able to hold the segment
    has_buffers: bool  # boundary buffers and live activations take memory
    is_relaxed: bool  # memory is bounded from below (for proofs), not from above
    capacity_bytes: float  # of a chip
    all_shared_bytes: float  # of the weights of several contracted nodes, each once
    bandwidth: float  # of a link, bytes per second


class ParametricSearch:
    """Parametric search on one problem for which `can_count` is true."""

    def __init__(self, problem: Problem, lattice: Lattice) -> None:
        """Computes the figures of each ideal.

        Args:
          problem: of N nodes and C chips.
          lattice: all ideals of its contracted nodes, or those of one order.
        """
        self._problem = problem
        self._is_total_order = lattice.is_total_order
        contracted, mcm = problem.contracted, problem.mcm
        held = np.zeros((contracted.num_nodes, 2))
        column = contracted.is_shared_weight[contracted.use_weight].astype(np.int64)
        np.add.at(
            held, (contracted.use_node, column), contracted.weight_bytes[contracted.use_weight]
        )
        held_bytes = lattice.sums(held)
        load_s = lattice.sums(contracted.node_s.min(axis=1))
        begin, end = _extents(lattice.layer_start, lattice.first_word, lattice.window)
        self._ideals = _Ideals(
            lattice.layer_start,
            lattice.first_word,
            lattice.window,
            lattice.needed,
            load_s,
            np.maximum.reduceat(load_s, lattice.layer_start[:-1]),
            lattice.cut_bytes / mcm.link_bandwidth,
            np.ascontiguousarray(held_bytes[:, 0]),
            np.ascontiguousarray(held_bytes[:, 1]),
            begin,
            end,
            _most_of_ranges(host.peak_bounds(problem)[1]),
        )
        self._shared_bytes = float(contracted.weight_bytes[contracted.is_shared_weight].sum())

    def best(
        self,
        lower_s: float,
        upper_s: float,
        *,
        gap: float,
        has_memory: bool = True,
        give_up: Callable[[], bool] = lambda: False,
    ) -> Chain | None:
        """The best chain of ideals within the rules, up to a relative gap.

        If the triangle rule is on, every edge stays on its chip or goes to the next.

        Args:
          lower_s: a lower bound on every valid bottleneck, in seconds.
          upper_s: seconds; only chains with a smaller bottleneck are wanted.
          gap: relative distance from the best chain at which the search ends.
          has_memory: whether the memory rule counts; if not, the chain may be invalid.
          give_up: called from time to time; if it returns True, the search ends with the best chain
            found so far.

        Returns:
          The chain; None if there is none, or none was found in time.
        """
        if not math.isfinite(upper_s):
            upper_s = (self._ideals.load_s[-1] + 2 * self._ideals.cut_s.max()) * (1 + 2 * gap)
        rules = self._rules(has_memory=has_memory)
        return self._bisect(lower_s, upper_s, rules, gap, give_up)[1]

    def bound(
        self,
        lower_s: float,
        upper_s: float,
        *,
        gap: float,
        give_up: Callable[[], bool] = lambda: False,
    ) -> float:
        """A lower bound on the bottleneck of every valid partition, in seconds.

        It is a bound only if the lattice has all ideals, since it comes from chains under rules
        that every valid partition keeps. The first test is just below `upper_s`. If that fails,
        `upper_s` is proven optimal up to `gap` and the search ends.

        Args:
          lower_s: a known lower bound, in seconds.
          upper_s: an attained bottleneck, or a value above which bounds are not wanted, in seconds.
          gap: relative distance of the two at which the bisection ends.
          give_up: called from time to time; if it returns True, the bisection ends with what is
            proven.
        """
        return self._bisect(lower_s, upper_s, self._relaxed_rules(), gap, give_up)[0]

    def _bisect(
        self,
        lower_s: float,
        upper_s: float,
        rules: _Rules,
        gap: float,
        give_up: Callable[[], bool],
    ) -> tuple[float, Chain | None]:
        """A limit in seconds within which there is no chain, and the best chain found, if any."""
        found: Chain | None = None
        limit_s = upper_s / (1 + gap)
        while upper_s > lower_s * (1 + gap):
            is_known, chain = self._within(limit_s, rules, give_up)
            if not is_known:
                break
            if chain is None:
                lower_s = limit_s
            else:
                found, upper_s = chain, min(limit_s, chain.bottleneck_s)
            limit_s = min((lower_s + upper_s) / 2, upper_s / (1 + gap))
        return lower_s, found

    def _rules(self, *, has_memory: bool) -> _Rules:
        """Rules that make a chain valid (if `has_memory`)."""
        mcm = self._problem.mcm
        return _Rules(
            has_span=mcm.constraints.triangle,
            has_links=True,  # on other topologies a chip's port carries no more than that
            has_transfers=not mcm.overlap,
            has_memory=has_memory and mcm.constraints.memory,
            has_buffers=mcm.memory_model == "full",
            is_relaxed=False,
            capacity_bytes=float(self._problem.capacity_bytes[0]),
            all_shared_bytes=self._shared_bytes,
            bandwidth=mcm.link_bandwidth,
        )

    def _relaxed_rules(self) -> _Rules:
        """Rules that every valid partition keeps.

        If only one order is topological, each contracted node has an edge to the next. So each chip
        sends to the next, and an edge that skips a chip would have a longer path from its start to
        its end. Then the triangle rule is the span rule, and a segment's transfers are its cuts.
        """
        mcm = self._problem.mcm
        is_span = mcm.constraints.triangle and self._is_total_order
        return self._rules(has_memory=True)._replace(
            has_span=is_span,
            has_links=is_span or mcm.topology == "chain",
            has_transfers=is_span and not mcm.overlap,
            is_relaxed=True,
        )

    def _within(
        self, limit_s: float, rules: _Rules, give_up: Callable[[], bool]
    ) -> tuple[bool, Chain | None]:
        """Whether the answer is known, and a chain within the limit; None if there is none."""
        ideals, chips = self._ideals, self._problem.num_chips
        chips_needed, parent, least = _start(ideals)
        y, slack_s = 1, limit_s * (1 + _SLACK)
        while y < len(chips_needed):
            y = _advance(ideals, rules, slack_s, chips, y, _PAIRS, chips_needed, parent, least)
            if y < len(chips_needed) and give_up():
                return False, None
        if chips_needed[-1] > chips:
            return True, None
        return True, self._chain(parent, chips_needed, rules)

    def _chain(self, parent: IntArray, chips_needed: IntArray, rules: _Rules) -> Chain:
        """The chain that ends with all contracted nodes, and its bottleneck under the rules."""
        ideals = self._ideals
        labels = _labels(
            ideals, parent, chips_needed, np.zeros(self._problem.num_contracted, np.int64)
        )
        tops = [len(parent) - 1]
        while tops[-1] > 0:
            tops.append(int(parent[tops[-1]]))
        cuts = np.array(tops[::-1])
        stage_s, cut_s = np.diff(ideals.load_s[cuts]), ideals.cut_s[cuts]
        if rules.has_transfers:
            stage_s = stage_s + cut_s[1:] + cut_s[:-1]
        if rules.has_links:
            stage_s = np.maximum(stage_s, np.maximum(cut_s[1:], cut_s[:-1]))
        return Chain(float(stage_s.max()), labels[self._problem.contraction])


def _most_of_ranges(values: FloatArray) -> FloatArray:
    """[levels, M] the largest of the 2^level values [M] from each position on."""
    rows, step = [np.asarray(values, np.float64)], 1
    while 2 * step <= len(values):
        last = rows[-1]
        row = last.copy()
        row[:-step] = np.maximum(last[:-step], last[step:])
        rows.append(row)
        step *= 2
    return np.stack(rows)


@entry
def _extents(
    layer_start: IntArray, first_word: IntArray, window: Words
) -> tuple[IntArray, IntArray]:
    """`begin` and `end` of `_Ideals`."""
    begin = np.empty(len(window), np.int64)
    end = np.empty(len(window), np.int64)
    for layer in range(len(first_word)):
        first = WORD * first_word[layer]
        for i in range(layer_start[layer], layer_start[layer + 1]):
            place = 0
            while place < WORD * window.shape[1] and has(window[i], place):
                place += 1
            begin[i] = first + place
            end[i] = begin[i]
            for later in range(place + 1, WORD * window.shape[1]):
                if has(window[i], later):
                    end[i] = first + later + 1
    return begin, end


def _start(ideals: _Ideals) -> tuple[IntArray, IntArray, IntArray]:
    """The arrays of a test of one limit, before any ideal but the empty one is counted.

    Returns:
      fewest: [I] fewest chips of each ideal; a huge number if none are known.
      parent: [I] the ideal before it on such a chain.
      least: [layers] the smallest `chips_needed` of the layer and of all later layers.
    """
    many = np.iinfo(np.int64).max // 2
    chips_needed = np.full(len(ideals.load_s), many)
    least = np.full(len(ideals.first_word), many)
    chips_needed[0] = least[0] = 0
    return chips_needed, np.zeros(len(ideals.load_s), np.int64), least


@entry
def _advance(
    ideals: _Ideals,
    rules: _Rules,
    limit_s: float,
    chips: int,
    y: int,
    pairs: int,
    chips_needed: IntArray,
    parent: IntArray,
    least: IntArray,
) -> int:
    """Counts the chips of ideal y and of those after it, for a while.

    Args:
      ideals: as the rest of the arrays, of I ideals.
      rules: that segments must keep.
      limit_s: on the bottleneck, in seconds.
      chips: chips of the module.
      y: first ideal to count; all ideals before it are counted.
      pairs: pairs of ideals to examine, at least; then the function returns.
      fewest: as `_start` returns it; changed in place.
      parent: likewise.
      least: likewise.

    Returns:
      The next ideal to count; I when all are counted.
    """
    total_s, layer = ideals.load_s[-1], 0
    while y < len(chips_needed) and pairs > 0:
        while ideals.layer_start[layer + 1] <= y:
            layer += 1
        if not rules.has_links or ideals.cut_s[y] <= limit_s:
            # The load outside needs `rest` chips, so y is useless with `best` chips or more.
            rest = math.ceil((total_s - ideals.load_s[y]) / limit_s * (1 - _SLACK))
            best = chips + 1 - rest
            k = _first_above(ideals.most_load_s, layer, ideals.load_s[y] - limit_s)
            while k < layer and least[k] + 1 < best:
                pairs -= ideals.layer_start[k + 1] - ideals.layer_start[k]
                for x in range(ideals.layer_start[k], ideals.layer_start[k + 1]):
                    if chips_needed[x] + 1 < best and _is_segment(
                        ideals, rules, limit_s, k, x, layer, y
                    ):
                        best = chips_needed[x] + 1
                        chips_needed[y], parent[y] = best, x
                k += 1
            k = layer
            while k >= 0 and least[k] > chips_needed[y]:
                least[k] = chips_needed[y]
                k -= 1
        pairs -= 1
        y += 1
    return y


@inner
def _first_above(values: FloatArray, count: int, wanted: float) -> int:
    """Position of the first of `count` ascending values that is at least `wanted`."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def _is_segment(
    ideals: _Ideals, rules: _Rules, limit_s: float, low: int, x: int, high: int, y: int
) -> bool:
    """Whether ideal x (layer `low`) is a subset of y (layer `high`) and y - x keeps the rules."""
    stage_s = ideals.load_s[y] - ideals.load_s[x]
    if rules.has_transfers:
        stage_s += ideals.cut_s[x] + ideals.cut_s[y]
    if stage_s > limit_s:
        return False
    width = ideals.window.shape[1]
    shift = ideals.first_word[high] - ideals.first_word[low]
    for w in range(shift, width):
        outside = ~ideals.window[y, w - shift]
        if ideals.window[x, w] & outside:
            return False
        if rules.has_span and ideals.needed[x, w] & outside:
            return False
    return not rules.has_memory or _held(ideals, rules, x, y) <= rules.capacity_bytes


@inner
def _held(ideals: _Ideals, rules: _Rules, x: int, y: int) -> float:
    """Bytes that the segment y - x holds: a lower bound if rules are relaxed, else an upper one."""
    held = ideals.own_bytes[y] - ideals.own_bytes[x]
    if rules.is_relaxed:
        # Give away what rounding may have added.
        return held * (1 - _SLACK) - _SLACK * ideals.own_bytes[y]
    held += min(ideals.shared_bytes[y] - ideals.shared_bytes[x], rules.all_shared_bytes)
    if rules.has_buffers:
        held += 2 * rules.bandwidth * (ideals.cut_s[x] + ideals.cut_s[y])
        begin, end = ideals.begin[x], ideals.end[y]
        level, step = 0, 1
        while 2 * step <= end - begin:
            level, step = level + 1, 2 * step
        peaks = ideals.peak_bytes[level]
        held += max(peaks[begin], peaks[end - step])
    return held


@entry
def _labels(
    ideals: _Ideals, parent: IntArray, chips_needed: IntArray, labels: IntArray
) -> IntArray:
    """[M] chips of the chain that ends with all contracted nodes, written into `labels`."""
    y = len(parent) - 1
    high = len(ideals.first_word) - 1
    while y > 0:
        x, low = parent[y], high
        while ideals.layer_start[low] > x:
            low -= 1
        first_x, first_y = WORD * ideals.first_word[low], WORD * ideals.first_word[high]
        for v in range(ideals.begin[x], ideals.end[y]):
            is_after = v - first_x >= WORD * ideals.window.shape[1]
            is_new = is_after or not has(ideals.window[x], v - first_x)
            if is_new and (v < first_y or has(ideals.window[y], v - first_y)):
                labels[v] = chips_needed[y] - 1
        y, high = x, low
    return labels
