"""Loads the programs of a folder of stages, by its kind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from jaxpart.errors import InputError
from jaxpart.export.manifest import Manifest, Stage, file_of
from jaxpart.files import read_bytes
from jaxpart.ingest.onnx.external import external_paths
from jaxpart.ingest.onnx.model import parse

# Takes the tensors of a stage's inputs by name, and gives those of its outputs. A tensor is an
# array of NumPy or of the program's own; `as_numpy` makes it the first.
Program = Callable[[Mapping[str, Any]], dict[str, Any]]
# Types of NumPy's extensions whose bytes are those of ONNX.
_ONNX_TYPES = {
    "bfloat16": TensorProto.BFLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e5m2": TensorProto.FLOAT8E5M2,
}


def load_stages(folder: Path, manifest: Manifest) -> list[Program]:
    """Loads the program of each stage.

    One of ONNX runs on one core, as one device, and operation by operation as the file has them.
    Those of JAX are compiled whole, and take `jax.devices()` in turn.

    Args:
      folder: of the stages.
      manifest: what `read_stages` has read there.

    Raises:
      InputError: the runtime is not installed, or a file cannot be loaded.
      FileFormatError: a stage reads a file that the manifest has no hash of.
    """
    if manifest.kind == "onnx":
        return [_onnx_stage(folder, stage) for stage in manifest.stages]
    import jax

    from jaxpart.export.jax.files import load_stage

    devices = itertools.cycle(jax.devices())
    loaded = [load_stage(folder, stage, next(devices)) for stage in manifest.stages]

    def finished(program: Program) -> Program:
        # A call of JAX returns before its results are there; a stage is timed until they are.
        return lambda tensors: jax.block_until_ready(program(tensors))

    return [finished(program) for program in loaded]


def _onnx_stage(folder: Path, stage: Stage) -> Program:
    """Loads a stage of ONNX, which may read the hashed files of the stage alone."""
    path = file_of(folder, stage, stage.file)
    check_onnx_runtime(path)
    for location in external_paths(parse(read_bytes(path), str(path)), str(path)):
        file_of(folder, stage, location)
    return load_onnx(path)


def load_model(path: Path, kind: str, dims: Mapping[str, int] | None = None) -> Program:
    """Loads a whole model, to compare stages of its kind with.

    Args:
      path: of the model.
      kind: of the stages.
      dims: sizes of the free dimensions of a `.pt2`; an ONNX model has those of its inputs.

    Raises:
      InputError: the runtime is not installed, or the file cannot be loaded: an ONNX model; for
        stages of JAX the StableHLO, serialized function or `.pt2` that they were made of.
    """
    if kind != "onnx":
        from jaxpart.export.jax.from_file import whole_program

        return whole_program(path, dims)
    return load_onnx(path)


def as_numpy(value: Any) -> np.ndarray:
    """A tensor that a program gave, as an array of NumPy."""
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)


def check_onnx_runtime(path: str | os.PathLike[str]) -> None:
    """Finds out whether ONNX Runtime is installed.

    Args:
      path: of what is to run, for the message.

    Raises:
      InputError: it is not.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{path}: needs ONNX Runtime to run, expected it: pip install 'jaxpart[export]'"
        ) from error


def onnx_session(path: Path, profile: Path | None = None) -> Any:
    """A session of ONNX Runtime: one core, operation by operation as the file has them.

    Args:
      path: of the model.
      profile: the beginning of the name of a file that the runtime's profiler writes when
        `end_profiling` is called; None: nothing is profiled.

    Raises:
      InputError: the runtime is not installed, or cannot load the file.
    """
    check_onnx_runtime(path)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors alone
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise InputError(f"{path}: ONNX Runtime cannot load it ({error})") from error


def runtime_name() -> str:
    """ONNX Runtime as it runs here, in words; it must be installed."""
    import onnxruntime

    version: Any = onnxruntime.__version__
    return f"ONNX Runtime {version}, one core of a CPU"


def load_onnx(path: Path) -> Program:
    """Loads an ONNX file; errors as for `load_stages`."""
    return onnx_program(onnx_session(path), path)


def onnx_program(session: Any, path: Path) -> Program:
    """The program of a session; `path` names the model in messages."""
    import onnxruntime

    names = [output.name for output in session.get_outputs()]
    types = {given.name: given.type for given in session.get_inputs()}

    def to_runtime(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.name in _ONNX_TYPES:
            code = _ONNX_TYPES[value.dtype.name]
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(value, code)
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))

    def run(values: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if "tensor(string)" in types.values():  # texts are taken from NumPy alone
                made = session.run(names, {name: as_numpy(values[name]) for name in types})
            else:
                feeds = {name: to_runtime(values[name]) for name in types}
                made = session.run_with_ort_values(names, feeds)
        except Exception as error:
            raise InputError(f"{path}: ONNX Runtime cannot run it ({error})") from error
        return dict(zip(names, made, strict=True))

    return run
