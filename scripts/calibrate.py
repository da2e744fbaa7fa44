"""Describes the device at hand as a module, from measured nodes of models.

  python scripts/calibrate.py resnet.onnx bert.onnx --out cpu.toml
  python scripts/calibrate.py gpt.json --measured gpu.csv --out gpu.toml --chips 8

The numbers peak_flops and sram_bandwidth, and the time that starting a node takes, are those with
the least sum of absolute errors (`jaxpart/export/measuring/calibrate.py`). ONNX files are measured
here, as `jaxpart profile` does, unless --measured brings what was measured before. Take models like
those to be partitioned: one pair of numbers describes no device for all operators.

The file is used by `--mcm`. It has no place for the time of starting nodes; --predicted writes, for
each model, seconds of its nodes that include it, for `--seconds`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from jaxpart import datasets
from jaxpart.arguments import Parser, count, file_name, file_path, name_or_file, positive
from jaxpart.commands.inputs import warnings_told
from jaxpart.errors import InputError
from jaxpart.export.measuring.calibrate import Device, calibrated, toml
from jaxpart.export.measuring.profile import profile
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
    add("models", nargs="+", metavar="MODEL", type=name_or_file, help="ONNX files; any graphs")
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
    if arguments.predicted is not None and not arguments.predicted.is_dir():
        raise InputError(f"{arguments.predicted}: is no folder, expected one")
    with warnings_told():
        graphs, origins = _measured(arguments.models, arguments.measured, arguments.count)
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
    for model, graph in zip(arguments.models, graphs, strict=True):
        if arguments.predicted is not None:
            path = arguments.predicted / f"{stem_of(model)}.seconds.csv"
            write_seconds(path, device.seconds(graph))
            print(one_line(f"written: {path}"))
    return 0


def _measured(models: list[str], files: list[str], count: int) -> tuple[list[Graph], list[str]]:
    """The graphs with their measured seconds, and where each was measured."""
    if files:
        pairs = zip(models, files, strict=True)
        graphs = [with_seconds(datasets.resolve(model)[0], file) for model, file in pairs]
        return graphs, [os.path.basename(file) for file in files]
    graphs, origins = [], []
    for model in models:
        with progress.counted(sys.stderr, count, f"runs of {Path(model).name}") as callback:
            found = profile(model, count=count, callback=callback)
        graphs.append(found.graph)
        origins.append(found.device)
    return graphs, origins


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
