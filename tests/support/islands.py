"""A path of nine nodes and two partitions of it over three chips, for tests of islands."""

import numpy as np

from tests.support.graphs import parallel_chains

GRAPH = parallel_chains(1, 7)


# GOOD has a lower bottleneck than POOR.
GOOD = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])


POOR = np.zeros(9, np.int64)
