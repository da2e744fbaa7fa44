"""Node orders to start from: the program's, and two that keep what belongs together together.

A trace lists an unrolled network layer by layer or step by step, and what feeds it (an embedding of
each word) or ends it (a softmax at each step) wherever the code stands. Cut in that order, much is
alive across every cut. Numbered by depth instead, with side chains moved next to their consumers,
the same graph has narrow cuts.
"""

from __future__ import annotations

import numpy as np

from jaxpart.problem.problem import FloatArray, IntArray, Problem


def start_keys(contracted: Problem) -> FloatArray:
    """[3, N] keys whose ascending order is topological: of the program, by depth from the inputs
    with side chains late, and by depth from the outputs with side branches early."""
    pairs = contracted.node_pairs
    mirrored = contracted.num_nodes - 1 - pairs[:, ::-1]
    mirrored = mirrored[np.lexsort((mirrored[:, 1], mirrored[:, 0]))]
    from_inputs = _tightened(pairs, contracted.num_nodes)
    from_outputs = -_tightened(mirrored, contracted.num_nodes)[::-1]
    return np.stack([np.arange(contracted.num_nodes), from_inputs, from_outputs]).astype(np.float64)


def keys_of(problem: Problem, assignment: IntArray) -> FloatArray:
    """[M] keys whose ascending order lists the chips of a valid partition one by one, so that
    the order can be cut into it again; the order is topological.

    Args:
      problem: whose contracted nodes are numbered in a topological order.
      assignment: [N] chips, which data never leaves for a lower one.
    """
    chip = np.zeros(problem.num_contracted, np.int64)
    chip[problem.contraction] = assignment
    keys = np.empty(problem.num_contracted)
    keys[np.argsort(chip, kind="stable")] = np.arange(problem.num_contracted)
    return keys


def _tightened(pairs: IntArray, count: int) -> IntArray:
    """[N] the depth of each node, or one less than the least of its consumers' where it has some.

    Nodes without consumers stay at their depth; all others move as late as that allows.
    """
    depth = [0] * count
    for u, v in pairs.tolist():  # sorted by producer
        depth[v] = max(depth[v], depth[u] + 1)
    latest = depth.copy()
    has_consumer = [False] * count
    for u, v in pairs[::-1].tolist():
        if not has_consumer[u] or latest[v] - 1 < latest[u]:
            latest[u], has_consumer[u] = latest[v] - 1, True
    return np.array(latest, np.int64)
