"""The models of the study of fidelity: each can be profiled, and its stages timed, on this machine.

ONNX models are those that the onnx package carries without weights, with seeded ones; they run in
ONNX Runtime. Small transformers that are made here run in JAX, and so do models of the data set,
with random weights.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

import jaxpart
from jaxpart.errors import InputError
from jaxpart.export.measuring.profile import Profile, profile
from jaxpart.export.measuring.profile_jax import TimedStages, prepared
from jaxpart.export.measuring.timing import Walk, walk_of
from jaxpart.files import write_whole
from jaxpart.ingest.onnx.importer import from_onnx
from jaxpart.problem.graph import Graph
from jaxpart.problem.mcm import MCM, Chip, Constraints

ONNX = ("squeezenet", "shufflenet", "densenet121", "inception_v1", "inception_v2", "resnet50")
TRANSFORMERS = {  # name -> layers, width, tokens, whether causal
    "encoder-narrow": (6, 128, 256, False),
    "encoder-wide": (4, 512, 64, False),
    "decoder": (6, 256, 192, True),
}
DATASET = ("shufflenet-v2", "lstm-lm")  # of the data set, traced in float32
NAMES = (*ONNX, *TRANSFORMERS, *DATASET)
_MODELS = Path(__file__).parents[1] / "dataset"

# Any partition is valid here in which data flows to higher chips.
_FREE = MCM(
    "free",
    "host",
    (Chip(1e12, 1e12, 1e15),) * 64,
    1e9,
    memory_model="weights",
    constraints=Constraints(no_skip=False, triangle=False),
)


class Subject(Protocol):
    """A model to be measured.

    Attributes:
      name: of the model.
      runtime: "onnx" or "jax".
      graph: of N nodes, in the element size that runs.
    """

    name: str
    runtime: str
    graph: Graph

    def profiled(self, count: int) -> Profile:
        """The seconds of each node."""
        ...

    def walk(self, chips: Sequence[int]) -> Walk:
        """What times the stage of each chip, alone, for chips [N] of the nodes, from 0 on."""
        ...


def subject(name: str, folder: Path) -> Subject:
    """The model of this name.

    Args:
      name: one of `NAMES`.
      folder: for files.

    Raises:
      InputError: there is no such model.
    """
    if name in TRANSFORMERS:
        return _Traced(name, *_transformer(*TRANSFORMERS[name]))
    if name in DATASET:
        return _Traced(name, *_of_dataset(name))
    if name not in ONNX:
        raise InputError(f"no model is named {name!r}, expected one of {', '.join(NAMES)}")
    path = folder / f"{name}.onnx"
    if not path.exists():
        light = Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx"
        write_whole(path, with_weights(onnx.load(light)).SerializeToString())
    return Onnx(name, path)


class Onnx:
    """An ONNX file, run by ONNX Runtime."""

    runtime = "onnx"

    def __init__(self, name: str, path: Path) -> None:
        """Reads the file."""
        self.name, self.path = name, path
        self.graph = from_onnx(path, name=name)

    def profiled(self, count: int) -> Profile:
        """As `Subject.profiled`."""
        return profile(self.path, count=count)

    def walk(self, chips: Sequence[int]) -> Walk:
        """As `Subject.walk`."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "stages"
            jaxpart.export(self.path, list(chips), to="onnx", out=out, mcm=_FREE)
            return walk_of(out)


class _Traced:
    """A function, run by JAX."""

    runtime = "jax"

    def __init__(self, name: str, fn: Any, weights: Any, *inputs: Any) -> None:
        """Traces the function."""
        self.name = name
        self._trace = jaxpart.trace(fn, weights, *inputs, param_argnums=0, name=name)
        self.graph = self._trace.graph

    def profiled(self, count: int) -> Profile:
        """As `Subject.profiled`."""
        return profile(self._trace, count=count)

    def walk(self, chips: Sequence[int]) -> Walk:
        """As `Subject.walk`; a chip whose results nobody needs takes no time."""
        stages = self._trace.stages(list(chips), jax.devices()[:1])
        timed = TimedStages(stages, prepared(stages), {})
        timed.seconds(1)  # compiled now
        used = [part.chip for part in stages.plans]

        def seconds(count: int) -> list[float]:
            taken = dict(zip(used, timed.seconds(count), strict=True))
            return [taken.get(chip, 0.0) for chip in range(max(chips) + 1)]

        return seconds


def with_weights(model: ModelProto, seed: int = 0) -> ModelProto:
    """A light model with random weights, stored in it, in place of ConstantOfShape.

    Weights of one axis are positive: variances of batch normalisation are among them.

    Args:
      model: is changed.
      seed: of the weights.
    """
    rng = np.random.default_rng(seed)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(extent) for extent in shapes[node.input[0]])
        if len(shape) > 1:
            content = rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
        else:
            content = rng.uniform(0.5, 1.5, shape)
        array = np.asarray(content, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def _of_dataset(name: str) -> tuple[Any, ...]:
    """A model of the data set: function, variables, inputs; shapes alone."""
    if str(_MODELS) not in sys.path:
        sys.path.insert(0, str(_MODELS))
    from models import catalog
    from models.tracing import recorded

    model = {model.name: model for model in catalog.models()}[name]
    with recorded() as calls:
        model.build()
    return calls[0].function, calls[0].variables, *calls[0].inputs


def _transformer(layers: int, width: int, tokens: int, is_causal: bool) -> tuple[Any, ...]:
    """A transformer of pre-normalised blocks: function, weights, input."""
    rng = np.random.default_rng(0)

    def weight(rows: int, columns: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((rows, columns), np.float32) / np.sqrt(rows))

    blocks = [
        {
            **{key: weight(width, width) for key in ("query", "key", "value", "out")},
            "up": weight(width, 4 * width),
            "down": weight(4 * width, width),
        }
        for _ in range(layers)
    ]
    x = jnp.asarray(rng.standard_normal((tokens, width), np.float32))
    return functools.partial(_run, is_causal), blocks, x


def _run(is_causal: bool, blocks: Sequence[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    for block in blocks:
        y = _normalised(x)
        query, key, value = (_heads(y @ block[name]) for name in ("query", "key", "value"))
        scores = jnp.einsum("thd,shd->hts", query, key) / np.sqrt(query.shape[-1])
        if is_causal:
            tokens = x.shape[0]
            mask = jnp.tril(jnp.ones((1, tokens, tokens), bool))
            scores = jnp.where(mask, scores, -jnp.inf)
        mixed = jnp.einsum("hts,shd->thd", jax.nn.softmax(scores), value)
        x = x + mixed.reshape(x.shape) @ block["out"]
        x = x + jax.nn.gelu(_normalised(x) @ block["up"]) @ block["down"]
    return x


def _heads(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], 4, -1)


def _normalised(x: jax.Array) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
