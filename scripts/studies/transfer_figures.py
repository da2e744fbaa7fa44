"""Tables and curves of the study of transfer (`transfer.py`).

The history of a run is a list of (samples, seconds, improvement) in ascending order. Improvement is
T_baseline / T; it is 1 before the first entry. Means over runs are geometric.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxpart.files import write_whole

Run = dict[str, Any]
Pair = dict[str, Any]

METHODS = ("random", "annealing", "fresh", "scratch", "zero-shot", "fine-tuned")
CHECKPOINTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
LEARNABLE = 1.02  # largest headroom that counts as none
PAPER = "bert-large/mcm36"  # the pair that the paper reports
_FIRST = 16  # samples at which curves begin


def reached(run: Run, samples: float) -> float:
    """The improvement of a run after a number of samples."""
    return next((gain for n, _, gain in reversed(run["history"]) if n <= samples), 1.0)


def samples_to(runs: Sequence[Run], improvement: float, most: int) -> float:
    """The samples that each run needs until the mean over the runs reaches an improvement.

    Args:
      runs: at least one.
      improvement: that the mean shall reach.
      most: samples of each run.

    Returns:
      Samples per run; inf if `most` samples are too few.
    """
    steps = sorted({n for run in runs for n, _, _ in run["history"] if n <= most})
    return next((n for n in steps if mean(runs, n) >= improvement), math.inf)


def mean(runs: Sequence[Run], samples: float) -> float:
    """The mean improvement of runs after a number of samples each."""
    return statistics.geometric_mean(reached(run, samples) for run in runs)


def runs_of(pairs: Mapping[str, Pair], decoder: str, method: str) -> list[Run]:
    """All runs of a method with a decoder, over all pairs."""
    start = f"{decoder}/{method}/"
    return [
        run
        for pair in pairs.values()
        for key, run in pair["runs"].items()
        if key.startswith(start) and "history" in run
    ]


def classes(pairs: Mapping[str, Pair]) -> list[tuple[str, dict[str, Pair]]]:
    """(title, pairs): all pairs that have runs, and those of them with headroom."""
    every = {name: pair for name, pair in pairs.items() if pair["runs"]}
    wide = {k: v for k, v in every.items() if (v["headroom"] or math.inf) > LEARNABLE}
    return [("all pairs", every), (f"headroom > {LEARNABLE}", wide)]


def tables(document: dict[str, Any], decoder: str) -> list[str]:
    """The tables of one decoder: improvement after samples, samples needed, the paper's pair.

    Args:
      document: the study.
      decoder: "labels" or "orders".

    Returns:
      Lines: the first two tables for all pairs and for those with headroom, then the third.
    """
    most = document["settings"]["samples"][decoder]
    lines: list[str] = []
    for title, chosen in classes(document["pairs"]):
        by_method = _by_method(chosen, decoder)
        if by_method:
            lines += ["", *_improvements(f"{decoder}, {title}", len(chosen), by_method, most)]
            lines += ["", *_needed(by_method, most)]
    if PAPER in document["pairs"]:
        lines += _paper(document["pairs"][PAPER], decoder, most)
    return lines


def _by_method(pairs: Mapping[str, Pair], decoder: str) -> dict[str, list[Run]]:
    """The runs of each method that has any; the methods of `METHODS` come first."""
    keys = [key.split("/") for pair in pairs.values() for key in pair["runs"]]
    others = dict.fromkeys(method for of, method, _ in keys if of == decoder)
    by_method = {m: runs_of(pairs, decoder, m) for m in dict.fromkeys((*METHODS, *others))}
    return {method: runs for method, runs in by_method.items() if runs}


def _improvements(title: str, pairs: int, by_method: dict[str, list[Run]], most: int) -> list[str]:
    counts = [count for count in CHECKPOINTS if count <= most]
    head = "".join(f"{count:>9}" for count in counts)
    lines = [
        f"{title} ({pairs}): T_baseline / T after so many samples",
        f"{'method':<12}{head}{'final':>9}{'spread':>8}{'runs':>6}{'valid %':>9}{'s':>8}",
    ]
    for method, runs in by_method.items():
        cells = "".join(f"{mean(runs, count):>9.4f}" for count in counts)
        seconds = statistics.geometric_mean(run["seconds"] for run in runs)
        valid = f"{100 * statistics.fmean(run['valid'] / run['samples'] for run in runs):.1f}"
        # Methods that offer single candidates, as evolution of orders does, count no valid samples.
        valid = valid if any(run["valid"] for run in runs) else "-"
        lines.append(
            f"{method:<12}{cells}{mean(runs, most):>9.4f}{spread(runs, most):>8.4f}"
            f"{len(runs):>6}{valid:>9}{seconds:>8.1f}"
        )
    return lines


def spread(runs: Sequence[Run], most: int) -> float:
    """The standard deviation over seeds of the mean over pairs, after `most` samples."""
    by_seed: dict[int, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run["seed"], []).append(run)
    return statistics.pstdev(mean(of_seed, most) for of_seed in by_seed.values())


def _needed(by_method: dict[str, list[Run]], most: int) -> list[str]:
    """A table of the samples that each method needs to reach the final mean of each other one."""
    targets = list(by_method)
    lines = [
        f"samples until as good as the others in the end ({most})",
        f"{'method':<12}" + "".join(f"{target:>14}" for target in targets),
    ]
    for method, runs in by_method.items():
        needed = [samples_to(runs, mean(by_method[other], most), most) for other in targets]
        lines.append(f"{method:<12}" + "".join(f"{_whole(value):>14}" for value in needed))
    return lines


def _paper(pair: Pair, decoder: str, most: int) -> list[str]:
    """A table of the paper's pair.

    Its columns are the final improvement, that relative to random and annealing, and the samples
    and seconds to reach the final mean of scratch.
    """
    by_method = _by_method({PAPER: pair}, decoder)
    if not {"random", "annealing", "scratch"} <= by_method.keys():
        return []
    finals = {method: mean(runs, most) for method, runs in by_method.items()}
    lines = [
        "",
        f"{decoder}, {PAPER}",
        f"{'method':<12}{'final':>9}{'over random':>13}{'over annealing':>16}"
        f"{'samples to scratch':>20}{'s to scratch':>14}",
    ]
    for method, runs in by_method.items():
        samples = samples_to(runs, finals["scratch"], most)
        seconds = _seconds_after(runs, samples)
        lines.append(
            f"{method:<12}{finals[method]:>9.4f}"
            f"{100 * (finals[method] / finals['random'] - 1):>12.2f}%"
            f"{100 * (finals[method] / finals['annealing'] - 1):>15.2f}%"
            f"{_whole(samples):>20}{'-' if math.isinf(seconds) else f'{seconds:.1f}':>14}"
        )
    return lines


def _seconds_after(runs: Sequence[Run], samples: float) -> float:
    """Mean seconds of the last improvement within a number of samples, compilation included."""
    if math.isinf(samples):
        return math.inf
    last = [max((s for n, s, _ in run["history"] if n <= samples), default=0.0) for run in runs]
    return statistics.fmean(last)


def _whole(value: float) -> str:
    return "-" if math.isinf(value) else f"{value:,.0f}"


def draw(document: dict[str, Any], path: Path) -> None:
    """Draws the mean improvement against samples over the pairs with headroom.

    Args:
      document: the study; each decoder with runs of random gets a panel.
      path: of the PNG.
    """
    wide = classes(document["pairs"])[1][1]
    decoders = [d for d in document["settings"]["samples"] if runs_of(wide, d, "random")]
    if not decoders:
        return
    figure = Figure(figsize=(4.8 * len(decoders), 4.2), layout="constrained")
    panels = figure.subplots(1, len(decoders), squeeze=False)[0]
    for axes, decoder in zip(panels, decoders, strict=True):
        most = document["settings"]["samples"][decoder]
        counts = np.unique(np.geomspace(_FIRST, most, 60).round())
        for i, method in enumerate(METHODS):
            runs = runs_of(wide, decoder, method)
            if runs:
                gains = [mean(runs, count) for count in counts]
                axes.plot(counts, gains, color=f"C{i}", label=method)
        axes.set(xscale="log", xlabel="samples", ylabel="T of greedy / T, geometric mean")
        axes.set_title(f"{decoder}, {len(wide)} pairs with headroom", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.6)
    panels[0].legend(frameon=False, fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())
