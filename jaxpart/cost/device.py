"""The padded device copy of a `Problem`: one pytree that every jitted function takes.

Graphs are padded to a few bucket sizes and the true sizes travel as scalars, so that a second graph
of the same bucket compiles nothing. Loops run to the true sizes; padding is never visited by them.
A vectorised reader sees padding nodes without cost and padding edges from the last padding node to
itself, which no rule can object to.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpart.problem.mcm import Constraints, MemoryModel, Topology
from jaxpart.problem.problem import Problem

# Any more than this many chips and an assignment needs a wider integer.
_INT_TYPES = ((127, jnp.int8), (32767, jnp.int16))


@dataclasses.dataclass(frozen=True)
class StaticConfig:
    """What is static about a module: everything that changes the compiled program."""

    num_chips: int
    topology: Topology
    overlap: bool
    memory_model: MemoryModel
    constraints: Constraints
    rows: int
    cols: int
    shared_weights: bool  # whether any weight has several consumers

    @property
    def chip_dtype(self) -> Any:
        """The smallest integer that holds a chip number."""
        return next((t for limit, t in _INT_TYPES if self.num_chips <= limit), jnp.int32)


@struct.dataclass
class DeviceProblem:
    """A problem on the device. Capitals are bucket sizes; the true sizes are the `num_` scalars.

    Times in seconds, sizes in bytes; floats in the dtype that `lower` was asked for.
    """

    num_nodes: Int[Array, ""]
    num_tensors: Int[Array, ""]
    num_edges: Int[Array, ""]
    num_weights: Int[Array, ""]
    num_contracted: Int[Array, ""]
    num_pairs: Int[Array, ""]
    node_s: Float[Array, "N S"]  # per kind of chip
    chip_kind: Int[Array, " C"]
    capacity_bytes: Float[Array, " C"]
    link_bandwidth: Float[Array, ""]  # bytes/s
    fixed_chip: Int[Array, " N"]  # chip, or -1
    group_head: Int[Array, " N"]  # first node of the colocation group; itself without one
    # Tensors, sorted by producer; edges, sorted by tensor.
    tensor_producer: Int[Array, " K"]
    tensor_bytes: Float[Array, " K"]
    tensor_edges: Int[Array, " K+1"]  # edges of tensor k: tensor_edges[k] to tensor_edges[k + 1]
    node_tensors: Int[Array, " N+1"]  # likewise the tensors that node v makes
    edge_tensor: Int[Array, " E"]
    edge_producer: Int[Array, " E"]
    edge_consumer: Int[Array, " E"]
    # Edges once more, sorted by consumer.
    node_in_edges: Int[Array, " N+1"]
    in_edge_tensor: Int[Array, " E"]
    weight_bytes: Float[Array, " W"]
    weight_uses: Int[Array, " W+1"]
    use_weight: Int[Array, " U"]
    use_node: Int[Array, " U"]
    # Contracted nodes, the nodes that must share a chip, in topological order; distinct pairs of
    # different contracted nodes joined by an edge, sorted by the first.
    contraction: Int[Array, " N"]
    contracted_size: Int[Array, " N"]  # nodes; 0 for padding
    contracted_fixed_chip: Int[Array, " N"]  # chip, FREE, or CONTRADICTORY
    pair_from: Int[Array, " E"]
    pair_to: Int[Array, " E"]
    config: StaticConfig = struct.field(pytree_node=False)

    @property
    def padded_nodes(self) -> int:
        """Rows of a batch of assignments."""
        return self.fixed_chip.shape[0]


def bucket_size(count: int) -> int:
    """The padded size for `count`: powers of two from 64, with a step halfway from 1,024 on."""
    size = 64
    while size < count:
        size *= 2
    return size * 3 // 4 if size >= 2048 and size * 3 // 4 >= count else size


def lower(problem: Problem, dtype: Any = jnp.float32) -> DeviceProblem:
    """Pads `problem` to its bucket and puts it on the default device.

    Float64 needs `jax.enable_x64`. One size rules all arrays of a graph, so that graphs of about
    the same size share one compilation.
    """
    by_producer = np.argsort(problem.tensor_producer, kind="stable")
    rank = np.empty_like(by_producer)
    rank[by_producer] = np.arange(len(by_producer))
    edge_order = np.lexsort((problem.edge_consumer, rank[problem.edge_tensor]))
    edge_tensor = rank[problem.edge_tensor][edge_order]
    edge_consumer = problem.edge_consumer[edge_order]
    by_consumer = np.argsort(edge_consumer, kind="stable")

    n, k, e = problem.num_nodes, problem.num_tensors, len(edge_tensor)
    w, u = len(problem.weight_bytes), len(problem.use_node)
    size = bucket_size(max(n + 1, k + 1, -(-e * 2 // 3), w + 1, -(-u * 2 // 3)))
    wide = size * 3 // 2
    spare = size - 1  # the node that padding points at

    mcm = problem.mcm
    arrays = {
        "num_nodes": np.int32(n),
        "num_tensors": np.int32(k),
        "num_edges": np.int32(e),
        "num_weights": np.int32(w),
        "num_contracted": np.int32(problem.num_contracted),
        "num_pairs": np.int32(len(problem.contracted_pairs)),
        "node_s": _padded(problem.node_s, size, 0, dtype),
        "chip_kind": problem.chip_kind.astype(np.int32),
        "capacity_bytes": problem.capacity_bytes.astype(dtype),
        "link_bandwidth": np.asarray(mcm.link_bandwidth, dtype),
        "fixed_chip": _padded(problem.fixed_chip, size, -1),
        "group_head": _group_heads(problem, size),
        "tensor_producer": _padded(problem.tensor_producer[by_producer], size, spare),
        "tensor_bytes": _padded(problem.tensor_bytes[by_producer], size, 0, dtype),
        "tensor_edges": _offsets(edge_tensor, size),
        "node_tensors": _offsets(problem.tensor_producer, size),
        "edge_tensor": _padded(edge_tensor, wide, size - 1),
        "edge_producer": _padded(problem.tensor_producer[by_producer][edge_tensor], wide, spare),
        "edge_consumer": _padded(edge_consumer, wide, spare),
        "node_in_edges": _offsets(edge_consumer, size),
        "in_edge_tensor": _padded(edge_tensor[by_consumer], wide, size - 1),
        "weight_bytes": _padded(problem.weight_bytes, size, 0, dtype),
        "weight_uses": _offsets(problem.use_weight, size),
        "use_weight": _padded(problem.use_weight, wide, size - 1),
        "use_node": _padded(problem.use_node, wide, spare),
        "contraction": _padded(problem.contraction, size, spare),
        "contracted_size": _padded(np.bincount(problem.contraction), size, 0),
        "contracted_fixed_chip": _padded(problem.contracted_fixed_chip, size, -1),
        "pair_from": _padded(problem.contracted_pairs[:, 0], wide, spare),
        "pair_to": _padded(problem.contracted_pairs[:, 1], wide, spare),
    }
    config = StaticConfig(
        problem.num_chips,
        mcm.topology,
        mcm.overlap,
        mcm.memory_model,
        mcm.constraints,
        mcm.rows or 1,
        mcm.cols or 1,
        u > len(np.unique(problem.use_weight)),
    )
    return DeviceProblem(**jax.device_put(arrays), config=config)


def pad_assignments(problem: DeviceProblem, assignments: np.ndarray) -> np.ndarray:
    """Pads host assignments [num_nodes, B] to the bucket's rows, in the smallest integer type."""
    return _padded(assignments, problem.padded_nodes, 0, problem.config.chip_dtype)


def _padded(values: np.ndarray, size: int, fill: float, dtype: Any = np.int32) -> np.ndarray:
    out = np.full((size, *values.shape[1:]), fill, dtype)
    out[: len(values)] = values
    return out


def _offsets(owner: np.ndarray, size: int) -> np.ndarray:
    """CSR offsets [size + 1] of entries that belong to `owner` (0..size-1)."""
    counts = np.bincount(owner, minlength=size) if len(owner) else np.zeros(size, np.int64)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _group_heads(problem: Problem, size: int) -> np.ndarray:
    head = np.arange(size, dtype=np.int32)
    first: dict[int, int] = {}
    for v in np.flatnonzero(problem.colocate >= 0).tolist():
        head[v] = first.setdefault(int(problem.colocate[v]), v)
    return head
