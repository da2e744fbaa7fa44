"""What a cut-off forces, against every partition of tiny problems."""

import numpy as np
import pytest

from jaxpart.bounds.reduction import destructive_bound, reduce_below
from jaxpart.problem.mcm import MCM, Chip, Constraints
from jaxpart.problem.problem import Problem
from tests.support import oracle
from tests.support.graphs import line
from tests.support.strategies import TOPOLOGIES, random_graph, random_mcm

SHARES = (1.0, 1.2, 2.0)  # of the optimum


def valid_seconds(problem: Problem) -> dict[tuple[int, ...], float]:
    """T of every valid partition, by the oracle."""
    graph, mcm = problem.graph, problem.mcm
    return {f: oracle.evaluate(graph, mcm, f).bottleneck_s for f in oracle.all_valid(graph, mcm)}


def survives(problem: Problem, cutoff_s: float, f: tuple[int, ...]) -> bool:
    reduced = reduce_below(problem, cutoff_s)
    if reduced is None:
        return False
    chips = np.array(f)
    contraction = reduced.problem.contraction
    on = np.zeros(len(reduced.low), np.int64)
    on[contraction] = chips
    together = bool((on[contraction] == chips).all())
    return together and bool(((reduced.low <= on) & (on <= reduced.high)).all())


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("seed", range(60))
def test_all_that_is_better_than_the_cutoff_survives(seed, topology):
    rng = np.random.default_rng(seed)
    mcm = random_mcm(rng, 4, topology=topology)
    problem = Problem.build(random_graph(rng, 6, mcm.num_chips), mcm)
    seconds = valid_seconds(problem)
    best_s = min(seconds.values(), default=0.0)
    for share in SHARES:
        for f, bottleneck_s in seconds.items():
            if bottleneck_s < share * best_s:
                assert survives(problem, share * best_s, f)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("seed", range(60))
def test_the_destructive_bound_is_never_above_the_optimum(seed, topology):
    rng = np.random.default_rng(seed)
    mcm = random_mcm(rng, 4, topology=topology)
    problem = Problem.build(random_graph(rng, 6, mcm.num_chips), mcm)
    seconds = valid_seconds(problem)
    if not seconds or min(seconds.values()) == 0:
        return
    best_s, worst_s = min(seconds.values()), max(seconds.values())
    for high_s in (best_s, worst_s, 4 * worst_s):
        bound_s = destructive_bound(problem, best_s / 64, high_s)
        assert bound_s <= best_s * (1 + 1e-8)


def module(chips: int, *, capacity: float = 1e9, bandwidth: float = 1.0) -> MCM:
    chip = Chip(peak_flops=1.0, sram_bandwidth=1e9, sram_bytes=int(capacity))
    return MCM("test", "chain", (chip,) * chips, bandwidth, constraints=Constraints())


def test_nodes_joined_by_a_slow_tensor_share_a_chip():
    problem = Problem.build(line([1, 1, 1, 1], [1, 9, 1]), module(3))
    reduced = reduce_below(problem, 4.0)
    assert reduced is not None
    assert reduced.problem.contraction.tolist() == [0, 1, 1, 2]


def test_work_before_and_after_a_node_takes_chips():
    problem = Problem.build(line([3, 3, 3, 3], [0, 0, 0]), module(4))
    reduced = reduce_below(problem, 3.5)
    assert reduced is not None
    assert reduced.low.tolist() == reduced.high.tolist() == [0, 1, 2, 3]


def test_weights_before_a_node_take_chips():
    problem = Problem.build(line([0, 0, 0], [0, 0], [6, 6, 6]), module(4, capacity=10))
    reduced = reduce_below(problem, 1.0)
    assert reduced is not None
    assert reduced.low.tolist() == [0, 1, 2]
    assert reduced.high.tolist() == [1, 2, 3]


def test_nothing_survives_where_the_work_does_not_fit():
    problem = Problem.build(line([3, 3, 3, 3], [0, 0, 0]), module(3))
    assert reduce_below(problem, 5.9) is None
    assert reduce_below(problem, 6.1) is not None


def test_the_destructive_bound_sees_indivisible_nodes():
    problem = Problem.build(line([3, 3, 3, 3], [0, 0, 0]), module(3))
    assert destructive_bound(problem, 4.0, 12.0) == pytest.approx(6.0, rel=1e-3)
