"""A trained policy as one file: a header (one line of JSON), then the weights (msgpack)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from flax import serialization

from jaxpart.errors import FileFormatError, InputError
from jaxpart.files import read_bytes, write_whole
from jaxpart.methods.policy import features
from jaxpart.methods.policy.network import PLACEMENT, NetworkConfig, PolicyNetwork

FORMAT, VERSION = "jaxpart-policy", 1
SHIPPED = "pretrained"  # name of the default policy
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
    sizes: NetworkConfig
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
            dataclasses.asdict(self.sizes),
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
        line, _, weights = read_bytes(path).partition(b"\n")
        header = _header(path, line)
        try:
            sizes = NetworkConfig(**header.sizes)
        except TypeError as error:
            raise FileFormatError(f"{path}: header: {error}") from error
        if len(weights) != header.bytes:
            raise FileFormatError(
                f"{path}: has {len(weights)} bytes of weights, expected {header.bytes}: truncated?"
            )
        if hashlib.sha256(weights).hexdigest() != header.sha256:
            raise FileFormatError(
                f"{path}: the weights do not match their hash, expected an intact file"
            )
        params = serialization.msgpack_restore(weights)
        _check_shapes(path, params, sizes)
        return cls(params, sizes, header.made)


def _header(path: Path, line: bytes) -> _Header:
    """Reads the header from the first line of a checkpoint.

    Raises:
      FileFormatError: the line is not a header, or its version or feature set is another.
    """
    try:
        stated = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(
            f"{path}: line 1 is no JSON header, expected a {FORMAT} file"
        ) from error
    for key, expected in (
        ("format", FORMAT),
        ("version", VERSION),
        ("features", features.VERSION),
    ):
        if stated.get(key) != expected:
            raise FileFormatError(
                f"{path}: header: {key} is {stated.get(key)!r}, expected {expected!r}"
            )
    try:
        return msgspec.convert(stated, _Header)
    except msgspec.ValidationError as error:
        raise FileFormatError(f"{path}: header: {error}") from error


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
    if not path.is_file():
        known = ", ".join(sorted(shipped)) or "none is shipped"
        raise InputError(f"{name_or_path}: no such file, and no shipped policy ({known})")
    return path


def shipped_policies() -> dict[str, Path]:
    """The files of the policies that are shipped with jaxpart, by name."""
    folder = next((f for f in _FOLDERS if f.is_dir()), _FOLDERS[-1])
    return {path.stem: path for path in sorted(folder.glob("*.policy"))}


def _check_shapes(path: str | os.PathLike[str], params: Any, sizes: NetworkConfig) -> None:
    """Checks that the weights have the names and shapes that `sizes` gives.

    Raises:
      FileFormatError: a weight is missing, is surplus, or has another shape.
    """
    expected = jax.eval_shape(
        lambda: PolicyNetwork(sizes).init(jax.random.key(0), *example_inputs())
    )
    wanted = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree.leaves_with_path(expected)}
    found = {jax.tree_util.keystr(k): np.shape(v) for k, v in jax.tree.leaves_with_path(params)}
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise FileFormatError(
                f"{path}: weight {name} has shape {found.get(name)}, expected {wanted.get(name)}"
            )


def example_inputs() -> tuple[features.Features, jax.Array]:
    """Small inputs of the network: features of 8 rows, and a placement [8, PLACEMENT] of zeros."""
    from jaxpart.problem.graph import Graph, Node
    from jaxpart.problem.mcm import load_mcm
    from jaxpart.problem.problem import Problem

    problem = Problem.build(Graph((Node("a", "op", 1.0, 1.0),), ()), load_mcm("mcm4"))
    return features.features(problem, 8, 8), jnp.zeros((8, PLACEMENT))
