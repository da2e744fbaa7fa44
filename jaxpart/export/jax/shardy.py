"""Stages as a program of Shardy's MPMD dialect: a fragment for each chip, transfers between them.

Every chip is a mesh of one device. A weight, and an input for each chip that reads it, is an
argument on the chip's mesh. The text can be parsed and verified by what ships in jaxlib; to run it
takes a runtime that has MPMD (Pathways), which jaxpart does not come with.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from jax.interpreters.mlir import make_ir_context
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import func, mpmd

_AXIS = "d"  # of a mesh of one device


@dataclasses.dataclass(frozen=True)
class Fragment:
    """What one chip runs.

    Attributes:
      chip: its number.
      text: a module of StableHLO; its `main` takes the weights, then the inputs.
      weights: number of weights.
      inputs: what the inputs are: the name of a tensor.
      results: what the results are, likewise.
    """

    chip: int
    text: str
    weights: int
    inputs: Sequence[str]
    results: Sequence[str]


def mpmd_module(name: str, fragments: Sequence[Fragment], outputs: Sequence[str]) -> str:
    """The text of one MPMD module.

    Args:
      name: of the module.
      fragments: in chip order.
      outputs: the tensors that the whole program returns, each a result of a fragment.

    Returns:
      A module that was verified. Its function `main` returns the outputs in their order; its
      arguments carry their name as `jax.arg_info`.
    """
    with make_ir_context(), ir.Location.unknown():
        # They stay referenced: what is left of them must outlive what is moved out of them.
        modules = [ir.Module.parse(fragment.text) for fragment in fragments]
        functions = [_functions(*pair) for pair in zip(fragments, modules, strict=True)]
        module = ir.Module.create()
        module.operation.attributes["sym_name"] = ir.StringAttr.get(name)
        with ir.InsertionPoint(module.body):
            _main(fragments, [main for main, _ in functions], outputs)
        # What else a module declares (the empty mesh of random keys) is the same in all stages.
        declared = {str(op): op for m in modules for op in _declarations(m)}
        called = itertools.chain.from_iterable(others for _, others in functions)
        for operation in [*declared.values(), *called]:
            module.body.append(operation)
        module.operation.verify()
        return str(module)


def _functions(fragment: Fragment, module: Any) -> tuple[Any, list[Any]]:
    """The `main` of a stage and the other functions of its module, which get names of their own."""
    functions = [op for op in module.body.operations if op.operation.name == "func.func"]
    main = next(op for op in functions if op.name.value == "main")

    def rename(operation: Any) -> Any:
        for key in ("callee", "sym_name"):
            if key in operation.attributes and operation.name in ("func.call", "func.func"):
                name = f"stage_{fragment.chip}_{operation.attributes[key].value}"
                kind = ir.FlatSymbolRefAttr if key == "callee" else ir.StringAttr
                operation.attributes[key] = kind.get(name)
        return ir.WalkResult.ADVANCE

    module.operation.walk(rename)
    return main, [op for op in functions if op is not main]


def _declarations(module: Any) -> list[Any]:
    return [op for op in module.body.operations if op.operation.name != "func.func"]


def _mesh(chip: int) -> str:
    return f"chip{chip}"


def _on(chip: int, tensor: Any) -> Any:
    """The type of a tensor on a chip."""
    return ir.Type.parse(f'!mpmd.mesh_tensor<"{_mesh(chip)}", {tensor}>')


def _main(fragments: Sequence[Fragment], mains: Sequence[Any], outputs: Sequence[str]) -> None:
    """Adds the function `main` of the whole program."""
    made = {name for fragment in fragments for name in fragment.results}
    types, names = [], []
    for fragment, main in zip(fragments, mains, strict=True):
        given = [f"w{i}" for i in range(fragment.weights)] + list(fragment.inputs)
        for kind, tensor in zip(given, main.arguments, strict=True):
            if kind not in made:
                types.append(_on(fragment.chip, tensor.type))
                names.append(kind)
    function = func.FuncOp("main", ir.FunctionType.get(types, []))
    function.attributes["arg_attrs"] = ir.ArrayAttr.get(
        [ir.DictAttr.get({"jax.arg_info": ir.StringAttr.get(kind)}) for kind in names]
    )
    meshes = ", ".join(f'<"{_mesh(f.chip)}": <["{_AXIS}"=1]>>' for f in fragments)
    function.attributes["topology"] = ir.Attribute.parse(f"#mpmd.topology<{meshes}>")
    entry = function.add_entry_block()
    arguments = iter(entry.arguments)
    known: dict[tuple[str, int], Any] = {}  # name of a tensor, chip -> its value there
    home: dict[str, int] = {}  # name of a tensor -> the chip that makes it
    with ir.InsertionPoint(entry):
        for fragment, main in zip(fragments, mains, strict=True):
            operands = [next(arguments) for _ in range(fragment.weights)]
            tensors = list(main.arguments)[fragment.weights :]
            for name, argument in zip(fragment.inputs, tensors, strict=True):
                if name not in made:
                    known[name, fragment.chip] = next(arguments)
                elif (name, fragment.chip) not in known:
                    sent = mpmd.TransferOp(
                        _on(fragment.chip, argument.type), known[name, home[name]]
                    )
                    known[name, fragment.chip] = sent.result
                operands.append(known[name, fragment.chip])
            results = _fragment(fragment, main, operands)
            for name, value in zip(fragment.results, results, strict=True):
                known[name, fragment.chip] = value
                home[name] = fragment.chip
        returned = [known[name, home[name]] for name in outputs]
        func.ReturnOp(returned)
    function.attributes["function_type"] = ir.TypeAttr.get(
        ir.FunctionType.get(types, [value.type for value in returned])
    )


def _fragment(fragment: Fragment, main: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Adds a fragment, with the operations of `main` moved into it; returns its results."""
    body = main.regions[0].blocks[0]
    *operations, last = list(body.operations)
    origin = ir.Attribute.parse(f'#mpmd.user_origin<"stage_{fragment.chip}">')
    op = mpmd.FragmentOp(
        [_on(fragment.chip, value.type) for value in last.operands],
        operands,
        ir.ArrayAttr.get([origin]),
        _mesh(fragment.chip),
    )
    block = op.regions[0].blocks.append(*[a.type for a in body.arguments])
    for before, after in zip(body.arguments, block.arguments, strict=True):
        before.replace_all_uses_with(after)
    returned = list(last.operands)
    for operation in operations:
        block.append(operation)
    with ir.InsertionPoint(block):
        mpmd.ReturnOp(returned)
    last.operation.erase()
    return op.results
