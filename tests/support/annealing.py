"""Small problems for tests of annealing moves: modules of each kind, and chains to start from.

Problems of a module have one shape, so that each program is compiled once. Sizes are multiples of
125, rates of chips powers of two times 1000, and rates of links powers of two. Sums of seconds and
bytes are therefore exact in float32, in any order.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpart.cost.device import pad_assignments
from jaxpart.cost.evaluate import verify
from jaxpart.methods.annealing.ensemble import evaluated
from jaxpart.methods.annealing.moves import Chains
from jaxpart.methods.annealing.price import energy_of
from jaxpart.methods.annealing.state import Moves, chip_graph_of, moves_of, tables_of
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import Constraints
from jaxpart.problem.problem import Problem
from tests.support.compiling import quick
from tests.support.strategies import random_graph, random_mcm

CHIPS, NODES, LANES, SHARE = 4, 6, 16, 4
FORMS = ("rows", "arrays")
EVERY = np.stack(np.meshgrid(*[np.arange(CHIPS)] * NODES, indexing="ij")).reshape(NODES, -1)
UNIT_S = jnp.float32(1.0)

counted = quick(tables_of)
costed = quick(evaluated)


def _module(seed, topology, *, overlap, memory_model, **rules):
    mcm = random_mcm(np.random.default_rng(seed), num_chips=CHIPS, topology=topology)
    return dataclasses.replace(
        mcm,
        overlap=overlap,
        memory_model=memory_model,
        constraints=Constraints(**rules),
        link_bandwidth=2.0 ** round(math.log2(mcm.link_bandwidth)),
    )


# Starts keep to the row of chips where the name begins with "row", and leave it in "branches".
MODULES = {
    "row": _module(3, "chain", overlap=True, memory_model="full"),
    "row, serial": _module(3, "chain", overlap=False, memory_model="weights", no_skip=False),
    "row, host": _module(5, "host", overlap=False, memory_model="full", memory=False),
    "branches": _module(3, "chain", overlap=True, memory_model="full"),
    "branches, host": _module(7, "host", overlap=False, memory_model="full"),
    "dataflow": _module(2, "chain", overlap=False, memory_model="full", triangle=False),
    "anywhere": _module(
        4, "host", overlap=True, memory_model="weights", acyclic=False, triangle=False
    ),
}


class Instance(NamedTuple):
    """A problem, its moves in each form, and valid partitions within one chip graph."""

    seed: int
    graph: Graph
    problem: Problem
    moves: dict[str, Moves]
    columns: np.ndarray  # [N, LANES]


def instances(name, count):
    """Yields problems of one shape on a module, of random graphs."""
    mcm, seed, shape = MODULES[name], 0, None
    while count:
        seed += 1
        rng = np.random.default_rng(seed)
        graph = random_graph(rng, num_nodes=NODES, num_tensors=7, num_weights=4, max_chips=CHIPS)
        problem = Problem.build(graph, mcm)
        if (problem.contracted_fixed_chip == -2).any():
            continue
        valid = EVERY[:, verify(problem, EVERY).valid]
        steps = valid[problem.edge_consumer] - valid[problem.edge_producer]
        if name.startswith("branches"):
            valid = valid[:, (steps > 1).any(axis=0)]
        elif name.startswith("row"):
            valid = valid[:, (steps <= 1).all(axis=0)]
        if valid.shape[1] < 2:
            continue
        chip_graph = chip_graph_of(problem, valid[:, rng.integers(valid.shape[1])], rng)
        pairs = valid[problem.node_pairs].transpose(2, 0, 1)
        joined = chip_graph | np.eye(CHIPS, dtype=bool)
        within = valid[:, joined[pairs[..., 0], pairs[..., 1]].all(axis=1)]
        moves = {form: moves_of(problem, chip_graph, form) for form in FORMS}
        assert all(m.is_row == name.startswith("row") for m in moves.values())
        leaves, structure = jax.tree.flatten(moves)
        found = structure, [leaf.shape for leaf in leaves]
        shape = shape or found
        if found != shape:
            continue
        columns = within[:, rng.integers(within.shape[1], size=LANES)]
        count -= 1
        yield Instance(seed, graph, problem, moves, columns)


def chains_of(instance, form, seed):
    """Chains that start from the partitions of an instance."""
    problem, moves = instance.problem, instance.moves[form]
    labels = np.zeros((problem.num_contracted, LANES), np.int64)
    labels[problem.contraction] = instance.columns
    labels = jnp.asarray(pad_assignments(moves.contracted, labels))
    noise = jax.random.bits(jax.random.key(seed), (LANES,), jnp.uint32) | 1
    none = jnp.zeros(LANES, jnp.int32)
    tables = rebuilt(instance, form, labels)
    return Chains(labels, tables, energy_of(moves, tables, UNIT_S), noise, none, none)


def rebuilt(instance, form, labels):
    """The tables of partitions; the forms of `evaluate` are compared in its own tests."""
    return counted(instance.moves[form], labels, costed(instance.moves["rows"], labels))
