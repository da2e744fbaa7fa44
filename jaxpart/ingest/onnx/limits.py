"""Refuses models whose size, nesting or file names no importer should follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from jaxpart.errors import FileFormatError
from jaxpart.ingest.onnx.external import external_paths
from jaxpart.ingest.onnx.operation import subgraphs
from jaxpart.ingest.onnx.shapes import known_arrays

MAX_NESTING = 28  # bodies within bodies; protobuf itself stops at about 32
MAX_NODES = 250_000  # nodes of a model after its functions are opened, if it has functions
MAX_VECTOR = 2**20  # elements of a vector that the onnx package may follow
# Operators whose results can be long although their operands are short.
_GROWING = frozenset(
    (
        *("ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "RandomNormal"),
        *("RandomUniform", "Range", "Resize", "Tile", "Upsample"),
    )
)
_Key = tuple[str, str, str]  # domain, name and overload of a function


def check_limits(model: ModelProto, where: str) -> None:
    """Checks nesting, functions and the paths of external data.

    Args:
      model: the model as it was read.
      where: name of the model, for messages.

    Raises:
      FileFormatError: bodies are nested too deep, a function calls itself, the opened functions
        have too many nodes, or external data has a path that leads out of the model's folder.
    """
    _check_nesting(model.graph.node, where)
    for function in model.functions:
        _check_nesting(function.node, where)
    _check_functions(model, where)
    external_paths(model, where)  # raises


def _check_nesting(nodes: Iterable[NodeProto], where: str) -> None:
    level = list(nodes)
    for _ in range(MAX_NESTING + 1):
        level = [inner for node in level for body in subgraphs(node) for inner in body.node]
        if not level:
            return
    raise FileFormatError(
        f"{where}: bodies of nodes are nested in more than {MAX_NESTING} levels, expected fewer"
    )


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    """The nodes and those of their bodies."""
    for node in nodes:
        yield node
        for body in subgraphs(node):
            yield from _all_nodes(body.node)


def _check_functions(model: ModelProto, where: str) -> None:
    """Refuses functions that call themselves, and those that grow too wide when opened."""
    functions: dict[_Key, FunctionProto] = {
        (function.domain, function.name, function.overload): function
        for function in model.functions
    }

    def calls(nodes: Iterable[NodeProto]) -> tuple[int, Counter[_Key]]:
        """Number of nodes that call no function; number of calls of each function."""
        keys = [(node.domain, node.op_type, node.overload) for node in _all_nodes(nodes)]
        called = Counter(key for key in keys if key in functions)
        return len(keys) - called.total(), called

    bodies = {key: calls(function.node) for key, function in functions.items()}
    sizes: dict[_Key, int] = {}  # nodes of each function after its own calls are opened
    waiting = set(functions)
    while waiting:
        ready = [key for key in waiting if all(called in sizes for called in bodies[key][1])]
        if not ready:
            name = min(waiting)[1]
            raise FileFormatError(
                f"{where}: functions call themselves in a circle ({name!r} among them), "
                "expected none"
            )
        for key in ready:
            own, called = bodies[key]
            sizes[key] = own + sum(sizes[inner] * count for inner, count in called.items())
        waiting.difference_update(ready)
    own, called = calls(model.graph.node)
    opened = own + sum(sizes[key] * count for key, count in called.items())
    if functions and opened > MAX_NODES:
        shown = f"{opened:,}" if opened < 10**18 else "over 10^18"
        raise FileFormatError(
            f"{where}: {shown} nodes after all functions are opened, expected at most {MAX_NODES:,}"
        )


def may_follow_values(graph: GraphProto) -> bool:
    """Whether shape inference with values (`data_prop`) needs little memory.

    The onnx package writes down each element of a vector, even if it does not know its content: a
    vector of 10^9 elements takes 80 GB. Here no vector is long, and none can become long.

    Args:
      graph: with the shapes that inference without values has found; bodies are looked at too.
    """
    arrays = known_arrays(graph)
    if any(len(array.shape) == 1 and array.elements > MAX_VECTOR for array in arrays.values()):
        return False
    for node in graph.node:
        if node.op_type in _GROWING and not all(name in arrays for name in node.output if name):
            return False
        if not all(may_follow_values(body) for body in subgraphs(node)):
            return False
    return True
