"""What a move reads of the contracted nodes around one, for programs on whole arrays.

A GPU or TPU waits for each step of a loop, and asks the host before each step of a loop of unknown
length. Its programs therefore read the neighbours of a contracted node all at once: lists of a
static length, masked. A step of a sweep is then a fixed number of fused kernels, whatever the
graph.

Floor of a step, for B chains and a contracted node with d inputs and outputs whose tensors have q
consumers in all: 1 + d + q labels of one byte, about 8 numbers of the two chips read and 6 written,
and 100 operations, in each chain. For 4,096 chains of BERT-large that is 0.3 MB, or 0.1 us of an
H100's memory, and one launch of 3 us.

Distance to it, compiled for an H100: 11 kernels on a row of chips (33 us), 20 on other chip graphs.
They move 5.5 MB, because tables are written for all chips and not for two (1.6 us, or less where
they stay in the cache). So a step waits for its launches. Lists padded to the longest of the graph
(4 entries for BERT-large) cost 0.02 us. Comparing all E edges instead would read 17 MB.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int
from numpy.typing import NDArray

from jaxpart.cost.chip_sets import chip_bit, has_chip, union
from jaxpart.cost.device import DeviceProblem, bucket_size
from jaxpart.cost.tables import Segments, offsets, segments, take

_SHORTEST = 4  # least static length of a list


@struct.dataclass
class Neighbours:
    """Lists of each contracted node, and the static lengths of the longest lists.

    A reader of a contracted node is another consumer of a tensor that it consumes too. Inputs and
    outputs are numbered from 0 for each contracted node: tensors consumed and made.
    """

    reader_start: Int[Array, " N+1"]  # offsets: readers of v are those from reader_start[v] on
    reader: Int[Array, " M"]
    reader_input: Int[Array, " M"]  # the number of the input that it reads
    user: Int[Array, " U"]  # contracted nodes that use a shared weight, sorted by weight
    users: Segments  # of each shared weight
    most_inputs: int = struct.field(pytree_node=False)
    most_outputs: int = struct.field(pytree_node=False)
    most_consumers: int = struct.field(pytree_node=False)
    most_readers: int = struct.field(pytree_node=False)


def neighbours_of(
    contracted: DeviceProblem, shared: NDArray[np.int32], num_shared: int
) -> Neighbours:
    """Makes the lists, on the host.

    Args:
      contracted: its N nodes are the contracted nodes.
      shared: [N, R] the shared weights of each contracted node; the last weight stands for none.
      num_shared: how many shared weights there are, that last one included.
    """
    host = {
        name: np.asarray(getattr(contracted, name)).astype(np.int64)
        for name in ("tensor_edges", "node_tensors", "node_in_edges")
    }
    consumer, tensor = np.asarray(contracted.edge_consumer), np.asarray(contracted.in_edge_tensor)
    edges, nodes = int(contracted.num_edges), contracted.padded_nodes
    inputs = np.diff(host["node_in_edges"])
    tensor = tensor[:edges]
    # Each input, joined with the consumers of its tensor.
    of_input = np.diff(host["tensor_edges"])[tensor]
    owner = np.repeat(np.repeat(np.arange(nodes), inputs), of_input)
    number = np.arange(edges) - np.repeat(host["node_in_edges"][:-1], inputs)
    rank = np.arange(of_input.sum()) - np.repeat(np.cumsum(of_input) - of_input, of_input)
    reader = consumer[np.repeat(host["tensor_edges"][:-1][tensor], of_input) + rank]
    is_other = reader != owner
    owner, reader = owner[is_other], reader[is_other]
    number = np.repeat(number, of_input)[is_other]
    readers = np.bincount(owner, minlength=nodes)
    size = bucket_size(max(len(reader), len(contracted.edge_consumer)))

    real = int(contracted.num_nodes)
    node, column = np.nonzero(shared[:real] != num_shared - 1)
    weight = shared[node, column]
    order = np.argsort(weight, kind="stable")
    uses = bucket_size(len(node))
    return Neighbours(
        reader_start=jnp.asarray(offsets(owner, nodes)),
        reader=jnp.asarray(_padded(reader, size)),
        reader_input=jnp.asarray(_padded(number, size)),
        user=jnp.asarray(_padded(node[order], uses)),
        users=jax.device_put(segments(offsets(weight.astype(np.int64), num_shared), uses)),
        most_inputs=_length(inputs),
        most_outputs=_length(np.diff(host["node_tensors"])),
        most_consumers=_length(np.diff(host["tensor_edges"][host["node_tensors"]])),
        most_readers=_length(readers),
    )


def inputs_of(
    contracted: DeviceProblem, near: Neighbours, v: Array
) -> tuple[Int[Array, " M"], Bool[Array, "M 1"]]:
    """The tensors that contracted node v consumes, and which entries are not padding."""
    edge, is_real = _span(contracted.node_in_edges, v, near.most_inputs)
    return take(contracted.in_edge_tensor, edge), is_real


def outputs_of(
    contracted: DeviceProblem, near: Neighbours, v: Array
) -> tuple[Int[Array, " M"], Bool[Array, "M 1"]]:
    """The tensors that contracted node v makes, and which entries are not padding."""
    return _span(contracted.node_tensors, v, near.most_outputs)


def consumers_of(
    contracted: DeviceProblem, near: Neighbours, v: Array
) -> tuple[Int[Array, " M"], Int[Array, " M"], Bool[Array, "M 1"]]:
    """Who consumes what contracted node v makes, of which output, and what is not padding."""
    first = contracted.node_tensors[v]
    bounds = contracted.tensor_edges[jnp.stack([first, contracted.node_tensors[v + 1]])]
    edge, is_real = _span(bounds, jnp.int32(0), near.most_consumers)
    return (
        take(contracted.edge_consumer, edge),
        take(contracted.edge_tensor, edge) - first,
        is_real,
    )


def readers_of(
    near: Neighbours, v: Array
) -> tuple[Int[Array, " M"], Int[Array, " M"], Bool[Array, "M 1"]]:
    """The readers of contracted node v, of which input, and which entries are not padding."""
    entry, is_real = _span(near.reader_start, v, near.most_readers)
    return take(near.reader, entry), take(near.reader_input, entry), is_real


def any_of(hits: Bool[Array, "M B"], group: Int[Array, " M"], groups: int) -> Bool[Array, "G B"]:
    """Whether any row of each group is a hit.

    The groups are bits of a few words, so that the rows are read once, in one reduction.
    """
    bits = jnp.where(hits[:, None], chip_bit(group[:, None], groups), jnp.uint32(0))
    return has_chip(union(bits, 0), groups)


def highest_of(
    label: Int[Array, "M B"], is_there: Bool[Array, "M B"], group: Int[Array, " M"], groups: int
) -> Int[Array, "G B"]:
    """The highest label in each group; -1 if it is empty."""
    number = jnp.arange(groups)[:, None, None]
    here = is_there[None] & (group[None, :, None] == number)
    return jnp.max(jnp.where(here, label[None], -1), axis=1)


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
