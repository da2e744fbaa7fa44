"""Loads of one partition without JAX, against plain counting."""

import numpy as np
import pytest

from jaxpart.cost.host import loads
from jaxpart.problem.problem import Problem
from tests.support.modules import MODULES
from tests.support.strategies import random_graph


@pytest.mark.parametrize("is_forward", [True, False])
def test_links_of_a_chain_carry_each_tensor_once_on_its_way(is_forward):
    rng = np.random.default_rng(11)
    for _ in range(30):
        problem = Problem.build(random_graph(rng, max_nodes=9, pins=False), MODULES["chain"])
        f = rng.integers(0, problem.num_chips, problem.num_nodes)
        f = np.sort(f) if is_forward else f
        expected = np.zeros(len(problem.mcm.links))
        for tensor, count in enumerate(problem.tensor_bytes):
            source = f[problem.tensor_producer[tensor]]
            targets = f[problem.edge_consumer[problem.edge_tensor == tensor]]
            used = {link for b in targets for link in problem.mcm.route(int(source), int(b))}
            for link in used:
                expected[problem.mcm.links.index(link)] += count
        np.testing.assert_allclose(loads(problem, f).link_bytes, expected)
