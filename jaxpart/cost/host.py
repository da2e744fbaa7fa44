"""Costs of one partition in numpy, so that a solver worker does not have to start JAX.

`loads` gives an integer program the constant part of its rows: the loads of everything outside its
window. `peak_bytes` and `triangle_conflicts` serve the two rules that become lazy constraints
(`solvers/lazy_constraints.py`). Only `verify` in `cost/evaluate.py` decides whether a partition is
valid. Definitions: `jaxpart/README.md`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxpart.cost.stage import stage_s
from jaxpart.problem.problem import FloatArray, IntArray, Problem

BoolArray = NDArray[np.bool_]


class Loads(NamedTuple):
    """Loads of some of the nodes, tensors and weights on C chips and L links."""

    compute_s: FloatArray  # [C]
    in_bytes: FloatArray  # [C]
    out_bytes: FloatArray  # [C]
    link_bytes: FloatArray  # [L] in the order of `MCM.links`
    weight_bytes: FloatArray  # [C]


def loads(
    problem: Problem,
    f: IntArray,
    nodes: BoolArray | None = None,
    tensors: BoolArray | None = None,
    weights: BoolArray | None = None,
) -> Loads:
    """Loads of a partition, in seconds and bytes.

    Args:
      problem: of N nodes, K tensors and W weights.
      f: [N] chip of each node.
      nodes: [N] which nodes count; all by default.
      tensors: [K] which tensors count; all by default.
      weights: [W] which weights count; all by default.
    """
    chips = problem.num_chips
    counted = np.arange(problem.num_nodes) if nodes is None else np.flatnonzero(nodes)
    compute_s = _sums(f[counted], problem.node_s[counted, problem.chip_kind[f[counted]]], chips)

    source = f[problem.edge_producer]
    target = f[problem.edge_consumer]
    sent = source != target
    if tensors is not None:
        sent &= tensors[problem.edge_tensor]
    # A tensor counts once per destination chip.
    hops = np.unique(problem.edge_tensor[sent] * chips + target[sent])
    tensor, target = hops // chips, hops % chips
    in_bytes = _sums(target, problem.tensor_bytes[tensor], chips)
    senders = np.unique(tensor)
    source = f[problem.tensor_producer]
    out_bytes = _sums(source[senders], problem.tensor_bytes[senders], chips)

    used = (
        np.ones(len(problem.use_weight), bool) if weights is None else weights[problem.use_weight]
    )
    copies = np.unique(problem.use_weight[used] * chips + f[problem.use_node[used]])
    weight_bytes = _sums(copies % chips, problem.weight_bytes[copies // chips], chips)

    link_bytes = _link_bytes(problem, source[tensor], target, tensor)
    return Loads(compute_s, in_bytes, out_bytes, link_bytes, weight_bytes)


def _link_bytes(
    problem: Problem, source: IntArray, target: IntArray, tensor: IntArray
) -> FloatArray:
    """Bytes on each link, [L]. The hops are in ascending order of (tensor, target)."""
    links = problem.mcm.links
    if problem.mcm.topology == "chain" and (source < target).all():
        # A tensor is on each link from its producer to its farthest consumer once.
        is_farthest = np.append(tensor[1:] != tensor[:-1], True)[: len(tensor)]
        sent = problem.tensor_bytes[tensor[is_farthest]]
        begins = _sums(source[is_farthest], sent, problem.num_chips)
        ends = _sums(target[is_farthest], sent, problem.num_chips)
        return np.maximum(np.cumsum(begins - ends)[:-1], 0.0)
    number = {link: position for position, link in enumerate(links)}
    if not links or not len(tensor):
        return np.zeros(len(links))
    routes, inverse = np.unique(np.stack([source, target], axis=1), axis=0, return_inverse=True)
    used = [
        np.array([number[link] for link in problem.mcm.route(a, b)], np.int64)
        for a, b in routes.tolist()
    ]
    length = np.array([len(route) for route in used])[inverse.ravel()]
    on_link = np.concatenate([used[i] for i in inverse.ravel()])
    pairs = np.unique(np.repeat(tensor, length) * len(links) + on_link)
    return _sums(pairs % len(links), problem.tensor_bytes[pairs // len(links)], len(links))


def _sums(position: IntArray, values: FloatArray, count: int) -> FloatArray:
    """Sums the values at each position 0..count-1, to [count]."""
    return np.bincount(position, values, count).astype(np.float64)


def stage_s_of(problem: Problem, load: Loads) -> FloatArray:
    """Seconds of each chip's stage, [C]."""
    bandwidth = problem.mcm.link_bandwidth
    in_s, out_s = load.in_bytes / bandwidth, load.out_bytes / bandwidth
    return stage_s(problem.mcm.overlap, load.compute_s, in_s, out_s)


def bottleneck_s(problem: Problem, f: IntArray) -> float:
    """T in seconds of the partition f [N]."""
    load = loads(problem, f)
    link_s = load.link_bytes.max(initial=0.0) / problem.mcm.link_bandwidth
    return float(max(stage_s_of(problem, load).max(), link_s))


def peak_bytes(problem: Problem, f: IntArray) -> tuple[FloatArray, IntArray]:
    """Each chip's peak of live activations.

    A tensor is alive on its producer's chip from its producer to its last consumer there.

    Args:
      problem: of N nodes and C chips.
      f: [N] chip of each node.

    Returns:
      [C] the peaks in bytes, and [C] the node at which each chip first reaches its peak; -1 where
      nothing is ever alive.
    """
    chips, last = problem.num_chips, problem.tensor_producer.copy()
    local = f[problem.edge_producer] == f[problem.edge_consumer]
    np.maximum.at(last, problem.edge_tensor[local], problem.edge_consumer[local])
    chip = np.tile(f[problem.tensor_producer], 2)
    # Node v runs at moment 2 v. A tensor is alive from 2 producer to just before 2 last + 1.
    moment = np.concatenate([2 * problem.tensor_producer, 2 * last + 1])
    change = np.concatenate([problem.tensor_bytes, -problem.tensor_bytes])
    order = np.lexsort((moment, chip))
    chip, moment = chip[order], moment[order]
    # Each tensor is added and removed once, so the running sum is zero where a chip begins.
    live = np.cumsum(change[order])
    peak, node = np.zeros(chips), np.full(chips, -1, np.int64)
    np.maximum.at(peak, chip, live)
    # Descending, so that the first node at the peak is the last one written.
    reached = np.flatnonzero((live >= peak[chip]) & (peak[chip] > 0))[::-1]
    node[chip[reached]] = moment[reached] // 2
    return peak, node


def memory_bytes(problem: Problem, f: IntArray) -> FloatArray:
    """Bytes M_c that each chip holds under the partition f [N], [C]."""
    load = loads(problem, f)
    if problem.mcm.memory_model == "weights":
        return load.weight_bytes
    return load.weight_bytes + 2 * (load.in_bytes + load.out_bytes) + peak_bytes(problem, f)[0]


def triangle_conflicts(problem: Problem, f: IntArray) -> list[list[int]]:
    """Finds the edges of the chip graph that break the triangle rule.

    Args:
      problem: of N nodes.
      f: [N] chip of each node, with acyclic dataflow: chip edges run from lower to higher chips.

    Returns:
      For each edge a -> b that has a longer path from a to b, such a path [a, ..., b] with the
      fewest chips.
    """
    pairs = f[problem.node_pairs]
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).reshape(-1, 2)
    following: dict[int, list[int]] = {}
    for a, b in pairs.tolist():
        following.setdefault(a, []).append(b)
    found = []
    for a, b in pairs.tolist():
        if b - a < 2:
            continue
        before = {m: a for m in following[a] if m < b}
        queue = list(before)
        for m in queue:
            for following_m in following.get(m, []):
                if following_m <= b and following_m not in before:
                    before[following_m] = m
                    queue.append(following_m)
        if b in before:
            path = [b]
            while path[-1] != a:
                path.append(before[path[-1]])
            found.append(path[::-1])
    return found


def segment_peak_bytes(problem: Problem, inside: BoolArray) -> float:
    """Peak bytes of live activations of a chip that runs exactly the nodes in `inside` [N]."""
    last = problem.tensor_producer.copy()
    local = np.flatnonzero(inside[problem.edge_producer] & inside[problem.edge_consumer])
    np.maximum.at(last, problem.edge_tensor[local], problem.edge_consumer[local])
    made = np.flatnonzero(inside[problem.tensor_producer])
    # Live bytes grow only at the chip's own nodes, so the maximum over all numbers is its peak.
    size = problem.tensor_bytes[made]
    change = np.bincount(problem.tensor_producer[made], size, problem.num_nodes + 1)
    change -= np.bincount(last[made] + 1, size, problem.num_nodes + 1)
    return float(np.cumsum(change).max(initial=0.0))


def peak_bounds(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """Bounds the live activations on a chip while it runs a contracted node.

    Returns:
      [M] bytes that are alive at least: the largest output of one of the contracted node's nodes.
      [M] bytes that are alive at most, whatever else the chip runs: the largest amount that is
      alive at one of these nodes if one chip runs the whole graph.
    """
    output = np.zeros(problem.num_nodes)
    np.add.at(output, problem.tensor_producer, problem.tensor_bytes)
    change = np.zeros(problem.num_nodes + 1)
    np.add.at(change, problem.tensor_producer, problem.tensor_bytes)
    np.add.at(change, problem.last_consumer + 1, -problem.tensor_bytes)
    live = np.maximum(np.cumsum(change)[:-1], output)
    least, most = np.zeros(problem.num_contracted), np.zeros(problem.num_contracted)
    np.maximum.at(least, problem.contraction, output)
    np.maximum.at(most, problem.contraction, live)
    return least, most
