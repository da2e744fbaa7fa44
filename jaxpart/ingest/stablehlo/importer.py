"""Converts a StableHLO module to a Graph: what a compiler engineer holds in hand.

`module.py` parses (with jaxlib's own parser), `retrace.py` and the rules turn the module into a
function that JAX traces, and the importer for JAX (`ingest/jaxpr/importer.py`) does the rest.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxpart.errors import FileFormatError, InputError
from jaxpart.files import read_bytes, stem_of, uncompressed, without_mark
from jaxpart.ingest.jaxpr.importer import Role, check_options, graph_of, positions_of
from jaxpart.ingest.stablehlo.marks import is_exported, is_module
from jaxpart.ingest.stablehlo.module import parse
from jaxpart.ingest.stablehlo.retrace import Module
from jaxpart.ingest.stablehlo.rules import rules_for
from jaxpart.ingest.traced import TracedFile
from jaxpart.problem.graph import Graph

_EXPECTED = "StableHLO (text, bytecode or a portable artifact) or what jax.export serializes"
_FIRST_PLATFORM = 0  # of a module for several, the one that is looked at


@dataclasses.dataclass(frozen=True)
class _Source:
    """A module, and which of its arguments belong together.

    Attributes:
      module: as a function.
      arguments: number of arguments that a user counts.
      argument_of: [number of arguments of `main`] the argument of the user that each belongs to.
      names: [number of arguments of `main`] what they are called.
      results: a position for each result of `main`, in the structure that the user knows; None: as
        `main` returns them.
    """

    module: Module
    arguments: int
    argument_of: tuple[int, ...]
    names: tuple[str, ...]
    results: Any = None


def from_stablehlo(
    source: str | os.PathLike[str] | bytes | Any,
    *,
    param_argnums: int | Sequence[int] = (),
    state_argnums: int | Sequence[int] = (),
    name: str | None = None,
    element_bytes: float | None = None,
    unroll_limit: int | None = None,
    fuse: bool = False,
) -> Graph:
    """The graph of a StableHLO module.

    Calls are opened, loops with a known number of steps are unrolled, composites are replaced by
    their decompositions, and a custom call is counted by its shapes, with a warning.

    Args:
      source: path of a file (gzipped or not), or its bytes: StableHLO as text, as MLIR bytecode or
        as a portable artifact, or what `jax.export` serializes (this needs the extra `export`).
        Also an `Exported` of `jax.export`, and what `jax.jit(f).lower(...)` gives.
      param_argnums: positions of the arguments that are parameters, which become weights: of
        `@main`; of the exported function, with all leaves of such an argument. The importer never
        guesses parameters. `jax.jit` lowers each leaf to an argument, and drops those that the
        function does not use unless it is told `keep_unused=True`.
      state_argnums: likewise, of the arguments that are state living on a chip.
      name: name of the graph; the default is the name of the file or module.
      element_bytes: as in `jaxpart.from_jax`.
      unroll_limit: as in `jaxpart.from_jax`.
      fuse: as in `jaxpart.from_jax`.

    Returns:
      The graph.

    Raises:
      FileFormatError: the source is no such module, it is cut off, of another version, or for
        several devices, or has shapes that are not known; the message names the place.
      InputError: the file cannot be read, or an option is out of range.
      EmptyGraphError: no operation depends on an input.

    Warns:
      UserWarning: as in `jaxpart.from_jax`.
    """
    where, content = _content_of(source)
    name = name or stem_of(where)
    check_options(name, element_bytes, unroll_limit)
    traced = _traced(content, where, param_argnums, state_argnums)
    return graph_of(traced.closed, traced.roles, name, element_bytes, unroll_limit, fuse)


def from_stablehlo_bytes(
    content: bytes, path: str | os.PathLike[str], param_argnums: int | Sequence[int] = ()
) -> Graph:
    """As `from_stablehlo`, from the bytes of a file of this path, which is not read."""
    traced = traced_stablehlo(content, path, param_argnums)
    return graph_of(traced.closed, traced.roles, stem_of(path), None, None, False)


def traced_stablehlo(
    content: bytes, path: str | os.PathLike[str], param_argnums: int | Sequence[int] = ()
) -> TracedFile:
    """The module in a file as a function of JAX; arguments and errors as in `from_stablehlo`.

    An operation that JAX has no function for is in it by its shapes alone.
    """
    return _traced(content, os.fspath(path), param_argnums, ())


def _content_of(source: Any) -> tuple[str, Any]:
    """A name for messages, and the bytes of a module or an `Exported`."""
    if isinstance(source, bytes | bytearray):
        return "module", bytes(source)
    if isinstance(source, jax.export.Exported):
        return _printable(source.fun_name), source
    if isinstance(source, jax.stages.Lowered):
        text = source.as_text()
        return _printable(text.partition("@")[2].partition(" ")[0]), text.encode()
    try:
        path = os.fspath(source)
    except TypeError as error:
        raise InputError(
            f"a source of type {type(source).__name__}, expected a path, bytes, a jax.export "
            "Exported or a jax.stages.Lowered"
        ) from error
    return os.fspath(path), without_mark(uncompressed(read_bytes(path), path))


def _printable(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-<>" else "_" for c in name) or "module"


def _traced(
    content: Any, where: str, param_argnums: int | Sequence[int], state_argnums: int | Sequence[int]
) -> TracedFile:
    """A module as a function of JAX."""
    try:
        return _as_function(content, where, param_argnums, state_argnums)
    except RecursionError as error:
        raise FileFormatError(
            f"{where}: bodies are nested too deep, expected fewer within each other"
        ) from error


def _as_function(
    content: Any, where: str, param_argnums: int | Sequence[int], state_argnums: int | Sequence[int]
) -> TracedFile:
    source = _source(content, where)
    module = source.module
    params = positions_of(param_argnums, source.arguments, f"{where}: param_argnums")
    states = positions_of(state_argnums, source.arguments, f"{where}: state_argnums")
    if params & states:
        raise InputError(
            f"{where}: argument {min(params & states)} is named in param_argnums and in "
            "state_argnums, expected one of them"
        )
    fed = module.global_constants()
    given = [aval for i, aval in enumerate(module.arguments) if i not in fed]
    roles: list[Role] = [
        "parameter" if i in params else "state" if i in states else "input"
        for i in source.argument_of
    ]

    def call(*values: Any) -> list[Any]:
        arguments = iter(values)
        full = [
            np.asarray(_FIRST_PLATFORM, aval.dtype) if i in fed else next(arguments)
            for i, aval in enumerate(module.arguments)
        ]
        return module(full, list(arguments))

    # The types of the file are kept: without this JAX makes 32 bits of 64.
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(call)(*given, *module.constants)
    first = len(roles)
    roles.extend("constant" for _ in module.constants)
    count = len(closed.jaxpr.outvars)
    return TracedFile(
        closed,
        tuple(roles),
        (*source.names, *("" for _ in module.constants)),
        _alone(list(range(count))) if source.results is None else source.results,
        lambda: dict(enumerate(module.constant_values(), first)),
    )


def _alone(results: list[int]) -> Any:
    """What a function returns that has these results."""
    return results[0] if len(results) == 1 else results


def _source(content: Any, where: str) -> _Source:
    if isinstance(content, jax.export.Exported):
        return _from_exported(content, where, trusted=True)
    if is_module(content):
        module = rules_for(parse(content, where), where)
        count = len(module.arguments) - len(module.global_constants())
        names = tuple(f"arg{i}" for i in range(count))
        return _Source(module, count, tuple(range(count)), names)
    if is_exported(content):
        return _from_exported(_deserialized(content, where), where)
    raise FileFormatError(f"{where}: no module, expected {_EXPECTED}")


def _deserialized(content: bytes, where: str) -> Any:
    """What `jax.export` serialized; its reader raises any exception for bytes that are damaged."""
    try:
        exported = jax.export.deserialize(bytearray(content))
    except ImportError as error:
        raise InputError(
            f"{where}: serialized by jax.export, which is read with flatbuffers; expected it "
            "installed (pip install 'jaxpart[export]')"
        ) from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise FileFormatError(
            f"{where}: jax.export cannot read it ({type(error).__name__}: {first}), expected the "
            "whole of what Exported.serialize gives, of a version that this JAX knows"
        ) from error
    check_convention(exported, where)
    return exported


def check_convention(exported: Any, where: str) -> None:
    """Refuses what `jax.export` serialized for another JAX; to deserialize it is no check.

    Args:
      exported: a `jax.export.Exported`.
      where: name of the file, for messages.

    Raises:
      FileFormatError: this JAX does not know the calling convention of it.
    """
    least = jax.export.minimum_supported_calling_convention_version
    most = jax.export.maximum_supported_calling_convention_version
    if not least <= exported.calling_convention_version <= most:
        raise FileFormatError(
            f"{where}: calling convention version {exported.calling_convention_version} of "
            f"jax.export, expected {least} to {most} (JAX {jax.__version__})"
        )


def _from_exported(exported: Any, where: str, *, trusted: bool = False) -> _Source:
    artifact = bytes(exported.mlir_module_serialized)
    module = rules_for(parse(artifact, where, trusted=trusted), where)
    leaves = jax.tree.unflatten(exported.in_tree, range(len(exported.in_avals)))
    positional, keywords = leaves
    arguments = [*positional, *keywords.values()]
    owner = {leaf: i for i, arg in enumerate(arguments) for leaf in jax.tree.leaves(arg)}
    argument_of = tuple(owner[leaf] for leaf in exported.module_kept_var_idx)
    count = len(module.arguments) - len(module.global_constants())
    if len(argument_of) != count:
        raise FileFormatError(
            f"{where}: its module takes {count} arguments, expected {len(argument_of)} as exported"
        )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(leaves)]
    names = tuple(_argument_name(paths[leaf]) for leaf in exported.module_kept_var_idx)
    results = jax.tree.unflatten(exported.out_tree, range(len(exported.out_avals)))
    return _Source(module, len(arguments), argument_of, names, results)


def _argument_name(path: Sequence[Any]) -> str:
    """The name of a leaf of the positional and keyword arguments: `arg2['w']`, or `x[0]`."""
    argument = path[1]
    name = str(argument.key) if hasattr(argument, "key") else f"arg{argument.idx}"
    return name + jax.tree_util.keystr(tuple(path[2:]))
