"""Tables of what the policy learned."""

from __future__ import annotations

import statistics
from typing import Any

import transfer_figures
from table_parts import markdown, percent, raw

_SAMPLES = (64, 256, 1024, 4096)


def transfer() -> str:
    """The study of transfer: improvement after so many samples."""
    document = raw("transfer")
    most = document["settings"]["samples"]["labels"]
    lines = []
    for title, chosen in transfer_figures.classes(document["pairs"]):
        name = "all" if title == "all pairs" else "with headroom"
        for method in transfer_figures.METHODS:
            runs = transfer_figures.runs_of(chosen, "labels", method)
            gains = [transfer_figures.mean(runs, count) for count in (*_SAMPLES, most)]
            lines.append(
                [
                    *(f"{len(chosen)}, {name}", method, *(f"{gain:.3f}" for gain in gains)),
                    f"{transfer_figures.spread(runs, most):.3f}",
                ]
            )
    columns = " | ".join(f">{count:,}" for count in (*_SAMPLES, most))
    return markdown(f"pairs | method | {columns} | >spread", lines)


def beyond() -> str:
    """Modules and models that the policy was never trained on, and node orders."""
    methods = ("random", "annealing", "fresh", "zero-shot", "fine-tuned")
    lines = []

    def line(decoder: str, title: str, pairs: dict[str, Any], most: int) -> None:
        gains = [
            transfer_figures.mean(transfer_figures.runs_of(pairs, decoder, method), most)
            for method in methods
        ]
        lines.append([decoder, title, str(len(pairs)), *(f"{gain:.3f}" for gain in gains)])

    for name, decoder in (("beyond", "labels"), ("pipedream", "labels"), ("orders", "orders")):
        document = raw(f"transfer-{name}")
        most = document["settings"]["samples"][decoder]
        known = {key: pair for key, pair in document["pairs"].items() if pair["runs"]}
        for module in dict.fromkeys(key.split("/")[1] for key in known):
            chosen = {key: pair for key, pair in known.items() if key.split("/")[1] == module}
            title = f"{module} (PipeDream)" if name == "pipedream" else module
            line(decoder, title, chosen, most)
        if decoder == "orders":
            line(decoder, "with headroom", transfer_figures.classes(known)[1][1], most)
    columns = " | ".join(f">{method}" for method in methods)
    return markdown(f"decoder | module | >graphs | {columns}", lines)


def ablations() -> str:
    """The policy without one of its parts."""
    document = raw("transfer-ablations")
    most = document["settings"]["samples"]["labels"]
    names = {
        "zero-shot": "zero-shot, whole",
        "one-round": "no refinement",
        "sample-mode": "`sample` mode",
        "no-solver": "no solver",
        "as-drawn": "nothing made valid",
        "scratch": "learned from scratch",
        "no-attention": "from scratch, no attention",
    }
    lines = []
    for method, name in names.items():
        runs = transfer_figures.runs_of(document["pairs"], "labels", method)
        valid = statistics.fmean(run["valid"] / run["samples"] for run in runs)
        lines.append([name, f"{transfer_figures.mean(runs, most):.3f}", percent(valid, 1)])
    return markdown("without | >x greedy | >samples valid", lines)
