"""The steps of a sweep: a walk along all edges of which each step takes several nodes.

A sweep gives each node a figure made of the figures of its producers (forward) or of its consumers
(backward). Here its rows are laid out in steps, so that the number of steps is static. A row is a
node or a relay. A relay collects up to 8 rows for a node that has more sources. The rows that a row
needs come before it, in earlier steps or in the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Int

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP = 8  # rows of one step in each direction; it divides a quarter of each bucket size
_FAN_IN = 8  # sources of one row


@struct.dataclass
class Sweeps:
    """The rows of a forward sweep and of a backward sweep, which are walked side by side.

    Row q of step s in direction d (0: forward, 1: backward) has the number ((s + 1) * 2 + d) * 8
    + q. No row has the number 0; it stands for "none".
    """

    node: Int[Array, "S 2 8"]  # the node of a row; N: a relay, or padding
    source: Int[Array, "S 2 8 F"]  # numbers of the rows from earlier steps that it needs; 0: none
    inside: Int[Array, "S 2 8"]  # bit q: it needs row q of its own step
    row: Int[Array, "2 N"]  # the number of the row of each node; 0 for padding


def make_sweeps(pairs: NDArray[np.int64], count: int, nodes: int) -> Sweeps:
    """The steps of both sweeps, as NumPy arrays.

    Args:
      pairs: [P, 2] the edges, each once: producer and consumer, the lower number first.
      count: nodes without padding.
      nodes: N, the padded number; a bucket size.
    """
    ways = [_rows(pairs, count), _rows(count - 1 - pairs[:, ::-1], count)]
    quarter = nodes // 4
    # Few sizes: few compilations.
    rows = max(4, -(-max(len(node) for node, _, _ in ways) // quarter)) * quarter
    shape = (rows // STEP, 2, STEP)
    node_of: Any = np.full(shape, nodes, np.int32)
    sources: Any = np.zeros((*shape, _FAN_IN), np.int32)
    inside: Any = np.zeros(shape, np.int32)
    row_of: Any = np.zeros((2, nodes), np.int32)
    for way, (node, target, source) in enumerate(ways):
        step, place = np.divmod(np.arange(len(node)), STEP)
        number = ((step + 1) * 2 + way) * STEP + place
        is_node = node >= 0
        whole = (node if way == 0 else count - 1 - node)[is_node]
        node_of[step[is_node], way, place[is_node]] = whole
        row_of[way, whole] = number[is_node]
        rank = np.arange(len(target)) - np.searchsorted(target, target)
        is_inside = step[source] == step[target]
        t, s = target[is_inside], source[is_inside]
        at: Any = (step[t], way, place[t])
        np.bitwise_or.at(inside, at, 1 << place[s])
        t, s = target[~is_inside], source[~is_inside]
        sources[step[t], way, place[t], rank[~is_inside]] = number[s]
    return Sweeps(node_of, sources, inside, row_of)


def of_equal_length(several: Sequence[Sweeps]) -> list[Sweeps]:
    """Sweeps of several problems of one bucket, with equal numbers of steps; as NumPy arrays."""
    steps = max(len(sweeps.node) for sweeps in several)

    def longer(sweeps: Sweeps) -> Sweeps:
        def padded(values: Any, fill: int) -> Any:
            pads = ((0, steps - len(values)), *((0, 0),) * (values.ndim - 1))
            return np.pad(values, pads, constant_values=fill)

        return Sweeps(
            node=padded(sweeps.node, sweeps.row.shape[1]),
            source=padded(sweeps.source, 0),
            inside=padded(sweeps.inside, 0),
            row=sweeps.row,
        )

    return [longer(jax.device_get(sweeps)) for sweeps in several]


def _rows(
    pairs: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The rows of a forward sweep.

    Returns:
      node: [R] the node of each row; -1: a relay.
      target, source: [Q] each row, and each row that it needs, sorted by the former.
    """
    producers: list[list[int]] = [[] for _ in range(count)]
    for u, v in pairs.tolist():
        producers[v].append(u)
    node: list[int] = []
    needs: list[list[int]] = []
    row_of = [0] * count
    for v, before in enumerate(producers):
        wanted = [row_of[u] for u in before]
        while len(wanted) > _FAN_IN:
            parts = [wanted[i : i + _FAN_IN] for i in range(0, len(wanted), _FAN_IN)]
            wanted = list(range(len(node), len(node) + len(parts)))
            node += [-1] * len(parts)
            needs += parts
        row_of[v] = len(node)
        node.append(v)
        needs.append(wanted)
    target = np.repeat(np.arange(len(node)), [len(wanted) for wanted in needs])
    source = np.array([row for wanted in needs for row in wanted], np.int64)
    return np.array(node, np.int64), target, source
