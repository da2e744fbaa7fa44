"""Converts a program that `torch.export` saved to a Graph, without torch.

`archive.py` reads the JSON in the zip, `retrace.py` and the rules turn its operators into functions
of JAX, and the importer for JAX (`ingest/jaxpr/importer.py`) does the rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
from msgspec import UnsetType

from jaxpart.errors import FileFormatError, InputError
from jaxpart.files import opened, stem_of
from jaxpart.ingest.jaxpr.importer import Role, check_options, graph_of
from jaxpart.ingest.pt2 import elementwise, layers, layout, reductions
from jaxpart.ingest.pt2.archive import read_program
from jaxpart.ingest.pt2.retrace import Interpreter
from jaxpart.ingest.pt2.schema import Argument, Program, Spec
from jaxpart.ingest.pt2.symbols import names_in
from jaxpart.ingest.pt2.weights import read_tensors
from jaxpart.ingest.traced import TracedFile
from jaxpart.problem.graph import Graph

_RULES = {**elementwise.RULES, **layout.RULES, **layers.RULES, **reductions.RULES}
# What an input of the graph is, by torch's own signature.
_ROLES: dict[str, Role] = {
    "user_input": "input",
    "parameter": "parameter",
    "buffer": "parameter",
    "tensor_constant": "constant",
}


def from_pt2(
    path: str | os.PathLike[str],
    *,
    dims: Mapping[str, int] | None = None,
    name: str | None = None,
    element_bytes: float | None = None,
    unroll_limit: int | None = None,
    fuse: bool = False,
) -> Graph:
    """The graph of a program that `torch.export.save` wrote.

    The signature in the file says which tensors are parameters and buffers; both become weights. A
    buffer that the program writes (a KV cache) is state that lives on a chip. The weights
    themselves are not read, and torch is not needed.

    Args:
      path: of the archive, a `.pt2`.
      dims: sizes of the free dimensions of a program for dynamic shapes, by symbol (`s77`).
      name: name of the graph; the default is the name of the file.
      element_bytes: as in `jaxpart.from_jax`.
      unroll_limit: as in `jaxpart.from_jax`.
      fuse: as in `jaxpart.from_jax`.

    Returns:
      The graph.

    Raises:
      FileFormatError: the file is no such archive, is cut off, of another version, or says of an
        operator what does not fit it; the message names the place.
      InputError: the file cannot be read, a free dimension has no size, or an option is out of
        range.
      EmptyGraphError: no operation depends on an input.

    Warns:
      UserWarning: an operator has no rule and is counted by its shapes; and as in
        `jaxpart.from_jax`.
    """
    where = os.fspath(path)
    name = name or stem_of(where)
    check_options(name, element_bytes, unroll_limit)
    with opened(path) as file:
        program = read_program(file, where)
    traced = _traced(program, dict(dims or {}), where)
    return graph_of(traced.closed, traced.roles, name, element_bytes, unroll_limit, fuse)


def traced_pt2(path: str | os.PathLike[str], dims: Mapping[str, int] | None = None) -> TracedFile:
    """A program of a file as a function of JAX; arguments and errors as in `from_pt2`.

    An operator that has no rule is in it by its shapes alone. The values of parameters, buffers
    that are not written, and constants are read from the file on demand.
    """
    where = os.fspath(path)
    with opened(path) as file:
        program = read_program(file, where)
    return _traced(program, dict(dims or {}), where)


def _traced(program: Program, sizes: dict[str, int], where: str) -> TracedFile:
    """A program as a function of JAX."""
    graph, signature = program.graph_module.graph, program.graph_module.signature
    written = {
        spec["buffer_mutation"].buffer_name
        for spec in signature.output_specs
        if "buffer_mutation" in spec
    }
    if len(graph.inputs) != len(signature.input_specs):
        raise FileFormatError(
            f"{where}: {len(graph.inputs)} inputs, expected {len(signature.input_specs)} as in the "
            "signature"
        )
    free = {
        name for meta in graph.tensor_values.values() for s in meta.sizes for name in names_in(s)
    }
    if unknown := sizes.keys() - free:
        raise InputError(
            f"{where}: no dimension {', '.join(sorted(unknown))}, expected sizes for "
            f"{', '.join(sorted(free)) or 'none: all are known'}"
        )
    interpreter = Interpreter(_RULES, layout.written_back, sizes, where)
    avals, roles, names, fixed = [], [], [], []  # fixed: values of inputs that are no tensors
    stored: dict[int, str] = {}  # position of an argument -> name of what the file stores for it
    for position, (given, spec) in enumerate(zip(graph.inputs, signature.input_specs, strict=True)):
        place = f"{where}: input {position}"
        kind, about = next(iter(spec.items()), ("", Spec()))
        if not isinstance(given.as_tensor, UnsetType) and kind in _ROLES:
            meta = graph.tensor_values.get(given.as_tensor.name)
            if meta is None:
                raise FileFormatError(f"{place}: a tensor without type and shape, expected both")
            is_state = kind == "buffer" and about.buffer_name in written
            key = about.parameter_name or about.buffer_name or about.tensor_constant_name
            if key and not is_state:
                stored[len(avals)] = key
            names.append(key or given.as_tensor.name)
            avals.append(interpreter.aval(meta, place))
            roles.append("state" if is_state else _ROLES[kind])
            fixed.append(None)
        else:
            fixed.append(_fixed(about.value or given, place))

    def call(*tensors: Any) -> list[Any]:
        left = iter(tensors)
        values = [next(left) if value is None else value[0] for value in fixed]
        outputs = interpreter.run(graph, values)
        return [out for out in outputs if isinstance(out, jax.Array)]

    # The types of the file are kept, and shapes broadcast as torch's do.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        closed = jax.make_jaxpr(call)(*avals)

    def held() -> dict[int, Any]:
        with opened(where) as file:
            return read_tensors(file, {i: (key, avals[i]) for i, key in stored.items()}, where)

    count = len(closed.jaxpr.outvars)
    results = 0 if count == 1 else list(range(count))
    return TracedFile(closed, tuple(roles), tuple(names), results, held)


def _fixed(given: Argument, place: str) -> tuple[Any]:
    """The value of an input that is no tensor, alone in a tuple.

    Raises:
      FileFormatError: it is known at run time only.
    """
    kind, value = given.only(place)
    if kind in ("as_int", "as_float", "as_bool", "as_string"):
        return (value,)
    if kind in ("as_none", "as_token"):
        return (None,)
    raise FileFormatError(f"{place}: an input of kind {kind}, expected a tensor or a constant")
