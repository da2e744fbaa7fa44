"""The kernel of `evaluate`, interpreted on a CPU. The oracle holds it in `test_evaluate.py`."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpart.cost import by_arrays, kernel_gate
from jaxpart.cost.device import lower, pad_assignments, stacked
from jaxpart.cost.evaluate import evaluate
from jaxpart.errors import InputError
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import Problem
from tests.support.modules import CHIP, chain_module, unit_module
from tests.support.strategies import random_assignment, random_graph, random_mcm

needs_version = pytest.mark.skipif(
    bool(kernel_gate.unchecked_version()), reason=f"the kernel {kernel_gate.unchecked_version()}"
)

# Topology, chips, seed: every topology, both memory models, unlike chips, one word and two.
SPECS = (("chain", 4, 0), ("chain", 40, 6), ("host", 3, 4), ("mesh", 6, 9), ("mesh", 36, 6))
# `evaluate` interprets the launch of a TPU.
CASES = [(spec, "GPU") for spec in SPECS] + [(SPECS[1], "TPU")]


def module(topology, chips, seed):
    return random_mcm(np.random.default_rng(seed), num_chips=chips, topology=topology)


def interpreted(launch):
    from jaxpart.cost import by_kernel

    chosen = getattr(by_kernel, launch)
    run = functools.partial(by_kernel.run, launch=chosen, interpret=True)
    return jax.jit(run), chosen.tile


whole_arrays = jax.jit(by_arrays.amounts)


def of_one_shape(graphs, mcm):
    """The problems of the graphs, so that they share a compilation."""
    problems = [lower(Problem.build(graph, mcm), form="kernel") for graph in graphs]
    together = stacked(problems)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], together) for i in range(len(problems))]


def graphs_for(mcm, count, nodes=12):
    """Random graphs, one with a wide tensor, one of a single node."""
    rng = np.random.default_rng(0)
    yield Graph((Node("n0", "op", 125.0, 1.0),), (), (), "single", 1)
    fan = tuple(Node(f"n{v}", "op", 125.0, 1.0) for v in range(nodes))
    yield Graph(fan, (Tensor(0, 125.0, tuple(range(1, nodes))),), (), "fan", 1)
    for _ in range(count):
        yield random_graph(rng, nodes, mcm.num_chips)


def test_modules_cover_every_kind():
    modules = [module(*spec) for spec in SPECS]

    assert {mcm.topology for mcm in modules} == {"chain", "host", "mesh"}
    assert {mcm.memory_model for mcm in modules} == {"full", "weights"}
    assert {len(set(mcm.chips)) > 1 for mcm in modules} == {True, False}
    assert {mcm.constraints.triangle for mcm in modules} == {True, False}


@needs_version
@pytest.mark.parametrize(("spec", "launch"), CASES, ids=str)
def test_amounts_are_those_of_whole_arrays(spec, launch):
    mcm, rng = module(*spec), np.random.default_rng(1)
    run, tile = interpreted(launch)
    graphs = list(graphs_for(mcm, 6))
    for graph, lowered in zip(graphs, of_one_shape(graphs, mcm), strict=True):
        f = np.array([random_assignment(rng, graph, mcm) for _ in range(tile + 1)]).T
        padded = pad_assignments(lowered, f)
        padded[lowered.num_nodes :] = spec[1] - 1  # what stands in padding rows does not matter

        got, expected = run(lowered, padded), whole_arrays(lowered, padded)

        # Sums of bytes are exact in float32, whatever their order.
        np.testing.assert_allclose(got.compute_s, expected.compute_s, 1e-6, 0)
        chex.assert_trees_all_equal(got.replace(compute_s=0), expected.replace(compute_s=0))


@needs_version
@pytest.mark.parametrize("chips", [32, 33])
def test_detours_over_word_borders_are_found(chips):
    """A path of one node a chip, and one more edge that a longer path doubles."""
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(chips))
    path = tuple(Tensor(v, 125.0, (v + 1,)) for v in range(chips - 1))
    run, _ = interpreted("GPU")
    ends = ((0, 2), (0, chips - 1), (chips - 3, chips - 1), (30, 31), (0, 1))
    graphs = [Graph(nodes, (*path, Tensor(u, 125.0, (v,))), (), "path", 1) for u, v in ends]
    for (u, v), lowered in zip(ends, of_one_shape(graphs, chain_module(chips)), strict=True):
        got = run(lowered, pad_assignments(lowered, np.arange(chips)[:, None]))

        assert got.triangle.tolist() == [v - u == 1]


@needs_version
def test_several_problems_at_once_cost_what_each_costs():
    rng = np.random.default_rng(2)
    mcm = module("chain", 4, 0)
    graphs = [random_graph(rng, num_nodes=n, max_chips=4) for n in (5, 20)]
    problems = of_one_shape(graphs, mcm)
    labels = [
        pad_assignments(problem, rng.integers(0, 4, (len(graph.nodes), 5)))
        for problem, graph in zip(problems, graphs, strict=True)
    ]

    together = jax.vmap(evaluate)(stacked(problems), jnp.stack(labels))

    for i, (problem, given) in enumerate(zip(problems, labels, strict=True)):
        alone = evaluate(problem, given)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-6)


@needs_version
def test_the_kernel_has_to_be_asked_for():
    problem = Problem.build(random_graph(np.random.default_rng(0)), module("chain", 4, 0))

    assert lower(problem, form="kernel").config.kernel
    for form in ("rows", "arrays", None):
        assert not lower(problem, form=form).config.kernel
    # Programs other than `evaluate` are whole-array programs.
    assert lower(problem, form="kernel").tables is not None


def small_problem(chips=3, **options):
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(4))
    return Problem.build(Graph(nodes, (), (), "small", 1), unit_module(chips, **options))


def unlike(chips):
    """A problem on chips that all differ."""
    kinds = tuple(dataclasses.replace(CHIP, peak_flops=1e3 + c) for c in range(chips))
    nodes = tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(4))
    return Problem.build(Graph(nodes, (), (), "small", 1), MCM("unlike", "chain", kinds, 1e3))


@needs_version
def test_a_problem_that_the_kernel_does_not_cover_is_refused(monkeypatch):
    assert lower(small_problem(64), form="kernel").config.kernel
    with pytest.raises(InputError, match="'kernel' has at most 64 chips, not 65; expected the fo"):
        lower(small_problem(65), form="kernel")
    with pytest.raises(InputError, match="'kernel' computes in float32, not float64"):
        lower(small_problem(), jnp.float64, form="kernel")
    monkeypatch.setattr(kernel_gate, "MOST_SECONDS", 128)
    with pytest.raises(InputError, match="at most 2 kinds of chips with 64 padded nodes, not 3"):
        lower(unlike(3), form="kernel")
    assert lower(unlike(2), form="kernel").config.kernel
    monkeypatch.setattr(kernel_gate, "MOST_NODES", 32)
    with pytest.raises(InputError, match="at most 32 padded nodes, not 64"):
        lower(small_problem(), form="kernel")


@pytest.mark.parametrize("version", [(0, 9, 2), (0, 11, 0), (1, 0, 0)])
def test_an_unchecked_version_of_jax_is_refused(monkeypatch, version):
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(jax, "__version__", ".".join(map(str, version)))

    name = r"\.".join(map(str, version))
    with pytest.raises(InputError, match=rf"runs with JAX 0\.10 up to .* 0\.11, not {name}; exp"):
        lower(small_problem(), form="kernel")
    assert lower(small_problem()).config.num_chips == 3
