"""Small ONNX models for tests."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from jaxpart.problem.graph import Graph

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name, shape, dtype: int = FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def out(name="y", dtype: int = FLOAT):
    """An output whose shape inference finds."""
    return helper.make_value_info(name, helper.make_tensor_type_proto(dtype, None))


def numbers(name, values, dtype: str | type = np.int64):
    return numpy_helper.from_array(np.array(values, dtype), name)


def stored(name, *shape, dtype: str | type = np.float32):
    """A stored tensor of zeros."""
    return numpy_helper.from_array(np.zeros(shape, dtype), name)


def far(name, *dims, dtype: int = FLOAT, path: str | None = "weights.bin"):
    """A stored tensor in a file that is not there."""
    tensor = TensorProto(name=name, data_type=dtype, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    if path is not None:
        tensor.external_data.add(key="location", value=path)
    return tensor


def node(op, inputs, outputs, domain="", **attributes):
    """A node; operands and results are names with spaces between, `_` for one that is absent."""
    names = [name if name != "_" else "" for name in inputs.split()]
    results = [name if name != "_" else "" for name in outputs.split()]
    return helper.make_node(op, names, results, domain=domain, **attributes)


def body(nodes, inputs, outputs, stored=()):
    return helper.make_graph(list(nodes), "body", list(inputs), list(outputs), list(stored))


def model(nodes, inputs, outputs, stored=(), opset=18, functions=(), **fields):
    graph = helper.make_graph(list(nodes), "model", inputs, outputs, list(stored), **fields)
    opsets = [("", opset), ("com.microsoft", 1), ("local", 1)]
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid(*o) for o in opsets])
    made.functions.extend(functions)
    return made


def edges(graph: Graph) -> set[tuple[str, str]]:
    """Producer and consumer of each edge, by name."""
    return {
        (graph.nodes[k.producer].name, graph.nodes[q].name)
        for k in graph.tensors
        for q in k.consumers
    }
