"""Compares the graphs of `from_stablehlo` with those of `from_jax`, operation by operation.

  python scripts/studies/stablehlo_check.py [--exported] [--json FILE] [NAME ...]

Each function is lowered by `jax.jit`, or with `--exported` by `jax.export`, and read back. A line
tells the ratios of FLOPs and bytes after fusing, of products and convolutions, and of weights;
below it stands what one graph has more of than the other. Names are those of `scripts/dataset`;
without any, the models of flax in it are taken that are traced in seconds.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from jaxpart.arguments import file_path
from jaxpart.environment import environment
from jaxpart.files import write_whole
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
_FIGURES = ("flops", "bytes", "products", "weights")
_SHOWN = 3  # operations in a cell of the table
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
) -> dict[str, Any]:
    """How the graphs of a function differ.

    Args:
      fn: the function.
      args: its arguments, shapes and types.
      argnums: positions of its parameters.
      exported: whether it goes through `jax.export`.

    Returns:
      The number of nodes of `from_jax`; pairs of figures, of `from_jax` and of `from_stablehlo`:
      "flops" and "bytes" after fusing, "products" and "weights" (bytes) before; and the FLOPs by
      operation that the second graph has "more" of and "less" of than the first.
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
    flops: list[collections.Counter[str]] = []
    for graph in (ours, theirs):
        flops.append(collections.Counter())
        for node in graph.nodes:
            flops[-1][node.op] += int(node.flops)
    return {
        "nodes": len(ours.nodes),
        "flops": [graph.total_flops for graph in both],
        "bytes": [sum(node.bytes_accessed for node in graph.nodes) for graph in both],
        "products": [
            sum(node.flops for node in graph.nodes if node.op in _PRODUCTS)
            for graph in (ours, theirs)
        ],
        "weights": [sum(weight.bytes for weight in graph.weights) for graph in both],
        "more": dict(flops[1] - flops[0]),
        "less": dict(flops[0] - flops[1]),
    }


def described(row: dict[str, Any]) -> str:
    """What `compare` gives, as lines."""
    line = ", ".join(
        f"{name} {second / first:.4f}" if first else f"{name} {second:g} (0)"
        for name, (first, second) in ((name, row[name]) for name in _FIGURES)
    )
    more, less = row["more"] or "none", row["less"] or "none"
    return f"{line}\n  more FLOPs: {more}\n  fewer: {less}"


def table_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line for each function: ratios, and the operations that differ most, as shares of FLOPs."""
    lines = []
    for row in rows:
        ratios = [
            f"{second / first:.4f}" if first else "-"
            for first, second in (row[name] for name in _FIGURES)
        ]
        differing = [_shares(row[key], row["flops"][0]) for key in ("more", "less")]
        lines.append([row["graph"], f"{row['nodes']:,}", *ratios, *differing])
    return lines


def _shares(flops: dict[str, int], total: float) -> str:
    """The operations with the most FLOPs, and their share of all of the model's."""
    largest = sorted(flops.items(), key=lambda item: -item[1])
    shown = [f"{op} {100 * n / total:.2g}%" for op, n in largest[:_SHOWN]]
    return ", ".join([*shown, *(["..."] if len(largest) > _SHOWN else [])]) or "none"


def main() -> None:
    """Prints the comparison of each model."""
    sys.path.insert(0, str(_MODELS))
    from models import catalog

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--exported", action="store_true", help="through jax.export")
    parser.add_argument("--json", type=file_path, metavar="FILE", help="write the rows here")
    arguments = parser.parse_args()
    models = {model.name: model for model in catalog.models()}
    rows = []
    for name in arguments.names or [name for name in _DEFAULT if name in models]:
        try:
            traced = _traced(models[name].build)
        except (ImportError, ValueError) as error:
            print(f"{name}: {error}")
            continue
        rows.append({"graph": name, **compare(*traced, arguments.exported)})
        print(f"{name}:", described(rows[-1]), flush=True)
    if arguments.json is not None:
        document = {"environment": environment(), "rows": rows}
        write_whole(arguments.json, json.dumps(document, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
