"""A picture of a partition: load, memory and links of every chip."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpart.errors import InputError
from jaxpart.results.report import binding
from jaxpart.text import name_of

if TYPE_CHECKING:
    from jaxpart.results.scored import ScoredPartition

KINDS = (".png", ".svg", ".pdf")
_MIB = 2**20
COLOURS = {"compute": "#3b6fb6", "in": "#e0a030", "out": "#c8553d", "memory": "#7a9e7e"}


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind of picture by the ending of `path`: `png`, `svg` or `pdf`.

    Raises:
      InputError: `path` has another ending.
    """
    ending = Path(path).suffix.lower()
    if ending not in KINDS:
        shown = os.fspath(path) or "''"
        raise InputError(
            f"{shown}: a picture ends in {', '.join(KINDS)}, not {ending or 'nothing'}"
        )
    return ending[1:]


def draw(scored: ScoredPartition, path: str | os.PathLike[str]) -> bytes:
    """Draws a partition; valid or not.

    Args:
      scored: the partition.
      path: decides the kind of picture (`kind_of`); nothing is written there.

    Returns:
      The bytes of the picture.

    Raises:
      InputError: `path` has an unknown ending.
    """
    from matplotlib.figure import Figure  # slow to import

    kind = kind_of(path)
    mcm = scored.problem.mcm
    with_links = len(mcm.links) > 0
    chips = np.arange(mcm.num_chips)
    figure = Figure(figsize=(11, 8.2 if with_links else 6.4), layout="constrained")
    axes = figure.subplots(
        2 + with_links, 1, height_ratios=[3, 1.6, 1.4][: 2 + with_links], squeeze=False
    )[:, 0]
    # Names are text: "$" begins no formula.
    figure.suptitle(_title(scored), fontsize=12, x=0.01, ha="left", parse_math=False)
    _draw_load(axes[0], scored, chips)
    _draw_memory(axes[1], scored, chips)
    for axis in axes[:2]:
        axis.set_xlim(-0.6, mcm.num_chips - 0.4)
    if with_links:
        _draw_links(axes[2], scored)
    for axis in axes:
        plain(axis, grid="y")
    return rendered(figure, kind)


def plain(axis: Any, grid: str) -> None:
    """Leaves out the frame at the top and right; draws a faint grid along one axis (x, y)."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def rendered(figure: Any, kind: str) -> bytes:
    """The bytes of a figure as `png`, `svg` or `pdf`."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; the files have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(content, format=kind, dpi=130)
    return content.getvalue()


def _title(scored: ScoredPartition) -> str:
    problem = scored.problem
    title = (
        f"{name_of(problem.graph.name)} on {name_of(problem.mcm.name)}: {us(scored.bottleneck_s)}"
    )
    title += f", bound by {binding(problem, scored.costs)}"
    if scored.improvement is not None:
        title += f", {scored.improvement:.3f}x greedy"
    if scored.gap is not None:
        title += f", gap {100 * scored.gap:.2f}%"
    return title


def _draw_load(axis: Any, scored: ScoredPartition, chips: np.ndarray) -> None:
    costs = scored.costs
    parts = {"compute": costs.compute_s, "in": costs.in_s, "out": costs.out_s}
    if scored.problem.mcm.overlap:
        for i, (name, seconds) in enumerate(parts.items()):
            _bars(
                axis, chips + 0.27 * (i - 1), seconds * 1e6, 0.27, color=COLOURS[name], label=name
            )
    else:
        bottom = np.zeros(len(chips))
        for name, seconds in parts.items():
            top = bottom + seconds * 1e6
            _bars(axis, chips, top, 0.8, bottom, color=COLOURS[name], label=name)
            bottom = top
    axis.axhline(
        scored.bottleneck_s * 1e6,
        color="#222222",
        linewidth=1.2,
        label=f"bottleneck {us(scored.bottleneck_s)}",
    )
    axis.axhline(
        scored.lower_bound_s * 1e6,
        color="#222222",
        linewidth=1.2,
        linestyle="--",
        label=f"lower bound {us(scored.lower_bound_s)} ({name_of(scored.bound_method)})",
    )
    axis.set_ylabel("us per inference")
    axis.set_ylim(bottom=0)
    # The legend is outside the axes; inside, it would hide bars.
    legend = axis.legend(
        ncols=5, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_memory(axis: Any, scored: ScoredPartition, chips: np.ndarray) -> None:
    capacity = scored.problem.capacity_bytes / _MIB
    held = scored.costs.memory_bytes / _MIB
    _bars(axis, chips, held, 0.8, color=COLOURS["memory"], label="held")
    edges = np.arange(len(chips) + 1) - 0.5
    axis.stairs(capacity, edges, color="#222222", linewidth=1.2, label="capacity", baseline=None)
    axis.set_ylabel("memory, MiB")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("chip")
    axis.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9)


def _draw_links(axis: Any, scored: ScoredPartition) -> None:
    mcm = scored.problem.mcm
    busy = scored.costs.link_s * 1e6
    if mcm.topology == "chain":
        _bars(axis, np.arange(len(busy)) + 0.5, busy, 0.5, color=COLOURS["out"])
        axis.set_xlim(-0.6, mcm.num_chips - 0.4)
        axis.set_xlabel("link between chips")
    else:
        order = np.argsort(-busy, kind="stable")
        _bars(axis, np.arange(len(busy)), busy[order], 0.8, color=COLOURS["out"])
        axis.set_xlabel("links, busiest first")
    axis.set_ylabel("link busy, us")
    axis.set_ylim(bottom=0)


def _bars(
    axis: Any,
    at: np.ndarray,
    top: Any,
    width: float,
    bottom: np.ndarray | float = 0.0,
    **look: Any,
) -> None:
    """Draws bars as one collection: `Axes.bar` takes a millisecond for each."""
    from matplotlib.collections import PolyCollection

    left, right = at - width / 2, at + width / 2
    low = np.broadcast_to(bottom, top.shape)
    x, y = np.stack([left, right, right, left], 1), np.stack([low, low, top, top], 1)
    axis.add_collection(PolyCollection(list(np.stack([x, y], 2)), linewidth=0, **look))
    axis.autoscale_view()


def us(seconds: float) -> str:
    """Seconds as text in us."""
    return f"{seconds * 1e6:,.5g} us" if seconds < 0.1 else f"{seconds * 1e6:,.0f} us"
