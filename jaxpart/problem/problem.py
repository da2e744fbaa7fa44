"""A graph on a module, as plain arrays: the input of every algorithm.

`Problem` lives on the host and is exact (numpy, float64). It does not use JAX, so that solver
workers need not start JAX. `lower` in `cost/device.py` makes the padded copy for the device.
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

# Special values of a fixed chip. FREE: any chip is allowed. CONTRADICTORY: no chip is allowed,
# because nodes of one contracted node are fixed to different chips.
FREE, CONTRADICTORY = -1, -2

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One graph on one module. Make it with `Problem.build`.

    Sizes: N nodes, C chips, S kinds of chips, K tensors, E edges, W weights, U uses of weights. An
    edge is a pair of a tensor and one of its consumers. A use is a pair of a weight and one of its
    consumers. Edges and uses are sorted by (tensor, consumer) and (weight, consumer).
    """

    graph: Graph  # in the module's element size
    mcm: MCM
    node_s: FloatArray  # [N, S] seconds of each node on each kind of chip
    chip_kind: IntArray  # [C] kind of each chip, 0 to S-1
    capacity_bytes: FloatArray  # [C]
    fixed_chip: IntArray  # [N] chip number, or FREE
    colocate: IntArray  # [N] colocation group, numbered from 0 without gaps; -1 for none
    tensor_producer: IntArray  # [K] node number
    tensor_bytes: FloatArray  # [K]
    edge_tensor: IntArray  # [E] tensor number
    edge_consumer: IntArray  # [E] node number
    weight_bytes: FloatArray  # [W]
    use_weight: IntArray  # [U] weight number
    use_node: IntArray  # [U] node number

    @classmethod
    def build(cls, graph: Graph, mcm: MCM) -> Problem:
        """Makes the arrays of `graph` on `mcm`; bytes are rescaled to the module's element size.

        Raises:
          InputError: a node is fixed to a chip that the module does not have.
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
        """N: the number of nodes."""
        return len(self.fixed_chip)

    @property
    def num_chips(self) -> int:
        """C: the number of chips."""
        return len(self.chip_kind)

    @property
    def num_tensors(self) -> int:
        """K: the number of tensors."""
        return len(self.tensor_bytes)

    @functools.cached_property
    def edge_producer(self) -> IntArray:
        """[E] the producer of each edge's tensor."""
        return self.tensor_producer[self.edge_tensor]

    @functools.cached_property
    def last_consumer(self) -> IntArray:
        """[K] the highest-numbered consumer of each tensor; its producer if it has no consumer."""
        last = self.tensor_producer.copy()
        np.maximum.at(last, self.edge_tensor, self.edge_consumer)
        return last

    @functools.cached_property
    def node_pairs(self) -> IntArray:
        """[P, 2] the distinct pairs (producer, consumer) of nodes, sorted."""
        pairs = np.stack([self.edge_producer, self.edge_consumer], axis=1)
        return np.unique(pairs, axis=0) if len(pairs) else pairs

    @functools.cached_property
    def is_shared_weight(self) -> NDArray[np.bool_]:
        """[W] whether a weight has several consumers."""
        return np.bincount(self.use_weight, minlength=len(self.weight_bytes)) > 1

    @functools.cached_property
    def own_weight_bytes(self) -> FloatArray:
        """[N] bytes of the weights that only this node uses."""
        own = np.zeros(self.num_nodes)
        single = ~self.is_shared_weight[self.use_weight]
        np.add.at(own, self.use_node[single], self.weight_bytes[self.use_weight[single]])
        return own

    @functools.cached_property
    def mean_load_s(self) -> float:
        """The mean load in seconds: the mean over chips c of (sum of all node times on c) / C."""
        total_s = [math.fsum(column) for column in self.node_s.T.tolist()]
        return math.fsum(total_s[kind] for kind in self.chip_kind) / self.num_chips / self.num_chips

    @functools.cached_property
    def contraction(self) -> IntArray:
        """[N] the contracted node of each node.

        All nodes of one contracted node share a chip in every valid partition. They are the nodes
        of one colocation group. If the acyclic rule is on, groups on a cycle of the contracted
        graph are merged too.

        With the acyclic rule, contracted nodes are numbered in a topological order of the
        contracted graph (Kahn; among ready ones, the one with the smallest first node comes first).
        Without it, they are numbered by their first node.
        """
        merge_cycles = self.mcm.constraints.acyclic
        first = contract(self.num_nodes, self.colocate, self.node_pairs, merge_cycles)
        roots = np.unique(first)  # ascending, so `dense` numbers them by first node
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
            raise AssertionError("contracting strongly connected components left a cycle")
        rank = np.empty(len(roots), np.int64)
        rank[order] = np.arange(len(roots))
        return rank[dense]

    @functools.cached_property
    def num_contracted(self) -> int:
        """M: the number of contracted nodes."""
        return int(self.contraction.max()) + 1

    @functools.cached_property
    def contracted_pairs(self) -> IntArray:
        """[P, 2] the distinct edges (from, to) between different contracted nodes, sorted."""
        pairs = self.contraction[self.node_pairs]
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        return np.unique(pairs, axis=0) if len(pairs) else pairs

    @functools.cached_property
    def contracted_fixed_chip(self) -> IntArray:
        """[M] the fixed chip of each contracted node, FREE, or CONTRADICTORY."""
        fixed = np.full(self.num_contracted, FREE, np.int64)
        for v in np.flatnonzero(self.fixed_chip != FREE):
            m = self.contraction[v]
            agrees = fixed[m] in (FREE, self.fixed_chip[v])
            fixed[m] = self.fixed_chip[v] if agrees else CONTRADICTORY
        return fixed

    @property
    def is_contradictory(self) -> bool:
        """Whether a contracted node has two different fixed chips: no partition is valid."""
        return bool((self.contracted_fixed_chip == CONTRADICTORY).any())

    @functools.cached_property
    def contracted(self) -> Problem:
        """The problem whose N nodes are the M contracted nodes of this one.

        A partition has the same compute, traffic, link loads and weights in both problems. Its peak
        of live activations can differ, because the nodes of one contracted node run at different
        moments. `graph` stays the original graph; use only its name.

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

    def contracted_assignment(self, assignment: IntArray) -> IntArray:
        """[M] the chip of each contracted node; one of its chips where `assignment` splits it.

        Args:
          assignment: [N] chip of each node.
        """
        chips = np.zeros(self.num_contracted, np.int64)
        chips[self.contraction] = assignment
        return chips

    def assignment_of(self, chips: Sequence[int] | IntArray) -> IntArray:
        """Checks the chips of an assignment and returns them as an array.

        Args:
          chips: [N] chip of each node.

        Returns:
          [N] the same chips.

        Raises:
          InputError: `chips` does not give one chip of the module for each node.
        """
        f = np.asarray(chips)
        if f.shape != (self.num_nodes,):
            raise InputError(f"assignment has shape {f.shape}, expected ({self.num_nodes},)")
        if f.dtype.kind not in "iu":  # a float such as 0.5 is not a chip number
            raise InputError(f"assignment is of type {f.dtype}, expected whole numbers")
        if f.min() < 0 or f.max() >= self.num_chips:
            raise InputError(
                f"assignment names chips {f.min()} to {f.max()}, expected 0 to {self.num_chips - 1}"
            )
        return f.astype(np.int64)


def contract(num_nodes: int, group: IntArray, pairs: IntArray, merge_cycles: bool) -> IntArray:
    """Contracts groups of nodes; a contracted node is identified by its smallest node.

    Args:
      num_nodes: N.
      group: [N] group number, or -1. Nodes of one group share a contracted node.
      pairs: [P, 2] edges (from, to).
      merge_cycles: whether nodes on a cycle of the contracted graph share a contracted node too.

    Returns:
      [N] for each node, the smallest node of its contracted node.
    """
    from scipy.sparse import coo_array  # slow to import; not all workers need it
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
