"""What a person reads: golden pages, what binds, why a partition is not valid, the picture."""

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from jaxpart.cost.verdicts import broken_rules, verdicts
from jaxpart.errors import InputError
from jaxpart.problem.graph import Graph, Node, Tensor, Weight
from jaxpart.problem.mcm import MCM, Chip, Constraints
from jaxpart.problem.problem import Problem
from jaxpart.results import report
from jaxpart.results.picture import COLOURS
from jaxpart.results.result import Result, SearchInfo, score
from jaxpart.results.scored import ScoredPartition

MIB = 2**20
CHIP = Chip(peak_flops=1e12, sram_bandwidth=100e9, sram_bytes=2 * MIB)
CHAIN = MCM("tiny4", "chain", (CHIP,) * 4, link_bandwidth=1e9, element_bytes=1)
HOST = dataclasses.replace(CHAIN, name="host4", topology="host")
MESH = dataclasses.replace(CHAIN, name="mesh2x2", topology="mesh", rows=2, cols=2)


def diamond(**of_last):
    """a feeds b and c, which feed d."""
    nodes = (
        Node("a", "dot_general", 1e8, 1e3),
        Node("b", "dot_general", 3e8, 1e3),
        Node("c", "dot_general", 2e8, 1e3),
        Node("d", "add", 1e6, 1e3, **of_last),
    )
    tensors = (
        Tensor(0, 1e5, (1, 2)),
        Tensor(1, 4e4, (3,)),
        Tensor(2, 2e4, (3,)),
        Tensor(3, 10, ()),
    )
    return Graph(nodes, tensors, (Weight(1.25 * MIB, (1,)), Weight(MIB, (2,))), "diamond", 1)


def scored(assignment, mcm=CHAIN, graph=None):
    problem = Problem.build(graph or diamond(), mcm)
    chips = np.array(assignment)
    return problem, chips, score(problem, chips)


def evaluation_page(problem, chips, costs, bound=(1e-4, "mean load")):
    return report.evaluation(ScoredPartition(problem, chips, costs, None, bound[0], bound[1], ()))


def result_of(assignment, mcm=CHAIN, **changes):
    problem, chips, costs = scored(assignment, mcm)
    fields = {
        "baseline_s": 4e-4,
        "lower_bound_s": 3e-4,
        "bound_method": "ideals",
        "search": SearchInfo("slice", 1234, 0.5, 7),
        "notes": ("bytes rescaled from 4 to 1 per element",),
        **changes,
    }
    return Result(problem, chips, costs, **fields)


def lines_of(text):
    return [line.rstrip() for line in text.strip("\n").split("\n")]


NO_TRIANGLE = Constraints(triangle=False)
NOTHING_HELD = Constraints(acyclic=False, no_skip=False, triangle=False, memory=False)


def test_the_summary_of_a_chain():
    expected = """
diamond: 4 nodes, 4 edges, 0.601 GFLOP, weights 2.25 MiB, 1-byte elements
tiny4: 4 chips (chain), 1 TFLOP/s and 2 MiB each, links 1 GB/s, overlapped transfers

bottleneck   300.00 us, 3,333.33 inferences/s
bound by     compute of chip 1
chips used   3 of 4, 0.1335 MiB sent
improvement  1.333x over greedy (400.00 us), +33.3% throughput
lower bound  300.00 us (ideals), gap 0.000%: proven optimal
search       slice, 1,234 samples in 0.5 s, seed 7
note         bytes rescaled from 4 to 1 per element

chip  nodes  compute      in     out    link   stage   load  memory  full  binds
                  us      us      us      us      us      %     MiB     %
   0      1   100.00    0.00  100.00  100.00  100.00   33.3    0.29  14.3
   1      1   300.00  100.00   40.00  140.00  300.00  100.0    1.56  77.8  <- compute
   2      2   201.00  140.00    0.00    0.00  201.00   67.0    1.29  64.3
no nodes on chip 3
"""
    module = dataclasses.replace(CHAIN, constraints=NO_TRIANGLE)

    assert lines_of(result_of((0, 1, 2, 2), module).summary()) == lines_of(expected)


def test_the_summary_of_a_host_with_serial_transfers():
    expected = """
diamond: 4 nodes, 4 edges, 0.601 GFLOP, weights 2.25 MiB, 1-byte elements
host4: 4 chips (host), 1 TFLOP/s and 2 MiB each, links 1 GB/s, serial transfers

bottleneck   440.00 us, 2,272.73 inferences/s
bound by     compute + in + out of chip 1
chips used   3 of 4, 0.1335 MiB sent
improvement  none to state: the greedy heuristic finds nothing valid here
lower bound  200.00 us (mean load), gap 120.00%
search       slice, 1,234 samples in 0.5 s, seed 7 (interrupted)

chip  nodes  compute      in     out   stage   load  memory  full  binds
                  us      us      us      us      %     MiB     %
   0      1   100.00    0.00  100.00  200.00   45.5    0.29  14.3
   1      1   300.00  100.00   40.00  440.00  100.0    1.56  77.8  <- compute + in + out
   2      2   201.00  140.00    0.00  341.00   77.5    1.29  64.3
no nodes on chip 3
"""
    module = dataclasses.replace(HOST, overlap=False, constraints=NO_TRIANGLE)
    result = result_of(
        (0, 1, 2, 2),
        module,
        baseline_s=None,
        lower_bound_s=2e-4,
        bound_method="mean load",
        search=SearchInfo("slice", 1234, 0.5, 7, interrupted=True),
        notes=(),
    )

    assert lines_of(result.summary()) == lines_of(expected)


def test_a_mesh_lists_its_busiest_links():
    slow = dataclasses.replace(MESH, link_bandwidth=2e8)
    text = result_of((0, 1, 2, 3), slow).summary()

    assert "bound by     out of chip 0 (and 4 more as busy)" in text
    assert (
        "links: 4 of 8 in use; busiest, us: 0>1 500.00, 0>2 500.00, 1>3 200.00, 2>3 100.00" in text
    )


def test_what_binds_can_be_a_link():
    # Both 100 us tensors pass the link between chips 1 and 2, each chip sends or receives less.
    nodes = tuple(Node(f"n{v}", "add", 1e6, 1) for v in range(4))
    graph = Graph(
        nodes, (Tensor(0, 1e5, (2,)), Tensor(1, 1e5, (3,))), name="crossing", element_bytes=1
    )
    problem, chips, costs = scored((0, 1, 2, 3), CHAIN, graph)

    assert report.binding(problem, costs) == "link 1 -> 2"
    assert "200.00  100.00  100.0    0.29  14.3  <- link" in report.chip_table(
        problem, chips, costs
    )


def test_nothing_binds_where_all_costs_are_zero():
    free = Graph((Node("only", "constant", 0, 0),))
    problem, chips, costs = scored((0,), CHAIN, free)

    assert report.binding(problem, costs) == "nothing (all costs are zero)"
    assert " 0.0    0.00   0.0" in report.chip_table(problem, chips, costs)


def test_a_memory_that_is_nearly_full_is_marked():
    tight = dataclasses.replace(CHIP, sram_bytes=1.6 * MIB)
    problem, chips, costs = scored((0, 1, 2, 2), dataclasses.replace(CHAIN, chips=(tight,) * 4))

    assert "<- compute, memory full" in report.chip_table(problem, chips, costs)


def test_a_page_stays_within_a_hundred_columns():
    big = dataclasses.replace(CHAIN, chips=(dataclasses.replace(CHIP, speed=1e-3),) * 36)
    problem, chips, costs = scored((0, 0, 0, 3), big)
    page = evaluation_page(problem, chips, costs, (1.0, "mean load"))

    assert max(map(len, page.splitlines())) <= 100


def test_the_evaluation_of_a_broken_partition_names_every_broken_rule():
    expected = """
verdict      NOT VALID
bottleneck   500.00 us, 2,000 inferences/s
bound by     compute of chip 0
chips used   3 of 4, 0.1526 MiB sent
lower bound  100.00 us (mean load)

acyclic dataflow  BROKEN  2 of 4 edges flow backward, as 'a' (chip 1) -> 'b' (chip 0)
no skipped chip   BROKEN  nothing on chip 2, but something on chip 3
chip triangle     BROKEN  undefined where data flows backward
memory            BROKEN  chip 0 needs 2.59 of 2.00 MiB
colocation        ok      the graph has no groups
fixed chips       ok      the graph has no fixed chips
"""
    problem, chips, costs = scored((1, 0, 0, 3))
    page = evaluation_page(problem, chips, costs)

    assert lines_of(page)[3:15] == lines_of(expected)


@pytest.mark.parametrize(
    ("assignment", "graph", "rule", "detail"),
    [
        (
            (0, 1, 2, 2),
            diamond(),
            "chip triangle",
            "chip 0 sends to chip 2 directly and through chip 1",
        ),
        ((0, 0, 0, 0), diamond(), "memory", "chip 0 needs 2.40 of 2.00 MiB"),
        ((0, 0, 1, 1), diamond(pin=2), "fixed chips", "'d' (chip 1) is fixed to chip 2"),
        ((0, 0, 2, 2), diamond(), "no skipped chip", "nothing on chip 1, but something on chip 2"),
    ],
)
def test_a_broken_rule_comes_with_an_example(assignment, graph, rule, detail):
    problem, chips, costs = scored(assignment, CHAIN, graph)

    assert [(v.rule, v.detail) for v in broken_rules(problem, chips, costs)] == [(rule, detail)]


def test_a_split_group_is_named():
    nodes = tuple(Node(f"n{v}", "add", 1, 1, colocate=v % 2) for v in range(4))
    problem, chips, costs = scored((0, 0, 0, 1), CHAIN, Graph(nodes))

    assert [v.detail for v in broken_rules(problem, chips, costs)] == [
        "'n1' (chip 0) and 'n3' (chip 1) must share a chip"
    ]


def test_a_rule_that_is_off_breaks_nothing():
    module = dataclasses.replace(HOST, constraints=NOTHING_HELD)
    problem, chips, costs = scored((1, 0, 0, 3), module)

    assert costs.valid
    assert broken_rules(problem, chips, costs) == ()
    assert [v.holds for v in verdicts(problem, chips, costs)[:4]] == [False] * 4
    assert "off, does not hold" in evaluation_page(problem, chips, costs, (0.0, "mean load"))


@pytest.mark.parametrize("mcm", [CHAIN, HOST, MESH, dataclasses.replace(HOST, overlap=False)])
def test_the_picture_is_drawn_for_every_topology(tmp_path, mcm):
    module = dataclasses.replace(mcm, constraints=NO_TRIANGLE)
    result_of((0, 1, 2, 2), module).plot(tmp_path / "p.png")
    pixels = imread(tmp_path / "p.png")
    height, width, _ = pixels.shape

    assert width > 1200
    # The links have a panel of their own where there are links.
    assert (height > 1000) == (module.topology != "host")
    for colour in COLOURS.values():
        assert (np.abs(pixels[..., :3] - to_rgb(colour)) < 0.01).all(axis=-1).any()


def test_the_ending_decides_the_kind_of_picture(tmp_path):
    result = result_of((0, 1, 2, 2), dataclasses.replace(CHAIN, constraints=NO_TRIANGLE))
    result.plot(tmp_path / "p.svg")

    text = (tmp_path / "p.svg").read_text()
    assert "<svg" in text
    with pytest.raises(InputError, match=r"p\.bmp: a picture ends in \.png, \.svg, \.pdf"):
        result.plot(tmp_path / "p.bmp")
    assert not (tmp_path / "p.bmp").exists()
