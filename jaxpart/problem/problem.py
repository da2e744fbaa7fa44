"""A graph on a module, lowered to plain arrays: what every algorithm works on.

`Problem` is host-side and exact (numpy, float64, no JAX), so that solver workers can hold it
without starting JAX. `cost.lower` makes the padded device copy of it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jaxpart.errors import InfeasibleError, InputError
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM
from jaxpart.problem.topological import topological_order

# Values of a fixed chip that are no chip: the node may go anywhere; its parts may go nowhere.
FREE, CONTRADICTORY = -1, -2

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One graph on one module. N nodes, C chips, S kinds of chips, K tensors, E edges, W weights.

    An edge is a pair of a tensor and one of its consumers; a use is a pair of a weight and one of
    its consumers. Both are sorted by (tensor or weight, consumer). Make it with `Problem.build`.
    """

    graph: Graph  # in the module's element size
    mcm: MCM
    node_s: FloatArray  # [N, S] seconds of each node on each kind of chip
    chip_kind: IntArray  # [C] kind of each chip, 0..S-1
    capacity_bytes: FloatArray  # [C]
    fixed_chip: IntArray  # [N] chip, or FREE
    colocate: IntArray  # [N] dense group number, or -1
    tensor_producer: IntArray  # [K]
    tensor_bytes: FloatArray  # [K]
    edge_tensor: IntArray  # [E]
    edge_consumer: IntArray  # [E]
    weight_bytes: FloatArray  # [W]
    use_weight: IntArray  # [U]
    use_node: IntArray  # [U]

    @classmethod
    def build(cls, graph: Graph, mcm: MCM) -> Problem:
        """Lowers `graph` on `mcm`, its bytes rescaled to the module's element size.

        Raises:
          InputError: a node is pinned to a chip that the module does not have.
        """
        if mcm.element_bytes is not None:
            graph = graph.rescaled(mcm.element_bytes)
        for v, node in enumerate(graph.nodes):
            if node.pin is not None and node.pin >= mcm.num_chips:
                raise InputError(
                    f"node {v} ({node.name!r}): fixed to chip {node.pin}, but {mcm.name} has "
                    f"chips 0 to {mcm.num_chips - 1}"
                )
        kinds = list(dict.fromkeys(mcm.chips))
        flops = np.array([node.flops for node in graph.nodes], np.float64)
        accessed = np.array([node.bytes_accessed for node in graph.nodes], np.float64)
        profiled = np.array(
            [np.nan if node.seconds is None else node.seconds for node in graph.nodes], np.float64
        )
        columns = []
        for chip in kinds:
            roofline = np.maximum(flops / chip.peak_flops, accessed / chip.sram_bandwidth)
            columns.append(np.where(np.isnan(profiled), roofline, profiled) / chip.speed)
        groups: dict[int, int] = {}
        for node in graph.nodes:
            if node.colocate is not None:
                groups.setdefault(node.colocate, len(groups))
        edges = [(k, q) for k, tensor in enumerate(graph.tensors) for q in tensor.consumers]
        uses = [(w, q) for w, weight in enumerate(graph.weights) for q in weight.consumers]
        edge_array = np.array(edges, np.int64).reshape(-1, 2)
        use_array = np.array(uses, np.int64).reshape(-1, 2)
        return cls(
            graph=graph,
            mcm=mcm,
            node_s=np.stack(columns, axis=1),
            chip_kind=np.array([kinds.index(chip) for chip in mcm.chips], np.int64),
            capacity_bytes=np.array([chip.sram_bytes for chip in mcm.chips], np.float64),
            fixed_chip=np.array([FREE if v.pin is None else v.pin for v in graph.nodes], np.int64),
            colocate=np.array(
                [-1 if v.colocate is None else groups[v.colocate] for v in graph.nodes], np.int64
            ),
            tensor_producer=np.array([k.producer for k in graph.tensors], np.int64),
            tensor_bytes=np.array([k.bytes for k in graph.tensors], np.float64),
            edge_tensor=edge_array[:, 0],
            edge_consumer=edge_array[:, 1],
            weight_bytes=np.array([w.bytes for w in graph.weights], np.float64),
            use_weight=use_array[:, 0],
            use_node=use_array[:, 1],
        )

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.fixed_chip)

    @property
    def num_chips(self) -> int:
        """C."""
        return len(self.chip_kind)

    @property
    def num_tensors(self) -> int:
        """K."""
        return len(self.tensor_bytes)

    @functools.cached_property
    def edge_producer(self) -> IntArray:
        """[E] the node that makes each edge's tensor."""
        return self.tensor_producer[self.edge_tensor]

    @functools.cached_property
    def last_consumer(self) -> IntArray:
        """[K] each tensor's highest-numbered consumer; its producer where there is none."""
        last = self.tensor_producer.copy()
        np.maximum.at(last, self.edge_tensor, self.edge_consumer)
        return last

    @functools.cached_property
    def node_pairs(self) -> IntArray:
        """[P, 2] the distinct (producer, consumer) pairs, sorted."""
        pairs = np.stack([self.edge_producer, self.edge_consumer], axis=1)
        return np.unique(pairs, axis=0) if len(pairs) else pairs

    @functools.cached_property
    def is_shared_weight(self) -> NDArray[np.bool_]:
        """[W] whether a weight has several consumers."""
        return np.bincount(self.use_weight, minlength=len(self.weight_bytes)) > 1

    @functools.cached_property
    def own_weight_bytes(self) -> FloatArray:
        """[N] bytes of the weights that a node shares with no other."""
        own = np.zeros(self.num_nodes)
        single = ~self.is_shared_weight[self.use_weight]
        np.add.at(own, self.use_node[single], self.weight_bytes[self.use_weight[single]])
        return own

    @functools.cached_property
    def mean_load_s(self) -> float:
        """Greedy's first target: mean over chips of (all node seconds on that chip) / C."""
        total_s = [math.fsum(column) for column in self.node_s.T.tolist()]
        return math.fsum(total_s[kind] for kind in self.chip_kind) / self.num_chips / self.num_chips

    @functools.cached_property
    def contraction(self) -> IntArray:
        """[N] the block of each node: nodes that must share a chip whatever the partition.

        Colocation groups, and where dataflow is acyclic the cycles that contracting them makes.
        Contracted nodes are numbered in a topological order of the contracted graph (Kahn, smallest
        first node first); with dataflow free to be cyclic, by their first node.
        """
        merge_cycles = self.mcm.constraints.acyclic
        first = contract(self.num_nodes, self.colocate, self.node_pairs, merge_cycles)
        roots = np.unique(first)  # ascending: contracted node position = rank of its first node
        dense = np.searchsorted(roots, first)
        if not self.mcm.constraints.acyclic:
            return dense
        pairs = dense[self.node_pairs]
        pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
        successors: list[list[int]] = [[] for _ in roots]
        for a, b in pairs.tolist():
            successors[a].append(b)
        order = topological_order(successors)
        if order is None:
            raise AssertionError("contracting strongly connected blocks left a cycle")
        rank = np.empty(len(roots), np.int64)
        rank[order] = np.arange(len(roots))
        return rank[dense]

    @functools.cached_property
    def num_contracted(self) -> int:
        """Number of blocks."""
        return int(self.contraction.max()) + 1

    @functools.cached_property
    def contracted_pairs(self) -> IntArray:
        """[P, 2] the distinct (from, to) pairs of different contracted nodes joined by an edge,
        sorted.
        """
        pairs = self.contraction[self.node_pairs]
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        return np.unique(pairs, axis=0) if len(pairs) else pairs

    @functools.cached_property
    def contracted_fixed_chip(self) -> IntArray:
        """[M] the chip that each contracted node must be on, FREE, or CONTRADICTORY."""
        fixed = np.full(self.num_contracted, FREE, np.int64)
        for v in np.flatnonzero(self.fixed_chip != FREE):
            m = self.contraction[v]
            agrees = fixed[m] in (FREE, self.fixed_chip[v])
            fixed[m] = self.fixed_chip[v] if agrees else CONTRADICTORY
        return fixed

    @property
    def is_contradictory(self) -> bool:
        """Whether nodes that must share a chip are fixed to different ones: nothing is valid."""
        return bool((self.contracted_fixed_chip == CONTRADICTORY).any())

    @functools.cached_property
    def contracted(self) -> Problem:
        """This problem with contracted nodes for nodes (`graph` stays the original, for its name
        alone).

        Compute, traffic, links and weights of a partition of the contracted nodes are those of the
        nodes; the peak of live activations is not, since a contracted node's nodes run at several
        moments.

        Raises:
          InfeasibleError: the nodes of one contracted node are fixed to different chips.
        """
        if self.num_contracted == self.num_nodes:
            return self
        if self.is_contradictory:
            raise InfeasibleError("nodes that must share a chip are fixed to different chips")
        node_s = np.zeros((self.num_contracted, self.node_s.shape[1]))
        np.add.at(node_s, self.contraction, self.node_s)
        edges = np.stack([self.edge_tensor, self.contraction[self.edge_consumer]], axis=1)
        inner = self.contraction[self.edge_producer] == edges[:, 1]
        edges = np.unique(edges[~inner], axis=0).reshape(-1, 2)
        uses = np.unique(
            np.stack([self.use_weight, self.contraction[self.use_node]], axis=1), axis=0
        )
        uses = uses.reshape(-1, 2)
        return dataclasses.replace(
            self,
            node_s=node_s,
            fixed_chip=self.contracted_fixed_chip,
            colocate=np.full(self.num_contracted, -1, np.int64),
            tensor_producer=self.contraction[self.tensor_producer],
            edge_tensor=edges[:, 0],
            edge_consumer=edges[:, 1],
            use_weight=uses[:, 0],
            use_node=uses[:, 1],
        )

    def assignment_of(self, chips: Sequence[int] | IntArray) -> IntArray:
        """[N] chips as an array.

        Raises:
          InputError: not one chip of the module for each node.
        """
        f = np.asarray(chips)
        if f.shape != (self.num_nodes,):
            raise InputError(f"assignment has shape {f.shape}, expected ({self.num_nodes},)")
        if f.dtype.kind not in "iu":  # 0.5 is no chip
            raise InputError(f"assignment is of type {f.dtype}, expected whole numbers")
        if f.min() < 0 or f.max() >= self.num_chips:
            raise InputError(
                f"assignment names chips {f.min()} to {f.max()}, expected 0 to {self.num_chips - 1}"
            )
        return f.astype(np.int64)


def contract(num_nodes: int, group: IntArray, pairs: IntArray, merge_cycles: bool) -> IntArray:
    """[N] the smallest node of each node's block.

    Args:
      group: [N] group number, or -1; nodes of one group share a block.
      pairs: [P, 2] edges.
      merge_cycles: whether nodes on a cycle of the contracted graph share a contracted node too.
    """
    from scipy.sparse import coo_array  # slow to import, and not all workers need it
    from scipy.sparse.csgraph import connected_components

    first = np.arange(num_nodes)
    members = np.flatnonzero(group >= 0)
    if not len(members):
        return first
    head = np.full(int(group.max()) + 1, num_nodes, np.int64)
    np.minimum.at(head, group[members], members)
    first[members] = head[group[members]]
    if not merge_cycles:
        return first
    edges = first[pairs]
    ones = np.ones(len(edges), np.int8)
    matrix = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(num_nodes, num_nodes))
    count, component = connected_components(matrix, directed=True, connection="strong")
    smallest = np.full(count, num_nodes, np.int64)
    np.minimum.at(smallest, component[first], np.arange(num_nodes))
    return smallest[component[first]]
