"""A trained policy as one file: a header (one line of JSON), then the weights (msgpack)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from flax import serialization

from jaxpart.errors import FileFormatError, InputError
from jaxpart.files import MIB, decode_json, read_bytes, write_whole
from jaxpart.methods.policy import features
from jaxpart.methods.policy.network import PLACEMENT, NetworkConfig, PolicyNetwork

FORMAT, VERSION = "jaxpart-policy", 1
SHIPPED = "pretrained"  # name of the default policy
_MAX_BYTES = 256 * MIB  # of a checkpoint
# The largest network that is loaded; each size is 1 or more.
_LARGEST = {"width": 1024, "layers": 16, "heads": 64, "rank": 64}
_DEPTH = 4  # of the nested dictionaries of weights
_NDARRAY = 1  # flax's code for an array among the extensions of msgpack
# Folders of the shipped policies: in an installed package, and in a checkout of the repository.
_FOLDERS = (
    Path(__file__).parents[2] / "data" / "policies",
    Path(__file__).parents[3] / "data" / "policies",
)


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of a checkpoint."""

    format: str
    version: int
    features: int  # version of the feature set
    sizes: dict[str, int]  # fields of `NetworkConfig`
    bytes: int  # size of the weights
    sha256: str  # of the weights
    made: dict[str, Any]  # see `Policy`


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy: the weights of a network and the sizes of the network."""

    params: Any  # a pytree of arrays
    network: NetworkConfig
    made: dict[str, Any]  # how it was made: command, seed, steps, seconds, device, versions

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint: the complete file, or nothing.

        Args:
          path: of the file.

        Raises:
          InputError: the file cannot be written.
        """
        weights = serialization.to_bytes(jax.tree.map(np.asarray, self.params))
        header = _Header(
            FORMAT,
            VERSION,
            features.VERSION,
            dataclasses.asdict(self.network),
            len(weights),
            hashlib.sha256(weights).hexdigest(),
            self.made,
        )
        write_whole(path, msgspec.json.encode(header) + b"\n" + weights)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Policy:
        """Loads a shipped policy by its name, or a checkpoint by its path.

        Args:
          name_or_path: the name takes precedence.

        Returns:
          The policy, with numpy arrays as weights.

        Raises:
          FileFormatError: the file is not a checkpoint, has another version or feature set, or is
            damaged.
          InputError: no policy has this name or path, or the file cannot be read.
        """
        path = resolve(name_or_path)
        line, _, weights = read_bytes(path, _MAX_BYTES).partition(b"\n")
        header = _header(path, line)
        sizes = _sizes(path, header.sizes)
        if len(weights) != header.bytes:
            raise FileFormatError(
                f"{path}: has {len(weights)} bytes of weights, expected {header.bytes}: truncated?"
            )
        if hashlib.sha256(weights).hexdigest() != header.sha256:
            raise FileFormatError(
                f"{path}: the weights do not match their hash, expected an intact file"
            )
        return cls(_params(path, weights, sizes), sizes, header.made)


def _header(path: Path, line: bytes) -> _Header:
    """Reads the header from the first line of a checkpoint.

    Raises:
      FileFormatError: the line is not a header, or its version or feature set is another.
    """
    try:
        stated = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: line 1 is no JSON header, expected a {FORMAT} file"
        ) from error
    for key, expected in (
        ("format", FORMAT),
        ("version", VERSION),
        ("features", features.VERSION),
    ):
        found = bytes(stated.get(key, b"missing"))
        if found != msgspec.json.encode(expected):
            text = found.decode("utf-8", "backslashreplace").replace('"', "'")
            raise FileFormatError(f"{path}: header: {key} is {text}, expected {expected!r}")
    return decode_json(line, _Header, path, place="header: ")


def _sizes(path: Path, stated: dict[str, int]) -> NetworkConfig:
    """The sizes of the network, from the header of a checkpoint.

    Raises:
      FileFormatError: a size is missing, unknown, or out of its range; the heads do not divide the
        width.
    """
    if stated.keys() != _LARGEST.keys():
        raise FileFormatError(
            f"{path}: header: sizes are {', '.join(stated) or 'none'}, expected "
            f"{', '.join(_LARGEST)}"
        )
    for key, most in _LARGEST.items():
        if not 1 <= stated[key] <= most:
            raise FileFormatError(
                f"{path}: header: sizes: {key} is {stated[key]}, expected 1 to {most}"
            )
    sizes = NetworkConfig(**stated)
    if sizes.width % sizes.heads:
        raise FileFormatError(
            f"{path}: header: sizes: heads is {sizes.heads}, expected a divisor of the width, "
            f"{sizes.width}"
        )
    return sizes


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a policy.

    Args:
      name_or_path: name of a shipped policy, or the path of a file.

    Returns:
      The path of an existing file. A shipped policy takes precedence over a file of its name.

    Raises:
      InputError: there is neither a shipped policy of this name nor such a file.
    """
    shipped = shipped_policies()
    if os.fspath(name_or_path) in shipped:
        return shipped[os.fspath(name_or_path)]
    path = Path(name_or_path)
    if not os.path.exists(name_or_path):
        known = ", ".join(sorted(shipped)) or "none is shipped"
        raise InputError(
            f"{os.fspath(name_or_path)!r}: no such file, and no shipped policy ({known})"
        )
    return path


def shipped_policies() -> dict[str, Path]:
    """The files of the policies that are shipped with jaxpart, by name."""
    folder = next((f for f in _FOLDERS if f.is_dir()), _FOLDERS[-1])
    return {path.stem: path for path in sorted(folder.glob("*.policy"))}


def _params(path: Path, weights: bytes, sizes: NetworkConfig) -> Any:
    """The weights of a network of these sizes, from msgpack as flax writes it.

    The names, types, shapes and lengths of all arrays are checked before an array is made.

    Returns:
      Nested dictionaries of float32 arrays.

    Raises:
      FileFormatError: the bytes are not one msgpack of nested dictionaries; or an array is missing,
        is surplus, has another type, shape or length, or has a number that is not finite.
    """
    expected = _expected(sizes)
    wanted = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree.leaves_with_path(expected)}
    try:
        found = dict(_leaves(msgspec.msgpack.decode(weights)))
        missing = next((name for name in wanted if name not in found), None)
        if missing is not None:
            raise FileFormatError(f"{path}: weight {missing} is missing")
        content = {
            name: _content(f"{path}: weight {name}", packed, wanted.get(name))
            for name, packed in found.items()
        }
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FileFormatError(f"{path}: the weights are no msgpack of arrays ({error})") from error

    def array(key: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(key)
        values = np.frombuffer(content[name], np.float32).reshape(shape.shape)
        if not np.isfinite(values).all():
            raise FileFormatError(f"{path}: weight {name} has a number that is not finite")
        return values

    return jax.tree.map_with_path(array, expected)


@functools.lru_cache(maxsize=8)
def _expected(sizes: NetworkConfig) -> Any:
    """The shapes of the weights of a network, in nested dictionaries."""
    return jax.eval_shape(lambda: PolicyNetwork(sizes).init(jax.random.key(0), *example_inputs()))


class _Array(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array as flax packs it."""

    shape: tuple[int, ...]
    dtype: str
    content: bytes


def _leaves(tree: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries, named as JAX names them: "['params']['bias']"."""
    if depth < _DEPTH and isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{name}[{key!r}]", depth + 1)
    else:
        yield name, tree


def _content(where: str, packed: Any, shape: tuple[int, ...] | None) -> bytes:
    """The bytes of a packed float32 array of this shape; None: there should be none.

    Raises:
      FileFormatError: it is another thing.
      DecodeError: it is packed otherwise than flax does.
    """
    if shape is None:
        raise FileFormatError(f"{where} is surplus, expected none of this name")
    if not isinstance(packed, msgspec.msgpack.Ext) or packed.code != _NDARRAY:
        raise FileFormatError(f"{where} is no array, expected one")
    array = msgspec.msgpack.decode(packed.data, type=_Array)
    if array.dtype != "float32":
        raise FileFormatError(f"{where} has type {array.dtype}, expected float32")
    if array.shape != shape:
        raise FileFormatError(f"{where} has shape {array.shape}, expected {shape}")
    if len(array.content) != 4 * math.prod(shape):
        raise FileFormatError(
            f"{where} has {len(array.content)} bytes, expected {4 * math.prod(shape)}"
        )
    return array.content


def example_inputs() -> tuple[features.Features, jax.Array]:
    """Small inputs of the network: features of 8 rows, and a placement [8, PLACEMENT] of zeros."""
    from jaxpart.problem.graph import Graph, Node
    from jaxpart.problem.mcm import load_mcm
    from jaxpart.problem.problem import Problem

    problem = Problem.build(Graph((Node("a", "op", 1.0, 1.0),), ()), load_mcm("mcm4"))
    return features.features(problem, 8, 8), jnp.zeros((8, PLACEMENT))
