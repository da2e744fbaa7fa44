"""Ways to divide nodes, and marks of parts, in graphs and their files."""

import msgspec
import pytest

from jaxpart import errors
from jaxpart.problem.division import Division, Part
from jaxpart.problem.graph import Graph, Node, Tensor, Weight, decode, from_unordered

DIVISION = Division(8, "a1", None, 0.5, ((0, "a0"),), ((0, None),))
SUM = Division(4, "a0", "sum", reads=((0, "a0"),))
PART = Part("whole", "a1", 2, 4)


def graph(*, divide=(), part=None):
    """Two nodes; the second reads tensor 0 and weight 0, and has the given fields."""
    nodes = (Node("a", "op", 1, 1), Node("b", "op", 1, 1, divide=divide, part=part))
    return Graph(nodes, (Tensor(0, 4, (1,)), Tensor(1, 4, ())), (Weight(8, (1,)),))


def test_the_file_of_a_divisible_graph_is_as_the_format_says(tmp_path):
    graph(divide=(DIVISION, SUM), part=PART).save(tmp_path / "g.json")
    assert (
        '"divide":[{"ways":8,"axis":"a1","halo":0.5,"reads":[[0,"a0"]],"weights":[[0,null]]},'
        '{"ways":4,"axis":"a0","join":"sum","reads":[[0,"a0"]]}],'
        '"part":{"of":"whole","axis":"a1","from":2,"to":4}}'
    ) in (tmp_path / "g.json").read_text()


def test_a_divisible_graph_survives_its_file(tmp_path):
    original = graph(divide=(DIVISION, SUM), part=PART)
    original.save(tmp_path / "graph.json")
    assert Graph.load(tmp_path / "graph.json") == original


def test_the_hash_knows_parts_but_not_ways_to_divide():
    assert graph(divide=(DIVISION,)).sha256 == graph().sha256
    assert graph(part=PART).sha256 != graph().sha256


def test_nodes_in_another_order_keep_their_divisions():
    original = graph(divide=(DIVISION,))
    nodes = original.nodes[::-1]
    tensors = [Tensor(1, 4, (0,)), Tensor(0, 4, ())]
    made = from_unordered(nodes, tensors, [Weight(8, (0,))], original.name, 4)
    assert made == original


def replaced(**changes):
    return msgspec.structs.replace(DIVISION, **changes)


@pytest.mark.parametrize(
    ("division", "message"),
    [
        (replaced(ways=1), "ways is 1, expected 2 or more"),
        (replaced(axis=""), "axis is empty, expected a label"),
        (replaced(halo=-1), "halo is -1, expected 0 to the number of ways, 8"),
        (replaced(halo=9), "halo is 9, expected 0 to the number of ways, 8"),
        (replaced(reads=((1, None),)), "tensor 1 is not read by the node"),
        (replaced(reads=((-1, None),)), "tensor -1 is not read by the node"),
        (replaced(reads=((0, "a0"), (0, None))), "tensor 0 stands twice, expected once"),
        (replaced(reads=((0, ""),)), "the label of tensor 0 is empty"),
        (replaced(weights=((1, None),)), "weight 1 is not read by the node"),
        (replaced(weights=((0, "a"), (0, "a"))), "weight 0 stands twice, expected once"),
    ],
)
def test_a_division_that_contradicts_its_graph_is_refused_with_its_place(division, message):
    with pytest.raises(errors.DivisionError, match=rf"node 1 \('b'\): divide\[1\]: {message}"):
        graph(divide=(SUM, division))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 2)])
def test_a_part_without_slices_is_refused(start, stop):
    with pytest.raises(errors.DivisionError, match=r"node 1 \('b'\): part: slices"):
        graph(part=Part("whole", "a1", start, stop))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"divide":[{"ways":2}]', "axis"),
        ('"divide":[{"ways":2.5,"axis":"a"}]', "int"),
        ('"divide":[{"ways":2,"axis":"a","join":"max"}]', "max"),
        ('"divide":[{"ways":2,"axis":"a","deep":1}]', "deep"),
        ('"part":{"of":"a","axis":"a","from":1}', "to"),
    ],
)
def test_a_file_with_a_broken_division_is_refused(text, message):
    content = (
        '{"format":"jaxpart-graph","version":1,"nodes":[{"name":"a","op":"op","flops":1,'
        f'"bytes_accessed":1,{text}}}],"tensors":[],"weights":[]}}'
    )
    with pytest.raises(errors.FileFormatError, match=message):
        decode(content.encode(), "broken.json")
