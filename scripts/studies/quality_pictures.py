"""The pictures of the benchmark, drawn as in `jaxpart/results/picture.py`, without pyplot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import growth
import numpy as np
from matplotlib.figure import Figure
from quality_figures import Judged, Row
from rivals import RIVALS

from jaxpart.files import write_whole

_SHORTEST_S = 0.01  # start of the time axis, seconds
_LINES = {
    "first_s": "s to the first partition",
    "near_s": "s to 1% of its end",
    "peak_bytes": "peak GiB",
    "worker_peak_bytes": "peak GiB of a worker",
}


def draw_quality(judged: Sequence[Judged], path: Path) -> None:
    """Draws the share of runs that are within 1% of the best known, against seconds of search.

    Args:
      judged: the runs, at least one.
      path: of the PNG.
    """
    limit_s = judged[0].limit_s
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for i, method in enumerate(dict.fromkeys(run.method for run in judged)):
        times_s = [run.near_s for run in judged if run.method == method]
        reached_s = sorted(max(at_s, _SHORTEST_S) for at_s in times_s if at_s <= limit_s)
        shares = np.arange(len(reached_s) + 1) / len(times_s)
        axes.step(
            [_SHORTEST_S, *reached_s, limit_s],
            [0, *shares[1:], shares[-1]],
            where="post",
            label=method,
            color=f"C{i}",
            linewidth=2.4 if method == "auto" else 1.4,
            linestyle="--" if method in RIVALS else "-",
        )
    axes.set(
        xscale="log",
        xlim=(_SHORTEST_S, limit_s),
        ylim=(0, 1),
        xlabel="seconds of search",
        ylabel="share of runs within 1% of the best known",
    )
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    _save(figure, [axes], path)


def draw_growth(rows: Sequence[Row], path: Path) -> None:
    """Draws seconds and memory against nodes and against chips, with their exponents.

    Args:
      rows: of all parts of the benchmark; without a sweep nothing is drawn.
      path: of the PNG.
    """
    sweeps = growth.sweeps(rows)
    if not sweeps:
        return
    figure = Figure(figsize=(4.8 * len(sweeps), 4.2), layout="constrained")
    panels = figure.subplots(1, len(sweeps), squeeze=False)[0]
    for axes, (along, chosen) in zip(panels, sweeps, strict=True):
        for i, (name, label) in enumerate(_LINES.items()):
            points = [(row[along], row[name]) for row in chosen if row.get(name)]
            power = growth.power(chosen, along, name)
            if power is not None:
                sizes, values = zip(*points, strict=True)
                scaled = [value * growth.FITTED[name] for value in values]
                text = f"{label}, exponent {power:.2f}"
                style = "o-" if name.endswith("_s") else "s--"
                axes.plot(sizes, scaled, style, color=f"C{i}", markersize=4, label=text)
        axes.set(xscale="log", yscale="log", xlabel=along, ylabel="s, GiB")
        other = f"{chosen[0]['chips']} chips" if along == "nodes" else f"{chosen[0]['nodes']} nodes"
        axes.set_title(f"decoder, {other}", fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=8)
    _save(figure, panels, path)


def _save(figure: Figure, panels: Sequence[Any], path: Path) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())
