"""A picture of a pipeline at work: who is busy when, during the first inferences."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from jaxpart.export.simulation.pipeline import COMPUTE, IN, LINK, OUT, Pipeline
from jaxpart.problem.problem import FloatArray, Problem
from jaxpart.results.picture import COLOURS, kind_of, plain, rendered
from jaxpart.text import name_of

INFERENCES = 16  # most that are drawn
_COLOUR_OF = {IN: COLOURS["in"], COMPUTE: COLOURS["compute"], OUT: COLOURS["out"]}
_NAMES = {IN: "in", COMPUTE: "compute", OUT: "out"}
_HEIGHT_INCHES = (0.16, 3.0, 22.0)  # of a row; of the picture at least, at most
_LABELS = 40  # most rows of a panel that have a label each


def draw(
    problem: Problem,
    pipeline: Pipeline,
    start_s: FloatArray,
    what: str,
    path: str | os.PathLike[str],
) -> bytes:
    """Draws the jobs of the first R inferences: rows are chips and links, time goes right.

    Every second inference is lighter. With overlap a chip's row has a lane each for what it
    receives, computes and sends.

    Args:
      problem: of C chips and L links.
      pipeline: of J jobs.
      start_s: [R, J] when each job starts.
      what: what is shown, for the title.
      path: decides the kind of picture; nothing is written there.

    Returns:
      The bytes of the picture.

    Raises:
      InputError: `path` has an unknown ending.
    """
    from matplotlib.figure import Figure  # slow to import

    kind = kind_of(path)
    on_links = pipeline.kind == LINK
    chips, links = np.unique(pipeline.place[~on_links]), np.unique(pipeline.place[on_links])
    panels = [len(chips), len(links)] if len(links) else [len(chips)]
    per_row, least, most = _HEIGHT_INCHES
    height = min(max(per_row * sum(panels) + 1.6, least), most)
    figure = Figure(figsize=(11, height), layout="constrained")
    axes = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, height_ratios=[n + 1 for n in panels]
    )[:, 0]
    names = f"{name_of(problem.graph.name)} on {name_of(problem.mcm.name)}"
    # Names are text: "$" begins no formula.
    figure.suptitle(f"{names}: {what}", fontsize=12, x=0.01, ha="left", parse_math=False)
    lanes = {IN: -0.27, COMPUTE: 0.0, OUT: 0.27} if problem.mcm.overlap else {}
    for job, name in _NAMES.items():
        chosen = np.flatnonzero(pipeline.kind == job)
        rows = np.searchsorted(chips, pipeline.place[chosen]) + lanes.get(job, 0.0)
        deep = 0.27 if lanes else 0.8
        _boxes(axes[0], pipeline, start_s, chosen, rows, deep, color=_COLOUR_OF[job], label=name)
    _label(axes[0], "chip", [str(c) for c in chips])
    axes[0].legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9)
    if len(links):
        chosen = np.flatnonzero(on_links)
        rows = np.searchsorted(links, pipeline.place[chosen])
        _boxes(axes[1], pipeline, start_s, chosen, rows, 0.8, color=COLOURS["out"])
        ends = [problem.mcm.links[i] for i in links.tolist()]
        _label(axes[1], "link", [f"{a}>{b}" for a, b in ends])
    axes[-1].set_xlabel("time, us")
    axes[-1].set_xlim(left=0)
    return rendered(figure, kind)


def _boxes(
    axis: Any,
    pipeline: Pipeline,
    start_s: FloatArray,
    jobs: np.ndarray,
    rows: np.ndarray,
    deep: float,
    **look: Any,
) -> None:
    """Draws the chosen jobs of all inferences, as two collections: even and odd inferences."""
    from matplotlib.collections import PolyCollection

    low, high = rows - deep / 2, rows + deep / 2
    label = look.pop("label", None)
    for odd in range(2):
        begin = start_s[odd::2, jobs] * 1e6
        end = begin + pipeline.seconds[jobs] * 1e6
        y_low, y_high = np.broadcast_to(low, begin.shape), np.broadcast_to(high, begin.shape)
        x = np.stack([begin, end, end, begin], -1).reshape(-1, 4)
        y = np.stack([y_low, y_low, y_high, y_high], -1).reshape(-1, 4)
        boxes = list(np.stack([x, y], 2))
        shade = {"alpha": 0.5 if odd else 1.0, "label": None if odd else label}
        axis.add_collection(PolyCollection(boxes, linewidth=0, **shade, **look))
    axis.autoscale_view()


def _label(axis: Any, what: str, names: list[str]) -> None:
    """Names the rows, first one at the top; only every n-th where there are many."""
    step = -(-len(names) // _LABELS)
    axis.set_yticks(range(0, len(names), step), names[::step], fontsize=7)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_ylabel(what)
    plain(axis, grid="x")
