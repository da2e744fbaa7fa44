"""Stages of JAX as files: written by `jax.export`, loaded and called without the function.

A stage is `stage-00.jaxexport`, what `jax.export` serializes, and `stage-00.mlirbc`, the same
program as a portable artifact of StableHLO for other tools. Its weights are arguments, not
constants of the program, and are beside it in `stage-00.npz` as `w0`, `w1`, ...: constants of a
program are written as text or copied several times on the way. The arguments of `main` are the
weights in order, then the inputs in the order of the manifest; its results are in the order of the
manifest.

Random keys cross the border of a stage as their raw `uint32`. Narrow floats and integers, which
`.npz` does not have, are stored as bytes; the program knows their type.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.manifest import (
    Content,
    Stage,
    StageInput,
    StageOutput,
    TensorInfo,
    file_of,
)
from jaxpart.files import read_bytes
from jaxpart.ingest.stablehlo.importer import check_convention

_WIDE = ("int64", "uint64", "float64", "complex128")


@dataclasses.dataclass(frozen=True)
class StageProgram:
    """One stage, to be written.

    Attributes:
      chip: its number.
      function: of the list of weights and the list of inputs to the list of results.
      weights: what it holds.
      inputs: name, where it comes from, and abstract value of each input.
      outputs: name, where it goes, and position among the results, of each output.
    """

    chip: int
    function: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]
    weights: Sequence[Any]
    inputs: Sequence[tuple[str, Any, Any]]
    outputs: Sequence[tuple[str, tuple[Any, ...], int]]


def check_installed() -> None:
    """Finds out whether stages can be serialized, before there is anything to write.

    Raises:
      InputError: `flatbuffers` is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(
            "stages of JAX are written with flatbuffers, which is not installed; expected "
            "`pip install 'jaxpart[export]'`"
        )


def stage_files(
    program: StageProgram, platforms: Sequence[str] | None, place: str
) -> tuple[Stage, dict[str, Content]]:
    """The entry of a stage in the manifest, and its files.

    Args:
      program: the stage.
      platforms: what it can run on, as JAX names them; None: the platform of today.
      place: for messages.

    Raises:
      InputError: JAX cannot export the stage.
    """
    inputs = sorted(program.inputs, key=lambda given: given[0])
    outputs = sorted(program.outputs, key=lambda result: result[0])

    def run(weights: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
        held = [_cooked(w, x) for w, x in zip(program.weights, weights, strict=True)]
        found = [_cooked(aval, given[name]) for name, _, aval in program.inputs]
        results = program.function(held, found)
        return {name: _raw(results[i]) for name, _, i in outputs}

    run.__name__ = f"stage_{program.chip}"
    weights = [_raw(w) for w in program.weights]
    shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
    given = {name: jax.eval_shape(_raw, aval) for name, _, aval in inputs}
    function = jax.jit(run, keep_unused=True)
    try:
        with _no_places():
            exported = export.export(function, platforms=platforms)(shapes, given)
            serialized = bytes(exported.serialize())
    except (ValueError, NotImplementedError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise InputError(f"{place}: JAX cannot export the stage ({line})") from error
    stem = f"stage-{program.chip:02d}"
    files: dict[str, Content] = {
        f"{stem}.jaxexport": serialized,
        f"{stem}.mlirbc": bytes(exported.mlir_module_serialized),
    }
    if weights:
        files[f"{stem}.npz"] = functools.partial(_write_weights, weights)
    results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    stage = Stage(
        program.chip,
        f"{stem}.jaxexport",
        sum(w.nbytes for w in weights),
        tuple(
            StageInput(name=n, dtype=str(given[n].dtype), shape=given[n].shape, source=source)
            for n, source, _ in inputs
        ),
        tuple(
            StageOutput(name=n, dtype=str(results[n].dtype), shape=results[n].shape, to=to)
            for n, to, _ in outputs
        ),
        dict.fromkeys(files, ""),
    )
    return stage, files


def tensor_info(name: str, aval: Any) -> TensorInfo:
    """The entry of a model's input or output in the manifest."""
    raw = jax.eval_shape(_raw, aval)
    return TensorInfo(name, str(raw.dtype), raw.shape)


def load_stage(
    folder: str | os.PathLike[str], stage: Stage, device: Any = None
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Loads a stage of a folder that `read_stages` has checked.

    Args:
      folder: of the stages.
      stage: its entry in the manifest.
      device: where to run; None: JAX's default device.

    Returns:
      A function of the stage's inputs by name to its outputs by name. It takes arrays of JAX or
      NumPy and gives arrays of JAX.

    Raises:
      InputError: a file cannot be read, or is a link.
      FileFormatError: a file is not what `jax.export` or NumPy wrote, does not fit the manifest, or
        is not among the files of the stage that the manifest has a hash of.
    """
    check_installed()
    path = file_of(Path(folder), stage, stage.file)
    try:
        exported = export.deserialize(bytearray(read_bytes(path)))
        shapes, given = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
        results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    except InputError:
        raise
    except Exception as error:  # flatbuffers raises what comes up on bytes that are not its own
        raise FileFormatError(
            f"{path}: cannot be loaded ({type(error).__name__}), expected a stage of jax.export"
        ) from error
    check_convention(exported, str(path))
    _check_tensors(path, "inputs", stage.inputs, given)
    _check_tensors(path, "outputs", stage.outputs, results)
    weights: list[np.ndarray] = []
    if shapes:
        held = file_of(Path(folder), stage, path.with_suffix(".npz").name)
        weights = _read_weights(held, shapes)
    arrays = (*shapes, *given.values(), *results.values())
    is_wide = any(str(x.dtype) in _WIDE for x in arrays)
    with _types_of_64_bits(is_wide):
        placed = [jax.device_put(w, device) for w in weights]
    call = jax.jit(exported.call)

    def run(tensors: Mapping[str, Any]) -> dict[str, Any]:
        missing = sorted(given.keys() - tensors.keys())
        if missing:
            raise InputError(f"{path}: the input {missing[0]!r} is missing")
        with _types_of_64_bits(is_wide):
            return _run(tensors)

    def _run(tensors: Mapping[str, Any]) -> dict[str, Any]:
        moved = {name: jax.device_put(tensors[name], device) for name in given}
        for name, expected in given.items():
            if (moved[name].shape, moved[name].dtype) != (expected.shape, expected.dtype):
                raise InputError(
                    f"{path}: the input {name!r} is {moved[name].dtype}{list(moved[name].shape)}, "
                    f"expected {expected.dtype}{list(expected.shape)}"
                )
        with jax.default_device(device):
            return dict(call(placed, moved))

    return run


def _types_of_64_bits(are_there: bool) -> contextlib.AbstractContextManager[Any]:
    """Lets JAX have types of 64 bits where a stage has some; else as the process is set."""
    return jax.enable_x64(True) if are_there else contextlib.nullcontext()


def _check_tensors(
    path: Path, place: str, listed: Sequence[StageInput | StageOutput], found: Mapping[str, Any]
) -> None:
    """Refuses a program that has other inputs or outputs than the manifest says."""
    expected = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in listed}
    if expected != {name: (str(x.dtype), tuple(x.shape)) for name, x in found.items()}:
        raise FileFormatError(f"{path}: its {place} are not those of the manifest")


def _write_weights(weights: Sequence[Any], path: Path) -> None:
    arrays = [np.asarray(w) for w in weights]
    stored = [a if _is_native(a.dtype) else a.reshape(-1).view(np.uint8) for a in arrays]
    named: dict[str, Any] = {f"w{i}": array for i, array in enumerate(stored)}
    with open(path, "wb") as file:
        np.savez(file, **named)


def _read_weights(path: Path, shapes: Sequence[Any]) -> list[np.ndarray]:
    """The weights of a stage, of the given shapes and types."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[f"w{i}"] for i in range(len(shapes))]
    except (KeyError, ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path}: holds no weights of the stage ({error})") from error
    typed = []
    for i, (array, expected) in enumerate(zip(arrays, shapes, strict=True)):
        dtype = expected.dtype if _is_native(expected.dtype) else np.dtype(np.uint8)
        shape = expected.shape if _is_native(expected.dtype) else _in_bytes(expected)
        if (array.dtype, array.shape) != (dtype, shape):
            raise FileFormatError(
                f"{path}: w{i} is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}"
            )
        typed.append(array.view(expected.dtype).reshape(expected.shape))
    return typed


def _is_native(dtype: Any) -> bool:
    """Whether `.npz` has this type."""
    return np.dtype(dtype).kind in "biufc"


def _in_bytes(array: Any) -> tuple[int]:
    """The shape of the bytes of an array."""
    return (array.size * np.dtype(array.dtype).itemsize,)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(x: Any) -> Any:
    """A random key as its bits; any other array as it is."""
    return jax.random.key_data(x) if _is_key(x) else x


def _cooked(like: Any, x: Any) -> Any:
    """The inverse of `_raw` for an array like `like`."""
    if not _is_key(like):
        return x
    impl = jax.random.key_impl(jax.lax.full((), 0, like.dtype))
    return jax.random.wrap_key_data(x, impl=impl)


@contextlib.contextmanager
def _no_places() -> Iterator[None]:
    """Keeps the paths of source files out of what is written: it would differ between machines."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)
