"""What `jaxpart.simulate` says of a partition, and what it refuses."""

import dataclasses

import numpy as np
import pytest
from matplotlib.image import imread

import jaxpart
from jaxpart.errors import InputError
from jaxpart.export.simulation.simulate import Simulation, Stall, simulate
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import Constraints
from tests.support.modules import THREE_CHIPS, unit_module
from tests.support.problems import layered
from tests.support.strategies import random_mcm

FREE = Constraints(acyclic=False, no_skip=False, triangle=False)


def module(chips, **options):
    return dataclasses.replace(
        unit_module(chips, **options), constraints=Constraints(triangle=False)
    )


def path(seconds, size=0.0, far=()):
    """A path of nodes, and further tensors (producer, consumer), all of one size."""
    nodes = tuple(Node(f"n{v}", "op", float(x), 0.0) for v, x in enumerate(seconds))
    edges = [*((v, v + 1) for v in range(len(seconds) - 1)), *far]
    tensors = tuple(Tensor(u, size, (v,)) for u, v in edges)
    return Graph(nodes, tensors, name="path", element_bytes=None)


# Chip 0 sends to chip 5 both directly and through chips 1 to 4.
AROUND = path([1] * 6, far=[(0, 5)])
CHIPS = list(range(6))


def test_figures_are_those_of_the_run():
    """Chips of 1 and 4 and a transfer of 2: inferences end at 7, 11, 15 and 19."""
    found = jaxpart.simulate(path([1, 4], 2.0), module(2), [0, 1], count=4, buffers=2)

    assert isinstance(found, Simulation)
    assert found.finish_s.tolist() == [7, 11, 15, 19]
    # Chip 0 computes the third when the first has left, and the fourth when the second has, which
    # is when chip 1 has a slot for it... at once: only the fourth transfer waits, from 7.
    assert found.start_s.tolist() == [0, 1, 3, 5]
    assert found.latency_s.tolist() == [7, 10, 12, 14]
    assert found.bottleneck_s == 4
    assert found.throughput_per_s == 4 / 19
    assert found.steady_per_s == 1 / 4
    assert found.compute_share.tolist() == [4 / 19, 16 / 19]
    assert found.in_share.tolist() == [0, 8 / 19]
    assert found.out_share.tolist() == [8 / 19, 0]
    assert found.link_share.tolist() == [8 / 19]
    assert found.stalls == ()


def test_what_waits_for_a_slot_is_counted_where_it_waits():
    """One slot: transfers begin at 1, 7, 13; without it the second could at 3, the third at 9."""
    found = simulate(path([1, 4], 2.0), module(2), [0, 1], count=3, buffers=1)

    assert found.finish_s.tolist() == [7, 13, 19]
    # Computed at 0, 3 (the out port had the first until 3; ready at 1), 9 (likewise; ready at 4).
    assert found.compute_stall_share.tolist() == [(2 + 5) / 19, 0]
    # Ready to send at 4 and at 10, sent at 7 and at 13.
    assert found.out_stall_share.tolist() == [(3 + 3) / 19, 0]


def test_two_buffers_stall_where_paths_of_unequal_length_meet_again_and_more_do_not():
    two, three, enough, none = (
        simulate(AROUND, module(6), CHIPS, count=1200, buffers=b) for b in (2, 3, 4, None)
    )

    # With b slots the direct transfer of an inference waits until chip 5 has computed the one b
    # before. Behind it waits the next one's transfer to chip 1, which chip 5 ends 5 s after that.
    # So b + 1 inferences take 5 s.
    assert two.steady_per_s == pytest.approx(3 / 5)
    assert two.stalls == (Stall(0, "send", 5),)
    assert two.inferences_to_near is None
    assert "full buffers cost 40.00% of 1/T; waiting: chip 0 to send to chip 5" in two.summary()
    assert three.steady_per_s == pytest.approx(4 / 5)
    assert none.steady_per_s == 1
    assert none.stalls == ()
    assert "none that cost throughput" in none.summary()
    np.testing.assert_array_equal(enough.finish_s[-100:], none.finish_s[-100:])


def test_on_a_host_a_transfer_rests_in_its_memory_too():
    around, mcm = path([1] * 10, far=[(0, 9)]), module(10, topology="host")

    found = simulate(around, mcm, range(10), count=1000, buffers=2)

    # The in port of chip 9 serves inferences in order, so the direct transfer is there at most one
    # ahead, and two ahead in memory. Behind it waits the next one to chip 1, 8 s before chip 9.
    assert found.steady_per_s == 4 / 8
    assert found.stalls == (Stall(0, "send", 9),)
    assert simulate(around, mcm, range(10), count=1000, buffers=6).stalls == ()


def test_a_chip_that_fetches_from_a_host_waits_for_its_own_slots():
    """Chips of 1 and 4, a transfer of 2: with one slot chip 1 fetches when it has computed."""
    found = simulate(path([1, 4], 2.0), module(2, topology="host"), [0, 1], count=300, buffers=1)

    assert found.steady_per_s == 1 / 6
    assert found.stalls == (Stall(1, "receive"),)
    assert "waiting: chip 1 to receive" in found.summary()
    # While chip 1 computes for 4, the next transfer goes into memory for 2, then waits for 2.
    assert found.in_stall_share[1] == pytest.approx(2 / 6, rel=0.01)


@pytest.mark.parametrize("buffers", [2, None])
def test_inferences_to_near_is_the_least_number_from_which_on_the_rate_is_near(buffers):
    problem, f = layered(120, 12)
    found = simulate(problem.graph, problem.mcm, f, count=5, buffers=buffers)
    near = found.inferences_to_near
    assert near is not None
    assert near > 5

    end_s = simulate(problem.graph, problem.mcm, f, count=3 * near, buffers=buffers).finish_s

    share = np.arange(1, len(end_s) + 1) * found.bottleneck_s / end_s
    assert (share[near - 1 :] >= 0.95 * (1 - 1e-9)).all()
    assert share[near - 2] < 0.95


def test_one_inference_has_a_latency_and_no_steady_rate():
    found = simulate(path([1, 4], 2.0), module(2), [0, 1], count=1)

    assert found.latency_s.tolist() == [7]
    assert found.steady_per_s is None
    assert found.throughput_per_s == 1 / 7
    assert "simulated   1 inference, 2 buffers" in found.summary()
    assert "in the last half" not in found.summary()


def test_where_all_costs_are_zero_there_is_no_rate():
    found = simulate(path([0, 0]), module(2), [0, 1])

    assert (found.throughput_per_s, found.steady_per_s, found.inferences_to_near) == (None,) * 3
    assert found.compute_share.tolist() == [0, 0]
    assert "none to state: all costs are zero" in found.summary()


def test_data_may_flow_to_lower_chips_where_the_module_lets_it_but_not_in_a_circle():
    mcm = dataclasses.replace(module(2, topology="host"), constraints=FREE)
    back = simulate(path([1, 4], 2.0), mcm, [1, 0], count=400, buffers=None)
    assert back.latency_s[0] == 9
    assert back.steady_per_s == 1 / 4

    with pytest.raises(InputError, match="path: chips of this partition feed each other in a cir"):
        simulate(path([1, 1, 1], 2.0), mcm, [0, 1, 0])


def test_a_link_that_an_inference_crosses_twice_idles_and_the_page_says_so():
    """Chips 1, 3, 0, 2 in a row: from 1 to 3 and from 0 to 2 cross the link from 1 to 2."""
    row = dataclasses.replace(module(4, topology="host"), topology="mesh", rows=1, cols=4)
    mcm = dataclasses.replace(row, constraints=FREE)

    found = simulate(path([1, 1, 1, 1], 1.0), mcm, [1, 3, 0, 2], buffers=None)

    # The link is held for 1 and 1. Between them chip 3 computes, sends for 1, and chip 0 computes.
    assert found.bottleneck_s == 2
    assert found.lost_share == pytest.approx(1 - 2 / 5, abs=1e-3)
    assert "no slot, but links that inferences cross twice: 60" in found.summary()


def test_a_partition_by_name_is_the_same_and_the_element_size_is_the_module_s():
    graph = dataclasses.replace(path([1, 4], 2.0), element_bytes=4)
    mcm = dataclasses.replace(module(2), element_bytes=8)

    found = simulate(graph, mcm, {"n0": 0, "n1": 1}, count=1)

    assert found.finish_s.tolist() == [1 + 4 + 4]
    assert "bytes rescaled from 4 to 8 per element" in found.summary()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"count": 0}, "count is 0, expected 1 to 1,000,000 inferences"),
        ({"count": -3}, "count is -3, expected"),
        ({"count": 1_000_001}, "count is 1000001, expected"),
        ({"buffers": 0}, "buffers is 0, expected 1 or more"),
        ({"buffers": -1}, "buffers is -1, expected 1 or more"),
        ({"assignment": [0]}, r"assignment has shape \(1,\), expected \(3,\)"),
        ({"assignment": [0, 1, 7]}, "chips 0 to 7, expected 0 to 2"),
        ({"assignment": [0, 0.5, 1]}, "expected whole numbers"),
        ({"assignment": {"n0": 0}}, "missing"),
        ({"assignment": {"other": 0, "n0": 0, "n1": 0, "n2": 0}}, "other"),
        (
            {"assignment": [1, 0, 0]},
            "path: not valid for path on three .acyclic dataflow: .* flow",
        ),
        ({"assignment": [0, 2, 2]}, "no skipped chip: nothing on chip 1"),
        ({"graph": path([1, 1, 1], 1e6), "assignment": [0, 1, 2]}, "memory: "),
        ({"graph": path([1, 1, 1], 1, [(0, 2)]), "assignment": [0, 1, 2]}, "chip triangle: chip 0"),
    ],
)
def test_bad_input_is_refused(change, expected):
    arguments = {"graph": path([1, 1, 1], 1.0), "mcm": THREE_CHIPS, "assignment": [0, 0, 1]}

    with pytest.raises(InputError, match=expected):
        simulate(**(arguments | change))


def test_more_buffers_than_the_cost_model_s_two_are_checked_against_memory():
    """Each buffer more needs 100 bytes on both chips, of 1000 or of 550."""
    graph = path([1, 1], 100.0)
    roomy, tight = (module(2, capacity=size) for size in (1000, 550))

    assert "memory" not in simulate(graph, roomy, [0, 1], buffers=2).summary()
    fits = simulate(graph, roomy, [0, 1], buffers=4).summary()
    assert "memory      so many buffers fit, fullest: chip 0 needs" in fits
    assert (
        "so many buffers do not fit on 1 chip, most of all chip 0"
        in simulate(graph, tight, [0, 1], buffers=5).summary()
    )


SUMMARY = """\
path: 6 nodes, 6 edges, 6e-09 GFLOP, weights 0 MiB
test: 6 chips (chain), 1e-12 TFLOP/s and 953.7 MiB each, links 1e-09 GB/s, overlapped transfers

simulated   100 inferences, 2 buffers
throughput  0.584795 inferences/s with fill and drain, 0.595238 in the last half (59.52% of 1/T)
1/T         1 inferences/s (bottleneck 1000000 us)
bound by    compute of chip 0 (and 5 more as busy)
within 5%   of 1/T with no number that was tried, fill and drain included
latency     6000000 us first, 6000000 us median, 8000000 us last
stalls      full buffers cost 40.10% of 1/T; waiting: chip 0 to send to chip 5

chip  compute   in  out  link  compute waits  out waits
            %    %    %     %              %          %
   0     58.5  0.0  0.0   0.0           37.4       95.9
   1     58.5  0.0  0.0   0.0            0.0        0.0
   2     58.5  0.0  0.0   0.0            0.0        0.0
   3     58.5  0.0  0.0   0.0            0.0        0.0
   4     58.5  0.0  0.0   0.0            0.0        0.0
   5     58.5  0.0  0.0                  0.0        0.0
waits: for a free slot; before the bottleneck they cost nothing
"""


def test_the_page_is_as_it_was_written():
    page = simulate(AROUND, module(6), CHIPS, count=100, buffers=2).summary()

    assert f"{page}\n" == SUMMARY


def test_a_mesh_lists_its_busiest_links():
    mesh = dataclasses.replace(module(4), topology="mesh", rows=2, cols=2)

    page = simulate(path([1, 1], 2.0), mesh, [0, 1], count=2).summary()

    assert page.endswith("busiest links, %: 0>1 66.7")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
@pytest.mark.parametrize("topology", ["chain", "host", "mesh"])
def test_the_picture_is_of_the_kind_that_its_name_says(tmp_path, kind, topology):
    rng = np.random.default_rng(1)
    mcm = random_mcm(rng, num_chips=4, topology=topology)
    graph = path([1, 2, 3, 4], 1.0)

    simulate(graph, mcm, [0, 1, 2, 3], count=3).plot(tmp_path / f"p.{kind}")

    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert (tmp_path / f"p.{kind}").read_bytes().startswith(start)
    if kind == "png":
        assert imread(tmp_path / "p.png").std() > 0.05
    if kind == "svg":
        assert "the first 3 inferences, 2 buffers" in (tmp_path / "p.svg").read_text()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seconds", [[0, 0], [3, 1]])
@pytest.mark.parametrize("chips", [[0, 0], [0, 1]])
def test_one_chip_and_no_time_at_all_can_be_drawn(tmp_path, seconds, chips):
    simulate(path(seconds), module(2), chips, count=1).plot(tmp_path / "p.png")

    assert imread(tmp_path / "p.png").shape[2] == 4


def test_a_picture_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a picture ends in \.png, \.svg, \.pdf, not \.gif"):
        simulate(path([1, 2]), module(2), [0, 1]).plot(tmp_path / "p.gif")
