"""`torch.fx` splits a module where a partition says so."""

import dataclasses

import pytest

import jaxpart
from jaxpart.errors import InputError
from jaxpart.problem.graph import Graph, Node, Tensor
from tests.support.modules import unit_module


@dataclasses.dataclass(eq=False)
class FakeNode:
    name: str
    op: str
    all_input_nodes: list


def node(name, *operands, op="call_function"):
    return FakeNode(name, op, list(operands))


def test_unknown_nodes_run_where_their_last_operand_is_made():
    x = node("x", op="placeholder")
    first = node("first", x)
    second = node("second", first, x)
    view = node("view", first, second)
    weight = node("weight", op="get_attr")
    chip_of = jaxpart.torch_split({"first": 1, "second": 3, "x": 3})
    assert [chip_of(v) for v in (first, second, view, weight)] == [1, 3, 3, 0]


def test_data_that_flows_back_is_refused():
    first = node("first")
    chip_of = jaxpart.torch_split({"first": 1, "second": 0})
    with pytest.raises(InputError, match=r"'second' is on chip 0, but .*'first' on chip 1"):
        chip_of(node("second", first))


def test_an_invalid_partition_is_refused():
    graph = Graph((Node("a", "add", 1, 1), Node("b", "add", 1, 1)), (Tensor(0, 1, (1,)),))
    with pytest.raises(InputError, match="not valid"):
        jaxpart.torch_split(jaxpart.evaluate(graph, unit_module(2), [1, 0]))


def test_split_module_gives_what_the_module_gives():
    torch = pytest.importorskip("torch", reason="PyTorch is no dependency; 200 MB")
    split_module = pytest.importorskip("torch.fx.passes.split_module").split_module

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            first = x
            for layer in self.layers:
                x = torch.relu(layer(x)).view(2, 8) + first
            return x

    module = torch.fx.symbolic_trace(Model())
    compute = [v for v in module.graph.nodes if v.op in ("call_module", "call_function")]
    number = {v: i for i, v in enumerate(compute)}
    nodes = tuple(Node(v.name, str(v.target), 100, 100) for v in compute)
    tensors = []
    for v in compute:
        readers = set()
        for user in v.users:  # views are no nodes: their consumers read what they show
            readers.update(user.users if user.op == "call_method" else [user])
        tensors.append(Tensor(number[v], 4, tuple(number[q] for q in readers if q in number)))
    graph = Graph(nodes, tuple(tensors))
    result = jaxpart.partition(graph, unit_module(3), method="slice", max_samples=10)
    split = split_module(module, module, jaxpart.torch_split(result))
    parts = [name for name, _ in split.named_children()]
    assert len(parts) == result.chips_used > 1
    x = torch.randn(2, 8)
    assert torch.equal(split(x), module(x))
