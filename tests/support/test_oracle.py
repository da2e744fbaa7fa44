"""Tests of the oracle against costs computed by hand, and of the random instances."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, Chip, Constraints
from tests.support import oracle
from tests.support.strategies import assignments, graphs, mcms, random_graph, random_mcm

CHIP = Chip(peak_flops=1000, sram_bandwidth=1000, sram_bytes=1e6)
CHAIN = MCM("chain", "chain", (CHIP,) * 4, link_bandwidth=1000)
HOST = dataclasses.replace(CHAIN, topology="host")
MESH = dataclasses.replace(CHAIN, topology="mesh", chips=(CHIP,) * 6, rows=2, cols=3)
NO_RULES = Constraints(acyclic=False, no_skip=False, triangle=False, memory=False)


def graph_of(seconds, tensors=(), weights=(), colocate=None, pin=None, element_bytes=None):
    """A graph from seconds, tensors (producer, bytes, consumers) and weights (bytes, consumers)."""
    colocate, pin = colocate or {}, pin or {}
    nodes = [
        Node(f"n{v}", "op", 0, 0, s, colocate.get(v), pin.get(v)) for v, s in enumerate(seconds)
    ]
    return Graph(
        tuple(nodes),
        tuple(Tensor(*k) for k in tensors),
        tuple(Weight(*w) for w in weights),
        element_bytes=element_bytes,
    )


def of_edges(count, edges, **kwargs):
    return graph_of([1] * count, [(u, 0, (v,)) for u, v in edges], **kwargs)


def chips(count, **changes):
    return (dataclasses.replace(CHIP, **changes),) * count


def busy_links(costs):
    return {link: s for link, s in costs.busy_s.items() if s}


# --- seconds --------------------------------------------------------------------------------------


def test_node_takes_the_slower_of_computing_and_access_unless_it_was_profiled():
    graph = Graph((Node("a", "op", 500, 2000), Node("b", "op", 3000, 2000, 8.0)))
    fast = Chip(peak_flops=250, sram_bandwidth=4000, sram_bytes=1, speed=2)
    mcm = dataclasses.replace(CHAIN, chips=(CHIP, fast))

    assert oracle.evaluate(graph, mcm, (0, 0)).compute_s == (2 + 8, 0)
    # max(500 / 250, 2000 / 4000) / 2 and 8 / 2
    assert oracle.evaluate(graph, mcm, (1, 1)).compute_s == (0, 1 + 4)


# Tensor 0 goes from chip 0 to chip 1 and twice to chip 3; tensor 1 from chip 1 to chip 3.
MULTICAST = graph_of([1, 0.25, 0, 0.5], [(0, 1000, (1, 2, 3)), (1, 500, (2, 3)), (3, 9000, ())])
MULTICAST_AT = (0, 1, 3, 3)


def test_chain_carries_a_tensor_once_a_link_up_to_its_last_chip():
    costs = oracle.evaluate(MULTICAST, CHAIN, MULTICAST_AT)

    assert costs.out_s == (1, 0.5, 0, 0)
    assert costs.in_s == (0, 1, 0, 1.5)
    assert costs.busy_s == {(0, 1): 1, (1, 2): 1.5, (2, 3): 1.5}
    assert costs.stage_s == (1, 1, 0, 1.5)
    assert costs.bottleneck_s == 1.5


def test_host_charges_a_tensor_once_out_and_once_into_each_chip_and_has_no_links():
    costs = oracle.evaluate(MULTICAST, HOST, MULTICAST_AT)

    assert costs.out_s == (1, 0.5, 0, 0)
    assert costs.in_s == (0, 1, 0, 1.5)
    assert costs.busy_s == {}
    assert costs.bottleneck_s == 1.5


def test_mesh_carries_a_tensor_once_over_the_union_of_its_routes():
    #   0 <- 1 <- 2     chip 2 sends to chips 3 and 4; a route changes the column first:
    #   |    |          2 -> 1 -> 0 -> 3 and 2 -> 1 -> 4 share the link 2 -> 1.
    #   v    v
    #   3    4    5
    graph = graph_of([0] * 3, [(0, 1000, (1, 2))])
    costs = oracle.evaluate(graph, MESH, (2, 3, 4))

    assert busy_links(costs) == {(2, 1): 1, (1, 0): 1, (0, 3): 1, (1, 4): 1}
    assert len(costs.busy_s) == 14
    assert costs.out_s == (0, 0, 1, 0, 0, 0)
    assert costs.in_s == (0, 0, 0, 1, 1, 0)
    assert costs.acyclic


def test_mesh_links_have_two_directions_of_their_own():
    graph = graph_of([0] * 3, [(0, 1000, (1,)), (1, 500, (2,))])

    assert busy_links(oracle.evaluate(graph, MESH, (0, 1, 0))) == {(0, 1): 1, (1, 0): 0.5}


def test_stage_is_the_longest_part_with_overlap_and_the_sum_without():
    graph = graph_of([1, 2, 4], [(0, 500, (1,)), (1, 750, (2,))])
    serial = dataclasses.replace(CHAIN, overlap=False)

    assert oracle.evaluate(graph, CHAIN, (0, 1, 2)).stage_s == (1, 2, 4, 0)
    costs = oracle.evaluate(graph, serial, (0, 1, 2))
    assert costs.stage_s == (1.5, 3.25, 4.75, 0)
    assert costs.bottleneck_s == 4.75


def test_a_link_can_be_the_bottleneck():
    graph = graph_of([0] * 4, [(0, 1000, (2,)), (1, 1000, (3,))])

    assert oracle.evaluate(graph, CHAIN, (0, 1, 2, 3)).bottleneck_s == 2  # link 1 -> 2


def test_backward_edge_on_a_chain_is_invalid_and_uses_no_link():
    costs = oracle.evaluate(graph_of([0, 0], [(0, 500, (1,))]), CHAIN, (1, 0))

    assert not costs.acyclic
    assert not costs.valid
    assert costs.out_s == (0, 0.5, 0, 0)
    assert costs.in_s == (0.5, 0, 0, 0)
    assert busy_links(costs) == {}


@pytest.mark.parametrize(
    ("counted", "module", "expected"),
    [(4, 1, 250), (1, 4, 4000), (4, None, 1000), (None, 1, 1000), (4, 4, 1000)],
)
def test_bytes_are_counted_in_elements_of_the_modules_size(counted, module, expected):
    graph = Graph(
        (Node("a", "op", 0, 1000), Node("b", "op", 0, 0)),
        (Tensor(0, 1000, (1,)),),
        (Weight(1000, (1,)),),
        element_bytes=counted,
    )
    costs = oracle.evaluate(graph, dataclasses.replace(CHAIN, element_bytes=module), (0, 1))

    assert costs.compute_s[0] == costs.out_s[0] == costs.in_s[1] == expected / 1000
    assert costs.memory_bytes == (2 * expected + expected, expected + 2 * expected, 0, 0)


@pytest.mark.parametrize("wrong", [(0,), (0, 4), (0, -1), (0, 0, 0)])
def test_a_partition_names_one_chip_of_the_module_for_each_node(wrong):
    with pytest.raises(ValueError, match="expected one of 4 chips"):
        oracle.evaluate(of_edges(2, []), CHAIN, wrong)


# --- memory ---------------------------------------------------------------------------------------

# Nodes 0 to 3 are on chip 0. Tensor 0 (100) is live until its local consumer 1, although chip 1
# needs it later. Tensor 1 (10) is live until node 3. The output (7) and the tensor for chip 1
# (1000) are live while they are made. Live bytes: node 0: 100   node 1: 100 + 10   node 2: 10 + 7
# node 3: 10 + 1000
MEMORY = graph_of(
    [0] * 5,
    [(0, 100, (1, 4)), (1, 10, (3,)), (2, 7, ()), (3, 1000, (4,))],
    [(5, (0, 1, 4)), (3, (2,)), (2, ())],
)


def test_memory_is_weights_and_both_boundary_buffers_and_the_peak_of_live_activations():
    costs = oracle.evaluate(MEMORY, CHAIN, (0, 0, 0, 0, 1))

    # A weight with consumers on both chips has one copy on each.
    assert costs.memory_bytes == (5 + 3 + 2 * 1100 + 1010, 5 + 2 * 1100, 0, 0)


def test_peak_can_lie_before_the_last_node():
    # All nodes are on chip 0, so tensor 0 is live until node 4.
    costs = oracle.evaluate(MEMORY, CHAIN, (0, 0, 0, 0, 0))
    assert costs.memory_bytes[0] == 5 + 3 + (100 + 10 + 1000)

    fades = graph_of([0] * 3, [(0, 100, (1,)), (1, 10, (2,))])
    assert oracle.evaluate(fades, CHAIN, (0, 0, 0)).memory_bytes[0] == 110


def test_a_received_tensor_is_in_the_boundary_buffers_alone():
    graph = graph_of([0] * 3, [(0, 100, (1, 2))])

    assert oracle.evaluate(graph, CHAIN, (0, 1, 1)).memory_bytes == (300, 200, 0, 0)


def test_several_tensors_between_the_same_nodes_count_each():
    graph = graph_of([0] * 2, [(0, 125, (1,)), (0, 250, (1,))])
    costs = oracle.evaluate(graph, CHAIN, (0, 1))

    assert costs.memory_bytes[:2] == (750 + 375, 750)
    assert costs.out_s[0] == costs.busy_s[0, 1] == 0.375


def test_weights_model_counts_weights_alone():
    mcm = dataclasses.replace(CHAIN, memory_model="weights")

    assert oracle.evaluate(MEMORY, mcm, (0, 0, 0, 0, 1)).memory_bytes == (8, 5, 0, 0)


@pytest.mark.parametrize(("capacity", "fits"), [(3218, True), (3217, False)])
def test_a_chip_may_be_full_to_the_last_byte(capacity, fits):
    mcm = dataclasses.replace(CHAIN, chips=chips(4, sram_bytes=capacity))
    costs = oracle.evaluate(MEMORY, mcm, (0, 0, 0, 0, 1))

    assert costs.memory is fits
    assert costs.valid is fits


# --- rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "at", "holds"),
    [
        ([(0, 1), (1, 2), (0, 2)], (0, 1, 2), False),  # an edge 0 -> 2 and a path 0 -> 1 -> 2
        ([(0, 1), (1, 2), (2, 3), (0, 3)], (0, 1, 2, 3), False),  # the path is longer
        ([(0, 1), (0, 2), (1, 3), (2, 3)], (0, 1, 2, 3), True),  # a diamond
        ([(0, 1), (0, 2)], (0, 1, 2), True),  # an edge 0 -> 2, but no path over chip 1
        ([(0, 1), (2, 3), (0, 3)], (0, 1, 1, 2), False),  # a path of chips that is no path of nodes
        ([(0, 1), (1, 2), (0, 2)], (0, 0, 1), True),  # edges within a chip do not count
        ([(0, 2), (1, 3), (2, 4)], (0, 0, 1, 1, 2), True),  # two edges between the same chips
        ([(0, 1), (1, 2)], (0, 1, 0), True),  # a cycle of two chips has no other path
        ([(0, 1), (1, 2), (2, 3)], (0, 1, 2, 0), True),  # a cycle of three has no other path
        ([(0, 1), (1, 2), (2, 3)], (0, 1, 0, 2), True),  # a path must not return to its start
        ([(0, 1), (1, 2), (2, 3), (0, 2)], (0, 1, 2, 0), False),  # an edge across the cycle
    ],
)
def test_triangle_forbids_a_longer_path_between_two_chips_with_an_edge(edges, at, holds):
    host = dataclasses.replace(HOST, constraints=NO_RULES)
    assert oracle.evaluate(of_edges(len(at), edges), host, at).triangle is holds


@pytest.mark.parametrize(
    ("at", "holds"), [((0, 0), True), ((0, 1), True), ((0, 2), False), ((1, 1), False)]
)
def test_no_skip_wants_the_chips_up_to_the_highest_in_use(at, holds):
    assert oracle.evaluate(of_edges(2, []), CHAIN, at).no_skip is holds


@pytest.mark.parametrize(("at", "holds"), [((0, 0), True), ((0, 1), True), ((1, 0), False)])
def test_acyclic_wants_no_edge_to_a_lower_chip(at, holds):
    assert oracle.evaluate(of_edges(2, [(0, 1)]), HOST, at).acyclic is holds


@pytest.mark.parametrize(
    ("at", "colocated", "pinned"),
    [((1, 0, 1), True, True), ((0, 0, 0), True, False), ((1, 0, 0), False, True)],
)
def test_colocation_and_fixed_chips_hold_whatever_is_switched_off(at, colocated, pinned):
    graph = of_edges(3, [], colocate={0: 5, 2: 5}, pin={0: 1})
    costs = oracle.evaluate(graph, dataclasses.replace(HOST, constraints=NO_RULES), at)

    assert (costs.colocation, costs.fixed_chips) == (colocated, pinned)
    assert costs.valid is (colocated and pinned)


@pytest.mark.parametrize(
    ("rule", "at"),
    [
        ("acyclic", (1, 0, 0)),
        ("no_skip", (0, 0, 2)),
        ("triangle", (0, 1, 2)),
        ("memory", (0, 0, 1)),
    ],
)
def test_a_rule_counts_where_it_is_switched_on(rule, at):
    graph = of_edges(3, [(0, 1), (1, 2), (0, 2)], weights=[(70, (0,)), (70, (1,))])
    room = 100 if rule == "memory" else 1000
    mcm = dataclasses.replace(HOST, chips=chips(3, sram_bytes=room), constraints=NO_RULES)
    acyclic = rule in ("acyclic", "triangle")
    on = dataclasses.replace(
        NO_RULES, acyclic=acyclic, **({} if rule == "acyclic" else {rule: True})
    )

    assert not getattr(oracle.evaluate(graph, mcm, at), rule)
    assert oracle.evaluate(graph, mcm, at).valid
    assert not oracle.evaluate(graph, dataclasses.replace(mcm, constraints=on), at).valid


# --- the baseline ---------------------------------------------------------------------------------


def on_chips(count, memory_model="weights", **changes):
    return dataclasses.replace(CHAIN, chips=chips(count, **changes), memory_model=memory_model)


def test_greedy_closes_a_chip_at_the_mean_load():
    graph = of_edges(4, [(0, 1), (1, 2), (2, 3)])

    assert oracle.baseline(graph, on_chips(2)) == (0, 0, 1, 1)  # target 4 / 2


def test_greedy_target_is_the_mean_over_unlike_chips():
    # All nodes take 6 s on chip 0 or 3 s on chip 1, so the target is 4.5 / 2. A node takes 1 s on
    # chip 0, which is full after three nodes.
    mcm = dataclasses.replace(CHAIN, chips=(CHIP, dataclasses.replace(CHIP, speed=2)))

    assert oracle.baseline(of_edges(6, []), mcm) == (0, 0, 0, 1, 1, 1)


@pytest.mark.parametrize(
    ("edge", "expected"), [((0, 3), (0, 0, 1, 1, 2, 2)), ((0, 5), (0, 0, 1, 1, 1, 1))]
)
def test_greedy_keeps_a_chip_open_until_what_crossed_its_opening_cut_is_consumed(edge, expected):
    assert oracle.baseline(of_edges(6, [edge]), on_chips(3)) == expected


def test_greedy_closes_a_chip_that_the_next_node_would_overfill():
    graph = graph_of([0, 0, 3], weights=[(6, (0,)), (6, (1,)), (6, (2,))])

    assert oracle.baseline(graph, on_chips(3, sram_bytes=10)) == (0, 1, 2)
    assert oracle.baseline(graph, on_chips(3, sram_bytes=12)) == (0, 0, 1)
    # With enough memory no chip is closed: the load before each node is below the target.
    assert oracle.baseline(graph, on_chips(3, sram_bytes=18)) == (0, 0, 0)


def test_greedy_counts_what_is_not_placed_yet_as_elsewhere():
    # With node 1 on chip 0, its tensor would be sent: 2 * 100 for the buffers and 100 live. With
    # node 2 on chip 0 too, only 100 are live.
    graph = graph_of([1, 1, 1, 9], [(1, 100, (2,))])

    assert oracle.baseline(graph, on_chips(2, "full", sram_bytes=300)) == (0, 0, 0, 0)
    assert oracle.baseline(graph, on_chips(2, "full", sram_bytes=299)) == (0, 1, 1, 1)


def test_greedy_closes_chips_before_a_node_that_is_fixed_further_on():
    assert oracle.baseline(of_edges(6, [], pin={1: 1}), on_chips(3)) == (0, 1, 1, 2, 2, 2)


def test_greedy_raises_its_target_where_the_first_walk_is_invalid():
    # With target 2, both large weights are on chip 1 (16 > 10 bytes); with 2.2, node 2 is on chip
    # 0.
    graph = graph_of([1] * 4, weights=[(1, (0,)), (1, (1,)), (8, (2,)), (8, (3,))])

    assert oracle.baseline(graph, on_chips(2, sram_bytes=10)) == (0, 0, 0, 1)


def test_greedy_raises_its_target_by_a_tenth():
    # With target 5, chip 1 needs 12 > 10 bytes; with 5.5, node 5 is the last one on chip 0.
    graph = graph_of([1] * 10, weights=[(8 if v == 5 else 1, (v,)) for v in range(5, 10)])

    assert oracle.baseline(graph, on_chips(2, sram_bytes=10)) == (0,) * 6 + (1,) * 4


def test_greedy_lowers_its_target_where_raising_does_not_help():
    # Node 2 is on chip 0 or 1 until the target is below 1 (2 / 1.1^8).
    assert oracle.baseline(of_edges(6, [], pin={2: 2}), on_chips(3)) == (0, 1, 2, 2, 2, 2)
    # Node 7 gets chip 2 if chip 0 is closed after 6 nodes: 1.25 < 2 / 1.1^4 <= 1.5.
    fine = graph_of([0.25] * 24, pin={7: 2})
    assert oracle.baseline(fine, on_chips(3)) == (0,) * 6 + (1,) + (2,) * 17


@pytest.mark.parametrize(
    ("graph", "mcm"),
    [
        (of_edges(2, [(0, 1)], pin={0: 1, 1: 0}), on_chips(2)),
        (graph_of([1], weights=[(11, (0,))]), on_chips(2, sram_bytes=10)),
        # An empty chip is never closed, even if chips may be skipped.
        (
            of_edges(1, [], pin={0: 1}),
            dataclasses.replace(on_chips(2), constraints=Constraints(no_skip=False)),
        ),
    ],
)
def test_baseline_is_null_where_no_walk_is_valid(graph, mcm):
    assert oracle.baseline(graph, mcm) is None


@pytest.mark.parametrize(
    ("edges", "groups", "expected"),
    [
        ([(0, 2), (1, 2)], {}, [[0], [1], [2], [3]]),
        ([], {1: 0, 3: 0}, [[0], [1, 3], [2]]),
        ([(1, 3)], {0: 0, 3: 0}, [[1], [0, 3], [2]]),  # the group waits for node 1
        ([(0, 1), (1, 2), (2, 3)], {0: 0, 2: 0}, [[0, 1, 2], [3]]),  # node 1 is between them
        ([(0, 1), (2, 3)], {0: 0, 3: 0, 1: 1, 2: 1}, [[0, 1, 2, 3]]),  # each group feeds the other
    ],
)
def test_greedy_walks_groups_that_colocation_and_its_cycles_tie(edges, groups, expected):
    assert oracle.walking_order(of_edges(4, edges, colocate=groups)) == expected


def test_baseline_keeps_a_colocation_group_together():
    graph = of_edges(4, [(0, 1), (1, 2), (2, 3)], colocate={0: 0, 2: 0})

    assert oracle.baseline(graph, on_chips(2)) == (0, 0, 0, 1)


# --- brute force ----------------------------------------------------------------------------------


def test_valid_partitions_of_a_path_on_two_chips_are_its_cuts():
    graph = graph_of([1, 2, 3], [(0, 0, (1,)), (1, 0, (2,))])

    assert oracle.all_valid(graph, on_chips(2)) == [(0, 0, 0), (0, 0, 1), (0, 1, 1)]
    assert oracle.best(graph, on_chips(2)) == (3, [(0, 0, 1)])


def test_best_lists_every_optimum_and_is_nothing_where_nothing_is_valid():
    assert oracle.best(graph_of([1, 1]), on_chips(2)) == (1, [(0, 1), (1, 0)])
    assert oracle.best(of_edges(2, [(0, 1)], pin={0: 1, 1: 0}), on_chips(2)) is None


def test_nearest_of_span_one():
    path, y, weights = [(0, 1), (1, 2)], (0, 2, 2), (5, 1, 1)

    assert oracle.nearest_span(path, y, (1, 1, 1), 3) == (1, [(0, 1, 2), (1, 2, 2)])
    assert oracle.nearest_span(path, y, weights, 3) == (1, [(0, 1, 2)])
    assert oracle.nearest_span(path, y, weights, 3, pins={0: 1}) == (5, [(1, 2, 2)])
    assert oracle.nearest_span(path, y, weights, 3, groups=[(0, 2)]) == (4, [(0, 0, 0)])
    assert oracle.nearest_span(path, y, weights, 3, pins={0: 2, 2: 1}) is None
    assert oracle.nearest_span([(0, 1)], (0.5, 1.25), (1, 2), 2) == (1, [(0, 1), (1, 1)])


def test_nearest_of_span_one_without_skipped_chips():
    assert oracle.nearest_span([], (1, 1), (1, 1), 2) == (0, [(1, 1)])
    assert oracle.nearest_span([], (1, 1), (1, 1), 2, no_skip=True) == (1, [(0, 1), (1, 0)])


@given(st.data())
def test_baseline_is_valid_and_no_better_than_the_best(data):
    mcm = data.draw(mcms(max_chips=3))
    graph = data.draw(graphs(max_nodes=5, max_chips=len(mcm.chips)))
    optimum, greedy = oracle.best(graph, mcm), oracle.baseline(graph, mcm)

    if greedy is not None:
        assert optimum is not None
        costs = oracle.evaluate(graph, mcm, greedy)
        assert costs.valid
        assert costs.bottleneck_s >= optimum[0]


@given(st.data())
def test_what_is_sent_crosses_each_link_of_a_route_and_arrives(data):
    mcm = data.draw(mcms(max_chips=6))
    graph = data.draw(graphs(max_chips=len(mcm.chips)))
    costs = oracle.evaluate(graph, mcm, data.draw(assignments(graph, mcm)))

    assert sum(costs.in_s) >= sum(costs.out_s)  # sent once, received once per chip
    if mcm.topology == "mesh":
        for c in range(len(mcm.chips)):  # bytes sent leave over links of the chip
            assert sum(s for (a, _), s in costs.busy_s.items() if a == c) >= costs.out_s[c]
            assert sum(s for (_, b), s in costs.busy_s.items() if b == c) >= costs.in_s[c]


@given(mcms(max_chips=12))
def test_links_and_routes_are_the_modules_own(mcm):
    assert sorted(oracle.all_links(mcm)) == list(mcm.links)
    for a, b in itertools.product(range(len(mcm.chips)), repeat=2):
        assert tuple(oracle.route(mcm, a, b)) == mcm.route(a, b)


# --- the random instances -------------------------------------------------------------------------


def test_random_graphs_have_every_feature_and_repeat():
    made = [random_graph(np.random.default_rng(seed)) for seed in range(200)]

    assert [random_graph(np.random.default_rng(seed)).sha256 for seed in range(200)] == [
        graph.sha256 for graph in made
    ]
    tensors = [k for graph in made for k in graph.tensors]
    nodes = [v for graph in made for v in graph.nodes]
    assert any(k.bytes == 0 and k.consumers for k in tensors)
    assert any(not k.consumers for k in tensors)
    assert any(len(k.consumers) > 1 for k in tensors)
    assert any(len(w.consumers) > 1 for graph in made for w in graph.weights)
    assert any(v.seconds is not None for v in nodes)
    assert any(v.flops == v.bytes_accessed == 0 and v.seconds is None for v in nodes)
    assert any(v.colocate is not None and v.pin is not None for v in nodes)
    assert any(not graph.tensors for graph in made)
    assert {len(graph.nodes) for graph in made} == set(range(1, 9))
    pairs = [[(k.producer, q) for k in graph.tensors for q in k.consumers] for graph in made]
    assert any(len(set(edges)) < len(edges) for edges in pairs)


def test_random_graphs_keep_the_counts_that_they_are_given():
    rng = np.random.default_rng(0)
    for _ in range(20):
        graph = random_graph(rng, num_nodes=7, num_tensors=9, num_weights=4, pins=False)
        assert (len(graph.nodes), len(graph.tensors), len(graph.weights)) == (7, 9, 4)
        assert all(v.pin is None for v in graph.nodes)


def test_random_modules_have_every_topology_and_legal_switch():
    rng = np.random.default_rng(0)
    made = [random_mcm(rng) for _ in range(400)]

    for topology, legal in (("chain", 8), ("host", 12), ("mesh", 12)):
        assert len({m.constraints for m in made if m.topology == topology}) == legal
    assert {(m.overlap, m.memory_model) for m in made} == {
        (overlap, model) for overlap in (True, False) for model in ("full", "weights")
    }
    assert {(m.rows, m.cols) for m in made if m.topology == "mesh" and m.num_chips == 4} == {
        (1, 4),
        (2, 2),
        (4, 1),
    }
    assert any(len(set(m.chips)) > 1 for m in made)
