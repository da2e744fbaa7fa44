"""Pipelines: times against a simulation by events, and 1/T with enough buffers."""

import dataclasses
import itertools

import networkx as nx
import numpy as np
import pytest

from jaxpart.errors import InputError
from jaxpart.export.simulation.pipeline import (
    COMPUTE,
    IN,
    LINK,
    MAX_KEPT,
    OUT,
    binding_slots,
    pipeline_of,
    simulated,
)
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import Constraints
from jaxpart.problem.problem import Problem
from tests.support import oracle, pipeline_oracle
from tests.support.modules import unit_module
from tests.support.strategies import random_graph, random_mcm

KINDS = {COMPUTE: "compute", IN: "in", OUT: "out", LINK: "link"}
MODULES = list(itertools.product(["chain", "host", "mesh"], [True, False]))


def forward(rng, graph, mcm):
    """A partition whose data flows to higher chips, by steps of up to two."""
    f = []
    for v in range(len(graph.nodes)):
        producers = [k.producer for k in graph.tensors if v in k.consumers]
        least = max((f[u] for u in producers), default=0)
        f.append(min(mcm.num_chips - 1, least + int(rng.integers(3))))
    return f


def instance(topology, overlap, seed, max_nodes=14, max_chips=6):
    """A random graph, a module, and a partition with acyclic dataflow."""
    rng = np.random.default_rng(seed)
    mcm = random_mcm(rng, max_chips, topology=topology, num_chips=int(rng.integers(2, max_chips)))
    mcm = dataclasses.replace(mcm, overlap=overlap, constraints=Constraints(triangle=False))
    graph = random_graph(rng, max_nodes, mcm.num_chips, colocation=False, pins=False)
    return graph, mcm, forward(rng, graph, mcm)


def pipeline(graph, mcm, f):
    return pipeline_of(Problem.build(graph, mcm), np.array(f))


def names_of(jobs, mcm):
    """The oracle's name of each job."""
    names, outs, group = [], {}, None
    for kind, place in zip(jobs.kind.tolist(), jobs.place.tolist(), strict=True):
        if kind == OUT:
            outs[place] = outs.get(place, -1) + 1
            group = place, outs[place]
        number = {COMPUTE: 0, OUT: outs.get(place)}.get(kind, group)
        names.append((KINDS[kind], mcm.links[place] if kind == LINK else place, number))
    return names


@pytest.mark.parametrize(("topology", "overlap"), MODULES)
@pytest.mark.parametrize("buffers", [1, 2, 3, 99])
def test_all_times_are_those_of_a_simulation_by_events(topology, overlap, buffers):
    count = 9
    for seed in range(12):
        graph, mcm, f = instance(topology, overlap, seed)
        expected = pipeline_oracle.run(graph, mcm, f, count, buffers)

        jobs = pipeline(graph, mcm, f)
        run = simulated(jobs, count, buffers, rows=count)

        names = names_of(jobs, mcm)
        for k, (j, name) in itertools.product(range(count), enumerate(names)):
            begin, end = run.start_s[k, j], run.start_s[k, j] + jobs.seconds[j]
            assert (begin, end) == expected.pop((k, *name)), (seed, k, name)
        assert not expected


@pytest.mark.parametrize(("topology", "overlap"), MODULES)
def test_jobs_hold_each_resource_as_long_as_the_cost_model_says(topology, overlap):
    for seed in range(30):
        graph, mcm, f = instance(topology, overlap, seed)
        costs = oracle.evaluate(graph, mcm, f)

        jobs = pipeline(graph, mcm, f)

        busy = np.bincount(jobs.resource, jobs.seconds)
        assert busy.max() == pytest.approx(costs.bottleneck_s, rel=1e-12)
        for kind, figures in ((COMPUTE, costs.compute_s), (IN, costs.in_s), (OUT, costs.out_s)):
            chosen = jobs.kind == kind
            held = np.bincount(jobs.place[chosen], jobs.seconds[chosen], mcm.num_chips)
            np.testing.assert_allclose(held, figures, rtol=1e-12)
        on_links = jobs.kind == LINK
        held = np.bincount(jobs.place[on_links], jobs.seconds[on_links], len(mcm.links))
        np.testing.assert_allclose(held, [costs.busy_s[link] for link in mcm.links], rtol=1e-12)


@pytest.mark.parametrize(("topology", "overlap"), MODULES)
def test_no_resource_precedes_itself_through_others(topology, overlap):
    """On this the proof rests that enough buffers reach 1/T."""
    for seed in range(60):
        jobs = pipeline(*instance(topology, overlap, seed, max_nodes=40, max_chips=17))
        order = nx.DiGraph()
        for j, (row, end) in enumerate(itertools.pairwise(jobs.after_row.tolist())):
            pairs = [(jobs.resource[i], jobs.resource[j]) for i in jobs.after_job[row:end].tolist()]
            order.add_edges_from((a, b) for a, b in pairs if a != b)
        assert nx.is_directed_acyclic_graph(order)


@pytest.mark.parametrize(("topology", "overlap"), MODULES)
@pytest.mark.parametrize("buffers", [0, 64])
def test_with_enough_buffers_the_rate_is_one_by_t_and_never_above(topology, overlap, buffers):
    count, checked = 4000, 0
    for seed in range(40):
        graph, mcm, f = instance(topology, overlap, seed)
        bottleneck_s = oracle.evaluate(graph, mcm, f).bottleneck_s

        end_s = simulated(pipeline(graph, mcm, f), count, buffers).end_s

        pace_s = (end_s[-1] - end_s[count // 2 - 1]) / (count - count // 2)
        assert pace_s == pytest.approx(bottleneck_s, rel=1e-12)
        assert (end_s >= np.arange(1, count + 1) * bottleneck_s * (1 - 1e-12)).all()
        checked += bottleneck_s > 0
    assert checked > 30


@pytest.mark.parametrize(("topology", "overlap"), MODULES)
def test_more_buffers_delay_no_inference(topology, overlap):
    slower = 0
    for seed in range(25):
        jobs = pipeline(*instance(topology, overlap, seed, max_nodes=30, max_chips=10))
        runs = [simulated(jobs, 60, buffers).end_s for buffers in (1, 2, 3, 4, 8, 60)]
        for few, more in itertools.pairwise(runs):
            assert (more <= few).all()
        slower += bool((runs[0] > runs[-1]).any())
    assert slower > 0


@pytest.mark.parametrize(("topology", "overlap"), MODULES)
def test_no_inference_is_faster_than_its_critical_path(topology, overlap):
    for seed in range(25):
        graph, mcm, f = instance(topology, overlap, seed)
        costs, least = oracle.evaluate(graph, mcm, f), {}
        for c in sorted(set(f)):
            moves = [
                least[f[k.producer]] + k.bytes / mcm.link_bandwidth
                for k in oracle.rescaled(graph, mcm).tensors
                if f[k.producer] != c and any(f[q] == c for q in k.consumers)
            ]
            least[c] = max(moves, default=0.0) + costs.compute_s[c]

        for buffers in (1, 2, 0):
            run = simulated(pipeline(graph, mcm, f), 20, buffers)
            assert (run.end_s - run.begin_s >= max(least.values()) * (1 - 1e-12)).all()


def path(seconds, sizes, far=()):
    """A path of nodes; `far` has further tensors (producer, bytes, consumer)."""
    nodes = tuple(Node(f"n{v}", "op", x, 0.0) for v, x in enumerate(seconds))
    tensors = [Tensor(v, x, (v + 1,)) for v, x in enumerate(sizes)]
    tensors += [Tensor(u, x, (v,)) for u, x, v in far]
    return Graph(nodes, tuple(tensors), name="path", element_bytes=None)


def module(chips, **options):
    mcm = unit_module(chips, **options)
    return dataclasses.replace(mcm, constraints=Constraints(triangle=False))


MESH = dataclasses.replace(module(4), topology="mesh", rows=2, cols=2)
# 3 on chip 0, a transfer of 2, 5 on the last chip.
PAIR = path([3, 5], [2])
# And 7 bytes from chip 0 to chip 2, which 3 + 2 + 5 + 4 + 1 go around.
AROUND = path([3, 5, 1], [2, 4], [(0, 7, 2)])


@pytest.mark.parametrize(
    ("graph", "mcm", "f", "expected"),
    [
        (PAIR, module(2), [0, 0], 8),
        (PAIR, module(2), [0, 1], 3 + 2 + 5),
        (PAIR, module(2, overlap=False), [0, 1], 3 + 2 + 5),
        (PAIR, module(2, topology="host"), [0, 1], 3 + 2 + 2 + 5),  # into memory, and out of it
        (PAIR, module(4), [0, 3], 3 + 2 + 5),  # three links, cut through
        (PAIR, MESH, [0, 3], 3 + 2 + 5),
        # Chip 0 sends 2 to chip 1, then 7 to chip 2, which has them at 3 + 2 + 7 = 12. The 4 of
        # chip 1 could leave at 10, but link 1 is busy with the 7 until 12.
        (AROUND, module(3), [0, 1, 2], 3 + 2 + 7 + 4 + 1),
        # The host: 7 are in memory at 12, and at chip 2 at 19; the 4 at 16 + 7 = 23.
        (AROUND, module(3, topology="host"), [0, 1, 2], 3 + 2 + 7 + 7 + 4 + 1),
        # One tensor of 2 to two chips: once out of chip 0, the same moments on both links.
        (
            Graph(
                (*PAIR.nodes, Node("n2", "op", 4, 0)), (Tensor(0, 2, (1, 2)),), element_bytes=None
            ),
            module(3),
            [0, 1, 2],
            3 + 2 + 5,
        ),
    ],
)
def test_the_latency_of_one_inference_is_as_computed_by_hand(graph, mcm, f, expected):
    run = simulated(pipeline(graph, mcm, f), 1, 0)

    assert run.begin_s.tolist() == [0]
    assert run.end_s.tolist() == [expected]


def test_one_buffer_lets_a_chip_neither_send_nor_compute_ahead():
    """Chips of 1 and 4, a transfer of 2: with one slot a transfer waits for the second chip."""
    jobs = pipeline(path([1, 4], [2]), module(2), [0, 1])

    ends = {buffers: simulated(jobs, 4, buffers).end_s.tolist() for buffers in (1, 2)}

    assert ends[1] == [7, 13, 19, 25]  # 2 + 4 each
    assert ends[2] == [7, 11, 15, 19]  # 4 each


@pytest.mark.parametrize("topology", ["chain", "host"])
@pytest.mark.parametrize("overlap", [True, False])
def test_two_buffers_are_enough_where_chips_form_a_path(topology, overlap):
    rng = np.random.default_rng(5)
    mcm = module(7, topology=topology, overlap=overlap)
    for _ in range(20):
        seconds, sizes = rng.integers(1, 50, 7).tolist(), rng.integers(0, 50, 6).tolist()
        graph = path(seconds, sizes)
        end_s = simulated(pipeline(graph, mcm, list(range(7))), 400, 2).end_s
        bottleneck_s = oracle.evaluate(graph, mcm, range(7)).bottleneck_s
        assert (end_s[-1] - end_s[199]) / 200 == bottleneck_s


def test_a_long_run_in_parts_is_the_same_as_in_one(monkeypatch):
    jobs = pipeline(*instance("mesh", True, 3))
    whole = simulated(jobs, 100, 2, rows=100)

    monkeypatch.setattr("jaxpart.export.simulation.pipeline._JOBS_AT_ONCE", 3 * len(jobs.kind))
    parts = simulated(jobs, 100, 2, rows=100)

    for name in ("begin_s", "end_s", "wait_s", "start_s"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def without_slots(jobs, pairs):
    """The pipeline with no limit for some pairs (job that waits, job that frees its slot)."""
    rows = zip(jobs.slot_row[:-1].tolist(), jobs.slot_row[1:].tolist(), strict=True)
    kept = [
        [i for i in jobs.slot_job[row:end].tolist() if (j, i) not in pairs]
        for j, (row, end) in enumerate(rows)
    ]
    return dataclasses.replace(
        jobs,
        slot_row=np.cumsum([0, *map(len, kept)]),
        slot_job=np.array([i for job in kept for i in job], np.int64),
    )


@pytest.mark.parametrize(("topology", "overlap"), MODULES)
@pytest.mark.parametrize("buffers", [1, 2])
def test_without_the_slots_that_are_named_in_turn_the_pace_is_t(topology, overlap, buffers):
    count, named = 1000, 0
    for seed in range(40):
        graph, mcm, f = instance(topology, overlap, seed, max_nodes=30, max_chips=10)
        bottleneck_s = oracle.evaluate(graph, mcm, f).bottleneck_s
        jobs = pipeline(graph, mcm, f)
        for _ in range(len(jobs.slot_job) + 1):
            run = simulated(jobs, count, buffers, rows=200)
            pace_s = (run.end_s[-1] - run.end_s[count // 2 - 1]) / (count - count // 2)
            if pace_s <= bottleneck_s * (1 + 1e-9):
                break
            pairs = set(binding_slots(jobs, run))
            assert pairs
            jobs = without_slots(jobs, pairs)
            named += 1
        else:
            pytest.fail("still slow")
    assert named > 0 or not overlap or topology == "host"


def test_too_many_slots_are_refused_and_as_many_as_inferences_are_no_limit():
    jobs = pipeline(PAIR, module(2), [0, 1])
    limit = MAX_KEPT // len(jobs.kind)

    with pytest.raises(InputError, match=f"expected at most {limit:,} buffers"):
        simulated(jobs, limit + 2, limit + 1)
    assert simulated(jobs, 10, 10**9).buffers == 0


def test_fewer_inferences_are_kept_than_asked_for_where_memory_is_short(monkeypatch):
    jobs = pipeline(PAIR, module(2), [0, 1])
    monkeypatch.setattr("jaxpart.export.simulation.pipeline.MAX_KEPT", 5 * len(jobs.kind))

    assert len(simulated(jobs, 10, 2, rows=10).start_s) == 5
    with pytest.raises(InputError, match="expected at most 5 buffers"):
        simulated(jobs, 10, 6)
