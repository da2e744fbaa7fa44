"""The shipped graphs for a reader: a table, the record of one graph, a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import msgspec
import numpy as np

from jaxpart.datasets.manifest import Entry
from jaxpart.datasets.shipped import SPLITS, contents, entry, split
from jaxpart.problem.graph import Graph
from jaxpart.text import name_of, one_line

_LAYOUT = "{:<24} {:<5} {:<11} {:>5} {:>5} {:>9} {:>9} {:>5} {:>5} {:>9} {:>7}"
_HEADER = (
    *("graph", "side", "kind", "nodes", "edges", "GFLOP", "MiB", "depth", "width", "ideals"),
    "largest",
)


def table(side: str | None = None, names: Sequence[str] = ()) -> str:
    """A table of shipped graphs, one line per graph; all graphs by default.

    Args:
      side: only the graphs of this split; see `SPLITS`.
      names: only the graphs with these names, in this order; `side` is then ignored.

    Raises:
      InputError: no split or no graph has this name.
    """
    if names:
        chosen = [entry(name) for name in names]
    else:
        order = [name for one in SPLITS for name in split(one)] if side is None else split(side)
        by_name = {one.name: one for one in contents().graphs}
        chosen = [by_name[name] for name in order]
    lines = [_LAYOUT.format(*_HEADER), *(_LAYOUT.format(*_row(one)) for one in chosen)]
    return "\n".join([*lines, _summary(chosen)])


def record(one: Entry) -> str:
    """All fields of the manifest entry of one graph, one per line."""
    fields = msgspec.structs.asdict(one).items()
    return "\n".join(
        f"{field:<20} {'' if value is None else one_line(str(value))}" for field, value in fields
    )


def draw(graphs: Sequence[Graph]) -> bytes:
    """Draws graphs below each other.

    Each node is a dot; its depth in the graph grows to the right. The area of a dot grows with the
    square root of the node's FLOPs, its colour with their logarithm.

    Returns:
      The bytes of a PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.9 * len(graphs)), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, graph in zip(figure.subplots(len(graphs), squeeze=False)[:, 0], graphs, strict=True):
        place = _layout(graph)
        lines = [place[[k.producer, q]] for k in graph.tensors for q in k.consumers]
        axis.add_collection(LineCollection(lines, colors="0.65", linewidths=0.6, zorder=1))
        flops = np.array([node.flops for node in graph.nodes])
        area = 3 + 60 * np.sqrt(flops / max(flops.max(), 1))
        axis.scatter(*place.T, area, c=np.log10(flops + 1), cmap="viridis", zorder=2)
        title = f"{name_of(graph.name)}: {len(graph.nodes)} nodes"
        axis.set_title(title, loc="left", fontsize=9, parse_math=False)
        axis.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=80, metadata={"Software": None})
    return content.getvalue()


def _layout(graph: Graph) -> np.ndarray:
    """[N, 2] x and y of each node: its depth, and its centred rank among nodes of this depth.

    The rank follows the mean y of the node's producers, so that edges stay short.
    """
    before: list[list[int]] = [[] for _ in graph.nodes]
    for tensor in graph.tensors:
        for q in tensor.consumers:
            before[q].append(tensor.producer)
    place = np.zeros((len(graph.nodes), 2))
    levels: dict[int, list[int]] = {}
    for v, producers in enumerate(before):
        level = 1 + max((int(place[u, 0]) for u in producers), default=-1)
        place[v] = level, np.mean([place[u, 1] for u in producers]) if producers else 0.0
        levels.setdefault(level, []).append(v)
    for level in sorted(levels):
        row = levels[level]
        wanted = {v: np.mean([place[u, 1] for u in before[v]] or [0.0]) for v in row}
        for rank, v in enumerate(sorted(row, key=lambda v: (wanted[v], v))):
            place[v, 1] = rank - (len(row) - 1) / 2
    return place


def _row(entry: Entry) -> tuple[object, ...]:
    return (
        name_of(entry.name),
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
