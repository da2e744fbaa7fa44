"""Programs over several problems at once give what they give for each alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost.device import Form, lower, pad_assignments, stacked
from jaxpart.cost.evaluate import evaluate
from jaxpart.errors import InputError
from jaxpart.methods.labels.projection import project
from jaxpart.methods.labels.sampling import sample
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.problem import Problem
from tests.support.strategies import random_graph, random_mcm

MCM = random_mcm(np.random.default_rng(0), num_chips=4, topology="chain")


def fan(consumers: int) -> Graph:
    """One tensor with many consumers: its segment has more levels than others'."""
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(consumers + 1))
    return Graph(nodes, (Tensor(0, 125.0, tuple(range(1, consumers + 1))),), (), "fan", 1)


def some_problems() -> list[Problem]:
    rng = np.random.default_rng(1)
    graphs = [random_graph(rng, num_nodes=n, max_chips=4, colocation=False) for n in (5, 20, 40)]
    return [Problem.build(graph, MCM) for graph in (*graphs, fan(30))]


@pytest.mark.parametrize("form", ["rows", "arrays"])
def test_a_batch_of_problems_gives_what_each_gives_alone(form: Form):
    problems = [lower(problem, form=form) for problem in some_problems()]
    rng = np.random.default_rng(2)
    labels = [
        pad_assignments(lowered, rng.integers(0, 4, (problem.num_nodes, 16)))
        for lowered, problem in zip(problems, some_problems(), strict=True)
    ]
    together = stacked(problems)
    key = jax.random.key(0)

    costs = jax.vmap(evaluate)(together, jnp.stack(labels))
    projected = jax.vmap(project)(together, jnp.stack(labels))
    samples = jax.vmap(lambda problem: sample(problem, key, None, 16))(together)

    for i, (problem, given) in enumerate(zip(problems, labels, strict=True)):
        of_this, *labels_of_this = jax.tree.map(
            lambda leaf, at=i: leaf[at], (costs, projected, samples)
        )
        chex.assert_trees_all_close(of_this, evaluate(problem, given), rtol=1e-6)
        alone = project(problem, given), sample(problem, key, None, 16)
        chex.assert_trees_all_equal(tuple(labels_of_this), alone)


def test_problems_of_other_buckets_or_forms_are_refused():
    small, large = (lower(Problem.build(fan(n), MCM)) for n in (10, 200))
    with pytest.raises(InputError, match="2 problems of 2 kinds, expected one size of bucket"):
        stacked([small, large])
    with pytest.raises(InputError, match="expected one size of bucket, one form"):
        stacked([small, lower(Problem.build(fan(10), MCM), form="arrays")])
