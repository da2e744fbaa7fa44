"""What splitting operations has changed, for reports."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """How a graph was split before it was partitioned.

    Attributes:
      operations: how many operations were split.
      parts: into how many parts, all together.
      sums: added nodes that sum partial results.
      copies: added nodes that hand on tensors from chip to chip.
      nodes: of the graph before.
      compute_ratio: compute of the graph as split over that of the graph before.
      whole_s: T of the best partition found of the graph before; None: none was found.
      whole_mean_load_s: the mean load of the graph before, in seconds.
    """

    operations: int
    parts: int
    sums: int
    copies: int
    nodes: int
    compute_ratio: float
    whole_s: float | None
    whole_mean_load_s: float

    def sentence(self, bottleneck_s: float) -> str:
        """What was split, what it costs, and what it brought.

        Args:
          bottleneck_s: T of the graph as split.
        """
        added = [
            f"{count:,} {what}{'s' * (count > 1)}"
            for count, what in ((self.sums, "sum"), (self.copies, "copy"))
            if count
        ]
        text = f"{self.operations:,} of {self.nodes:,} operations into {self.parts:,} parts"
        if added:
            text += f", and {' and '.join(added)}".replace("copys", "copies")
        text += f"; compute {100 * (self.compute_ratio - 1):+.1f}%"
        if self.whole_s is None:
            return f"{text}; nothing valid was found without"
        return (
            f"{text}; {self.whole_s / bottleneck_s:.3f}x over {self.whole_s * 1e6:,.6g} us without"
        )
