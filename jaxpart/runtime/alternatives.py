"""The best few partitions of a search that differ from each other."""

from __future__ import annotations

import numpy as np

from jaxpart.problem.problem import IntArray

Rank = tuple[float, float, float]

_FEWEST_NODES = 3  # partitions that differ in fewer nodes, or in a smaller share, are the same
_SHARE = 0.02


class Alternatives:
    """Keeps distinct partitions, the best by rank.

    Two are distinct if they put more than a few nodes on other chips. Of two that are not, the
    better one is kept.

    Attributes:
      most: how many are kept.
    """

    def __init__(self, most: int, num_nodes: int) -> None:
        """Keeps none yet.

        Args:
          most: how many are kept at most.
          num_nodes: N.
        """
        self.most = most
        self._apart = max(_FEWEST_NODES, int(_SHARE * num_nodes))
        self._kept: list[tuple[Rank, IntArray]] = []

    @property
    def assignments(self) -> tuple[IntArray, ...]:
        """[N] each, the best first."""
        return tuple(assignment for _, assignment in self._kept)

    @property
    def limit(self) -> float:
        """Bottleneck in seconds from which on a partition is not kept; inf while there is room."""
        return self._kept[-1][0][0] if len(self._kept) >= self.most > 0 else np.inf

    def add(self, rank: Rank, assignment: IntArray) -> None:
        """Keeps a valid partition if it is distinct from better ones and good enough.

        Args:
          rank: lower is better; the bottleneck in seconds comes first.
          assignment: [N].
        """
        near = [entry for entry in self._kept if self._is_near(entry[1], assignment)]
        if not self.most or any(other <= rank for other, _ in near):
            return
        kept = [entry for entry in self._kept if not any(entry is one for one in near)]
        kept.append((rank, np.array(assignment, np.int64)))
        self._kept = sorted(kept, key=lambda entry: entry[0])[: self.most]

    def _is_near(self, one: IntArray, other: IntArray) -> bool:
        return int(np.count_nonzero(one != other)) <= self._apart
