"""Weights that an ONNX model keeps in other files ("external data"): where they may be.

The files are never opened: a weight is known by its type and shape. So they may be missing. They
often are: models are shared without their weights, or with pointers of Git LFS in their place. But
a path that no runtime would follow is a mistake or an attack, and is refused.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from jaxpart.errors import FileFormatError
from jaxpart.files import irregular_kind
from jaxpart.ingest.onnx.operation import attribute_tensors, label, subgraphs
from jaxpart.ingest.onnx.shapes import is_external


def external_paths(model: ModelProto, where: str) -> dict[str, str]:
    """The paths of external data as they are in the model, each with the first tensor there.

    Args:
      model: the model as it was read.
      where: name of the model, for messages.

    Raises:
      FileFormatError: a tensor has no path, or one that is no text, is absolute, or leads out of
        the model's folder; the message names the tensor.
    """
    tensors = list(tensors_in(model.graph))
    for function in model.functions:
        tensors += _in_nodes(function.node)
    paths: dict[str, str] = {}
    for tensor, name in tensors:
        if is_external(tensor):
            paths.setdefault(_path_of(tensor, name, where), name)
    return paths


def check_external_files(model: ModelProto, path: str | os.PathLike[str]) -> None:
    """Checks what is at the paths of external data; nothing is opened, and nothing may be there.

    A link may lead to a file within the model's folder. Where the model itself is a link, the
    folder of the file that it leads to serves too: the cache of Hugging Face keeps models so.

    Args:
      model: the model as it was read.
      path: of the model.

    Raises:
      FileFormatError: as for `external_paths`; or a path leads out of the folder by a link, to what
        is no regular file, or to what the user cannot look at. The message names the tensor.
    """
    where = os.fspath(path)
    folder = os.path.dirname(where)
    folders = {os.path.realpath(folder or os.curdir), os.path.dirname(os.path.realpath(where))}
    for location, name in external_paths(model, where).items():
        place = f"{where}: tensor {name} is in the file {location[:100]!r}"
        target = os.path.realpath(os.path.join(folder, location))
        if not any(os.path.commonpath((target, allowed)) == allowed for allowed in folders):
            raise FileFormatError(
                f"{place}, a link to {target}, expected a file within the folder of the model"
            )
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            continue  # on purpose, see above
        except OSError as error:
            raise FileFormatError(
                f"{place}, which cannot be read ({error.strerror}), expected a regular file or none"
            ) from error
        if kind := irregular_kind(mode):
            raise FileFormatError(f"{place}, which is {kind}, expected a regular file or none")


def tensors_in(graph: GraphProto) -> Iterable[tuple[TensorProto, str]]:
    """The stored tensors of a graph and its bodies, with their names for messages."""
    stored = list(graph.initializer)
    stored += [part for s in graph.sparse_initializer for part in (s.values, s.indices)]
    yield from ((tensor, repr(tensor.name)) for tensor in stored)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Iterable[NodeProto]) -> Iterable[tuple[TensorProto, str]]:
    for node in nodes:
        yield from ((tensor, f"of {label(node)}") for tensor in attribute_tensors(node))
        for body in subgraphs(node):
            yield from tensors_in(body)


def _path_of(tensor: TensorProto, name: str, where: str) -> str:
    """The path of an external tensor, relative to the model's folder."""
    paths = [entry.value for entry in tensor.external_data if entry.key == "location"]
    if not paths:
        raise FileFormatError(f"{where}: tensor {name} is in another file, expected its location")
    if not isinstance(paths[0], str):  # protobuf gives bytes if they are not UTF-8
        raise FileFormatError(f"{where}: the path {paths[0]!r} of tensor {name} is no UTF-8 text")
    path = paths[0].replace("\\", "/")
    normal = posixpath.normpath(path)
    absolute = path.startswith("/") or path[1:2] == ":"
    if not path or absolute or normal == ".." or normal.startswith("../") or "\0" in path:
        raise FileFormatError(
            f"{where}: tensor {name} is in the file {paths[0][:100]!r}, expected a path within the "
            "folder of the model"
        )
    return paths[0]
