"""Describes the device at hand as a module, from measured nodes of models.

  python scripts/calibrate.py resnet.onnx bert.onnx --out cpu.toml --resume measured --predicted .
  python scripts/calibrate.py gpt.json --measured gpu.csv --out gpu.toml --chips 8

  jaxpart partition bert.onnx --mcm cpu.toml                              without starting nodes
  jaxpart partition bert.onnx --mcm cpu.toml --seconds bert.seconds.csv   with it

The numbers peak_flops and sram_bandwidth, and the time that starting a node takes, are those with
the least sum of absolute errors (`jaxpart/export/measuring/calibrate.py`). Files that `jaxpart
profile` takes are measured here, as it does, unless --measured brings what was measured before.
With --resume a run that was stopped goes on where it was. Take models like
those to be partitioned: one pair of numbers describes no device for all operators.

The file is used by `--mcm`. A module has no place for the time of starting nodes, so `--mcm` alone
leaves it out. --predicted writes, for each model, seconds of its nodes that include it; `--seconds`
of all commands takes that file.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from jaxpart import datasets
from jaxpart.arguments import (
    Parser,
    add_dimension_argument,
    add_param_argument,
    count,
    file_name,
    file_path,
    name_or_file,
    positive,
)
from jaxpart.commands.inputs import sizes, warnings_told
from jaxpart.errors import InputError
from jaxpart.export.jax.from_file import is_for_jax, trace_file
from jaxpart.export.measuring.calibrate import Device, calibrated, toml
from jaxpart.export.measuring.profile import profile
from jaxpart.export.measuring.profile_jax import programs_of
from jaxpart.files import check_writable, stem_of, write_whole
from jaxpart.ingest.seconds import with_seconds, write_seconds
from jaxpart.problem.graph import Graph
from jaxpart.results import progress
from jaxpart.text import one_line


def main() -> int:
    """Measures, fits and writes."""
    arguments = _parser().parse_args()
    try:
        return _run(arguments)
    except InputError as error:
        print(one_line(f"error: {error}"), file=sys.stderr)
        return 2


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        type=name_or_file,
        help="files that can run, as for `jaxpart profile`; with --measured any graphs",
    )
    add(
        "--measured",
        nargs="+",
        metavar="FILE.csv",
        type=file_name,
        default=[],
        help="measured seconds, for each model in order (default: measured here)",
    )
    add("--out", metavar="FILE.toml", type=file_name, required=True, help="the module to write")
    add("--chips", metavar="N", type=count, default=4, help="of the module (default: 4)")
    add(
        "--sram-bytes",
        metavar="BYTES",
        type=positive,
        default=float(2**33),
        help="memory of each (default: 8 GiB; not measured)",
    )
    add(
        "--link-bandwidth",
        metavar="BYTES_PER_S",
        type=positive,
        default=8e9,
        help="between them (default: 8e9; not measured)",
    )
    add("--name", help="of the module (default: the name of the file)")
    add_dimension_argument(parser)
    add_param_argument(parser)
    add(
        "--resume",
        metavar="DIR",
        type=file_path,
        help="an existing folder for the runs of ONNX models so far, which a run of this script "
        "that was stopped takes up again",
    )
    add("--count", metavar="N", type=count, default=20, help="runs of each model (default: 20)")
    add(
        "--predicted",
        metavar="DIR",
        type=file_path,
        help="an existing folder for MODEL.seconds.csv, the times with that of starting nodes",
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.measured and len(arguments.measured) != len(arguments.models):
        raise InputError(
            f"--measured: {len(arguments.measured)} files for {len(arguments.models)} models, "
            "expected one for each"
        )
    check_writable(arguments.out, [*arguments.models, *arguments.measured])
    for folder in filter(None, (arguments.predicted, arguments.resume)):
        if not folder.is_dir():
            raise InputError(f"{folder}: is no folder, expected one")
    if arguments.predicted is not None:
        _check_stems(arguments.models)
    dims = _dims_of_each(arguments.models, sizes(arguments.dim))
    with warnings_told():
        graphs, origins = _measured(arguments, dims)
    device = calibrated(graphs)
    mcm = device.module(
        arguments.name or stem_of(arguments.out),
        arguments.chips,
        arguments.sram_bytes,
        arguments.link_bandwidth,
    )
    write_whole(arguments.out, toml(device, mcm, "; ".join(dict.fromkeys(origins))).encode())
    print(one_line(f"written: {arguments.out}"))
    print(_described(device, graphs))
    print(one_line(f"--mcm {arguments.out} leaves the time of starting nodes out;"))
    if arguments.predicted is None:
        print("--predicted DIR writes seconds of nodes that include it, for --seconds")
    else:
        print("--seconds FILE, of the files below, brings it in:")
    for model, graph in zip(arguments.models, graphs, strict=True):
        if arguments.predicted is not None:
            path = arguments.predicted / f"{stem_of(model)}.seconds.csv"
            write_seconds(path, device.seconds(graph))
            print(one_line(f"written: {path}"))
    return 0


def _check_stems(models: Sequence[str]) -> None:
    """Refuses models whose seconds would go to one file."""
    taken: dict[str, str] = {}
    for model in models:
        other = taken.setdefault(stem_of(model), model)
        if other is not model:
            raise InputError(
                f"--predicted: {other} and {model} would both go to "
                f"{stem_of(model)}.seconds.csv, expected models of different file names"
            )


def _dims_of_each(models: Sequence[str], dims: Mapping[str, int]) -> list[dict[str, int]]:
    """The sizes for each model: of several, those of the dimensions that its inputs name.

    Raises:
      InputError: no model has one of the names.
    """
    if len(models) == 1 or not dims:
        return [dict(dims) for _ in models]
    found = [{name: dims[name] for name in _free(model) if name in dims} for model in models]
    if lost := [name for name in dims if not any(name in own for own in found)]:
        raise InputError(f"--dim: no input of a model has a dimension {lost[0]!r}, expected one")
    return found


def _free(model: str) -> set[str]:
    """Names of the free dimensions of the inputs of an ONNX file; none of any other."""
    if not model.endswith(".onnx"):
        return set()
    try:
        proto = onnx.load(model, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base; the importer tells them
        raise InputError(f"{model}: cannot be read as an ONNX model ({error})") from error
    shapes = (value.type.tensor_type.shape for value in proto.graph.input)
    return {dim.dim_param for shape in shapes for dim in shape.dim if dim.dim_param}


def _measured(
    arguments: argparse.Namespace, dims: Sequence[Mapping[str, int]]
) -> tuple[list[Graph], list[str]]:
    """The graphs with their measured seconds, and where each was measured."""
    graphs, origins = [], []
    params, count = arguments.param_argnums, arguments.count
    if arguments.measured:
        for model, file, own in zip(arguments.models, arguments.measured, dims, strict=True):
            graph = datasets.resolve(model, dims=own, param_argnums=params)[0]
            graphs.append(with_seconds(graph, file))
            origins.append(os.path.basename(file))
        return graphs, origins
    for model, own in zip(arguments.models, dims, strict=True):
        if is_for_jax(model):
            trace = trace_file(model, dims=own, param_argnums=params)
            total, what = programs_of(trace), "programs"
            measure = functools.partial(profile, trace)
        else:
            total, what = count, "runs"
            out = _unfinished(arguments.resume, model)
            measure = functools.partial(profile, model, dims=own, out=out)
        with progress.counted(sys.stderr, total, f"{what} of {Path(model).name}") as callback:
            found = measure(count=count, callback=callback)
        graphs.append(found.graph)
        origins.append(found.device)
        for note in found.notes:
            print(one_line(f"{model}: note: {note}"))
    return graphs, origins


def _unfinished(folder: Path | None, model: str) -> Path | None:
    """Where the runs of a model are kept: by its whole path, since names repeat."""
    if folder is None:
        return None
    path = hashlib.sha256(os.path.realpath(model).encode()).hexdigest()[:8]
    return folder / f"{stem_of(model)}-{path}.csv"


def _described(device: Device, graphs: list[Graph]) -> str:
    """The fit in words, and on each model the time of all nodes together."""
    lines = [
        f"peak_flops      {device.peak_flops:,.4g} FLOP/s",
        f"sram_bandwidth  {device.sram_bandwidth:,.4g} bytes/s",
        f"starting        {device.launch_s * 1e6:,.4g} us a node",
        f"error           {100 * device.error:.1f}% of the time of {device.nodes:,} nodes",
        *(f"note: {note}" for note in device.notes),
    ]
    for graph in graphs:
        measured = sum(v.seconds or 0.0 for v in graph.nodes)
        found = sum(device.seconds(graph).values())
        lines.append(
            f"{graph.name}: {measured * 1e6:,.1f} us measured, {found * 1e6:,.1f} us fitted"
        )
    return "\n".join(map(one_line, lines))


if __name__ == "__main__":
    sys.exit(main())
