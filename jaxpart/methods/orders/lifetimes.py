"""When the tensors of many orders are made and consumed, by operations on whole arrays.

Arrays are [rows, B], the batch last. Position p is that of the p-th node of an order.
"""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpart.cost.device import DeviceProblem
from jaxpart.cost.tables import Tables, reduce_segments, take


@struct.dataclass
class Lifetimes:
    """The lifetimes of the tensors of B orders."""

    position: Int[Array, "N B"]  # of each node
    ends_at: Int[Array, "K B"]  # last position that consumes each tensor; -1: none
    last_at: Int[Array, "N B"]  # last position that consumes a tensor of each node; -1: none
    made_s: Float[Array, " N"]  # transfer seconds of the tensors of each node that have a consumer
    dead_s: Float[Array, "N B"]  # those of the tensors that have each node as last consumer


def lifetimes(problem: DeviceProblem, orders: Int[Array, "N B"]) -> Lifetimes:
    """The lifetimes of all tensors; `orders` has one order per column."""
    tables = tables_of(problem)
    position = positions(orders)
    ends_at = reduce_segments(
        lambda e: take(position, problem.edge_consumer[e]), tables.tensor_edges, jnp.maximum, -1
    )
    size_s = problem.tensor_bytes / problem.link_bandwidth
    has_consumer = problem.tensor_edges[1:] > problem.tensor_edges[:-1]
    sent_s = jnp.where(has_consumer, size_s, 0)[:, None]

    def died(i: Array) -> Array:
        k = problem.in_edge_tensor[i]
        is_last = take(ends_at, k) == take(position, tables.in_edge_consumer[i])
        return jnp.where(is_last, size_s[k][:, None], 0)

    return Lifetimes(
        position=position,
        ends_at=ends_at,
        last_at=reduce_segments(lambda k: take(ends_at, k), tables.node_tensors, jnp.maximum, -1),
        made_s=reduce_segments(lambda k: sent_s[k], tables.node_tensors, operator.add, 0)[:, 0],
        dead_s=reduce_segments(died, tables.node_in_edges, operator.add, 0),
    )


def tables_of(problem: DeviceProblem) -> Tables:
    """The tables of a problem whose programs compute on whole arrays."""
    assert problem.tables is not None
    return problem.tables


def positions(orders: Int[Array, "N B"]) -> Int[Array, "N B"]:
    """The position of each node."""
    number = jnp.arange(orders.shape[0], dtype=jnp.int32)[:, None]
    lane = jnp.arange(orders.shape[1])[None]
    return (
        jnp.zeros_like(orders)
        .at[orders, lane]
        .set(number.astype(orders.dtype), unique_indices=True, mode="promise_in_bounds")
    )


def along(values: Array, orders: Int[Array, "N B"]) -> Array:
    """What the node at each position has: `values` [N, ..., B] by node, the result by position."""
    index = orders.reshape(orders.shape[0], *[1] * (values.ndim - 2), orders.shape[1])
    return jnp.take_along_axis(values, index, axis=0, mode="promise_in_bounds")


def previous(owner: Array, at: Array, first: Array) -> Array:
    """For each entry, the position of the previous entry of its owner; `first` for the earliest."""
    entry = jnp.arange(owner.shape[0], dtype=jnp.int32)
    owners, positions, entries = lax.sort((owner, at, entry), num_keys=2)
    is_same = jnp.concatenate([jnp.zeros((1,), bool), owners[1:] == owners[:-1]])
    before = jnp.where(is_same, jnp.roll(positions, 1), first[entries])
    return jnp.zeros_like(at).at[entries].set(before)


def previous_of_each(
    owner: Int[Array, " M"], at: Int[Array, "M B"], first: Int[Array, "M B"]
) -> Int[Array, "M B"]:
    """`previous` for each column."""
    return jax.vmap(previous, in_axes=(None, 1, 1), out_axes=1)(owner, at, first)
