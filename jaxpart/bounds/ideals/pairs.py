"""Down-sets of the graph, and what they prove.

For an acyclic partition f, {v : f(v) <= c} is an ideal (a down-set), so a partition is a chain of
ideals from the empty one to all nodes. Where ideals are few, a dynamic program over pairs of them
is exact (Tarnawski et al., NeurIPS 2020; Archer et al., ICML 2024): run without the rules that it
sees in part, it bounds every valid partition from below; run with the span rule, it finds one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jaxpart.bounds.ideals import lattice
from jaxpart.bounds.ideals.lattice import Lattice
from jaxpart.bounds.ideals.walks import WORD
from jaxpart.cost import host
from jaxpart.problem.problem import FloatArray, IntArray, Problem

# Entries of the [ideals, tensors] tables beyond which traffic between two cuts is left out.
_TABLE_ENTRIES = 20_000_000
# What a pair of ideals costs beside its words and chips, in the same unit (about 0.65 ns), and the
# work beyond which the program is not run: about 20 s.
_PAIR_OVERHEAD = 230
_MOST_WORK = 30_000_000_000
# Pieces whose memory is weighed exactly in one run: about 5 s of them.
_MOST_WEIGHINGS = 20_000


@dataclasses.dataclass(frozen=True, eq=False)
class Ideals:
    """All ideals of a problem of contracted nodes, smallest first. I ideals, in a topological
    order.

    Per-ideal figures count what crosses its cut: tensors with a producer inside and a consumer
    outside.
    """

    members: NDArray[np.uint64]  # [I, words] bit sets of contracted nodes
    needed: NDArray[np.uint64]  # [I, words] consumers outside of what crosses the cut
    load_s: FloatArray  # [I, S] seconds of the contracted nodes inside, per kind of chip
    cut_bytes: FloatArray  # [I]
    own_weight_bytes: FloatArray  # [I] weights with a single consumer, that one inside
    first_chip: IntArray  # [I] fewest chips that can hold it: 1 + the highest pin inside
    last_chip: IntArray  # [I] most chips before the rest: the lowest pin outside
    # What a piece between two ideals receives and sends; None where the tables would be too large.
    made: NDArray[np.bool_] | None  # [I, K] whether the tensor's producer is inside
    joined: NDArray[np.uint16] | None  # [I, K] how many of its consumers are inside

    @property
    def is_total_order(self) -> bool:
        """Whether the contracted nodes can run in one order only."""
        return len(self.members) == int(np.bitwise_count(self.members[-1]).sum()) + 1


def count_ideals(problem: Problem, limit: int) -> int | None:
    """Number of ideals of the contracted nodes; None where there are more than `limit`."""
    return lattice.count(problem, limit)


def list_ideals(problem: Problem, limit: int) -> Ideals | None:
    """All ideals of the contracted nodes; None where there are more than `limit`."""
    found = lattice.enumerate_ideals(problem, limit)
    return None if found is None else with_figures(problem, found)


def list_prefixes(problem: Problem) -> Ideals:
    """The ideals that the program order runs through; `solve` then cuts that order optimally."""
    return with_figures(problem, lattice.prefixes(problem))


def with_figures(problem: Problem, found: Lattice) -> Ideals:
    """The ideals of a lattice, with what `solve` reads of them."""
    contracted, members = problem.contracted, found.members()
    first = np.zeros(len(found), np.int64)
    for v in np.flatnonzero(contracted.fixed_chip >= 0):
        is_inside = (members[:, v // WORD] >> np.uint64(v % WORD)) & np.uint64(1) == 1
        first[is_inside] = np.maximum(first[is_inside], contracted.fixed_chip[v] + 1)
    # From the top down: what is outside an ideal is outside each smaller one that it grew from.
    last = np.full(len(found), problem.num_chips)
    for v in np.flatnonzero(contracted.fixed_chip >= 0):
        is_outside = (members[:, v // WORD] >> np.uint64(v % WORD)) & np.uint64(1) == 0
        last[is_outside] = np.minimum(last[is_outside], contracted.fixed_chip[v])
    made, joined = _traffic_tables(contracted, members)
    return Ideals(
        members=members,
        needed=found.needed_members(),
        load_s=found.sums(contracted.node_s),
        cut_bytes=found.cut_bytes,
        own_weight_bytes=found.sums(contracted.own_weight_bytes),
        first_chip=first,
        last_chip=last,
        made=made,
        joined=joined,
    )


def _traffic_tables(
    contracted: Problem, members: NDArray[np.uint64]
) -> tuple[NDArray[np.bool_] | None, NDArray[np.uint16] | None]:
    if len(members) * max(contracted.num_tensors, contracted.num_nodes) > _TABLE_ENTRIES:
        return None, None
    inside = np.unpackbits(members.view(np.uint8), axis=1, bitorder="little").astype(bool)
    joined = np.zeros((len(members), contracted.num_tensors), np.uint16)
    for k, q in zip(
        contracted.edge_tensor.tolist(), contracted.edge_consumer.tolist(), strict=True
    ):
        joined[:, k] += inside[:, q]
    return inside[:, contracted.tensor_producer], joined


@dataclasses.dataclass(frozen=True)
class PairSolution:
    """What the dynamic program gives."""

    bottleneck_s: float  # inf: no chain of ideals
    assignment: IntArray | None  # [num_nodes of the problem]


def solve(
    problem: Problem,
    ideals: Ideals,
    cutoff_s: float,
    *,
    span: bool,
    is_bound: bool | None = None,
    weighings: int = _MOST_WEIGHINGS,
    give_up: Callable[[], bool] = lambda: False,
) -> PairSolution | None:
    """The chain of ideals with the least bottleneck; None where there are too many pairs of them.

    With `span` False this is a relaxation of every valid partition: it counts compute, each chip's
    traffic (where the tables for it are small enough), what crosses the links of a chain, and
    memory. Left out are the triangle rule and mesh links, so the bottleneck is a lower bound of T,
    and exact where those do not bind. With `span` True every edge goes to the same chip or the
    next, so that the triangle rule holds.

    Args:
      cutoff_s: pieces with more compute than this are left out; only a bottleneck at or below it
        means anything.
      is_bound: pieces whose memory there is no time to weigh count as fitting, so that the
        bottleneck is never too high; otherwise (the default with `span`) as not fitting.
      weighings: pieces whose memory is weighed exactly; about 0.3 ms each.
      give_up: asked from time to time whether to stop, with None.
    """
    mcm = problem.mcm
    chips = problem.num_chips
    kinds = problem.chip_kind
    bandwidth = mcm.link_bandwidth
    is_bound = not span if is_bound is None else is_bound
    memory = None
    if mcm.constraints.memory:
        memory = _Memory(problem, ideals, weighings, count_as_fit=is_bound)
    fastest = ideals.load_s.min(axis=1)
    order = np.argsort(fastest, kind="stable")
    sorted_load = fastest[order]
    lowest = np.searchsorted(sorted_load, fastest - cutoff_s * (1 + 1e-9))
    highest = np.searchsorted(sorted_load, fastest, side="right")
    per_pair = ideals.members.shape[1] + chips + _PAIR_OVERHEAD
    if float((highest - lowest).sum()) * per_pair > _MOST_WORK:
        return None
    cut_s = ideals.cut_bytes / bandwidth
    # On a chain the whole cut crosses one link; under the span rule it is all that a piece
    # receives.
    counts_cut = mcm.topology == "chain" or span
    # On an overlapping chain no chip's traffic exceeds that of its links.
    needs_tables = not span and not (mcm.topology == "chain" and mcm.overlap)
    traffic = _Traffic(problem, ideals) if needs_tables and ideals.made is not None else None
    best = np.full((len(fastest), chips + 1), np.inf)
    parent = np.zeros((len(fastest), chips + 1), np.int32)
    # Before the first node no chip is used; where chips may be skipped, any number may be idle.
    best[0, : 1 if mcm.constraints.no_skip else ideals.last_chip[0] + 1] = 0.0
    outside = ~ideals.members
    slack = 1e-9 * max(cutoff_s, 1e-30)
    # Ideals come smallest first, so that every subset of an ideal is done before it.
    for i in range(1, len(fastest)):
        if give_up():
            return None
        if counts_cut and cut_s[i] > cutoff_s + slack:
            continue
        below = order[lowest[i] : highest[i]]
        below = below[below < i]
        below = below[(best[below].min(axis=1) <= cutoff_s + slack)]
        below = below[~(ideals.members[below] & outside[i]).any(axis=1)]
        if span:
            below = below[~(ideals.needed[below] & outside[i]).any(axis=1)]
        if not len(below):
            continue
        compute = ideals.load_s[i] - ideals.load_s[below]  # [P, S]
        if span:
            received, sent = cut_s[below], cut_s[i]
        else:
            received, sent = (0.0, 0.0) if traffic is None else traffic.between(below, i)
        if mcm.overlap:
            stage = np.maximum(compute, _column(np.maximum(received, sent)))
        else:
            stage = compute + _column(np.add(received, sent))
        if counts_cut:
            stage = np.maximum(stage, np.maximum(cut_s[below], cut_s[i])[:, None])
        stage = stage[:, kinds]  # [P, C]
        through = np.maximum(best[below, :-1], stage)
        if memory is None:
            choice = through.argmin(axis=0)
        else:
            is_known = span or traffic is not None
            known = np.asarray(received + sent) * bandwidth if is_known else None
            choice = memory.choose(through, below, i, known)
        value = through[choice, np.arange(chips)]
        used = np.arange(1, chips + 1)
        value[(used < ideals.first_chip[i]) | (used > ideals.last_chip[i])] = np.inf
        best[i, 1:] = value
        parent[i, 1:] = below[choice]
        if not mcm.constraints.no_skip:
            for c in range(1, chips + 1):
                fits = ideals.first_chip[i] <= c <= ideals.last_chip[i]
                if fits and best[i, c - 1] < best[i, c]:
                    best[i, c], parent[i, c] = best[i, c - 1], i
    used = int(best[-1].argmin())
    bottleneck = float(best[-1, used])
    if not np.isfinite(bottleneck):
        return PairSolution(np.inf, None)
    return PairSolution(bottleneck, _chips_of(problem, ideals, parent, used))


def program_order_s(problem: Problem, cutoff_s: float | None = None) -> float | None:
    """Bottleneck of the program order cut optimally, in seconds.

    None where every such cut is invalid, or not below `cutoff_s`.
    """
    limit_s = np.inf if cutoff_s is None else cutoff_s
    solution = solve(problem, list_prefixes(problem), limit_s, span=True)
    if solution is None or solution.assignment is None:
        return None
    return solution.bottleneck_s


class _Traffic:
    """Seconds that the piece between two ideals receives and sends."""

    def __init__(self, problem: Problem, ideals: Ideals) -> None:
        contracted = problem.contracted
        self.ideals = ideals
        self.tensor_s = contracted.tensor_bytes / problem.mcm.link_bandwidth
        self.consumers = np.bincount(contracted.edge_tensor, minlength=contracted.num_tensors)

    def between(self, below: IntArray, i: int) -> tuple[FloatArray, FloatArray]:
        made, joined = self.ideals.made, self.ideals.joined
        if made is None or joined is None:
            raise AssertionError("the tables are too large for this problem")
        received = (made[below] & (joined[i] > joined[below])) @ self.tensor_s
        sent = ((made[i] & (joined[i] < self.consumers)) & ~made[below]) @ self.tensor_s
        return received, sent


class _Memory:
    """Whether the chip that runs the piece between two ideals can hold it.

    Memory depends on the piece alone, whatever the rest of the partition. Cheap bounds settle most
    pieces; the others are weighed exactly, but only those that the program would choose.
    """

    def __init__(
        self, problem: Problem, ideals: Ideals, weighings: int, *, count_as_fit: bool
    ) -> None:
        contracted = problem.contracted
        self.problem = problem
        self.ideals = ideals
        self.is_full = problem.mcm.memory_model == "full"
        self.shared_bytes = contracted.weight_bytes[np.unique(contracted.use_weight)].sum()
        self.shared_bytes -= ideals.own_weight_bytes[-1]
        self.live_bytes = host.peak_bounds(problem)[1]  # [M] at most, around each
        self.most_live = float(self.live_bytes.max())
        self.weighings_left = weighings
        self.count_as_fit = count_as_fit  # what is not weighed
        self.traffic = _Traffic(problem, ideals) if ideals.made is not None else None

    def choose(
        self, through: FloatArray, below: IntArray, i: int, traffic_bytes: FloatArray | None
    ) -> IntArray:
        """[C] the best piece that fits for each chip; `through` [P, C] gets inf where it does not.

        `traffic_bytes` [P] is received + sent where that is known.
        """
        ideals, capacity = self.ideals, self.problem.capacity_bytes
        least = ideals.own_weight_bytes[i] - ideals.own_weight_bytes[below]
        most = least + self.shared_bytes
        if self.is_full:
            least = least + (0.0 if traffic_bytes is None else 2 * traffic_bytes)
            most = most + 2 * (ideals.cut_bytes[below] + ideals.cut_bytes[i]) + self.most_live
        if most.max() <= capacity.min():
            return through.argmin(axis=0)
        through[least[:, None] > capacity] = np.inf
        columns = np.arange(len(capacity))
        is_open = most[:, None] > capacity  # neither sure to fit nor sure not to
        while True:
            choice = through.argmin(axis=0)
            doubtful = is_open[choice, columns] & np.isfinite(through[choice, columns])
            if not doubtful.any():
                return choice
            for p in np.unique(choice[doubtful]):
                segment = _unpacked(ideals.members[i] & ~ideals.members[below[p]])
                if self.is_full:
                    live = self.live_bytes[segment[: len(self.live_bytes)]].max()
                    is_open[p] &= most[p] - self.most_live + live > capacity
                    if not is_open[p].any():
                        continue
                if self.weighings_left > 0:
                    self.weighings_left -= 1
                    held = self._weigh(segment, int(below[p]), i)
                    through[p, held > capacity] = np.inf
                elif not self.count_as_fit:
                    through[p, is_open[p]] = np.inf
                is_open[p] = False

    def _weigh(self, segment: NDArray[np.bool_], below: int, i: int) -> float:
        ideals, inside = self.ideals, segment[self.problem.contraction]
        if self.shared_bytes == 0 and self.traffic is not None and self.is_full:
            received, sent = self.traffic.between(np.array([below]), i)
            traffic = float(received[0] + sent[0]) * self.problem.mcm.link_bandwidth
            weights = ideals.own_weight_bytes[i] - ideals.own_weight_bytes[below]
            return float(weights + 2 * traffic + host.segment_peak_bytes(self.problem, inside))
        # On two chips, whatever the module has: the piece and the rest.
        two = dataclasses.replace(self.problem, chip_kind=np.zeros(2, np.int64))
        return float(host.memory_bytes(two, np.where(inside, 0, 1))[0])


def _unpacked(members: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return np.unpackbits(members.view(np.uint8), bitorder="little").astype(bool)


def _column(values: FloatArray | float) -> FloatArray:
    return np.asarray(values, np.float64).reshape(-1, 1)


def _chips_of(problem: Problem, ideals: Ideals, parent: NDArray[np.int32], used: int) -> IntArray:
    chip = np.zeros(problem.contracted.num_nodes, np.int64)
    i = len(parent) - 1
    for c in range(used, 0, -1):
        before = int(parent[i, c])
        chip[_unpacked(ideals.members[i] & ~ideals.members[before])[: len(chip)]] = c - 1
        i = before
    return chip[problem.contraction]
