"""The policy's inputs: features of a graph on a module that mean the same on every graph.

Times are relative to the mean load of a chip, the transfer times of tensors included. Bytes of
weights are relative to the memory of a chip. Depth and position are relative to those of the graph.
No feature identifies the graph. The number of features of a node, pair or chip depends neither on
the size of the graph nor on the number of chips.

Rows are contracted nodes (`Problem.contracted`), padded to the rows of the lowered problem.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpart.cost.device import bucket_size
from jaxpart.errors import InputError
from jaxpart.methods.policy.aggregation import Ends, Lists, lists_of
from jaxpart.problem.problem import FloatArray, Problem

VERSION = 2  # of the feature set; a checkpoint states the version that it was trained on
OP_CLASSES = 16  # hash classes of the kinds of operations
BASIS = 10  # columns of `Features.order_basis` and `Features.label_basis`
_WAVES = 4  # sines, and as many cosines, in `Features.label_basis`
MAX_FEATURE_ROWS = 6000  # contracted nodes; the largest bucket has 6,144 rows
_TOPOLOGIES = ("chain", "host", "mesh")
_MODULE_FIGURES = 16  # entries of `Features.module`
_LARGEST_RATIO = 1e6  # a larger ratio of times or bytes is clipped to this


@struct.dataclass
class EntryLists:
    """Lists of the entries of each row, for each end in `Features`."""

    pair_from: Lists
    pair_to: Lists
    use_node: Lists
    use_weight: Lists


@struct.dataclass
class Features:
    """Static inputs of the network for one graph on one module.

    Padded sizes: N contracted nodes, P pairs of contracted nodes with an edge, U uses of weights.
    C chips are not padded.
    """

    node: Float[Array, "N F"]
    pair: Float[Array, "P D"]
    pair_from: Int[Array, " P"]  # producer; padding pairs run from the last row to itself
    pair_to: Int[Array, " P"]  # consumer
    # Uses of weights that have several consumers. They connect the recurrent steps of one layer,
    # which may have no edge in common.
    use_node: Int[Array, " U"]
    use_weight: Int[Array, " U"]
    module: Float[Array, " G"]
    chip: Float[Array, "C H"]
    # Middle of the contracted node's interval of the cumulative load in program order, 0..1.
    position: Float[Array, " N"]
    # Directions along which a whole sample is shifted. Over the contracted nodes, each column has
    # mean 0 and standard deviation 1.
    order_basis: Float[Array, "N R"]
    label_basis: Float[Array, "N R"]
    is_real: Float[Array, " N"]  # 1 for a contracted node, 0 for padding
    lists: EntryLists | None = None  # on a GPU or TPU

    @property
    def ends(self) -> tuple[Ends, Ends, Ends, Ends]:
        """The producers and consumers of pairs; the nodes and weights of uses."""
        names = ("pair_from", "pair_to", "use_node", "use_weight")
        producers, consumers, users, weights = (
            Ends(getattr(self, name), self.lists and getattr(self.lists, name)) for name in names
        )
        return producers, consumers, users, weights


def features(problem: Problem, rows: int, pairs: int, *, has_lists: bool = False) -> Features:
    """Computes the padded features of a problem.

    Args:
      problem: any problem; the features describe its contracted nodes.
      rows: N, more than the number of contracted nodes.
      pairs: P, at least the number of distinct pairs of contracted nodes with an edge.
      has_lists: whether programs compute on whole arrays, as on a GPU or TPU (`aggregation.py`).

    Returns:
      The features, as numpy arrays.

    Raises:
      InputError: the graph has more contracted nodes than the largest bucket holds.
      InfeasibleError: the nodes of one contracted node are fixed to different chips.
    """
    contracted = problem.contracted
    count = contracted.num_nodes
    if count > MAX_FEATURE_ROWS:
        raise InputError(
            f"the graph has {count} contracted nodes, more than the policy's largest bucket "
            f"({MAX_FEATURE_ROWS}); search without the policy"
        )
    load_s = contracted.node_s.mean(axis=1)
    total_s = max(float(load_s.sum()), 1e-30)
    chip_s = total_s / contracted.num_chips
    prefix = np.cumsum(load_s) / total_s
    position = prefix - 0.5 * load_s / total_s
    ends, pair_bytes = _pairs(contracted)
    asap, alap = _depths(count, ends)
    before, after = _load_shares(count, ends, load_s / total_s)
    link_s = contracted.tensor_bytes / contracted.mcm.link_bandwidth
    capacity = float(contracted.capacity_bytes.mean())

    out_s = _summed(contracted.tensor_producer, link_s, count)
    in_s = _summed(contracted.edge_consumer, link_s[contracted.edge_tensor], count)
    weights = _summed(contracted.use_node, contracted.weight_bytes[contracted.use_weight], count)
    shared = _summed(
        contracted.use_node,
        np.where(contracted.is_shared_weight, contracted.weight_bytes, 0)[contracted.use_weight],
        count,
    )
    fan_out = _summed(contracted.edge_producer, np.ones(len(contracted.edge_tensor)), count)
    fan_in = _summed(contracted.edge_consumer, np.ones(len(contracted.edge_tensor)), count)
    deepest = max(float(asap.max()), 1.0)
    node = np.stack(
        [
            _log(load_s / chip_s),
            np.minimum(load_s / chip_s, 4.0),
            _log(out_s / chip_s),
            _log(in_s / chip_s),
            _log(weights / capacity),
            _log(shared / capacity),
            np.log1p(fan_in),
            np.log1p(fan_out),
            asap / deepest,
            alap / deepest,
            (alap - asap) / deepest,
            np.arange(count) / count,
            position,
            before,
            after,
            position - before,
        ],
        axis=1,
    )
    node = np.concatenate([node, _op_classes(problem, load_s)], axis=1)
    of_several = contracted.is_shared_weight[contracted.use_weight]
    uses = max(pairs, bucket_size(max(len(contracted.use_node), len(contracted.weight_bytes)) + 1))
    program = np.arange(count)
    lags = [_ranks(asap, program) - program, _ranks(alap, program) - program]
    waves = [f(np.pi * k * position) / k for k in range(1, _WAVES + 1) for f in (np.sin, np.cos)]
    rules = [before - position, 1 - after - position, (alap - asap) / deepest]
    rules += [_log(out_s / chip_s) - _log(in_s / chip_s), _log(load_s / chip_s)]
    rules += [_log(shared / capacity), np.log1p(fan_in), np.log1p(fan_out)]
    use_node = contracted.use_node[of_several]
    use_weight = contracted.use_weight[of_several]
    lists = EntryLists(
        lists_of(ends[:, 0], rows, pairs),
        lists_of(ends[:, 1], rows, pairs),
        lists_of(use_node, rows, uses),
        lists_of(use_weight, uses, uses),
    )
    return Features(
        node=_padded(node, rows),
        pair=_padded(_log(pair_bytes / contracted.mcm.link_bandwidth / chip_s)[:, None], pairs),
        pair_from=_padded(ends[:, 0], pairs, rows - 1),
        pair_to=_padded(ends[:, 1], pairs, rows - 1),
        use_node=_padded(use_node, uses, rows - 1),
        use_weight=_padded(use_weight, uses, uses - 1),
        module=_padded(_module(contracted, chip_s), _MODULE_FIGURES),
        chip=_padded(_chips(contracted), contracted.num_chips),
        position=_padded(position, rows),
        order_basis=_padded(_unit(np.stack([*lags, *rules], axis=1)), rows),
        label_basis=_padded(_unit(np.stack([*lags, *waves], axis=1)), rows),
        is_real=_padded(np.ones(count), rows),
        lists=lists if has_lists else None,
    )


def _module(contracted: Problem, chip_s: float) -> FloatArray:
    """[16] features of the module and of the graph as a whole; `chip_s` is a chip's mean load."""
    mcm, rules = contracted.mcm, contracted.mcm.constraints
    fastest = contracted.node_s.min(axis=1).sum() / max(contracted.node_s.max(axis=1).sum(), 1e-30)
    return np.array(
        [
            np.log(contracted.num_chips) / 4,
            1 / contracted.num_chips,
            _log(
                contracted.tensor_bytes.sum() / mcm.link_bandwidth / chip_s / contracted.num_chips
            ),
            _log(contracted.tensor_bytes.mean() / mcm.link_bandwidth / chip_s)
            if len(contracted.tensor_bytes)
            else 0.0,
            _log(contracted.weight_bytes.sum() / contracted.capacity_bytes.sum()),
            _log(contracted.node_s.mean(axis=1).max() / chip_s),
            fastest,
            float(mcm.overlap),
            float(rules.acyclic),
            float(rules.no_skip),
            float(rules.triangle),
            float(rules.memory),
            float(mcm.memory_model == "full"),
            *(float(mcm.topology == topology) for topology in _TOPOLOGIES),
        ]
    )


def _chips(contracted: Problem) -> FloatArray:
    """[C, 2] logarithms of each chip's time for all nodes and of its memory, over their means."""
    seconds = np.maximum(contracted.node_s.sum(axis=0), 1e-30)[contracted.chip_kind]
    capacity = contracted.capacity_bytes
    return np.stack([np.log(seconds / seconds.mean()), np.log(capacity / capacity.mean())], axis=1)


def _op_classes(problem: Problem, load_s: FloatArray) -> FloatArray:
    """[M, 16] one-hot class of each contracted node: a hash of the op of its first node."""
    first = np.full(len(load_s), problem.num_nodes)
    np.minimum.at(first, problem.contraction, np.arange(problem.num_nodes))
    ops = [problem.graph.nodes[v].op for v in first]
    return np.eye(OP_CLASSES)[[zlib.crc32(op.encode()) % OP_CLASSES for op in ops]]


def _pairs(contracted: Problem) -> tuple[np.ndarray, FloatArray]:
    """The distinct (producer, consumer) pairs [P, 2], sorted, and the bytes of each pair [P]."""
    ends = np.stack([contracted.edge_producer, contracted.edge_consumer], axis=1).reshape(-1, 2)
    distinct, which = np.unique(ends, axis=0, return_inverse=True)
    return distinct, _summed(
        which.ravel(), contracted.tensor_bytes[contracted.edge_tensor], len(distinct)
    )


def _depths(count: int, ends: np.ndarray) -> tuple[FloatArray, FloatArray]:
    """The earliest and the latest level of each contracted node, [M] each.

    The loops need sorted pairs and contracted nodes in topological order.
    """
    asap, alap = np.zeros(count), np.zeros(count)
    for u, v in ends.tolist():
        asap[v] = max(asap[v], asap[u] + 1)
    alap[:] = asap.max(initial=0)
    for u, v in ends[::-1].tolist():
        alap[u] = min(alap[u], alap[v] - 1)
    return asap, alap


def _load_shares(count: int, ends: np.ndarray, share: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The share of the load in each contracted node's ancestors and descendants, [M] each.

    Both include the contracted node itself.
    """
    above = np.eye(count, dtype=bool)
    for u, v in ends.tolist():
        above[v] |= above[u]
    reached = above.astype(np.float32)
    before, after = reached @ share.astype(np.float32), share.astype(np.float32) @ reached
    return before.astype(np.float64), after.astype(np.float64)


def _ranks(level: FloatArray, program: np.ndarray) -> FloatArray:
    """[M] rank of each contracted node by level; equal levels are ranked in program order."""
    ranks = np.empty(len(level))
    ranks[np.lexsort((program, level))] = program
    return ranks


def _summed(owner: np.ndarray, values: FloatArray, count: int) -> FloatArray:
    """[count] sum of the values of each owner."""
    return np.bincount(owner, weights=values, minlength=count).astype(np.float64)


def _log(ratio: FloatArray | float) -> FloatArray:
    """A ratio on a logarithmic scale: 0 gives -1.7, 1 gives about 0, and 1e6 or more gives 3.5."""
    return np.log(np.clip(ratio, 0, _LARGEST_RATIO) + 1e-3) / 4


def _unit(columns: FloatArray) -> FloatArray:
    """Columns with mean 0 and standard deviation 1; constant columns become 0."""
    centred = columns - columns.mean(axis=0)
    return centred / np.maximum(centred.std(axis=0), 1e-6)


def _padded(values: np.ndarray, size: int, fill: int = 0) -> Any:
    """Pads to `size` rows, as int32 or float32.

    The result is a numpy array. It is annotated `Any` because the fields of `Features` are
    annotated as device arrays.
    """
    dtype = np.int32 if values.dtype.kind in "iu" else np.float32
    out = np.full((size, *values.shape[1:]), fill, dtype)
    out[: len(values)] = values
    return out
