"""Tensors that a model is run on: from a file, or at random; and how far two of them differ."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence

import ml_dtypes  # noqa: F401  # gives NumPy the names of its types
import numpy as np

from jaxpart.errors import FileFormatError, InputError
from jaxpart.export.manifest import TensorInfo
from jaxpart.files import read_bytes

Feed = Callable[[int], dict[str, np.ndarray]]  # the inputs of one inference, by its number
_LARGEST_RANDOM = 1  # integers may be indices: 0 and 1 exist nearly everywhere


def random_feed(inputs: Sequence[TensorInfo], seed: int) -> Feed:
    """Random inputs: floats of a normal distribution, integers 0 or 1, truth values, "a" or "b".

    Args:
      inputs: of the model.
      seed: of the numbers; each inference has its own.

    Raises:
      InputError: NumPy has no such type.
    """
    dtypes = [_dtype(tensor) for tensor in inputs]

    def feed(number: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, number])
        made = {}
        for tensor, dtype in zip(inputs, dtypes, strict=True):
            if dtype.kind == "O":
                made[tensor.name] = np.array(["a", "b"], object)[rng.integers(2, size=tensor.shape)]
            elif dtype.kind in "biu":
                whole = rng.integers(_LARGEST_RANDOM + 1, size=tensor.shape)
                made[tensor.name] = np.asarray(whole, dtype)
            else:
                made[tensor.name] = np.asarray(rng.normal(size=tensor.shape)).astype(dtype)
        return made

    return feed


def feed_of(path: str | os.PathLike[str], inputs: Sequence[TensorInfo]) -> Feed:
    """Inputs from a file of NumPy (.npz), an array for each input by its name.

    An array has the shape of its input; or one axis more in front, with a row for each inference.
    If there are more inferences than rows, the rows begin again.

    Args:
      path: of the file.
      inputs: of the model.

    Raises:
      InputError: the file cannot be read.
      FileFormatError: it is no such file; or an array is missing, is not known, or has another type
        or shape.
    """
    arrays = _read_arrays(path)
    expected = {tensor.name: tensor for tensor in inputs}
    for name in (*expected, *arrays):
        if name not in arrays or name not in expected:
            which = "is no input" if name in arrays else "is missing"
            raise FileFormatError(
                f"{path}: {name!r} {which}, expected arrays named {', '.join(expected) or 'none'}"
            )
    rows: dict[str, np.ndarray] = {}
    for name, tensor in expected.items():
        array, dtype = arrays[name], _dtype(tensor)
        if array.dtype.kind == "U":
            array = array.astype(object)
        given = array if array.ndim > len(tensor.shape) else array[None]
        if array.dtype != dtype or given.shape[1:] != tensor.shape or not len(given):
            raise FileFormatError(
                f"{path}: {name!r} is {array.dtype} {list(array.shape)}, expected {tensor.dtype} "
                f"{list(tensor.shape)}, or rows of that in front"
            )
        rows[name] = given
    return lambda number: {name: given[number % len(given)] for name, given in rows.items()}


def _read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    content = io.BytesIO(read_bytes(path))
    try:
        file = np.load(content, allow_pickle=False)
        arrays = dict(file) if isinstance(file, np.lib.npyio.NpzFile) else None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path}: is no .npz file of NumPy ({error})") from error
    if arrays is None:
        raise FileFormatError(f"{path}: is one array, expected an .npz file with names")
    return arrays


def _dtype(tensor: TensorInfo) -> np.dtype:
    if tensor.dtype == "string":
        return np.dtype(object)
    try:
        dtype = np.dtype(tensor.dtype)
    except TypeError as error:
        raise InputError(f"input {tensor.name!r} is {tensor.dtype}, which NumPy lacks") from error
    if "int4" in tensor.dtype or "int2" in tensor.dtype or "float4" in tensor.dtype:
        raise InputError(
            f"input {tensor.name!r} is {tensor.dtype}, of which two or more share a byte, expected "
            "inputs of whole bytes"
        )
    return dtype


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two tensors as a share of the largest number expected.

    0: equal bit for bit, or in value for floats; infinite: of other types or shapes, or other
    integers or texts.
    """
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return np.inf
    if np.array_equal(found, expected):
        return 0.0
    if expected.dtype.kind in "biuOSU":
        return np.inf
    one, other = (
        np.asarray(a, np.complex128 if a.dtype.kind == "c" else np.float64)
        for a in (found, expected)
    )
    odd = ~(np.isfinite(one) & np.isfinite(other))
    if not np.array_equal(one[odd], other[odd], equal_nan=True):
        return np.inf
    one, other = one[~odd], other[~odd]
    gap = float(np.abs(one - other).max(initial=0.0))
    return gap / max(float(np.abs(other).max(initial=0.0)), np.finfo(np.float64).tiny)
