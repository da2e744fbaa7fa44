"""Splits: parts compute what the whole does, and cost what it costs plus what is read again."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Literal

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from jaxpart.errors import InputError
from jaxpart.ingest.rewrite.cuts import Cut, Request
from jaxpart.ingest.rewrite.lanes import lane_order, renumbered
from jaxpart.ingest.rewrite.parts import share
from jaxpart.ingest.rewrite.split import Split, split
from jaxpart.problem.division import Division, Part
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from tests.support import oracle, part_execution
from tests.support.strategies import assignments, divided_graphs, mcms


@st.composite
def requests(draw, graph: Graph) -> dict[int, Request]:
    """Some of the nodes that can be divided, in up to four parts."""
    found = {}
    for v, node in enumerate(graph.nodes):
        if node.divide and draw(st.booleans()):
            division = draw(st.integers(0, len(node.divide) - 1))
            parts = draw(st.integers(2, min(4, node.divide[division].ways)))
            found[v] = Request(division, parts, draw(st.booleans()))
    return found


def random_requests(rng: np.random.Generator, graph: Graph, percent: int) -> dict[int, Request]:
    found = {}
    for v, node in enumerate(graph.nodes):
        if node.divide and rng.integers(100) < percent:
            division = int(rng.integers(len(node.divide)))
            parts = int(rng.integers(2, min(4, node.divide[division].ways) + 1))
            found[v] = Request(division, parts, bool(rng.integers(2)))
    return found


def partial_bytes(graph: Graph, made: Split) -> float:
    """Bytes of all partial results: most by which a split adds to what is live."""
    return math.fsum(
        tensor.bytes
        for tensor, piece in zip(graph.tensors, made.tensors, strict=True)
        if piece.kind != "value"
    )


@given(st.floats(1e-20, 1e20), st.integers(2, 50), st.data())
def test_shares_add_up_exactly(amount, ways, data):
    amount = data.draw(st.sampled_from([amount, float(round(amount)), round(amount) % 10**9]))
    places = sorted(data.draw(st.sets(st.integers(1, ways - 1))) | {0, ways})
    shares = [
        share(amount, (Fraction(a, ways), Fraction(b, ways))) for a, b in itertools.pairwise(places)
    ]

    assert sum(shares) == sum(reversed(shares)) == math.fsum(shares) == amount
    unit = 1 if float(amount).is_integer() and amount < 2**53 else math.ulp(amount)
    for size, a, b in zip(shares, places[:-1], places[1:], strict=True):
        assert abs(size - amount * (b - a) / ways) <= unit + math.ulp(amount)


@given(divided_graphs(), st.data())
@settings(max_examples=100)
def test_parts_have_the_flops_weights_and_bytes_of_the_whole(graph, data):
    made = split(graph, data.draw(requests(graph)))

    for v, node in enumerate(graph.nodes):
        parts = [made.graph.nodes[x] for x in made.parts_of[v]]
        assert sum(part.flops for part in parts) == node.flops
        assert {part.seconds is None for part in parts} == {node.seconds is None}
        assert node.seconds is None or sum(part.seconds or 0 for part in parts) == node.seconds
        assert {part.pin for part in parts} == {node.pin}
        assert sum(p.bytes_accessed for p in parts) >= node.bytes_accessed * (1 - 1e-12)
    of_tensor: dict[int, list[float]] = collections.defaultdict(list)
    for tensor, piece in zip(made.graph.tensors, made.tensors, strict=True):
        if piece.kind == "value":
            of_tensor[piece.of].append(tensor.bytes)
    assert [sum(of_tensor[k]) for k in range(len(graph.tensors))] == [
        k.bytes for k in graph.tensors
    ]
    of_weight: dict[int, list[float]] = collections.defaultdict(list)
    for weight, piece in zip(made.graph.weights, made.weights, strict=True):
        of_weight[piece.of].append(weight.bytes)
    assert [sum(of_weight[w]) for w in range(len(graph.weights))] == [
        w.bytes for w in graph.weights
    ]


@given(divided_graphs(), st.data())
@settings(max_examples=100)
def test_parts_that_stay_together_cost_the_whole_and_what_is_read_again(graph, data):
    mcm = data.draw(mcms())
    f = data.draw(assignments(graph, mcm))
    made = split(graph, data.draw(requests(graph)))
    before = oracle.evaluate(graph, mcm, f)
    after = oracle.evaluate(made.graph, mcm, made.extended(f))

    scaled, scaled_parts = oracle.rescaled(graph, mcm), oracle.rescaled(made.graph, mcm)
    for c in range(len(mcm.chips)):
        again = 0.0
        for v, parts in enumerate(made.parts_of):
            if f[v] != c:
                continue
            whole = scaled.nodes[v]
            extra = sum(scaled_parts.nodes[x].bytes_accessed for x in parts) - whole.bytes_accessed
            if whole.seconds is None:
                chip = mcm.chips[c]
                again += extra / chip.sram_bandwidth / chip.speed
                # Shares are whole numbers.
                rounding = 1 / chip.peak_flops + 2 / chip.sram_bandwidth
                again += len(parts) * rounding / chip.speed
            again += sum(
                oracle.node_seconds(scaled_parts, mcm, x, c) for x in made.joins_of.get(v, ())
            )
        assert before.compute_s[c] * (1 - 1e-9) <= after.compute_s[c]
        assert after.compute_s[c] <= (before.compute_s[c] + again) * (1 + 1e-9)
    assert after.in_s == pytest.approx(before.in_s, rel=1e-12)
    assert after.out_s == pytest.approx(before.out_s, rel=1e-12)
    assert list(after.busy_s.values()) == pytest.approx(list(before.busy_s.values()), rel=1e-12)
    assert before.bottleneck_s * (1 - 1e-9) <= after.bottleneck_s
    partial = partial_bytes(scaled_parts, made)
    for c in range(len(mcm.chips)):
        assert after.memory_bytes[c] <= (before.memory_bytes[c] + partial) * (1 + 1e-12)
    for rule in ("acyclic", "no_skip", "triangle", "colocation", "fixed_chips"):
        assert getattr(after, rule) == getattr(before, rule)
    if not partial:
        assert after.memory or not before.memory
        assert after.valid or not before.valid


@given(divided_graphs(), st.data())
@settings(max_examples=100)
def test_what_parts_access_exceeds_the_whole_by_what_is_not_divided(graph, data):
    made = split(graph, data.draw(requests(graph)))

    for v, cut in made.cuts.items():
        node, division, k = graph.nodes[v], cut.division, cut.parts
        operands, results = operands_of(graph, v), results_of(graph, v)
        by = dict(division.reads)
        read = sum(t.bytes for n, t in enumerate(graph.tensors) if by.get(n) is not None)
        divided = sum(x.bytes for x, label in operands if label(division) is not None)
        divided += 0 if division.join else results
        everything = sum(x.bytes for x, _ in operands) + results
        whole = max(node.bytes_accessed - divided, min(node.bytes_accessed, everything - divided))
        halo = 2 * (k - 1) * division.halo / division.ways * read
        total = sum(made.graph.nodes[x].bytes_accessed for x in made.parts_of[v])
        most = node.bytes_accessed + (k - 1) * whole + halo + 3 * k * len(division.reads)
        assert total <= most * (1 + 1e-12)


@given(divided_graphs(), st.data())
@settings(max_examples=100)
def test_a_part_accesses_what_it_writes_and_what_it_reads_whole(graph, data):
    # All operands and results are accessed, but for a part of the largest one that is divided.
    chosen = data.draw(requests(graph))
    nodes = list(graph.nodes)
    for v, request in chosen.items():
        division = nodes[v].divide[int(request.division)]
        sizes = [x.bytes for x, _ in operands_of(graph, v)]
        largest = max(operands_of(graph, v), key=lambda entry: entry[0].bytes, default=None)
        total = sum(sizes) + results_of(graph, v)
        if largest is not None and largest[1](division) is not None and sizes.count(max(sizes)) < 2:
            total -= data.draw(st.integers(0, int(largest[0].bytes)))
        nodes[v] = msgspec.structs.replace(nodes[v], bytes_accessed=total, fixed_bytes=0)
    graph = dataclasses.replace(
        graph,
        nodes=tuple(nodes),
        tensors=tuple(msgspec.structs.replace(k, fixed=False) for k in graph.tensors),
        weights=tuple(msgspec.structs.replace(w, fixed=False) for w in graph.weights),
    )
    made = split(graph, chosen)

    for v, cut in made.cuts.items():
        whole = sum(x.bytes for x, label in operands_of(graph, v) if label(cut.division) is None)
        for x in made.parts_of[v]:
            assert made.graph.nodes[x].bytes_accessed >= whole + results_of(made.graph, x)


def operands_of(graph: Graph, v: int):
    """Tensors and weights that a node reads, each with a function from a division to its label."""
    tensors = [
        (tensor, lambda division, k=k: dict(division.reads).get(k))
        for k, tensor in enumerate(graph.tensors)
        if v in tensor.consumers
    ]
    weights = [
        (weight, lambda division, w=w: dict(division.weights).get(w))
        for w, weight in enumerate(graph.weights)
        if v in weight.consumers
    ]
    return [*tensors, *weights]


def results_of(graph: Graph, v: int) -> float:
    return sum(tensor.bytes for tensor in graph.tensors if tensor.producer == v)


@given(divided_graphs(), st.data())
@settings(max_examples=100)
def test_parts_that_end_on_one_chip_are_joined_again(graph, data):
    mcm = data.draw(mcms())
    made = split(graph, data.draw(requests(graph)))
    f = data.draw(assignments(graph, mcm))

    joined, back = made.joined(made.extended(f))

    assert joined.graph == graph
    assert back == f


@given(divided_graphs(), st.data())
@settings(max_examples=100)
def test_joining_neighbours_never_adds_compute(graph, data):
    mcm = data.draw(mcms())
    made = split(graph, data.draw(requests(graph)))
    f = data.draw(assignments(made.graph, mcm))

    joined, back = made.joined(f)

    before = oracle.evaluate(made.graph, mcm, f)
    after = oracle.evaluate(joined.graph, mcm, back)
    for ours, theirs in zip(after.compute_s, before.compute_s, strict=True):
        assert ours <= theirs * (1 + 1e-9)
    again, same = joined.joined(back)
    assert again.graph == joined.graph
    assert same == back


@given(divided_graphs(), st.data())
@settings(max_examples=100)
def test_a_partition_is_carried_over_to_finer_parts_along_the_chips_that_send(graph, data):
    mcm = data.draw(mcms())
    coarse = split(graph, data.draw(requests(graph)))
    f = data.draw(assignments(coarse.graph, mcm))
    finer = {
        v: cut._replace(places=tuple(range(cut.division.ways + 1)))
        for v, cut in coarse.cuts.items()
        if data.draw(st.booleans())
    }
    fine = split(graph, {**coarse.cuts, **finer})

    carried = fine.carried(coarse, f)

    def chips(made: Split, f) -> set[tuple[int, int]]:
        return {(f[u], f[v]) for u, v in oracle.edges_of(made.graph) if f[u] != f[v]}

    assert chips(fine, carried) <= chips(coarse, f)
    assert coarse.carried(fine, carried) == f


@pytest.mark.parametrize("first", range(0, 150, 50))
def test_parts_compute_what_the_whole_computes(first):
    for seed in range(first, first + 50):
        rng = np.random.default_rng(seed)
        program = part_execution.random_program(rng)
        graph = program.graph
        expected = part_execution.run(program)
        requests = random_requests(rng, graph, 70)
        once = split(graph, requests)
        requests = random_requests(rng, once.graph, 50)
        twice = split(once.graph, requests)
        f = rng.integers(0, 3, len(once.graph.nodes)).tolist()
        in_lanes = renumbered(once, lane_order(once))

        for splits in [(once,), (once, twice), (once.joined(f)[0],), (in_lanes,)]:
            found = part_execution.run(program, *splits)
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def dense(ways: int = 10, join: Literal["sum"] | None = None, **fields) -> Graph:
    """A product of 100 bytes by a weight of 1,000, read by an addition along the same axis."""
    reads, weights = ((0, None),), ((0, "out"),)
    if join:
        reads, weights = ((0, "in"),), ((0, "in"),)
    division = Division(ways, "in" if join else "out", join, 0, reads, weights)
    nodes = (
        Node("source", "relu", 10, 100),
        Node("dense", "dot", 2000, 1140, divide=(division,), **fields),
        Node("bias", "add", 40, 120, divide=(Division(20, "out", reads=((1, "out"),)),)),
    )
    tensors = (Tensor(0, 100, (1,)), Tensor(1, 40, (2,)), Tensor(2, 40, ()))
    return Graph(nodes, tensors, (Weight(1000, (1,)),), "dense", 1)


def test_the_first_parts_are_one_slice_longer():
    made = split(dense(), {1: Request(0, 3)})

    assert [node.name for node in made.graph.nodes[1:4]] == [
        "dense/part0of3",
        "dense/part1of3",
        "dense/part2of3",
    ]
    assert [node.part for node in made.graph.nodes[1:4]] == [
        Part("dense", "out", 0, 4),
        Part("dense", "out", 4, 7),
        Part("dense", "out", 7, 10),
    ]
    assert [node.flops for node in made.graph.nodes[1:4]] == [800, 600, 600]
    # The operand whole, and shares of the weight and of the result.
    assert [node.bytes_accessed for node in made.graph.nodes[1:4]] == [516, 412, 412]
    assert made.graph.tensors[1:4] == (
        Tensor(1, 16, (4,)),
        Tensor(2, 12, (4,)),
        Tensor(3, 12, (4,)),
    )
    assert made.graph.weights == (Weight(400, (1,)), Weight(300, (2,)), Weight(300, (3,)))
    assert made.graph.tensors[0].consumers == (1, 2, 3)


def gather(division: Division) -> Graph:
    """Takes 20 rows of 10 bytes from a table of 1,000 rows; the indices have 40 bytes."""
    nodes = (Node("ids", "op", 1, 40), Node("gather", "gather", 0, 440, divide=(division,)))
    tensors = (Tensor(0, 40, (1,)), Tensor(1, 200, ()))
    return Graph(nodes, tensors, (Weight(10_000, (1,)),), "gather", 1)


@pytest.mark.parametrize(
    ("division", "expected"),
    [
        # Its rows; the indices and a result of the whole size.
        (Division(1000, "rows", "sum", weights=((0, "rows"),)), [67 + 240, 67 + 240, 66 + 240]),
        # Its features of rows and result; the indices.
        (Division(10, "out", weights=((0, "out"),)), [160 + 40, 120 + 40, 120 + 40]),
        # Its positions of indices and result; the rows, of which nothing says that they are fewer.
        (Division(20, "at", reads=((0, "at"),)), [84 + 200, 84 + 200, 72 + 200]),
    ],
)
def test_parts_of_a_gather_share_out_the_rows_that_it_touches(division, expected):
    made = split(gather(division), {1: Request(0, 3)})

    accessed = [node.bytes_accessed for node in made.graph.nodes[1:4]]
    assert sum(accessed) == sum(expected)
    assert accessed == pytest.approx(expected, abs=1)


def test_a_cut_passes_through_a_neighbour_at_the_same_places():
    made = split(dense(), {1: Request("out", 3), 2: Request("out", 3)})

    assert made.cuts[2].places == (0, 8, 14, 20)
    assert [t.consumers for t in made.graph.tensors[1:4]] == [(4,), (5,), (6,)]


def test_places_are_apart_where_common_slices_are_too_few():
    made = split(dense(ways=9), {1: Request("out", 3), 2: Request("out", 2)})

    assert made.cuts[1].places == (0, 3, 6, 9)
    assert made.cuts[2].places == (0, 10, 20)
    assert [t.consumers for t in made.graph.tensors[1:5]] == [(4,), (4,), (5,), (5,)]
    assert [t.producer for t in made.graph.tensors[1:5]] == [1, 2, 2, 3]
    assert sum(t.bytes for t in made.graph.tensors[1:5]) == 40


def test_partial_results_are_summed_by_one_node():
    made = split(dense(join="sum", pin=1), {1: Request(0, 3)})

    join = made.graph.nodes[4]
    assert (join.name, join.op, join.flops, join.bytes_accessed) == ("dense/sum", "sum", 80, 160)
    assert join.pin == 1
    assert made.joins_of == {1: (4,)}
    assert made.whole_of == (0, 1, 1, 1, None, 2)
    assert [node.divide for node in made.graph.nodes[1:5]] == [()] * 4
    assert [(t.producer, t.bytes, t.consumers) for t in made.graph.tensors[3:]] == [
        (1, 40, (4,)),
        (2, 40, (4,)),
        (3, 40, (4,)),
        (4, 40, (5,)),
        (5, 40, ()),
    ]
    # A part reads its share of operand and weight, and writes a result of the whole size.
    assert [node.bytes_accessed for node in made.graph.nodes[1:4]] == [480, 370, 370]


def test_partial_results_are_summed_one_after_the_other():
    made = split(dense(join="sum"), {1: Request(0, 3, chain=True)})

    names = [node.name for node in made.graph.nodes]
    assert names[1:6] == [
        "dense/part0of3",
        "dense/part1of3",
        "dense/sum1",
        "dense/part2of3",
        "dense/sum2",
    ]
    assert {made.graph.nodes[x].flops for x in made.joins_of[1]} == {40}
    assert {made.graph.nodes[x].bytes_accessed for x in made.joins_of[1]} == {120}
    assert oracle.edges_of(made.graph) >= {(1, 3), (2, 3), (3, 5), (4, 5), (5, 6)}

    joined, chips = made.joined([0, 0, 0, 0, 1, 1, 1])

    assert joined.cuts[1].places == (0, 7, 10)
    assert [node.name for node in joined.graph.nodes[3:]] == ["dense/sum", "bias"]
    assert chips == (0, 0, 1, 1, 1)


def test_a_sum_can_be_divided_along_the_axes_of_the_result():
    graph = dense(join="sum")
    by_output = Division(10, "out", reads=((0, None),), weights=((0, "out"),))
    node = msgspec.structs.replace(graph.nodes[1], divide=(*graph.nodes[1].divide, by_output))
    graph = dataclasses.replace(graph, nodes=(graph.nodes[0], node, graph.nodes[2]))

    made = split(graph, {1: Request("in", 3)})

    partials = tuple(k for k, piece in enumerate(made.tensors) if piece.kind == "partial")
    assert made.graph.nodes[4].divide == (
        Division(10, "out", reads=tuple((k, "out") for k in partials)),
    )


def test_a_weight_is_cut_once_for_all_who_divide_it():
    by = Division(8, "a", weights=((0, "rows"),))
    nodes = (
        Node("two", "op", 8, 100, divide=(by,)),
        Node("four", "op", 8, 100, divide=(msgspec.structs.replace(by, ways=12),)),
        Node("whole", "op", 8, 100),
    )
    graph = Graph(nodes, (), (Weight(96, (0, 1, 2)),), "shared", 1)

    made = split(graph, {0: Request(0, 2), 1: Request(0, 4)})

    assert [w.bytes for w in made.graph.weights] == [24] * 4
    assert [w.consumers for w in made.graph.weights] == [
        (0, 2, 6),
        (0, 3, 6),
        (1, 4, 6),
        (1, 5, 6),
    ]


def test_a_part_reads_the_rows_beside_its_own():
    by = Division(8, "rows", halo=1, reads=((0, "rows"),))
    nodes = (
        Node("first", "conv", 80, 80, divide=(Division(8, "rows"),)),
        Node("second", "conv", 80, 160, divide=(by,)),
    )
    graph = Graph(nodes, (Tensor(0, 80, (1,)), Tensor(1, 80, ())), (), "rows", 1)

    made = split(graph, {0: Request(0, 2), 1: Request(0, 2)})

    assert [(t.producer, t.bytes, t.consumers) for t in made.graph.tensors[:4]] == [
        (0, 30, (2,)),
        (0, 10, (2, 3)),
        (1, 10, (2, 3)),
        (1, 30, (3,)),
    ]
    assert [node.bytes_accessed for node in made.graph.nodes] == [40, 40, 90, 90]


def test_fixed_bytes_are_shared_out_by_themselves():
    graph = dense()
    node = msgspec.structs.replace(graph.nodes[1], fixed_bytes=1050)
    graph = dataclasses.replace(
        graph,
        nodes=(graph.nodes[0], node, graph.nodes[2]),
        weights=(Weight(1000, (1,), fixed=True),),
    )

    made = split(graph, {1: Request(0, 2)})

    # 50 of the fixed bytes belong to nothing that is known to be divided.
    assert [node.fixed_bytes for node in made.graph.nodes[1:3]] == [550, 550]
    assert [node.bytes_accessed for node in made.graph.nodes[1:3]] == [620, 620]
    assert all(weight.fixed for weight in made.graph.weights)


def test_parts_of_parts_are_slices_of_the_first_whole():
    once = split(dense(), {1: Request(0, 2)})
    assert once.graph.nodes[2].divide == (
        Division(5, "out", reads=((0, None),), weights=((1, "out"),)),
    )

    twice = split(once.graph, {2: Request(0, 2)})

    assert [node.part for node in twice.graph.nodes[1:4]] == [
        Part("dense", "out", 0, 5),
        Part("dense", "out", 5, 8),
        Part("dense", "out", 8, 10),
    ]
    assert twice.graph.nodes[2].name == "dense/part1of2/part0of2"
    assert [w.bytes for w in twice.graph.weights] == [500, 300, 200]


def test_names_of_parts_are_unique():
    graph = dense()
    taken = msgspec.structs.replace(graph.nodes[0], name="dense/part0of2")
    graph = dataclasses.replace(graph, nodes=(taken, *graph.nodes[1:]))

    made = split(graph, {1: Request(0, 2)})

    assert [node.name for node in made.graph.nodes[:3]] == [
        "dense/part0of2",
        "dense/part0of2.2",
        "dense/part1of2",
    ]


def test_nothing_is_changed_where_nothing_is_asked():
    graph = dense()

    made = split(graph, {})

    assert made.graph == graph
    assert made.whole_of == (0, 1, 2)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({7: Request(0, 2)}, "split: node 7, expected 0 to 2"),
        ({0: Request(0, 2)}, r"node 0 \('source'\): is a node that cannot be divided"),
        ({1: Request(1, 2)}, r"node 1 \('dense'\): division 1, expected 0 to 0"),
        ({1: Request("rows", 2)}, "has no axis 'rows', expected one of 'out'"),
        ({1: Request(0, 1)}, "1 parts, expected 2 to the number of slices, 10"),
        ({1: Request(0, 11)}, "11 parts, expected 2 to the number of slices, 10"),
        ({1: Cut(dense().nodes[1].divide[0], (0, 4, 4, 10))}, "expected ascending slices"),
        ({1: Cut(dense().nodes[1].divide[0], (0, 4, 9))}, "expected ascending slices"),
        ({1: Cut(Division(3, "x"), (0, 1, 3))}, "has no such division"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(request_, message):
    with pytest.raises(InputError, match=message):
        split(dense(), request_)


def test_a_node_of_a_colocation_group_is_not_split():
    with pytest.raises(InputError, match="is in a colocation group"):
        split(dense(colocate=3), {1: Request(0, 2)})


def test_a_part_with_a_join_is_not_split_again():
    made = split(dense(join="sum"), {1: Request(0, 2)})

    with pytest.raises(InputError, match="is a part of 'dense' that cannot be divided"):
        split(made.graph, {1: Request(0, 2)})


def test_a_partition_of_another_size_is_refused():
    made = split(dense(), {1: Request(0, 2)})

    for refused in (made.extended, made.joined):
        with pytest.raises(InputError, match="assignment has 2 entries"):
            refused([0, 0])
    with pytest.raises(InputError, match="the partition is of another graph"):
        made.carried(split(dense(ways=4), {}), [0, 0, 0])
