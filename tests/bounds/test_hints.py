"""Hints: they name what binds, and keep silent where something else does."""

import dataclasses

from jaxpart.bounds.hints import graph_hints, triangle_hint
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import Constraints, load_mcm
from jaxpart.problem.problem import Problem

MIB = 2**20


def masked(layers=8, flops=1e9, weight=1.0):
    """A mask that feeds every layer of a chain."""
    nodes = [Node("mask", "where", 1.0, 1.0)]
    nodes += [Node(f"layer{i}", "dot_general", flops, 1.0) for i in range(layers)]
    tensors = [Tensor(0, 1.0, tuple(range(1, layers + 1)))]
    tensors += [Tensor(i, 1.0, (i + 1,)) for i in range(1, layers)]
    weights = tuple(Weight(weight, (i,)) for i in range(1, layers + 1))
    return Graph(tuple(nodes), tuple(tensors), weights, "masked", 1)


def on(graph, **rules):
    module = load_mcm("mcm8")
    return Problem.build(graph, dataclasses.replace(module, constraints=Constraints(**rules)))


def test_a_mask_that_ties_all_layers_to_two_chips_is_named_with_the_way_out():
    problem = on(masked())
    two_chips_s = 8 * 1e9 / 4e12 / 2

    hint = triangle_hint(problem, two_chips_s)

    assert hint is not None
    assert hint.startswith("'mask' has 8 consumers, the farthest 'layer7'")
    assert "2,000 us of work" in hint
    assert "clone 'mask'" in hint
    assert "triangle = false" in hint


def test_without_the_rule_or_where_another_reason_binds_there_is_no_hint():
    two_chips_s = 8 * 1e9 / 4e12 / 2
    assert triangle_hint(on(masked(), triangle=False), two_chips_s) is None
    assert triangle_hint(on(masked()), 2 * two_chips_s) is None  # it explains half of it
    one = masked(layers=1)
    assert triangle_hint(on(one), 1e9 / 4e12) is None


def test_where_nothing_was_found_weights_beyond_one_chip_are_named():
    heavy = on(masked(weight=10 * MIB))

    hint = triangle_hint(heavy)

    assert hint is not None
    assert "80.0 MiB of weights" in hint
    assert triangle_hint(on(masked(weight=MIB))) is None


def test_a_loop_that_was_kept_is_named_with_its_share_and_the_option():
    nodes = (
        Node("start", "add", 0.0, 1.0, seconds=1.0),
        Node("scan_0", "scan", 0.0, 1.0, seconds=3.0),
    )
    problem = Problem.build(Graph(nodes, (Tensor(0, 1.0, (1,)),), (), "looped"), load_mcm("mcm4"))

    (hint,) = graph_hints(problem)

    assert hint == (
        "loop 'scan_0' is one node, so it runs on one chip: 75% of the work; "
        "from_jax(..., unroll_limit=STEPS) unrolls it"
    )


def test_a_small_loop_is_not_worth_a_word_and_a_model_without_weights_is():
    nodes = (
        Node("product", "dot_general", 0.0, 1.0, seconds=99.0),
        Node("scan_0", "scan", 0.0, 1.0, seconds=1.0),
    )
    graph = Graph(nodes, (Tensor(0, 1.0, (1,)),), (), "bare")

    (hint,) = graph_hints(Problem.build(graph, load_mcm("mcm4")))

    assert hint.startswith("0 MiB of weights")
    assert "param_argnums" in hint
    whole = dataclasses.replace(graph, weights=(Weight(1.0, (0,)),))
    assert graph_hints(Problem.build(whole, load_mcm("mcm4"))) == []
