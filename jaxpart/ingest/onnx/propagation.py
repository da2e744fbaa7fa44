"""Finds shapes that lie behind operators which shape inference of the onnx package does not know.

`onnx.shape_inference` stops at such an operator. Here its results come from `contrib.py`, and those
of the nodes behind it from the onnx package, node by node.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.shape_inference
from google.protobuf.message import DecodeError, EncodeError
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto

from jaxpart.errors import FileFormatError
from jaxpart.ingest.onnx import contrib
from jaxpart.ingest.onnx.operation import STANDARD, Operation, label, subgraphs
from jaxpart.ingest.onnx.shapes import Array, small_values

# What the onnx package raises for broken models.
ONNX_ERRORS = (
    *(onnx.shape_inference.InferenceError, onnx.checker.ValidationError, DecodeError),
    *(EncodeError, RuntimeError, ValueError, TypeError),
)


def declare(graph: GraphProto, value: ValueInfoProto) -> None:
    """Adds type and shape of a value to those that the graph states; replaces older ones."""
    for declared in (*graph.value_info, *graph.output):
        if declared.name == value.name:
            declared.type.CopyFrom(value.type)
            return
    graph.value_info.append(value)


def propagate(
    model: ModelProto, arrays: Mapping[str, Array], unknown: AbstractSet[str], where: str
) -> set[str]:
    """Declares the results of operators that only `contrib.py` knows, and of nodes behind them.

    Args:
      model: its nodes are in a topological order; its declared values grow.
      arrays: types and shapes that are known so far, by name.
      unknown: names of the values that are needed and not known.
      where: name of the model, for messages.

    Returns:
      The values of `unknown` that became known.

    Raises:
      FileFormatError: the operands of a node do not fit its operator.
    """
    known = dict(arrays)
    values = small_values(model.graph, where)
    started = False  # whether some value became known: nodes behind it may follow
    for node in model.graph.node:
        if not any(name in unknown and name not in known for name in node.output):
            continue
        if not all(name in known for name in node.input if name):
            continue
        operation = _operation(node, model, known, values)
        if contrib.is_known(operation):
            made = _contributed(operation, values, where)
        elif started and node.domain in STANDARD and not subgraphs(node):
            made = _inferred(node, operation, values)
        else:
            continue
        for name, array in made.items():
            if name not in known and array.is_proper:
                known[name] = array
                started = True
    found = set(unknown) & (known.keys() - arrays.keys())
    for name in sorted(found):
        array = known[name]
        declare(
            model.graph, onnx.helper.make_tensor_value_info(name, array.dtype, list(array.shape))
        )
    return found


def _operation(
    node: NodeProto,
    model: ModelProto,
    known: Mapping[str, Array],
    values: Mapping[str, np.ndarray],
) -> Operation:
    inputs = [known.get(name) if name else None for name in node.input]
    return Operation(node, inputs, [], values, known, standard_version(model))


def standard_version(model: ModelProto) -> int:
    """Version of the standard operators that a model uses."""
    versions = [opset.version for opset in model.opset_import if opset.domain in STANDARD]
    return versions[0] if versions else onnx.defs.onnx_opset_version()


def _contributed(
    operation: Operation, values: Mapping[str, np.ndarray], where: str
) -> dict[str, Array]:
    """Name of each result of an operator that `contrib.py` knows -> type and shape."""
    node = operation.node
    standard = contrib.standard_operator(operation)
    if standard is not None:
        alike = NodeProto()
        alike.CopyFrom(node)
        alike.op_type, alike.domain = standard, ""
        schema = onnx.defs.get_schema(standard, operation.opset, "")
        del alike.input[schema.max_input :]
        kept = [a for a in node.attribute if a.name in schema.attributes]
        del alike.attribute[:]
        alike.attribute.extend(kept)
        return _inferred(alike, operation, values)
    try:
        results = contrib.results(operation)
    except (ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise FileFormatError(
            f"{where}: {label(node)}: its operands do not fit ({error})"
        ) from error
    made = zip(node.output, results, strict=False)
    return {name: array for name, array in made if name and array is not None}


def _inferred(
    node: NodeProto, operation: Operation, values: Mapping[str, np.ndarray]
) -> dict[str, Array]:
    """As `inferred_results`; `node` reads the operands of `operation`, or the first of them."""
    operands = zip(node.input, operation.inputs, strict=False)
    arrays = {name: array for name, array in operands if array is not None}
    return inferred_results(node, arrays, values, operation.opset)


def inferred_results(
    node: NodeProto,
    arrays: Mapping[str, Array],
    values: Mapping[str, np.ndarray],
    opset: int,
) -> dict[str, Array]:
    """The results of a standard operator, as the onnx package finds them from its operands.

    Args:
      node: the node; its operator is one of ONNX itself.
      arrays: name of each operand -> type and shape.
      values: name of a value -> contents, if known.
      opset: version of the standard operators.

    Returns:
      Name of a result -> type and shape; those that are not found are left out.
    """
    if not onnx.defs.has(node.op_type, opset, ""):
        return {}
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    types = {
        name: onnx.helper.make_tensor_type_proto(arrays[name].dtype, list(arrays[name].shape))
        for name in node.input
        if name in arrays
    }
    data = {
        name: onnx.numpy_helper.from_array(values[name], name) for name in types if name in values
    }
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except ONNX_ERRORS:
        return {}  # the inference of the whole model names what is wrong
    made = {name: _array(type_proto) for name, type_proto in found.items()}
    return {name: array for name, array in made.items() if array is not None}


def _array(value: TypeProto) -> Array | None:
    """Type and shape of a value; None if some of it is not known."""
    tensor = value.tensor_type
    if not value.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return Array(tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim))
