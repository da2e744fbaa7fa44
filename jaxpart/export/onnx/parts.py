"""What files made of an ONNX model have in common: declared tensors, stored tensors, headers."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import TypedDict

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from jaxpart.errors import FileFormatError
from jaxpart.ingest.onnx.folding import shape_of
from jaxpart.ingest.onnx.importer import ImportedModel
from jaxpart.ingest.onnx.operation import subgraphs

LAYER = (
    "layer_ann"  # a node's metadata: what session.layer_assignment_settings of the runtime names
)


class Info(TypedDict):
    """A tensor for the manifest."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Parts:
    """Hands out the parts of a model.

    Attributes:
      inputs: names of the inputs of the model, without those that have a stored tensor.
      outputs: names of its outputs, each once.
    """

    def __init__(self, imported: ImportedModel, where: str) -> None:
        """Takes the model, and its name for messages.

        Raises:
          FileFormatError: the model gives one name to two values.
        """
        self.imported = imported
        model, source = imported.model, imported.source.graph
        self.inputs = [v.name for v in source.input if v.name not in model.initializers]
        self.outputs = list(dict.fromkeys(model.outputs))
        self._dense = {tensor.name: tensor for tensor in source.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in source.sparse_initializer}
        for tensor in model.proto.graph.initializer:  # small ones, and those that are computed
            self._dense[tensor.name] = tensor
        self._repeated = collections.Counter(node.name for node in model.nodes)
        self._names = {name for name in imported.names if name is not None}
        known = {*self.inputs, *model.initializers}
        for name in (name for node in model.nodes for name in node.output if name):
            if name in known:
                raise FileFormatError(
                    f"{where}: two branches or nodes give the name {name!r}, expected one"
                )
            known.add(name)

    def info(self, name: str) -> Info:
        """Name, type and shape of a tensor."""
        array = self.imported.model.arrays[name]
        return Info(name=name, dtype=dtype_name(array.dtype), shape=array.shape)

    def model(
        self,
        nodes: Iterable[NodeProto],
        stored: Iterable[str],
        shapes: Iterable[NodeProto],
        inputs: Iterable[str],
        outputs: Iterable[str],
    ) -> ModelProto:
        """A model of some of the nodes.

        Args:
          nodes: the nodes, in a topological order.
          stored: names of the tensors that it stores.
          shapes: Shape and Size nodes whose results it stores.
          inputs: names of its inputs.
          outputs: names of its outputs.
        """
        prepared, source = self.imported.model.proto, self.imported.source
        model = ModelProto(ir_version=prepared.ir_version, producer_name="jaxpart")
        model.opset_import.extend(prepared.opset_import)
        model.functions.extend(prepared.functions)
        model.metadata_props.extend(source.metadata_props)
        graph = model.graph
        graph.name = source.graph.name or "graph"
        graph.node.extend(nodes)
        for name in stored:
            if name in self._dense:
                graph.initializer.append(self._dense[name])
            else:
                graph.sparse_initializer.append(self._sparse[name])
        graph.initializer.extend(map(self._shape, shapes))
        graph.input.extend(map(self._declared, inputs))
        graph.output.extend(map(self._declared, outputs))
        return model

    def named(self, i: int) -> NodeProto:
        """A copy of node `i` with the name of the graph's node that it stands for, without a place.

        If it stands for none, it has a name only where no other node may have the same: ONNX
        Runtime wants different names.
        """
        node, name = NodeProto(), self.imported.names[i]
        node.CopyFrom(self.imported.model.nodes[i])
        _clear_places(node)
        if name is not None:
            node.name = name
        elif self._repeated[node.name] > 1 or node.name in self._names:
            node.name = ""
        return node

    def _declared(self, name: str) -> ValueInfoProto:
        array = self.imported.model.arrays[name]
        return onnx.helper.make_tensor_value_info(name, array.dtype, array.shape)

    def _shape(self, node: NodeProto) -> TensorProto:
        content = shape_of(node, self.imported.model.arrays[node.input[0]])
        return onnx.numpy_helper.from_array(content, node.output[0])


def _clear_places(node: NodeProto) -> None:
    """Removes where another partition wanted a node and those in its bodies to run."""
    del node.device_configurations[:]
    kept = [entry for entry in node.metadata_props if entry.key != LAYER]
    del node.metadata_props[:]
    node.metadata_props.extend(kept)
    for body in subgraphs(node):
        for inner in body.node:
            _clear_places(inner)


def dtype_name(dtype: int) -> str:
    """The name that NumPy gives to a type of ONNX; "string" for texts."""
    if dtype == TensorProto.STRING:
        return "string"
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype)).name
