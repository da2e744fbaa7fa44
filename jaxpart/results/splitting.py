"""What splitting operations has changed, for reports."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxpart.ingest.rewrite.split import Split
from jaxpart.problem.mcm import MCM
from jaxpart.problem.problem import Problem

_MOST_NAMED = 3


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """How a graph was split before it was partitioned.

    Attributes:
      operations: how many operations were split.
      parts: into how many parts, all together.
      largest: name and number of parts of those that take longest, at most three.
      sums: added nodes that sum partial results.
      copies: added nodes that hand on tensors from chip to chip.
      nodes: of the graph before.
      compute_ratio: compute of the graph as split over that of the graph before.
      added_ratio: compute of sums and copies over that of the graph before.
      whole_s: T of the best partition found of the graph before; None: none was found.
      whole_mean_load_s: the mean load of the graph before, in seconds.
    """

    operations: int
    parts: int
    largest: tuple[tuple[str, int], ...]
    sums: int
    copies: int
    nodes: int
    compute_ratio: float
    added_ratio: float
    whole_s: float | None
    whole_mean_load_s: float

    @classmethod
    def of(cls, made: Split, mcm: MCM, whole_s: float | None) -> SplitInfo:
        """Compares a graph with parts and copies to the graph before.

        Args:
          made: the split, copies included.
          mcm: the module.
          whole_s: T of the best partition found of the graph before; None: none was found.
        """
        before, after = Problem.build(made.original, mcm), Problem.build(made.graph, mcm)
        seconds = [p.node_s[:, p.chip_kind].mean(axis=1) for p in (before, after)]
        added = np.array([v is None for v in made.whole_of], bool)
        ops = [node.op for node, is_new in zip(made.graph.nodes, added, strict=True) if is_new]
        longest = sorted(made.cuts, key=lambda v: (-seconds[0][v], v))[:_MOST_NAMED]
        total_s = float(seconds[0].sum())
        return cls(
            operations=len(made.cuts),
            parts=sum(cut.parts for cut in made.cuts.values()),
            largest=tuple((made.original.nodes[v].name, made.cuts[v].parts) for v in longest),
            sums=ops.count("sum"),
            copies=ops.count("copy"),
            nodes=len(made.original.nodes),
            compute_ratio=float(seconds[1].sum()) / total_s if total_s else 1.0,
            added_ratio=float(seconds[1][added].sum()) / total_s if total_s else 0.0,
            whole_s=whole_s,
            whole_mean_load_s=before.mean_load_s,
        )

    def sentences(self, bottleneck_s: float) -> tuple[str, ...]:
        """What was split, what it costs, and what it brought.

        Args:
          bottleneck_s: T of the graph as split.
        """
        return self._what(), self._cost(), self._outcome(bottleneck_s)

    def _what(self) -> str:
        added = [
            f"{count:,} {one if count == 1 else many}"
            for count, one, many in ((self.sums, "sum", "sums"), (self.copies, "copy", "copies"))
            if count
        ]
        if not self.operations:
            return "; ".join(["no operation split", " and ".join(added)])
        text = f"{self.operations:,} of {self.nodes:,} operations into {self.parts:,} parts"
        if added:
            text += f", and {' and '.join(added)}"
        named = ", ".join(f"{name} into {parts:,}" for name, parts in self.largest)
        return f"{text}; {named}" + (", ..." if self.operations > len(self.largest) else "")

    def _cost(self) -> str:
        again = self.compute_ratio - 1 - self.added_ratio
        return (
            f"compute {_percent(self.compute_ratio - 1)}: {_percent(again)} by parts that read "
            f"again, {_percent(self.added_ratio)} by sums and copies"
        )

    def _outcome(self, bottleneck_s: float) -> str:
        loads = "" if not self.whole_mean_load_s else f", {self._loads(bottleneck_s)}"
        if self.whole_s is None:
            return f"nothing valid was found without{loads}"
        ratio = f"{self.whole_s / bottleneck_s:.3f}x over" if bottleneck_s else "0 us after"
        return f"{ratio} {self.whole_s * 1e6:,.6g} us without{loads}"

    def _loads(self, bottleneck_s: float) -> str:
        """T before and after, over the mean load before."""
        after = f"{bottleneck_s / self.whole_mean_load_s:.3f}"
        if self.whole_s is None:
            return f"now {after} mean loads of the graph as it was"
        before = f"{self.whole_s / self.whole_mean_load_s:.3f}"
        return f"from {before} to {after} mean loads of the graph as it was"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}%".replace("-0.0%", "+0.0%")
