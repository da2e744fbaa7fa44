"""What holds a result back, in words, and what a user can do about it.

A hint is no proof. It points at one property of the graph or of the module that often explains a
poor or missing answer.
"""

from __future__ import annotations

import numpy as np

from jaxpart.bounds.intervals import distinct_weight_bytes, heaviest_interval, sums
from jaxpart.problem.problem import Problem

_MIB = 2**20
# Operations that importers keep as one node although they run many steps, and how to unroll them.
_LOOPS = {
    "scan": "from_jax(..., unroll_limit=STEPS) unrolls it",
    "while": "from_jax unrolls only loops whose number of steps is known",
    "Loop": "export the model with the loop unrolled",
    "Scan": "export the model with the loop unrolled",
    "LSTM": "export it step by step to spread it over chips",
    "GRU": "export it step by step to spread it over chips",
    "RNN": "export it step by step to spread it over chips",
}
_PRODUCTS = ("dot_general", "conv_general_dilated", "MatMul", "Gemm", "Conv", "ConvTranspose")
# Share of all node seconds from which a loop on one chip is worth a word.
_LOOP_SHARE = 0.05
# Share of the bottleneck that an edge interval must explain.
_INTERVAL_SHARE = 0.75
# Ratio of the interval's bound to the other simple bounds from which the interval binds.
_ABOVE_OTHERS = 1.05


def graph_hints(problem: Problem) -> list[str]:
    """What the graph itself hides: loops kept as one node, and weights that were not counted."""
    graph = problem.graph
    hints = []
    node_s = problem.node_s.min(axis=1)
    total_s = float(node_s.sum())
    loops = [v for v, node in enumerate(graph.nodes) if node.op in _LOOPS]
    if loops and total_s > 0:
        v = max(loops, key=lambda loop: float(node_s[loop]))
        share = float(node_s[v]) / total_s
        if share >= _LOOP_SHARE:
            node = graph.nodes[v]
            others = f" (and {len(loops) - 1} more loops)" if len(loops) > 1 else ""
            hints.append(
                f"loop {node.name!r}{others} is one node, so it runs on one chip: {share:.0%} of "
                f"the work; {_LOOPS[node.op]}"
            )
    if not graph.weight_bytes and any(node.op in _PRODUCTS for node in graph.nodes):
        hints.append(
            "0 MiB of weights: memory and reads of parameters are not counted; name the arguments "
            "that are parameters (param_argnums)"
        )
    return hints


def triangle_hint(problem: Problem, bottleneck_s: float | None = None) -> str | None:
    """Names the edge whose interval the triangle rule ties to two chips, if that binds.

    Args:
      problem: of N nodes.
      bottleneck_s: of a result. The hint is given if the two chips of the edge must be busy for
        most of it. None: nothing valid was found; the interval with the most weights is named.

    Returns:
      One sentence; None where the rule is off, or another reason is as strong.
    """
    rules = problem.mcm.constraints
    if not (rules.triangle and rules.acyclic):
        return None
    contracted = problem.contracted
    fastest_s = contracted.node_s.min(axis=1)
    if bottleneck_s is None:
        found = heaviest_interval(problem, distinct_weight_bytes(problem))
        if found is None or found.amount <= float(contracted.capacity_bytes.max()):
            return None
        held = f"{found.amount / _MIB:.1f} MiB of weights"
    else:
        found = heaviest_interval(problem, sums(fastest_s))
        others_s = max(problem.mean_load_s, float(fastest_s.max()))
        if found is None or found.amount / 2 < max(
            _INTERVAL_SHARE * bottleneck_s, _ABOVE_OTHERS * others_s
        ):
            return None
        held = f"{found.amount * 1e6:,.4g} us of work"
    producer, consumer = (_name(problem, m) for m in (found.producer, found.consumer))
    fan_out = len(np.unique(contracted.edge_consumer[contracted.edge_producer == found.producer]))
    return (
        f"{producer} has {fan_out} consumers, the farthest {consumer}: by the triangle rule two "
        f"chips run all that lies between them, {held}; clone {producer} for its consumers, or try "
        "a module with triangle = false"
    )


def _name(problem: Problem, m: int) -> str:
    """The name of the first node of contracted node m."""
    return repr(problem.graph.nodes[int(np.argmax(problem.contraction == m))].name)
