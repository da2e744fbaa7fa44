"""The padded device copy of a `Problem`: one pytree that every jitted function takes.

Arrays are padded to one of a few bucket sizes, and the true sizes are scalars of the pytree.
A second graph of the same bucket therefore compiles nothing. Loops run to the true sizes and never
visit the padding. Code that works on whole arrays may read it: padding nodes cost nothing, and
padding edges run from the last padding node to itself, so they break no rule.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpart.cost import kernel_gate
from jaxpart.cost.tables import Tables, make_tables, of_equal_depth, offsets
from jaxpart.environment import backend, default_device, warn_of_slow_release
from jaxpart.errors import InputError
from jaxpart.problem.mcm import Constraints, MemoryModel, Topology
from jaxpart.problem.problem import Problem

Form = Literal["rows", "arrays", "kernel"]

# The largest number of chips for which an assignment fits each type; beyond them int32.
_INT_TYPES = ((127, jnp.int8), (32767, jnp.int16))


@dataclasses.dataclass(frozen=True)
class StaticConfig:
    """The static part of a problem: everything that changes the compiled program."""

    num_chips: int
    topology: Topology
    overlap: bool
    memory_model: MemoryModel
    constraints: Constraints
    rows: int  # of a mesh; 1 on other topologies
    cols: int  # likewise
    shared_weights: bool  # whether any weight has several consumers
    kernel: bool = False  # whether `evaluate` is one kernel; without, see `DeviceProblem.tables`
    problems: int = 1  # that `stacked` put together: `jax.vmap` keeps temporary arrays of them all

    @property
    def chip_dtype(self) -> Any:
        """The smallest integer type that holds a chip number and -1."""
        return next((t for limit, t in _INT_TYPES if self.num_chips <= limit), jnp.int32)


@struct.dataclass
class DeviceProblem:
    """A problem on the device.

    The letters N, K, E, W and U in the shapes are padded sizes: of nodes, tensors, edges, weights
    and uses (`problem/problem.py` defines them). The true sizes are the `num_` scalars. C chips and
    S kinds of chips are not padded. Times are in seconds and sizes in bytes. `lower` chooses the
    dtype of the floats.
    """

    num_nodes: Int[Array, ""]
    num_tensors: Int[Array, ""]
    num_edges: Int[Array, ""]
    num_weights: Int[Array, ""]
    num_contracted: Int[Array, ""]
    num_pairs: Int[Array, ""]
    node_s: Float[Array, "N S"]  # seconds of each node on each kind of chip
    chip_kind: Int[Array, " C"]
    capacity_bytes: Float[Array, " C"]
    link_bandwidth: Float[Array, ""]  # bytes/s
    fixed_chip: Int[Array, " N"]  # chip, or -1
    group_head: Int[Array, " N"]  # first node of the colocation group; itself without one
    # Tensors are sorted by producer; edges are sorted by tensor, then by consumer.
    tensor_producer: Int[Array, " K"]
    tensor_bytes: Float[Array, " K"]
    tensor_edges: Int[Array, " K+1"]  # edges of tensor k: tensor_edges[k] to [k + 1] - 1
    node_tensors: Int[Array, " N+1"]  # likewise, the tensors of which node v is the producer
    edge_tensor: Int[Array, " E"]
    edge_producer: Int[Array, " E"]
    edge_consumer: Int[Array, " E"]
    # The same edges, sorted by consumer.
    node_in_edges: Int[Array, " N+1"]  # offsets, as in `tensor_edges`
    in_edge_tensor: Int[Array, " E"]
    weight_bytes: Float[Array, " W"]
    weight_uses: Int[Array, " W+1"]  # offsets, as in `tensor_edges`
    use_weight: Int[Array, " U"]
    use_node: Int[Array, " U"]
    # Contracted nodes (`Problem.contraction`) are padded to N. Pairs are the distinct pairs of
    # different contracted nodes joined by an edge, sorted by the first; they are padded to E.
    contraction: Int[Array, " N"]  # the contracted node of each node
    contracted_size: Int[Array, " N"]  # number of nodes in each contracted node; 0 for padding
    contracted_fixed_chip: Int[Array, " N"]  # chip, FREE, or CONTRADICTORY
    pair_from: Int[Array, " E"]
    pair_to: Int[Array, " E"]
    config: StaticConfig = struct.field(pytree_node=False)
    # With tables, programs compute on whole arrays; without, by loops over rows of candidates.
    tables: Tables | None = None

    @property
    def padded_nodes(self) -> int:
        """N, the number of rows of a batch of assignments."""
        return self.fixed_chip.shape[0]


def bucket_size(count: int) -> int:
    """The padded size for `count`: a power of two from 64 on, or 3/4 of one from 2,048 on."""
    size = 64
    while size < count:
        size *= 2
    return size * 3 // 4 if size >= 2048 and size * 3 // 4 >= count else size


def lower(problem: Problem, dtype: Any = jnp.float32, form: Form | None = None) -> DeviceProblem:
    """Pads `problem` to its bucket and puts it on the default device.

    One bucket size sets the lengths of all arrays of a graph, so that graphs of about the same size
    share one compilation. With the form "arrays" so do the longest fan-outs: the number of levels
    of a segmented reduction is static (`tables.py`).

    Args:
      problem: the host problem.
      dtype: of all floats; float64 needs `jax.enable_x64`.
      form: of the programs that get this problem: "rows" loops over rows of candidates, "arrays"
        computes on whole arrays, "kernel" is "arrays" with one kernel for `evaluate` (limits:
        `kernel_gate.py`). All give the same results. The default is "rows" where the default
        device (`jax.default_device`) is a CPU, and "arrays" on a GPU or TPU.

    Returns:
      The problem on the device. Asked again, it is the same copy: the last few are kept.

    Raises:
      InputError: the kernel does not cover the problem.

    Warns:
      UserWarning: once, on a GPU with a release of jaxlib that is slow there.
    """
    warn_of_slow_release()
    if form is None:
        form = "rows" if backend() == "cpu" else "arrays"
    exact = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
    return _lowered(problem, np.dtype(dtype), form, default_device(), exact)


# Each method of a search lowers its problem, and distances between all pairs of nodes take long. A
# search has three copies: of the nodes, of the contracted nodes, and one in float64 for verdicts.
@functools.lru_cache(maxsize=6)
def _lowered(
    problem: Problem, dtype: np.dtype[Any], form: Form, device: Any, exact: bool
) -> DeviceProblem:
    """`lower`; `device` is the default one, and `exact` says whether `jax.enable_x64` is on."""
    del device, exact  # another copy for each
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
    if form == "kernel":
        kernel_gate.require(problem.num_chips, size, problem.node_s.shape[1], dtype)

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
        "tensor_edges": offsets(edge_tensor, size),
        "node_tensors": offsets(problem.tensor_producer, size),
        "edge_tensor": _padded(edge_tensor, wide, size - 1),
        "edge_producer": _padded(problem.tensor_producer[by_producer][edge_tensor], wide, spare),
        "edge_consumer": _padded(edge_consumer, wide, spare),
        "node_in_edges": offsets(edge_consumer, size),
        "in_edge_tensor": _padded(edge_tensor[by_consumer], wide, size - 1),
        "weight_bytes": _padded(problem.weight_bytes, size, 0, dtype),
        "weight_uses": offsets(problem.use_weight, size),
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
        form == "kernel",
    )
    tables = None if form == "rows" else make_tables(problem, arrays)
    return DeviceProblem(**jax.device_put(arrays), config=config, tables=jax.device_put(tables))


def stacked(problems: Sequence[DeviceProblem]) -> DeviceProblem:
    """Several problems as one pytree, for `jax.vmap` of the programs over problems.

    `jax.vmap(evaluate)(stacked(problems), assignments)` costs [P, N, B] candidates in one call.

    Args:
      problems: P problems, of one bucket and one module.

    Returns:
      Arrays with a leading axis of P.

    Raises:
      InputError: the problems differ in bucket, in form, or in what is static about the module.
    """
    shared = any(problem.config.shared_weights for problem in problems)
    common = {"shared_weights": shared, "problems": len(problems)}
    same = [_with(p, config=dataclasses.replace(p.config, **common)) for p in problems]
    if all(problem.tables is not None for problem in problems):
        host = jax.device_get([problem.tables for problem in problems])
        equal = of_equal_depth(host, problems[0].edge_tensor.shape[0])
        same = [_with(p, tables=tables) for p, tables in zip(same, equal, strict=True)]
    kinds = {(jax.tree.structure(p), tuple(map(jnp.shape, jax.tree.leaves(p)))) for p in same}
    if len(kinds) != 1:
        raise InputError(
            f"{len(problems)} problems of {len(kinds)} kinds, expected one size of bucket, one "
            "form and one kind of module"
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *same)


def _with(problem: DeviceProblem, **changes: Any) -> DeviceProblem:
    whole: Any = problem  # a dataclass by `struct.dataclass`
    return dataclasses.replace(whole, **changes)


def pad_assignments(problem: DeviceProblem, assignments: np.ndarray) -> np.ndarray:
    """Pads host assignments [num_nodes, B] to [N, B], in the smallest integer type."""
    return _padded(assignments, problem.padded_nodes, 0, problem.config.chip_dtype)


def _padded(values: np.ndarray, size: int, fill: float, dtype: Any = np.int32) -> np.ndarray:
    out = np.full((size, *values.shape[1:]), fill, dtype)
    out[: len(values)] = values
    return out


def _group_heads(problem: Problem, size: int) -> np.ndarray:
    head = np.arange(size, dtype=np.int32)
    first: dict[int, int] = {}
    for v in np.flatnonzero(problem.colocate >= 0).tolist():
        head[v] = first.setdefault(int(problem.colocate[v]), v)
    return head
