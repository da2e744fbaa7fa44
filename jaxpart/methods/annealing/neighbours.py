"""What a move reads of the contracted nodes around one, for programs on whole arrays.

A GPU or TPU waits for each step of a loop, and asks the host before each step of a loop of unknown
length. Its programs therefore read the neighbours of a contracted node all at once: lists of a
static length, masked. A step of a sweep is then a fixed number of fused kernels, whatever the
graph.

Floor of a step, for B chains and a contracted node with d inputs and outputs whose tensors have q
consumers in all: 1 + d + q labels of one byte, about 8 numbers of the two chips read and 6 written,
and 100 operations, in each chain. For 4,096 chains of BERT-large that is 0.3 MB, or 0.1 us of an
H100's memory, and one launch of 3 us.

Distance to it, compiled for an H100: 11 kernels on a row of chips (33 us), 13 on other chip graphs.
Five of the 11 compute on a few numbers, or choose a chain for each slot: XLA keeps them apart. They
all move 5.5 MB, because tables are written for all chips and not for two (1.6 us, or less where
they stay in the cache). So a step waits for its launches. Lists are padded to the longest of the
graph: for BERT-large 4 inputs with 4 consumers each, or 0.02 us. A comparison of all E edges would
take 5 us.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int
from numpy.typing import NDArray

from jaxpart.cost.device import DeviceProblem, bucket_size
from jaxpart.cost.tables import Segments, offsets, segments, take

_SHORTEST = 4  # least static length of a list


@struct.dataclass
class Neighbours:
    """The users of shared weights, and lists of a static length: the longest of the graph.

    Lists that every move reads are made on the host. Those behind their last entry repeat it.
    """

    user: Int[Array, " U"]  # contracted nodes that use a shared weight, sorted by weight
    users: Segments  # of each shared weight
    inputs: Int[Array, "N I"]  # tensors that each contracted node consumes
    feeders: Int[Array, "N I"]  # who makes them
    num_inputs: Int[Array, " N"]
    readers: Int[Array, "N Q"]  # who consumes what each contracted node makes
    num_readers: Int[Array, " N"]
    most_outputs: int = struct.field(pytree_node=False)  # that it makes
    most_readers: int = struct.field(pytree_node=False)  # consumers of one tensor


def neighbours_of(
    contracted: DeviceProblem, shared: NDArray[np.int32], num_shared: int
) -> Neighbours:
    """Makes the lists, on the host.

    Args:
      contracted: its N nodes are the contracted nodes.
      shared: [N, R] the shared weights of each contracted node; the last weight stands for none.
      num_shared: how many shared weights there are, that last one included.
    """
    tensor_edges, node_tensors, node_in_edges = (
        np.asarray(bounds).astype(np.int64)
        for bounds in (contracted.tensor_edges, contracted.node_tensors, contracted.node_in_edges)
    )
    real = int(contracted.num_nodes)
    node, column = np.nonzero(shared[:real] != num_shared - 1)
    weight = shared[node, column]
    order = np.argsort(weight, kind="stable")
    uses = bucket_size(len(node))
    in_edges = _lists(node_in_edges)
    inputs = np.asarray(contracted.in_edge_tensor)[in_edges]
    return Neighbours(
        user=jnp.asarray(_padded(node[order], uses)),
        users=jax.device_put(segments(offsets(weight.astype(np.int64), num_shared), uses)),
        inputs=jnp.asarray(inputs),
        feeders=jnp.asarray(np.asarray(contracted.tensor_producer)[inputs]),
        num_inputs=jnp.asarray(np.diff(node_in_edges).astype(np.int32)),
        readers=jnp.asarray(
            np.asarray(contracted.edge_consumer)[_lists(tensor_edges[node_tensors])]
        ),
        num_readers=jnp.asarray(np.diff(tensor_edges[node_tensors]).astype(np.int32)),
        most_outputs=_length(np.diff(node_tensors)),
        most_readers=_length(np.diff(tensor_edges)),
    )


def inputs_of(near: Neighbours, v: Array) -> tuple[Int[Array, " I"], Bool[Array, "I 1"]]:
    """The tensors that contracted node v consumes, and which entries are not padding."""
    return _row(near.inputs, near.num_inputs, v)


def feeders_of(near: Neighbours, v: Array) -> tuple[Int[Array, " I"], Bool[Array, "I 1"]]:
    """Who makes what contracted node v consumes, and which entries are not padding."""
    return _row(near.feeders, near.num_inputs, v)


def outputs_of(
    contracted: DeviceProblem, near: Neighbours, v: Array
) -> tuple[Int[Array, " M"], Bool[Array, "M 1"]]:
    """The tensors that contracted node v makes, and which entries are not padding."""
    return _span(contracted.node_tensors, v, near.most_outputs)


def consumers_of(near: Neighbours, v: Array) -> tuple[Int[Array, " Q"], Bool[Array, "Q 1"]]:
    """Who consumes what contracted node v makes, and which entries are not padding."""
    return _row(near.readers, near.num_readers, v)


def readers_of(
    contracted: DeviceProblem, near: Neighbours, tensor: Int[Array, " M"]
) -> tuple[Int[Array, "M R"], Bool[Array, "M R 1"]]:
    """Who consumes each of some tensors, and which entries are not padding."""
    start = take(contracted.tensor_edges, tensor)[:, None]
    count = take(contracted.tensor_edges, tensor + 1)[:, None] - start
    number = jnp.arange(near.most_readers, dtype=jnp.int32)[None]
    edge = jnp.where(count > 0, start + jnp.minimum(number, count - 1), 0)
    return take(contracted.edge_consumer, edge), (number < count)[:, :, None]


def _row(
    lists: Int[Array, "N M"], counts: Int[Array, " N"], v: Array
) -> tuple[Int[Array, " M"], Bool[Array, "M 1"]]:
    """The list of contracted node v, and which entries are not padding."""
    number = jnp.arange(lists.shape[1], dtype=jnp.int32)
    return take(lists, v), (number < take(counts, v))[:, None]


def _lists(bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N, M] the rows of each group of rows; rows beyond its last one are the last one again."""
    start, count = bounds[:-1, None], np.diff(bounds)[:, None]
    number = np.arange(_length(count))[None]
    return np.where(count > 0, start + np.minimum(number, count - 1), 0)


def _span(
    bounds: Int[Array, " G+1"], group: Array, most: int
) -> tuple[Int[Array, " most"], Bool[Array, "most 1"]]:
    """The rows of one group of rows; rows beyond its last one are the last one again."""
    start, count = bounds[group], bounds[group + 1] - bounds[group]
    number = jnp.arange(most, dtype=jnp.int32)
    rows = jnp.where(count > 0, start + jnp.minimum(number, count - 1), 0)
    return rows, (number < count)[:, None]


def _length(counts: NDArray[np.int64]) -> int:
    """A static length for lists of these lengths: one of few, so that few programs are compiled."""
    return max(_SHORTEST, 1 << (int(counts.max(initial=1)) - 1).bit_length())


def _padded(values: NDArray[Any], size: int) -> NDArray[np.int32]:
    out = np.zeros(size, np.int32)
    out[: len(values)] = values
    return out
