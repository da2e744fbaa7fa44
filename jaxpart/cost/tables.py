"""Tables that only whole-array programs read: segments of rows, distances between nodes, sweeps.

A GPU or TPU waits for each step of a loop, so its programs reduce all segments at once. A segment
is a run of rows: the edges of a tensor, the uses of a weight. Its rows are reduced eight at a time,
then the results eight at a time, until one row is left. The number of levels depends on the longest
segment alone, and each level is one fused kernel.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from jaxpart.cost.distances import shortest_paths
from jaxpart.cost.sweeps import Sweeps, make_sweeps, of_equal_length
from jaxpart.problem.problem import Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FAN_IN = 8  # rows that one step reduces to one
_NODE_LIMIT = 8192  # most nodes of a block within which distances between all pairs are stored


@struct.dataclass
class Level:
    """One step of a segmented reduction: result q is made of `count[q]` rows from `start[q]` on."""

    start: Int[Array, " Q"]
    count: Int[Array, " Q"]


Segments = tuple[Level, ...]


@struct.dataclass
class Tables:
    """Tables of a problem; the letters are those of `DeviceProblem`."""

    tensor_edges: Segments  # edges of each tensor
    node_tensors: Segments  # tensors of each node
    node_in_edges: Segments  # edges to each node
    in_edge_consumer: Int[Array, " E"]  # the edges sorted by consumer: that consumer
    weight_uses: Segments  # uses of each weight
    node_uses: Segments  # uses of each node, in the order of `by_user`
    by_user: Int[Array, " U"]
    pairs_from: Segments  # pairs of each first contracted node
    pairs_to: Segments  # pairs of each second one, in the order of `by_second`
    by_second: Int[Array, " E"]
    members: Segments  # nodes of each contracted node, in the order of `by_contraction`
    by_contraction: Int[Array, " N"]
    # distance[u, v]: a partition that keeps the rule on edges has f(v) >= f(u) - distance[u, v].
    # With too many nodes there are distances within blocks instead: Q blocks of S nodes each, in
    # number order, and only the edges within a block count. One of the two is None.
    distance: Int[Array, "N N"] | None
    block_distance: Int[Array, "Q S S"] | None
    sweeps: Sweeps | None  # along the edges; None: some edge runs to a lower number


def reduce_segments(
    rows: Callable[[Int[Array, " Q"]], Array],
    segments: Segments,
    combine: Callable[[Array, Array], Array],
    identity: Any,
) -> Array:
    """Reduces the rows of each segment to one.

    Args:
      rows: takes numbers of rows [Q] to these rows [Q, ..., B].
      segments: of G segments.
      combine: an associative and commutative operation.
      identity: its identity.

    Returns:
      [G, ..., B]; the identity for an empty segment.
    """
    for level in segments:
        last = jnp.maximum(level.count - 1, 0)
        result = None
        for j in range(_FAN_IN):
            row = rows(level.start + jnp.minimum(j, last))
            here = (j < level.count).reshape(-1, *[1] * (row.ndim - 1))
            row = jnp.where(here, row, jnp.asarray(identity, row.dtype))
            result = row if result is None else combine(result, row)
        assert result is not None
        rows = functools.partial(take, result)
    assert result is not None
    return result


def take(rows: Array, numbers: Int[Array, " Q"]) -> Array:
    """Rows [Q, ..., B] of an array [M, ..., B]; all numbers are those of rows."""
    return rows.at[numbers].get(mode="promise_in_bounds")


def make_tables(problem: Problem, arrays: dict[str, Any]) -> Tables:
    """The tables of a problem, as NumPy arrays.

    Args:
      problem: the host problem.
      arrays: the padded arrays of `DeviceProblem`.
    """
    nodes, edges = len(arrays["fixed_chip"]), len(arrays["edge_tensor"])
    real = len(problem.edge_consumer)
    pairs = problem.contracted_pairs
    by_second = np.argsort(pairs[:, 1], kind="stable")
    by_contraction = np.argsort(problem.contraction, kind="stable")
    by_user = np.argsort(problem.use_node, kind="stable")
    distance = _distances(problem, nodes)
    consumers = arrays["edge_consumer"].copy()
    consumers[:real] = np.sort(consumers[:real], kind="stable")
    # Contracted nodes on a cycle, where dataflow may be cyclic, have edges both ways.
    is_rising = bool((problem.node_pairs[:, 0] < problem.node_pairs[:, 1]).all())
    return Tables(
        tensor_edges=segments(arrays["tensor_edges"], edges),
        node_tensors=segments(arrays["node_tensors"], nodes),
        node_in_edges=segments(arrays["node_in_edges"], edges),
        in_edge_consumer=consumers,
        weight_uses=segments(arrays["weight_uses"], edges),
        node_uses=segments(offsets(problem.use_node, nodes), edges),
        by_user=_padded(by_user, edges),
        pairs_from=segments(offsets(pairs[:, 0], nodes), edges),
        pairs_to=segments(offsets(pairs[:, 1], nodes), edges),
        by_second=_padded(by_second, edges),
        members=segments(offsets(problem.contraction, nodes), nodes),
        by_contraction=_padded(by_contraction, nodes),
        distance=distance[0] if len(distance) == 1 else None,
        block_distance=distance if len(distance) > 1 else None,
        sweeps=make_sweeps(problem.node_pairs, problem.num_nodes, nodes) if is_rising else None,
    )


def of_equal_depth(several: Sequence[Tables], edges: int) -> list[Tables]:
    """Tables of several problems of one bucket, of equal shapes; as NumPy arrays.

    Args:
      several: the tables.
      edges: E, the padded number of edges.
    """
    names = ("tensor_edges", "node_in_edges", "weight_uses", "node_uses", "pairs_from", "pairs_to")
    rows = {
        **dict.fromkeys(names, edges),
        "node_tensors": edges * 2 // 3,
        "members": edges * 2 // 3,
    }
    levels = {name: max(len(getattr(t, name)) for t in several) for name in rows}
    known = [tables.sweeps for tables in several if tables.sweeps is not None]
    all_rise = len(known) == len(several)
    sweeps = of_equal_length(known) if all_rise else [None] * len(several)
    return [
        dataclasses.replace(
            tables,
            **{
                name: with_levels(getattr(tables, name), levels[name], count)
                for name, count in rows.items()
            },
            sweeps=swept,
        )
        for tables, swept in zip(several, sweeps, strict=True)
    ]


def with_levels(reductions: Segments, levels: int, rows: int) -> Segments:
    """The same segments in more levels: the last ones hand on their rows.

    Args:
      reductions: in at most `levels` levels.
      levels: wanted.
      rows: as in `segments`.
    """
    made: list[Any] = list(reductions)
    groups = len(made[-1].start)
    while len(made) < levels:
        last = made.pop()
        size = groups + (len(made[-1].start) if made else rows) // _FAN_IN
        made.append(Level(_padded(last.start, size), _padded(last.count, size)))
        made.append(Level(_padded(np.arange(groups), groups), np.minimum(last.count, 1)))
    return tuple(made)


def offsets(owner: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """CSR offsets [size + 1] of entries whose owners (0..size-1) are `owner`, in any order."""
    counts = np.bincount(owner, minlength=size) if len(owner) else np.zeros(size, np.int64)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def segments(bounds: NDArray[np.int32], rows: int) -> Segments:
    """Segments of rows.

    Args:
      bounds: [G + 1] segment g is made of rows bounds[g] to bounds[g + 1] - 1.
      rows: how many there are, padding included; it sets the lengths of the levels.
    """
    levels: list[Any] = []
    groups = len(bounds) - 1
    while True:
        start, counts = bounds[:-1], np.diff(bounds)
        if counts.max() <= _FAN_IN:
            first = np.where(counts > 0, start, 0)
            levels.append(Level(_padded(first, groups), _padded(counts, groups)))
            return tuple(levels)
        parts = -(-counts // _FAN_IN)
        owner = np.repeat(np.arange(groups), parts)
        before = _FAN_IN * (np.arange(len(owner)) - (np.cumsum(parts) - parts)[owner])
        rows = groups + rows // _FAN_IN
        levels.append(
            Level(
                _padded(start[owner] + before, rows),
                _padded(np.minimum(_FAN_IN, counts[owner] - before), rows),
            )
        )
        bounds = np.concatenate([[0], np.cumsum(parts)]).astype(np.int32)


def _padded(values: NDArray[Any], size: int) -> Any:
    out = np.zeros(size, np.int32)
    out[: len(values)] = values
    return out


def _distances(problem: Problem, size: int) -> Any:
    """Shortest paths between contracted nodes under the constraints f(v) >= f(u) - distance.

    An edge (u, v) has distance 0 from u to v. From v to u it is 1 with the triangle rule, and far
    without. Nothing is near if dataflow may go backward.

    Args:
      problem: its contracted nodes count.
      size: N, the padded number of nodes; a bucket size.

    Returns:
      [Q, S, S] the distances within each block of S nodes, along edges of the block; N = Q * S.
    """
    blocks = 1
    while size > blocks * _NODE_LIMIT:
        blocks *= 2  # a bucket size has enough factors of 2
    width = size // blocks
    far = problem.num_chips  # no two chips are farther apart
    found = np.full((blocks, width, width), far, np.int8 if far <= 63 else np.int16)
    found[:, np.arange(width), np.arange(width)] = 0
    rules = problem.mcm.constraints
    if not rules.acyclic:
        return found
    pairs = problem.contracted_pairs.astype(np.int64)
    block_of = pairs // width
    for block in range(-(-problem.num_contracted // width)):
        inside = pairs[(block_of == block).all(axis=1)] - block * width
        count = min(problem.num_contracted - block * width, width)
        order = np.argsort(inside[:, 1], kind="stable")
        back = offsets(inside[:, 1], count) * rules.triangle
        ahead = offsets(inside[:, 0], count)
        shortest_paths(ahead, inside[:, 1], back, inside[order, 0], found[block])
    return found
