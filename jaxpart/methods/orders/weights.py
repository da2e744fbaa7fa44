"""The weights of each node, as the device needs them to count shared ones once per chip."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpart.problem.problem import Problem

# Most shared weights of one node that are counted once per chip; others count as its own.
_MOST_SHARED = 16


@struct.dataclass
class Weights:
    """The weights of each node: the bytes of its own, and the numbers of the shared ones.

    R is the largest number of shared weights of one node, W the number of shared weights; both are
    padded.
    """

    own_bytes: Float[Array, " N"]
    shared: Int[Array, "N R"]  # rows of `shared_bytes`; an unused entry names its last row
    shared_bytes: Float[Array, " W+1"]  # the last row has 0 bytes


def weights_of(contracted: Problem, padded_nodes: int) -> Weights:
    """The weights of each contracted node, on the device.

    If a node has more than `_MOST_SHARED` shared weights, the smallest of them count as its own.
    The bytes of a chip are then never too low, but may be too high.

    Args:
      contracted: the contracted problem (`Problem.contracted`).
      padded_nodes: N, the padded number of contracted nodes.
    """
    shared_weights = contracted.is_shared_weight
    shared_count = int(shared_weights.sum())
    numbers = np.full(len(shared_weights), -1)
    numbers[shared_weights] = np.arange(shared_count)
    own_bytes = np.zeros(padded_nodes)
    is_shared = shared_weights[contracted.use_weight]
    node, weight = contracted.use_node[is_shared], contracted.use_weight[is_shared]
    # The rank of each shared weight within its node, largest first.
    order = np.lexsort((-contracted.weight_bytes[weight], node))
    node, weight = node[order], weight[order]
    first = np.searchsorted(node, node)
    rank = np.arange(len(node)) - first
    kept = rank < _MOST_SHARED
    columns = int(rank[kept].max(initial=-1)) + 1
    columns = 1 << (columns - 1).bit_length() if columns else 0  # few sizes: few compilations
    count = 1 << shared_count.bit_length()
    shared = np.full((padded_nodes, columns), count - 1, np.int32)
    shared[node[kept], rank[kept]] = numbers[weight[kept]]
    shared_bytes = np.zeros(count)
    shared_bytes[:shared_count] = contracted.weight_bytes[shared_weights]
    alone = [(contracted.use_node[~is_shared], contracted.use_weight[~is_shared])]
    for v, w in [*alone, (node[~kept], weight[~kept])]:
        np.add.at(own_bytes, v, contracted.weight_bytes[w])
    return Weights(
        jnp.asarray(own_bytes, jnp.float32),
        jnp.asarray(shared),
        jnp.asarray(shared_bytes, jnp.float32),
    )
