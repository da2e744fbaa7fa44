"""Node orders to start from: the program order, and two orders by depth.

A trace lists an unrolled network layer by layer or step by step. Nodes that feed it (an embedding
of each word) or end it (a softmax at each step) stand wherever the code has them. In that order,
many tensors are alive across every cut. If the nodes are ordered by depth, with side chains next to
their consumers, the same graph has narrow cuts.
"""

from __future__ import annotations

import numpy as np

from jaxpart.problem.problem import FloatArray, IntArray, Problem


def start_keys(contracted: Problem) -> FloatArray:
    """[3, M] the keys of three topological orders; the order is that of ascending keys.

    1. The program order.
    2. By depth from the inputs; side chains come as late as their consumers allow.
    3. By depth from the outputs; side branches come as early as their producers allow.

    Args:
      contracted: the contracted problem of M nodes (`Problem.contracted`).
    """
    pairs = contracted.node_pairs
    mirrored = contracted.num_nodes - 1 - pairs[:, ::-1]
    mirrored = mirrored[np.lexsort((mirrored[:, 1], mirrored[:, 0]))]
    from_inputs = _tightened(pairs, contracted.num_nodes)
    from_outputs = -_tightened(mirrored, contracted.num_nodes)[::-1]
    return np.stack([np.arange(contracted.num_nodes), from_inputs, from_outputs]).astype(np.float64)


def keys_of(problem: Problem, assignment: IntArray) -> FloatArray:
    """[M] the keys of a topological order that can be cut into a given partition.

    The order lists the contracted nodes chip by chip.

    Args:
      problem: its contracted nodes are numbered in a topological order.
      assignment: [N] a valid partition; data never flows to a lower chip.
    """
    chip = problem.contracted_assignment(assignment)
    keys = np.empty(problem.num_contracted)
    keys[np.argsort(chip, kind="stable")] = np.arange(problem.num_contracted)
    return keys


def _tightened(pairs: IntArray, count: int) -> IntArray:
    """[M] the level of each node: its depth, or one less than the lowest level of its consumers.

    Nodes without consumers stay at their depth. All others move as late as their consumers allow.

    Args:
      pairs: [P, 2] the edges, producer and consumer, sorted by producer.
      count: M, nodes.
    """
    depth = [0] * count
    for u, v in pairs.tolist():
        depth[v] = max(depth[v], depth[u] + 1)
    latest = depth.copy()
    has_consumer = [False] * count
    for u, v in pairs[::-1].tolist():
        if not has_consumer[u] or latest[v] - 1 < latest[u]:
            latest[u], has_consumer[u] = latest[v] - 1, True
    return np.array(latest, np.int64)
