"""Proves cuts of ONNX operators: an operator is run on the whole, and on slices of its operands."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from jaxpart.ingest.axes import AxisCut
from jaxpart.ingest.onnx import contrib, rules
from jaxpart.ingest.onnx.divisions.table import cuts_of
from jaxpart.ingest.onnx.model import prepare
from jaxpart.ingest.onnx.operation import Operation
from jaxpart.ingest.onnx.shapes import Array

Arrays = list[Any]  # None: absent
_random = np.random.default_rng(3)


class Share(NamedTuple):
    """One part of a cut.

    Attributes:
      start: first slice.
      stop: one past the last.
      of: number of slices.
      cut: what is cut.
      shape: shape of the first result of the part; None where it is a summand.
    """

    start: int
    stop: int
    of: int
    cut: AxisCut
    shape: list[int] | None

    def part(self, number: int) -> int:
        """The share of a number of heads or groups."""
        assert number * (self.stop - self.start) % self.of == 0
        return number * (self.stop - self.start) // self.of


# Changes attributes and operands to those of a part.
Adjust = Callable[[dict, Arrays, Share], None]


class Case(NamedTuple):
    """A node, its operands, and the cuts that it should have.

    Attributes:
      op: the operator.
      operands: a shape stands for random numbers, which the model reads; an array is stored in it.
      attributes: of the node.
      cuts: "AXIS/WAYS ..." of the first result; "+" in place of the axis for a sum.
      opset: version of the standard operators.
      results: names of the results; "_" for one that is absent.
      domain: of the operator; others than ONNX itself are run by ONNX Runtime.
      adjust: how parts differ from the whole, beside their operands.
      runtime: whether ONNX Runtime runs it, and not the reference of the onnx package.
      by: attributes and operands -> results, where neither of them can.
    """

    op: str
    operands: Sequence[Any]
    attributes: dict
    cuts: str
    opset: int = 21
    results: str = "y"
    domain: str = ""
    adjust: Adjust | None = None
    runtime: bool = False
    by: Callable[[dict, Arrays], list] | None = None


def case(op, *operands, **given):
    """A `Case`; the keywords that are none of its fields are attributes."""
    fields = {name: given.pop(name) for name in Case._fields if name in given}
    return Case(op, operands, given, **fields)


def ints(*values):
    return np.array(values, np.int64)


def below(limit, *shape, dtype: type = np.int64):
    return _random.integers(0, limit, shape).astype(dtype)


def u8(*shape):
    return below(200, *shape, dtype=np.uint8)


def floats(*values):
    return np.array(values, np.float32)


def positive(*shape):
    return _random.uniform(0.2, 1, shape).astype(np.float32)


def counted(name, dim):
    """The attribute that counts groups or heads, in cuts along a dimension."""

    def adjust(attributes: dict, operands: Arrays, share: Share):
        if share.cut.results[0] == dim:
            attributes[name] = share.part(attributes[name])

    return adjust


def contents(wanted: Case) -> Arrays:
    """The operands as arrays."""
    random = np.random.default_rng(7)
    return [
        random.uniform(-1, 1, operand).astype(np.float32)
        if isinstance(operand, tuple)
        else None
        if operand is None
        else np.asarray(operand)
        for operand in wanted.operands
    ]


def _node(wanted: Case, attributes: dict) -> onnx.NodeProto:
    names = ["" if operand is None else f"i{p}" for p, operand in enumerate(wanted.operands)]
    results = [name if name != "_" else "" for name in wanted.results.split()]
    return helper.make_node(wanted.op, names, results, domain=wanted.domain, **attributes)


def _model(wanted: Case, attributes: dict, inputs: list, stored: list, outputs: list):
    graph = helper.make_graph([_node(wanted, attributes)], "case", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", wanted.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _typed(name: str, array: np.ndarray):
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, dtype, array.shape)


def operation_of(wanted: Case) -> Operation:
    """The node with the types and shapes that the importer finds."""
    arrays = contents(wanted)
    inputs, stored = [], []
    for position, (operand, array) in enumerate(zip(wanted.operands, arrays, strict=True)):
        if isinstance(operand, tuple):
            inputs.append(_typed(f"i{position}", array))
        elif operand is not None:
            stored.append(numpy_helper.from_array(array, f"i{position}"))
    outputs = [
        helper.make_value_info(name, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        for name in wanted.results.split()
        if name != "_"
    ]
    dims = {}
    for output, made in zip(outputs, run(wanted, wanted.attributes, arrays), strict=True):
        if wanted.op == "Compress":  # only the run knows
            dims[f"{output.name}:0"] = made.shape[0]
        output.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(made.dtype)
    model = prepare(_model(wanted, wanted.attributes, inputs, stored, outputs), "case", dims)
    (node,) = model.nodes
    return model.operation(node)


def run(wanted: Case, attributes: dict, arrays: Arrays) -> list[Any]:
    """The results that are present."""
    if wanted.by is not None:
        return wanted.by(attributes, arrays)
    by_runtime = wanted.runtime or wanted.domain
    feeds = {f"i{p}": array for p, array in enumerate(arrays) if array is not None}
    outputs = [
        helper.make_value_info(name, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        for name in wanted.results.split()
        if name != "_"
    ]
    if not by_runtime:
        for output in outputs:
            output.type.Clear()
    inputs = [_typed(name, array) for name, array in feeds.items()]
    model = _model(wanted, attributes, inputs, [], outputs)
    if by_runtime:
        for output in outputs:
            output.type.Clear()
        del model.graph.output[:]
        model.graph.output.extend(outputs)
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return list(session.run(None, feeds))
    return list(ReferenceEvaluator(model).run(None, feeds))


def prove(wanted: Case, cut: AxisCut) -> None:
    """Runs an operator in two and three uneven parts; they make what the whole makes."""
    arrays = contents(wanted)
    whole = run(wanted, wanted.attributes, arrays)
    all_flops = flops(wanted, wanted.attributes, arrays, whole)
    at = cut.results
    present = [position for position, array in enumerate(arrays) if array is not None]
    read_at = dict(zip(present, cut.operands, strict=True))
    for bounds in ([0, 1, cut.ways], [0, max(cut.ways // 2, 1), cut.ways - 1, cut.ways]):
        parts = []
        for start, stop in itertools.pairwise(bounds):
            if start == stop:
                continue
            shape = None
            if at[0] is not None:
                shape = list(whole[0].shape)
                assert shape[at[0]] % cut.ways == 0
                shape[at[0]] = shape[at[0]] * (stop - start) // cut.ways
            share = Share(start, stop, cut.ways, cut, shape)
            attributes = dict(wanted.attributes)
            operands = [_taken(array, read_at.get(p), share) for p, array in enumerate(arrays)]
            if wanted.adjust is not None:
                wanted.adjust(attributes, operands, share)
            if cut.results[0] == 2 and wanted.op in WINDOWS:
                windowed(wanted, arrays, attributes, operands, share)
            made_by_part = run(wanted, attributes, operands)
            if at[0] is not None and not (at[0] == 2 and wanted.op in UNEVEN):
                counted = flops(wanted, attributes, operands, made_by_part)
                assert counted == pytest.approx(all_flops * (stop - start) / cut.ways)
            parts.append(made_by_part)
        for position, (made, dim) in enumerate(zip(whole, at, strict=True)):
            made_of = [part[position] for part in parts]
            joined = sum(made_of) if dim is None else np.concatenate(made_of, dim)
            np.testing.assert_allclose(
                joined, made, rtol=1e-5, atol=1e-5, err_msg=f"{wanted} {cut}"
            )


def _taken(array: Any, dim: int | None, share: Share) -> Any:
    """The slices of an operand that a part reads."""
    if array is None or dim is None:
        return array
    size = array.shape[dim]
    if not share.cut.halo:
        assert size % share.of == 0, f"{size} positions in {share.of} slices"
    indices = range(share.start * size // share.of, share.stop * size // share.of)
    return np.take(array, indices, dim)


# Next to the padding there is less to do.
UNEVEN = {"Conv", "ConvInteger", "QLinearConv", "FusedConv"}
WINDOWS = {"Conv", "ConvInteger", "QLinearConv", "FusedConv", "MaxPool", "AveragePool", "LpPool"}


def windowed(
    wanted: Case, arrays: Arrays, attributes: dict, operands: Arrays, share: Share
) -> None:
    """Gives a part of a convolution or pool the rows that its windows read, and their padding.

    The rows lie within the halo of the share.
    """
    data = arrays[0]
    kernel = (
        attributes.get("kernel_shape") or arrays[3 if wanted.op == "QLinearConv" else 1].shape[2:]
    )
    axes = len(kernel)
    stride = attributes.get("strides", [1] * axes)
    extents = [
        (k - 1) * d + 1
        for k, d in zip(kernel, attributes.get("dilations", [1] * axes), strict=True)
    ]
    pads = list(attributes.get("pads", [0] * 2 * axes))
    mode = attributes.pop("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        for i in range(axes):
            length = data.shape[2 + i]
            total = max((-(-length // stride[i]) - 1) * stride[i] + extents[i] - length, 0)
            small, large = total // 2, total - total // 2
            pads[i], pads[i + axes] = (small, large) if mode == "SAME_UPPER" else (large, small)
    first = share.start * stride[0] - pads[0]
    last = (share.stop - 1) * stride[0] - pads[0] + extents[0]
    rows = data.shape[2]
    low, high = max(first, 0), min(last, rows)
    width = rows / share.of
    assert low >= (share.start - share.cut.halo) * width - 1e-9
    assert high <= (share.stop + share.cut.halo) * width + 1e-9
    operands[0] = data[:, :, low:high]
    pads[0], pads[axes] = low - first, last - high
    attributes["pads"] = pads


def flops(wanted: Case, attributes: dict, arrays: Arrays, results: Arrays) -> float:
    """FLOPs of the operator on these operands."""
    node = _node(wanted, attributes)
    made = iter(results)
    operation = Operation(
        node,
        [_typed_shape(array) for array in arrays],
        [_typed_shape(next(made)) if name else None for name in node.output],
        {f"i{p}": array for p, array in enumerate(arrays) if array is not None},
        {},
        wanted.opset,
    )
    counted = rules.flops_of if operation.is_standard else contrib.flops_of
    return counted(operation) or 0


def _typed_shape(array: np.ndarray | None) -> Array | None:
    if array is None:
        return None
    return Array(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def name_of(wanted: Case) -> str:
    """Name of a test."""
    return f"{wanted.op}-{wanted.opset}"


def check(wanted: Case) -> None:
    """Refuses other cuts than those of the case, and proves them."""
    cuts = cuts_of(operation_of(wanted))
    at = ["+" if cut.results[0] is None else cut.results[0] for cut in cuts]
    found = sorted(f"{dim}/{cut.ways}" for dim, cut in zip(at, cuts, strict=True))
    assert found == sorted(wanted.cuts.split())
    for cut in cuts:
        prove(wanted, cut)
