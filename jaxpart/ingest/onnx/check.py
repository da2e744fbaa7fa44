"""Checks the nodes of an ONNX model against the schemas of their operators."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.defs
from onnx import ModelProto, NodeProto

from jaxpart.errors import FileFormatError
from jaxpart.ingest.onnx.operation import STANDARD, subgraphs
from jaxpart.ingest.onnx.shapes import attributes


def check_versions(model: ModelProto, where: str) -> None:
    """Refuses a model of a later version than the onnx package knows: its operators may be others.

    Args:
      model: the model.
      where: its name, for messages.

    Raises:
      FileFormatError: the version of the format or of the standard operators is too high; also in a
        local function.
    """
    installed = f"(onnx {onnx.__version__})"
    if model.ir_version > onnx.IR_VERSION:
        raise FileFormatError(
            f"{where}: IR version {model.ir_version}, expected at most {onnx.IR_VERSION} "
            f"{installed}"
        )
    most = onnx.defs.onnx_opset_version()
    imports = [*model.opset_import, *(o for f in model.functions for o in f.opset_import)]
    for opset in imports:
        if opset.domain in STANDARD and opset.version > most:
            raise FileFormatError(
                f"{where}: opset {opset.version}, expected at most {most} {installed}"
            )


def check_nodes(nodes: Iterable[NodeProto], model: ModelProto, where: str) -> None:
    """Refuses nodes that lack what their operator requires: shape inference may crash on them.

    Args:
      nodes: the nodes to check; their bodies are checked too.
      model: states the versions of the operators.
      where: name of the model, for messages.

    Raises:
      FileFormatError: a required attribute or operand is missing, the outputs of a Split do not
        match its attribute, or an equation is not ASCII. The message names the node.
    """
    versions = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for v, node in enumerate(nodes):
        place = f"{where}: node {v}, {node.name or 'a node'} ({node.op_type}),"
        for body in subgraphs(node):
            check_nodes(body.node, model, where)
        version = versions.get(node.domain or "ai.onnx", 0)
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not onnx.defs.has(node.op_type, version, domain):
            continue
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        given = attributes(node)
        for name, attribute in schema.attributes.items():
            if attribute.required and name not in given:
                raise FileFormatError(f"{place} has no attribute {name!r}, expected it")
        for i, operand in enumerate(schema.inputs):
            if operand.option == single and not "".join(node.input[i : i + 1]):
                raise FileFormatError(f"{place} has no operand {i} ({operand.name}), expected it")
        parts = given["num_outputs"].i if "num_outputs" in given else len(node.output)
        if node.op_type == "Split" and not domain and parts != len(node.output):
            raise FileFormatError(
                f"{place} has {len(node.output)} outputs, expected num_outputs, {parts}"
            )
        equation = given["equation"].s if "equation" in given else b""
        if not equation.isascii():
            raise FileFormatError(f"{place} has the equation {equation!r}, expected ASCII")
