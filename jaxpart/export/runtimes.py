"""Loads the program of a stage, by the kind of its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from jaxpart.errors import InputError

# Takes the tensors of a stage's inputs by name, and gives those of its outputs. A tensor is an
# array of NumPy or of the program's own; `as_numpy` makes it the first.
Program = Callable[[Mapping[str, Any]], dict[str, Any]]
# Types of NumPy's extensions whose bytes are those of ONNX.
_ONNX_TYPES = {
    "bfloat16": TensorProto.BFLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e5m2": TensorProto.FLOAT8E5M2,
}


def load_stage(path: Path, kind: str) -> Program:
    """Loads the program of one stage, or of a whole model of that kind.

    Each runs on one core, as one device, and operation by operation as the file has them.

    Args:
      path: of the file.
      kind: "onnx".

    Raises:
      InputError: nothing here runs this kind, its runtime is not installed, or the file cannot be
        loaded.
    """
    if kind not in _LOADERS:
        raise InputError(f"{path}: no stages of the kind {kind!r} are run here, expected onnx")
    return _LOADERS[kind](path)


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


def _load_onnx(path: Path) -> Program:
    return onnx_program(onnx_session(path), path)


_LOADERS: dict[str, Callable[[Path], Program]] = {"onnx": _load_onnx}
