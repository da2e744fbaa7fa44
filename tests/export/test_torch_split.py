"""`torch.fx` splits a module where a partition says so."""

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest

import jaxpart
from jaxpart.errors import InputError
from jaxpart.problem.graph import Graph, Node, Tensor
from tests.support.functions import rising_chips
from tests.support.modules import unit_module

PROGRAMS = Path(__file__).parents[1] / "ingest" / "programs"


@dataclasses.dataclass(eq=False)
class FakeNode:
    name: str
    op: str
    all_input_nodes: list
    graph: "FakeGraph"


class FakeGraph:
    def __init__(self):
        self.nodes = []

    def node(self, name, *operands, op="call_function"):
        self.nodes.append(FakeNode(name, op, list(operands), self))
        return self.nodes[-1]


def fake(path):
    """The graph of torch of a program, by the names in its JSON."""
    with zipfile.ZipFile(path) as archive:
        (member,) = (n for n in archive.namelist() if n.endswith("models/model.json"))
        graph = json.loads(archive.read(member))["graph_module"]["graph"]
    fx, made = FakeGraph(), {}

    def read(given):
        if isinstance(given, dict):
            found = [made[given["name"]]] if given.get("name") in made else []
            return found + [v for inner in given.values() for v in read(inner)]
        return [v for inner in given for v in read(inner)] if isinstance(given, list) else []

    for given in graph["inputs"]:
        name = given["as_tensor"]["name"]
        made[name] = fx.node(name, op="placeholder")
    for about in graph["nodes"]:
        node = fx.node(about["name"], *read([a["arg"] for a in about["inputs"]]))
        outputs = [n["name"] for o in about["outputs"] for n in o.get("as_tensors", ())]
        for name in outputs:  # several results are taken from one by nodes of their own
            made[name] = fx.node(name, node)
        if not outputs:
            made[about["outputs"][0]["as_tensor"]["name"]] = node
    fx.node("output", *read(graph["outputs"]), op="output")
    return fx


def chips_of_fake(fx, chip_of):
    return {v.name: chip_of(v) for v in fx.nodes if v.op not in ("placeholder", "output")}


def test_unknown_nodes_run_where_their_last_operand_is_made():
    fx = FakeGraph()
    x = fx.node("x", op="placeholder")
    first = fx.node("first", x)
    second = fx.node("second", first, x)
    view = fx.node("view", first, second)
    weight = fx.node("weight", op="get_attr")
    chip_of = jaxpart.torch_split({"first": 1, "second": 3, "x": 3})
    assert [chip_of(v) for v in (first, second, view, weight)] == [1, 3, 3, 0]


def test_what_hangs_on_weights_alone_runs_where_it_is_first_read():
    fx = FakeGraph()
    first = fx.node("first", fx.node("x", op="placeholder"))
    weight = fx.node("weight", op="get_attr")
    turned = fx.node("turned", weight)
    again = fx.node("again", turned)
    second = fx.node("second", first, again)
    fx.node("third", second, turned)
    chip_of = jaxpart.torch_split({"first": 1, "second": 2, "third": 3})
    assert [chip_of(v) for v in (weight, turned, again)] == [2, 2, 2]


def test_data_that_flows_back_is_refused():
    fx = FakeGraph()
    first = fx.node("first")
    chip_of = jaxpart.torch_split({"first": 1, "second": 0})
    with pytest.raises(InputError, match=r"'second' is on chip 0, but .*'first' on chip 1"):
        chip_of(fx.node("second", first))


def test_nodes_of_a_program_have_the_chip_of_what_stands_for_them():
    path = PROGRAMS / "mlp.pt2"
    graph = jaxpart.load_graph(path)
    names = [node.name for node in graph.nodes]
    chips = dict.fromkeys(names, 2) | {"dot_general_0": 0, "add_0": 0, "mul_0": 1, "neg_0": 1}
    fx = fake(path)

    found = chips_of_fake(fx, jaxpart.torch_split(chips, path))

    assert found == {"linear": 0, "gelu": 2, "linear_1": 2, "mul": 2, "softmax": 2}


@pytest.mark.parametrize("name", ["encoder", "convolutions", "recurrent", "branch", "in-place"])
def test_a_result_of_a_program_splits_its_torch_graph_over_the_chips_in_use(name):
    path = PROGRAMS / f"{name}.pt2"
    graph = jaxpart.load_graph(path)
    chips = rising_chips(graph, 1)
    fx = fake(path)

    found = chips_of_fake(
        fx, jaxpart.torch_split(dict(zip(names_of(graph), chips, strict=True)), path)
    )

    # Some nodes of torch are several chips' work, and run on the last of these.
    assert set(found.values()) <= set(chips)
    assert max(found.values()) == max(chips)
    for node in fx.nodes:
        if node.op == "call_function":
            before = [found[v.name] for v in node.all_input_nodes if v.name in found]
            assert all(chip <= found[node.name] for chip in before)


def names_of(graph):
    return [node.name for node in graph.nodes]


def test_a_partition_with_other_names_is_refused():
    path = PROGRAMS / "encoder.pt2"
    graph = jaxpart.load_graph(path)
    chips = dict.fromkeys(names_of(graph), 0)
    node = fake(path).nodes[-2]
    with pytest.raises(InputError, match=r"of the 80 names .* need the program too: torch_split"):
        jaxpart.torch_split(chips)(node)
    with pytest.raises(
        InputError, match=r"names .*'embedding' is none.*the module of this program"
    ):
        jaxpart.torch_split(chips, path, name_of=lambda node: node.name + "_")(node)
    with pytest.raises(InputError, match="expected the 19 nodes of mlp"):
        jaxpart.torch_split(chips, PROGRAMS / "mlp.pt2")


def test_an_invalid_partition_is_refused():
    graph = Graph((Node("a", "add", 1, 1), Node("b", "add", 1, 1)), (Tensor(0, 1, (1,)),))
    with pytest.raises(InputError, match="not valid"):
        jaxpart.torch_split(jaxpart.evaluate(graph, unit_module(2), [1, 0]))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is no dependency; 200 MB")


@pytest.fixture(scope="module")
def split_module(torch):
    return pytest.importorskip("torch.fx.passes.split_module").split_module


def layers(torch, step, last=lambda x: x):
    """A module of four linear layers: x = step(layer(x), the x before, the input), then `last`."""

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            first = x
            for layer in self.layers:
                x = step(layer(x), x, first)
            return last(x)

    return Layers().eval()


def test_split_module_gives_what_the_module_gives(torch, split_module):
    model = layers(torch, lambda x, _, first: torch.relu(x).view(2, 8) + first)
    module = torch.fx.symbolic_trace(model)
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


def test_split_module_splits_an_exported_program_by_its_partition(tmp_path, torch, split_module):
    gelu = torch.nn.functional.gelu
    model = layers(torch, lambda x, before, _: gelu(x).view(2, 8) + before, lambda x: x.softmax(-1))
    x = torch.randn(2, 8)
    program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "model.pt2")
    graph = jaxpart.load_graph(tmp_path / "model.pt2")
    result = jaxpart.partition(graph, unit_module(3), method="slice", max_samples=10)
    module = program.module()
    for given in (tmp_path / "model.pt2", program):
        split = split_module(module, module, jaxpart.torch_split(result, given))
        parts = [name for name, _ in split.named_children() if name.startswith("submod_")]
        assert len(parts) == result.chips_used > 1
        (found,) = split(x)  # the outputs as a flat tuple, as the program's graph has them
        assert torch.equal(found, module(x))
