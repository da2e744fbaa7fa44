"""Adding the ways to divide nodes to a graph that was traced before importers found them."""

import dataclasses

import divide
import msgspec
import pytest

from jaxpart import datasets
from jaxpart.problem.division import Division
from jaxpart.problem.graph import Graph, Node, Tensor, Weight


def graph(*divisions, weights=()):
    nodes = (Node("a", "dot_general", 1, 1), Node("b", "add", 1, 1, divide=divisions))
    return Graph(nodes, (Tensor(0, 4, (1,)), Tensor(1, 4, ())), weights)


def test_weights_are_matched_by_their_consumers_and_the_rest_is_held_whole():
    division = Division(8, "a0", reads=((0, "a0"),), weights=((0, "a1"), (1, "a0"), (2, "a0")))
    built = graph(division, weights=(Weight(5, (1,)), Weight(9, (1,)), Weight(4, (0, 1))))
    shipped = graph(weights=(Weight(4, (0, 1)), Weight(5, (1,)), Weight(9, (1,))))
    found, unmatched = divide.divided(shipped, built)
    assert unmatched == 0
    assert found.nodes[1].divide[0].weights == ((1, "a1"), (2, "a0"), (0, "a0"))
    assert found.nodes[1].divide[0].reads == ((0, "a0"),)

    larger = graph(weights=(Weight(4, (0, 1)), Weight(5, (1,)), Weight(10, (1,))))
    found, unmatched = divide.divided(larger, built)
    assert unmatched == 2
    assert found.nodes[1].divide[0].weights == ((0, "a0"),)


@pytest.mark.parametrize("field", ["nodes", "tensors"])
def test_a_graph_that_differs_is_refused(field):
    built = graph()
    changed = {
        "nodes": (built.nodes[0], msgspec.structs.replace(built.nodes[1], name="c")),
        "tensors": built.tensors[:1],
    }
    with pytest.raises(ValueError, match=f"its {field} differ"):
        divide.divided(dataclasses.replace(built, **{field: changed[field]}), built)


def test_nothing_else_changes_in_a_shipped_graph():
    shipped = datasets.load("clockwork-rnn")
    built = divide.traced("clockwork-rnn")
    found, unmatched = divide.divided(shipped, built)
    assert unmatched == 0
    assert found == built
    assert found.sha256 == shipped.sha256
    assert any(node.divide for node in found.nodes)
