"""The least bottleneck over chains of ideals where chips are alike: how few chips do for a limit?

The probe of chains-on-chains partitioning (Pinar and Aykanat, J. Parallel Distrib. Comput. 64,
2004, section 3), over the lattice of ideals instead of one order:

    fewest[y] = 1 + min over ideals x < y, the piece y - x within the limit, of fewest[x].

Chips are alike and nothing is pinned, so fewer chips for the same ideal are never worse, and there
is no axis for chips: long graphs on a thousand of them are settled in seconds. The smallest x come
first and the search ends where all larger ones take as many chips as were found, so that of all
pairs of ideals few are looked at. Memory of a piece is weighed by what is never too little for what
is found, and never too much for what is proven.

Floor: I ideals times the few x that are looked at, each its window of a few words.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from jaxpart.bounds.ideals.bitsets import Words, has
from jaxpart.bounds.ideals.lattice import Lattice, compile_lattice
from jaxpart.bounds.ideals.walks import WORD
from jaxpart.cost import host
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Relative: what sums of a few thousand float64 can be off by, many times over.
_SLACK = 1e-11
# Pairs of ideals between two looks at the clock: a tenth of a second.
_PAIRS = 20_000_000
# Ideals a contracted node beyond which there are too many pairs of them.
_MAX_PER_NODE = 30


def can_count(problem: Problem) -> bool:
    """Whether fewer chips are never worse: chips are alike, no pins, and data flows forward."""
    is_alike = bool((problem.chip_kind == problem.chip_kind[0]).all())
    return is_alike and problem.mcm.constraints.acyclic and bool((problem.fixed_chip < 0).all())


def is_narrow(lattice: Lattice) -> bool:
    """Whether so few ideals have one size that pairs of them can be looked at."""
    return len(lattice) <= _MAX_PER_NODE * lattice.num_contracted


@functools.cache
def compile_counting() -> None:
    """Compiles what counts chips, or reads what an earlier process compiled."""
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
    fewest, parent, least = _start(ideals)
    _advance(ideals, rules, 2.0, 1, 1, _PAIRS, fewest, parent, least)
    _labels(ideals, parent, fewest, one)
    _extents(ideals.layer_start, ideals.first_word, ideals.window)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A chain of ideals within some limit."""

    bottleneck_s: float
    assignment: IntArray  # [N] the chip of each node


class _Ideals(NamedTuple):
    """What is read of I ideals of a lattice of B blocks."""

    layer_start: IntArray
    first_word: IntArray
    window: Words
    needed: Words
    load_s: FloatArray  # [I]
    most_load_s: FloatArray  # [layers] of any ideal of the layer
    cut_s: FloatArray  # [I] on a link
    own_bytes: FloatArray  # [I] weights that one contracted node alone uses
    shared_bytes: FloatArray  # [I] the others, for each contracted node again
    begin: IntArray  # [I] the first contracted node that is outside
    end: IntArray  # [I] behind the last one inside
    peak_bytes: (
        FloatArray  # [levels, B] at most alive at the 1, 2, 4, ... contracted nodes from each on
    )


class _Rules(NamedTuple):
    """What a piece is held against."""

    has_span: bool  # what crosses the cut before a piece is needed there, not behind it
    has_links: bool  # all that crosses a cut is on one link
    has_transfers: bool  # and adds to compute
    has_memory: bool
    has_buffers: bool  # transfers and live activations count as held
    is_generous: bool  # with less than a piece may hold: for proofs
    capacity_bytes: float
    all_shared_bytes: float
    bandwidth: float


class ParametricSearch:
    """Chains of ideals of one problem that `can_count`."""

    def __init__(self, problem: Problem, lattice: Lattice) -> None:
        """Works out what the pieces are made of.

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
        """A chain that keeps the rules and is near the best such: the next one has the lower limit.

        Every edge goes to the same chip or the next where the triangle rule is on.

        Args:
          lower_s: no valid partition is faster.
          upper_s: slower chains, and as slow ones, are not wanted.
          gap: relative; ends that close to the best chain.
          has_memory: whether chips may be full; without, what is found may be invalid.
          give_up: asked now and then whether to stop, with what was found.

        Returns:
          None where there is no such chain, or none was found in time.
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
        """A lower bound on every bottleneck, from chains that are held against less than the rules.

        Of the whole lattice alone. The first test is just below `upper_s`: where that fails, it is
        proven and nothing else is to be done.

        Args:
          lower_s: a bound that is known.
          upper_s: a bottleneck that is attained.
          gap: relative; bisection ends there.
          give_up: asked now and then whether to stop, with what was proven by then.
        """
        return self._bisect(lower_s, upper_s, self._generous_rules(), gap, give_up)[0]

    def _bisect(
        self,
        lower_s: float,
        upper_s: float,
        rules: _Rules,
        gap: float,
        give_up: Callable[[], bool],
    ) -> tuple[float, Chain | None]:
        """A limit within which there is no chain, and the best chain found; within `gap` of it."""
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
        mcm = self._problem.mcm
        return _Rules(
            has_span=mcm.constraints.triangle,
            has_links=True,  # or the port of a chip, which carries no more
            has_transfers=not mcm.overlap,
            has_memory=has_memory and mcm.constraints.memory,
            has_buffers=mcm.memory_model == "full",
            is_generous=False,
            capacity_bytes=float(self._problem.capacity_bytes[0]),
            all_shared_bytes=self._shared_bytes,
            bandwidth=mcm.link_bandwidth,
        )

    def _generous_rules(self) -> _Rules:
        """What every valid partition keeps.

        In a total order a chip feeds the next, so that an edge over two chips has a path beside it:
        there the triangle rule is the span rule, and a piece's transfers are its cuts.
        """
        mcm = self._problem.mcm
        is_span = mcm.constraints.triangle and self._is_total_order
        return self._rules(has_memory=True)._replace(
            has_span=is_span,
            has_links=is_span or mcm.topology == "chain",
            has_transfers=is_span and not mcm.overlap,
            is_generous=True,
        )

    def _within(
        self, limit_s: float, rules: _Rules, give_up: Callable[[], bool]
    ) -> tuple[bool, Chain | None]:
        """Whether the answer is known, and a chain within the limit; None where there is none."""
        ideals, chips = self._ideals, self._problem.num_chips
        fewest, parent, least = _start(ideals)
        y, slack_s = 1, limit_s * (1 + _SLACK)
        while y < len(fewest):
            y = _advance(ideals, rules, slack_s, chips, y, _PAIRS, fewest, parent, least)
            if y < len(fewest) and give_up():
                return False, None
        if fewest[-1] > chips:
            return True, None
        return True, self._chain(parent, fewest, rules)

    def _chain(self, parent: IntArray, fewest: IntArray, rules: _Rules) -> Chain:
        ideals = self._ideals
        labels = _labels(ideals, parent, fewest, np.zeros(self._problem.num_contracted, np.int64))
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
    """[levels, B] the largest of the 1, 2, 4, ... values from each place on."""
    rows, step = [np.asarray(values, np.float64)], 1
    while 2 * step <= len(values):
        last = rows[-1]
        row = last.copy()
        row[:-step] = np.maximum(last[:-step], last[step:])
        rows.append(row)
        step *= 2
    return np.stack(rows)


@njit(cache=True)
def _extents(
    layer_start: IntArray, first_word: IntArray, window: Words
) -> tuple[IntArray, IntArray]:
    """[I] the first contracted node outside of each ideal; and [I] the place behind its last one
    inside.
    """
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
    """[I] chips of each ideal, [I] the one before it; [layers] the fewest of a layer and later."""
    many = np.iinfo(np.int64).max // 2
    fewest = np.full(len(ideals.load_s), many)
    least = np.full(len(ideals.first_word), many)
    fewest[0] = least[0] = 0
    return fewest, np.zeros(len(ideals.load_s), np.int64), least


@njit(cache=True)
def _advance(
    ideals: _Ideals,
    rules: _Rules,
    limit_s: float,
    chips: int,
    y: int,
    pairs: int,
    fewest: IntArray,
    parent: IntArray,
    least: IntArray,
) -> int:
    """Counts the chips of ideal y and later ones, and returns the next.

    Those before y are done. It stops with the first that brings the pairs that it has looked at to
    `pairs`, or with the last.
    """
    total_s, layer = ideals.load_s[-1], 0
    while y < len(fewest) and pairs > 0:
        while ideals.layer_start[layer + 1] <= y:
            layer += 1
        if not rules.has_links or ideals.cut_s[y] <= limit_s:
            # What is left takes so many chips: more than there are, and y is of no use.
            rest = math.ceil((total_s - ideals.load_s[y]) / limit_s * (1 - _SLACK))
            best = chips + 1 - rest
            k = _first_above(ideals.most_load_s, layer, ideals.load_s[y] - limit_s)
            while k < layer and least[k] + 1 < best:
                pairs -= ideals.layer_start[k + 1] - ideals.layer_start[k]
                for x in range(ideals.layer_start[k], ideals.layer_start[k + 1]):
                    if fewest[x] + 1 < best and _is_segment(ideals, rules, limit_s, k, x, layer, y):
                        best = fewest[x] + 1
                        fewest[y], parent[y] = best, x
                k += 1
            k = layer
            while k >= 0 and least[k] > fewest[y]:
                least[k] = fewest[y]
                k -= 1
        pairs -= 1
        y += 1
    return y


@njit(cache=True)
def _first_above(values: FloatArray, count: int, wanted: float) -> int:
    """The first of `count` ascending values that is not below `wanted`."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _is_segment(
    ideals: _Ideals, rules: _Rules, limit_s: float, low: int, x: int, high: int, y: int
) -> bool:
    """Whether x of layer `low` is in y of layer `high`, and a chip can run what is between."""
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


@njit(cache=True)
def _held(ideals: _Ideals, rules: _Rules, x: int, y: int) -> float:
    """Bytes that the piece holds: at least, where rules are generous, otherwise at most."""
    held = ideals.own_bytes[y] - ideals.own_bytes[x]
    if rules.is_generous:
        # Sums of float64 may be off by this much.
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


@njit(cache=True)
def _labels(ideals: _Ideals, parent: IntArray, fewest: IntArray, labels: IntArray) -> IntArray:
    """[M] the chip of each contracted node on the chain that ends with all of them; changed in
    place.
    """
    y = len(parent) - 1
    high = len(ideals.first_word) - 1
    while y > 0:
        x, low = parent[y], high
        while ideals.layer_start[low] > x:
            low -= 1
        before, behind = WORD * ideals.first_word[low], WORD * ideals.first_word[high]
        for v in range(ideals.begin[x], ideals.end[y]):
            is_after = v - before >= WORD * ideals.window.shape[1]
            is_new = is_after or not has(ideals.window[x], v - before)
            if is_new and (v < behind or has(ideals.window[y], v - behind)):
                labels[v] = fewest[y] - 1
        y, high = x, low
    return labels
