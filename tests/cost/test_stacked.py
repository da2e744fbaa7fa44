"""Programs over several problems at once give what they give for each alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost import chunks
from jaxpart.cost.device import Form, lower, pad_assignments, stacked
from jaxpart.cost.evaluate import evaluate
from jaxpart.errors import InputError
from jaxpart.methods.labels.projection import project
from jaxpart.methods.labels.sampling import sample_lanes
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.problem import Problem
from tests.support.compiling import quick
from tests.support.strategies import random_graph, random_mcm

FORMS: tuple[Form, ...] = ("rows", "arrays")
MCM = random_mcm(np.random.default_rng(0), num_chips=4, topology="chain")


def fan(consumers: int) -> Graph:
    """One tensor with many consumers: its segment has more levels than others'."""
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(consumers + 1))
    return Graph(nodes, (Tensor(0, 125.0, tuple(range(1, consumers + 1))),), (), "fan", 1)


def some_problems() -> list[Problem]:
    rng = np.random.default_rng(1)
    graphs = [random_graph(rng, num_nodes=n, max_chips=4, colocation=False) for n in (5, 20, 40)]
    return [Problem.build(graph, MCM) for graph in (*graphs, fan(30))]


def everything(problem, labels):
    """Costs of labels, what projection makes of them, and samples."""
    samples = sample_lanes(problem, jax.random.key(0), jnp.arange(labels.shape[1]))
    return evaluate(problem, labels), project(problem, labels), samples


def test_a_batch_of_problems_gives_what_each_gives_alone():
    rng = np.random.default_rng(2)
    hosts = some_problems()
    alone = [lower(problem, form="rows") for problem in hosts]
    labels = [
        pad_assignments(lowered, rng.integers(0, 4, (problem.num_nodes, 16)))
        for lowered, problem in zip(alone, hosts, strict=True)
    ]
    by_one = quick(everything)
    expected = [by_one(problem, given) for problem, given in zip(alone, labels, strict=True)]

    for form in FORMS:
        together = stacked([lower(problem, form=form) for problem in hosts])
        found = quick(jax.vmap(everything))(together, jnp.stack(labels))
        for i, one in enumerate(expected):
            costs, *chips = jax.tree.map(lambda leaf, at=i: leaf[at], found)
            chex.assert_trees_all_close(costs, one[0], rtol=1e-6)
            chex.assert_trees_all_equal(tuple(chips), one[1:])


def test_problems_of_other_buckets_or_forms_are_refused():
    small, large = (lower(Problem.build(fan(n), MCM)) for n in (10, 200))
    with pytest.raises(InputError, match="2 problems of 2 kinds, expected one size of bucket"):
        stacked([small, large])
    with pytest.raises(InputError, match="expected one size of bucket, one form"):
        stacked([small, lower(Problem.build(fan(10), MCM), form="arrays")])


@pytest.mark.parametrize(("form", "width"), [("rows", 512), ("arrays", 1024)])
def test_problems_side_by_side_share_the_room_of_a_chunk(form: Form, width: int):
    problem = lower(Problem.build(fan(10), MCM), form=form)
    widths = []

    def run(batch):
        widths.append(batch.shape)
        return batch

    batch, need = jax.ShapeDtypeStruct((3, 4096), jnp.int8), chunks._BUDGET_BYTES // 1024
    for several in (problem, stacked([problem] * 4)):
        jax.eval_shape(lambda x, p=several: chunks.in_chunks(p, run, x, need), batch)

    # The form "rows" has a second program, for other devices, that takes the batch as it is.
    assert [found for found in widths if found != (3, 4096)] == [(3, width), (3, width // 4)]
