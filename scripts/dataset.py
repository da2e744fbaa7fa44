"""The graphs that come with jaxpart, as a table.

python scripts/dataset.py                    all
python scripts/dataset.py --split test       one side of the split
python scripts/dataset.py --show resnet50    what is known of one
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec

from jaxpart import dataset
from jaxpart.errors import InputError
from jaxpart.manifest import Entry

_LAYOUT = "{:<24} {:<5} {:<11} {:>5} {:>5} {:>9} {:>9} {:>5} {:>5} {:>9} {:>7}"
_HEADER = (
    *("graph", "side", "kind", "nodes", "edges", "GFLOP", "MiB", "depth", "width", "ideals"),
    "largest",
)


def main() -> None:
    """Prints a table of graphs, or one graph's record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=dataset.SPLITS)
    parser.add_argument("--show", metavar="NAME")
    arguments = parser.parse_args()
    if arguments.show:
        for field, value in msgspec.structs.asdict(dataset.entry(arguments.show)).items():
            print(f"{field:<20} {'' if value is None else value}")
        return
    sides = [arguments.split] if arguments.split else dataset.SPLITS
    chosen = [e for side in sides for e in dataset.contents().graphs if e.split == side]
    print(_LAYOUT.format(*_HEADER))
    for entry in chosen:
        print(_LAYOUT.format(*_row(entry)))
    print(_summary(chosen))


def _row(entry: Entry) -> tuple[object, ...]:
    return (
        entry.name,
        entry.split,
        entry.kind,
        entry.nodes,
        entry.edges,
        f"{entry.gflop:.3f}",
        f"{entry.weight_mib:.2f}",
        entry.depth,
        entry.width,
        f">{entry.ideals_limit:.0e}".replace("+0", "") if entry.ideals is None else entry.ideals,
        f"{100 * entry.largest_time_share:.1f} %",
    )


def _summary(entries: Sequence[Entry]) -> str:
    wide = sum(e.ideals is None or e.ideals > 10 * e.nodes for e in entries)
    return (
        f"{len(entries)} graphs, {len({e.topology for e in entries})} distinct structures, "
        f"{len({e.family for e in entries})} families; {wide} with more than 10 ideals a node; "
        f"{sum(e.bytes for e in entries) / 2**20:.2f} MiB\n"
        "largest: the slowest node's share of all nodes' time, on a chip of mcm36"
    )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
