"""A chain of nine nodes on three chips, and two partitions of it, for tests of islands."""

import numpy as np

from tests.support.graphs import parallel_chains

GRAPH = parallel_chains(1, 7)


# Partitions of a chain of 9 nodes on 3 chips; the first is better.
GOOD = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])


POOR = np.zeros(9, np.int64)
