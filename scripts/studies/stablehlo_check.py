"""Compares the graphs of `from_stablehlo` with those of `from_jax`, operation by operation.

  python scripts/studies/stablehlo_check.py [--exported] [NAME ...]

Each function is lowered by `jax.jit`, or with `--exported` by `jax.export`, and read back. A line
tells the ratios of FLOPs and bytes after fusing, of products and convolutions, and of weights;
below it stands what one graph has more of than the other. Names are those of `scripts/dataset`;
without any, the models of flax in it are taken that are traced in seconds.
"""

from __future__ import annotations

import argparse
import collections
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from jaxpart.ingest.jaxpr import importer
from jaxpart.ingest.rewrite.fuse import fuse
from jaxpart.ingest.stablehlo.importer import from_stablehlo
from jaxpart.problem.graph import Graph

_PRODUCTS = ("dot_general", "conv_general_dilated")
_DEFAULT = (
    *(
        "alexnet-raw",
        "squeezenet-raw",
        "shufflenet-v2-raw",
        "unet-raw",
        "yolo-v3-raw",
        "wavenet-raw",
    ),
    *("ssd300", "lstm-lm-raw", "gru-lm-raw", "convlstm-raw", "bilstm-crf", "deepspeech2", "dcrnn"),
    *("show-and-tell-raw", "pointer-network-raw", "neural-turing", "moe-block"),
)
_MODELS = Path(__file__).parents[1] / "dataset"


def _traced(build: Callable[[], Graph]) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
    """The function that a model traces, its arguments, and positions of parameters."""
    seen: list[tuple[Any, ...]] = []

    def note(fn: Any, *args: Any, param_argnums: Any = (), **options: Any) -> Graph:
        seen.append((fn, args, param_argnums))
        return importer.from_jax(fn, *args, param_argnums=param_argnums, **options)

    with mock.patch("models.tracing.from_jax", note):
        build()
    if not seen:
        raise ValueError("this model is not traced by models.tracing")
    return seen[-1]


def compare(
    fn: Callable[..., Any], args: tuple[Any, ...], argnums: Any, exported: bool
) -> list[str]:
    """Lines that tell how the graphs of a function differ.

    Args:
      fn: the function.
      args: its arguments, shapes and types.
      argnums: positions of its parameters.
      exported: whether it goes through `jax.export`.
    """
    params = {argnums} if isinstance(argnums, int) else set(argnums)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ours = importer.from_jax(fn, *args, param_argnums=sorted(params))
        if exported:
            module = jax.export.export(jax.jit(fn))(*args)
            theirs = from_stablehlo(module, param_argnums=sorted(params))
        else:
            owner = [i for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
            leaves = [leaf for leaf, i in enumerate(owner) if i in params]
            lowered = jax.jit(fn, keep_unused=True).lower(*args)
            theirs = from_stablehlo(lowered, param_argnums=leaves)
    both = [fuse(graph) for graph in (ours, theirs)]
    figures = {
        "flops": [graph.total_flops for graph in both],
        "bytes": [sum(node.bytes_accessed for node in graph.nodes) for graph in both],
        "products": [
            sum(node.flops for node in graph.nodes if node.op in _PRODUCTS)
            for graph in (ours, theirs)
        ],
        "weights": [sum(weight.bytes for weight in graph.weights) for graph in both],
    }
    line = ", ".join(
        f"{name} {second / first:.4f}" if first else f"{name} {second:g} (0)"
        for name, (first, second) in figures.items()
    )
    flops: list[collections.Counter[str]] = []
    for graph in (ours, theirs):
        flops.append(collections.Counter())
        for node in graph.nodes:
            flops[-1][node.op] += int(node.flops)
    more = dict(flops[1] - flops[0])
    less = dict(flops[0] - flops[1])
    return [line, f"  more FLOPs: {more or 'none'}", f"  fewer: {less or 'none'}"]


def main() -> None:
    """Prints the comparison of each model."""
    sys.path.insert(0, str(_MODELS))
    from models import catalog

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--exported", action="store_true", help="through jax.export")
    arguments = parser.parse_args()
    models = {model.name: model for model in catalog.models()}
    for name in arguments.names or [name for name in _DEFAULT if name in models]:
        try:
            traced = _traced(models[name].build)
        except (ImportError, ValueError) as error:
            print(f"{name}: {error}")
            continue
        print(f"{name}:", "\n".join(compare(*traced, arguments.exported)), flush=True)


if __name__ == "__main__":
    main()
