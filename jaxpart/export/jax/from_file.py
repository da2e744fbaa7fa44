"""A model of a file as a trace: StableHLO, what `jax.export` serialized, a `.pt2`."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun

from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.jax.stages import Trace, trace_of
from jaxpart.files import read_bytes, stem_of, uncompressed, without_mark
from jaxpart.ingest.jaxpr.by_shape import only_shapes
from jaxpart.ingest.jaxpr.importer import Role, imported_of
from jaxpart.ingest.jaxpr.steps import Steps
from jaxpart.ingest.load import is_archive, refuse_options
from jaxpart.ingest.pt2.importer import traced_pt2
from jaxpart.ingest.stablehlo import marks
from jaxpart.ingest.stablehlo.importer import traced_stablehlo
from jaxpart.ingest.traced import TracedFile

_EXPECTED = "expected StableHLO, what jax.export serializes, or what torch.export saves (.pt2)"


def is_for_jax(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one that `trace_file` reads: no ONNX model, and no graph.

    Raises:
      InputError: the file cannot be read.
    """
    if is_archive(path):
        return True
    content = without_mark(uncompressed(read_bytes(path), path))
    return marks.is_module(content) or marks.is_exported(content)


def trace_file(
    path: str | os.PathLike[str],
    *,
    dims: Mapping[str, int] | None = None,
    param_argnums: int | Sequence[int] = (),
) -> Trace:
    """The trace of a model in a file; its graph is that of `load_graph`.

    Constants of the file, and the weights in a `.pt2`, are the parameters of the trace, with their
    values. An argument that `param_argnums` names is a weight of the graph, but no file has its
    values: it stays an input, of each stage that needs it.

    Whatever runs the trace needs types of 64 bits (`jax.enable_x64(True)`).

    Args:
      path: of the file.
      dims: sizes of the free dimensions of a `.pt2`.
      param_argnums: as for `from_stablehlo`.

    Raises:
      InputError: the file cannot be read; it is of another format; or it holds operations that
        JAX has no function for, or not the values of its weights.
      FileFormatError: the file breaks its format.

    Warns:
      UserWarning: as for `from_jax`.
    """
    where = os.fspath(path)
    traced = _read(where, dims, param_argnums)
    name = stem_of(where)
    imported = imported_of(traced.closed, traced.roles, name, None, None, False, record=True)
    for doubt in imported.doubts:
        warnings.warn(f"{name}: {doubt}", stacklevel=2)
    held = traced.held()
    roles: list[Role] = [
        "parameter" if i in held else "state" if role == "state" else "input"
        for i, role in enumerate(traced.roles)
    ]
    args = tuple(
        held.get(i, jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype))
        for i, v in enumerate(traced.closed.jaxpr.invars)
    )
    imported = dataclasses.replace(
        imported, roles=tuple(roles), params=frozenset(held), results=traced.results
    )
    trace = trace_of(imported, args, traced.names)
    if lacking := _lacking(trace.steps):
        raise InputError(
            f"{where}: holds {', '.join(lacking)}, which JAX has no function for; expected "
            "operations that can be run"
        )
    return trace


def whole_program(path: str | os.PathLike[str], dims: Mapping[str, int] | None = None) -> Any:
    """The model in a file as a function of its inputs by name to its outputs by name.

    The names are those of the stages that are made of it. Errors are those of `trace_file`.
    """
    traced = _read(os.fspath(path), dims, ())
    held = traced.held()
    function = jax.jit(jaxpr_as_fun(traced.closed))
    outputs = [
        "output" + jax.tree_util.keystr(where)
        for where, _ in jax.tree_util.tree_leaves_with_path(traced.results)
    ]

    def run(tensors: Mapping[str, Any]) -> dict[str, Any]:
        with jax.enable_x64(True):
            given = [held[i] if i in held else tensors[n] for i, n in enumerate(traced.names)]
            # An output that is an input has the input's name.
            return {**tensors, **dict(zip(outputs, function(*given), strict=True))}

    return run


def _read(path: str, dims: Mapping[str, int] | None, param_argnums: Any) -> TracedFile:
    if is_archive(path):
        refuse_options(path, None, param_argnums)
        return traced_pt2(path, dims)
    content = without_mark(uncompressed(read_bytes(path), path))
    if not content.strip():
        raise FileFormatError(f"{path}: the file is empty, {_EXPECTED}")
    if content.lstrip()[:1] in (b"{", b"["):
        raise FileFormatError(f"{path}: is JSON: a graph has no operations to run, {_EXPECTED}")
    if not marks.is_module(content) and not marks.is_exported(content):
        raise FileFormatError(f"{path}: {_EXPECTED}; an ONNX model goes --to onnx")
    refuse_options(path, dims, ())
    return traced_stablehlo(content, path, param_argnums)


def _lacking(steps: Steps) -> list[str]:
    """Names of the operations that the outputs need and JAX cannot run."""
    needed, found = set(steps.outputs), set()
    for step in reversed(steps.steps):
        if not needed.isdisjoint(step.results):
            needed.update(step.operands)
            if step.eqn is not None:
                found.update(only_shapes(step.eqn))
    return sorted(found)
