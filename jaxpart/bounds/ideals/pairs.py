"""The dynamic program over pairs of ideals, with memory and traffic.

A partition is a chain of ideals (`bounds/ideals/lattice.py`). Where ideals are few, a dynamic
program over pairs of them is exact (Tarnawski et al., NeurIPS 2020; Archer et al., ICML 2024). It
runs in two ways:

- as a relaxation, without the rules that it cannot see completely: a lower bound on every valid
  bottleneck;
- with the span rule: the best partition in which every edge stays on its chip or goes to the next.
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

# Most entries of the [ideals, tensors] tables. Beyond, the program leaves out traffic of segments.
_TABLE_ENTRIES = 20_000_000
# Work per pair of ideals in addition to its words and chips, in units of about 0.65 ns.
_PAIR_OVERHEAD = 230
# Work beyond which the program is not run, in the same units: about 20 s.
_MOST_WORK = 30_000_000_000
# Segments whose memory is computed exactly in one run: about 5 s.
_MOST_WEIGHINGS = 20_000


@dataclasses.dataclass(frozen=True, eq=False)
class Ideals:
    """I ideals of the contracted nodes, smallest first, with the figures that `solve` reads.

    A tensor crosses the cut of an ideal if its producer is inside and a consumer is outside.
    """

    members: NDArray[np.uint64]  # [I, words] bit sets of contracted nodes
    needed: NDArray[np.uint64]  # [I, words] outside consumers of the tensors that cross the cut
    load_s: FloatArray  # [I, S] seconds of the contracted nodes inside, per kind of chip
    cut_bytes: FloatArray  # [I] of the tensors that cross the cut, each once
    own_weight_bytes: FloatArray  # [I] of weights whose single consumer is inside
    first_chip: IntArray  # [I] fewest chips for it: 1 + the highest fixed chip inside
    last_chip: IntArray  # [I] most chips for it: the lowest fixed chip outside
    # What a segment between two ideals receives and sends; None if the tables would be too large.
    made: NDArray[np.bool_] | None  # [I, K] whether the tensor's producer is inside
    joined: NDArray[np.uint16] | None  # [I, K] number of the tensor's consumers inside

    @property
    def is_total_order(self) -> bool:
        """Whether there is one ideal of each size.

        If these are all ideals, this means that only one order of the contracted nodes is
        topological.
        """
        return len(self.members) == int(np.bitwise_count(self.members[-1]).sum()) + 1


def count_ideals(problem: Problem, limit: int) -> int | None:
    """Number of ideals of the contracted nodes; None if there are more than `limit`."""
    return lattice.count(problem, limit)


def list_prefixes(problem: Problem) -> Ideals:
    """The prefixes of the program order; with them, `solve` cuts that order optimally."""
    return with_figures(problem, lattice.prefixes(problem))


def with_figures(problem: Problem, found: Lattice) -> Ideals:
    """The ideals of a lattice, with the figures that `solve` reads."""
    contracted, members = problem.contracted, found.members()
    first = np.zeros(len(found), np.int64)
    for v in np.flatnonzero(contracted.fixed_chip >= 0):
        is_inside = (members[:, v // WORD] >> np.uint64(v % WORD)) & np.uint64(1) == 1
        first[is_inside] = np.maximum(first[is_inside], contracted.fixed_chip[v] + 1)
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
    """`Ideals.made` and `Ideals.joined`."""
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
    """The best chain of ideals that the dynamic program found."""

    bottleneck_s: float  # inf if there is no chain
    assignment: IntArray | None  # [N] chips; None if there is no chain


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
    """The chain of ideals with the least bottleneck.

    With `span` False, this is a relaxation of every valid partition. It counts compute, the traffic
    of each chip (if the tables for it are small enough), the links of a chain, and memory. It
    leaves out the triangle rule and mesh links. So its bottleneck is a lower bound on every valid
    T, and it is exact where the rules left out do not bind.

    With `span` True, every edge stays on its chip or goes to the next, so the triangle rule holds.

    Args:
      problem: of N nodes and C chips, with acyclic dataflow.
      ideals: all ideals of its contracted nodes, or those of one order.
      cutoff_s: segments with more compute than this many seconds are left out; a bottleneck above
        it means nothing.
      span: whether every edge must stay on its chip or go to the next.
      is_bound: how to count segments whose memory is not computed, once `weighings` are spent. True
        (the default without `span`): as fitting, so that the bottleneck is never too high. False
        (the default with `span`): as not fitting.
      weighings: segments whose memory is computed exactly, at about 0.3 ms each.
      give_up: called from time to time; if it returns True, the program stops.

    Returns:
      The chain; None if there are too many pairs of ideals, or if `give_up` stopped the program.
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
    # On a chain, one link carries the whole cut. Under the span rule, one segment receives it all.
    counts_cut = mcm.topology == "chain" or span
    # With overlap on a chain, a chip receives and sends no more than its links carry.
    needs_tables = not span and not (mcm.topology == "chain" and mcm.overlap)
    traffic = _Traffic(problem, ideals) if needs_tables and ideals.made is not None else None
    # Column c: with the chips 0 to c - 1 in use. The least bottleneck, and the ideal before.
    best = np.full((len(fastest), chips + 1), np.inf)
    parent = np.zeros((len(fastest), chips + 1), np.int32)
    # The empty ideal uses no chip, or any number of idle chips if chips may be skipped.
    best[0, : 1 if mcm.constraints.no_skip else ideals.last_chip[0] + 1] = 0.0
    outside = ~ideals.members
    slack = 1e-9 * max(cutoff_s, 1e-30)
    # Ideals are sorted by size, so every subset of an ideal is done before it.
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
    """Bottleneck of the optimal cut of the program order under the span rule, in seconds.

    Args:
      problem: of N nodes, with acyclic dataflow.
      cutoff_s: as in `solve`; None: no limit.

    Returns:
      None if `solve` finds no such cut, or has too much work to do.
    """
    limit_s = np.inf if cutoff_s is None else cutoff_s
    solution = solve(problem, list_prefixes(problem), limit_s, span=True)
    if solution is None or solution.assignment is None:
        return None
    return solution.bottleneck_s


class _Traffic:
    """The traffic of the segment between two ideals."""

    def __init__(self, problem: Problem, ideals: Ideals) -> None:
        contracted = problem.contracted
        self.ideals = ideals
        self.tensor_s = contracted.tensor_bytes / problem.mcm.link_bandwidth
        self.consumers = np.bincount(contracted.edge_tensor, minlength=contracted.num_tensors)

    def between(self, below: IntArray, i: int) -> tuple[FloatArray, FloatArray]:
        """[P] twice: seconds to receive and to send for the segments from `below` [P] to ideal i.

        Raises:
          AssertionError: `Ideals.made` and `Ideals.joined` are None.
        """
        made, joined = self.ideals.made, self.ideals.joined
        if made is None or joined is None:
            raise AssertionError("the tables are too large for this problem")
        received = (made[below] & (joined[i] > joined[below])) @ self.tensor_s
        sent = ((made[i] & (joined[i] < self.consumers)) & ~made[below]) @ self.tensor_s
        return received, sent


class _Memory:
    """Whether a chip's memory can hold the segment between two ideals.

    The memory of a segment does not depend on the rest of the partition. Cheap bounds decide most
    segments. For the others memory is computed exactly, but only if the program would choose them.
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
        self.live_bytes = host.peak_bounds(problem)[1]  # [M] most bytes alive at each
        self.most_live = float(self.live_bytes.max())
        self.weighings_left = weighings
        self.count_as_fit = count_as_fit  # segments whose memory is not computed
        self.traffic = _Traffic(problem, ideals) if ideals.made is not None else None

    def choose(
        self, through: FloatArray, below: IntArray, i: int, traffic_bytes: FloatArray | None
    ) -> IntArray:
        """The best segment for each chip among those that fit.

        Args:
          through: [P, C] bottleneck with segment p on chip c; set to inf in place where the segment
            does not fit.
          below: [P] the ideals at which the segments begin.
          i: the ideal at which they end.
          traffic_bytes: [P] received + sent; None if unknown.

        Returns:
          [C] position in `below`.
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
        is_undecided = most[:, None] > capacity  # [P, C] not sure to fit
        while True:
            choice = through.argmin(axis=0)
            doubtful = is_undecided[choice, columns] & np.isfinite(through[choice, columns])
            if not doubtful.any():
                return choice
            for p in np.unique(choice[doubtful]):
                segment = _unpacked(ideals.members[i] & ~ideals.members[below[p]])
                if self.is_full:
                    live = self.live_bytes[segment[: len(self.live_bytes)]].max()
                    is_undecided[p] &= most[p] - self.most_live + live > capacity
                    if not is_undecided[p].any():
                        continue
                if self.weighings_left > 0:
                    self.weighings_left -= 1
                    held = self._weigh(segment, int(below[p]), i)
                    through[p, held > capacity] = np.inf
                elif not self.count_as_fit:
                    through[p, is_undecided[p]] = np.inf
                is_undecided[p] = False

    def _weigh(self, segment: NDArray[np.bool_], below: int, i: int) -> float:
        """Exact bytes of a chip that runs the segment between the ideals `below` and i."""
        ideals, inside = self.ideals, segment[self.problem.contraction]
        if self.shared_bytes == 0 and self.traffic is not None and self.is_full:
            received, sent = self.traffic.between(np.array([below]), i)
            traffic = float(received[0] + sent[0]) * self.problem.mcm.link_bandwidth
            weights = ideals.own_weight_bytes[i] - ideals.own_weight_bytes[below]
            return float(weights + 2 * traffic + host.segment_peak_bytes(self.problem, inside))
        # Two chips are enough, whatever the module has: chip 0 runs the segment, chip 1 the rest.
        two = dataclasses.replace(self.problem, chip_kind=np.zeros(2, np.int64))
        return float(host.memory_bytes(two, np.where(inside, 0, 1))[0])


def _unpacked(members: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[64 words] whether each number is in the bit set [words]."""
    return np.unpackbits(members.view(np.uint8), bitorder="little").astype(bool)


def _column(values: FloatArray | float) -> FloatArray:
    return np.asarray(values, np.float64).reshape(-1, 1)


def _chips_of(problem: Problem, ideals: Ideals, parent: NDArray[np.int32], used: int) -> IntArray:
    """[N] chips of the best chain that uses `used` chips, traced back from the last ideal."""
    chip = np.zeros(problem.contracted.num_nodes, np.int64)
    i = len(parent) - 1
    for c in range(used, 0, -1):
        before = int(parent[i, c])
        chip[_unpacked(ideals.members[i] & ~ideals.members[before])[: len(chip)]] = c - 1
        i = before
    return chip[problem.contraction]
