"""Islands: what one finds the others have, and nobody needs anybody."""

import contextlib
import dataclasses
import math
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from jaxpart.bounds.combinatorial import Bound
from jaxpart.cli import main
from jaxpart.errors import InputError
from jaxpart.methods.labels.search import LabelChains, settled
from jaxpart.methods.orders import search as orders_search
from jaxpart.methods.orders.starts import keys_of
from jaxpart.problem.mcm import Constraints
from jaxpart.problem.problem import Problem
from jaxpart.runtime.islands import Elite, Exchange, Islands, digest_of, packed, unpacked
from jaxpart.runtime.state import Budget, Search
from tests.support import oracle
from tests.support.graphs import parallel_chains
from tests.support.islands import GOOD, GRAPH, POOR
from tests.support.modules import THREE_CHIPS

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def new_search(graph=GRAPH):
    return Search(Problem.build(graph, THREE_CHIPS), Budget(None, None, 0.0), 0)


@contextlib.contextmanager
def two_islands(*searches):
    place = f"localhost:{free_port()}"
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(contextlib.closing(Exchange(search, Islands(place, 2, number))))
            for number, search in enumerate(searches)
        ]


def until(is_so, *exchanges):
    end_s = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < end_s
        for exchange in exchanges:
            exchange.step()
        time.sleep(0.02)


def test_a_better_partition_and_bound_arrive_and_a_worse_partition_does_not():
    one, two = new_search(), new_search()
    one.offer(POOR[:, None])
    with two_islands(one, two) as exchanges:
        two.offer(GOOD[:, None])
        two.raise_bound(Bound(two.best_s, "a proof"))
        until(lambda: one.is_proven, *exchanges)
        until(lambda: one.best_s == two.best_s, *exchanges)
    assert one.best is not None
    assert one.received is not None
    np.testing.assert_array_equal(one.best, GOOD)
    np.testing.assert_array_equal(one.received, GOOD)
    assert one.notes == ["took a better partition from island 1"]
    assert one.bound.method == "island 1: a proof"
    assert two.received is None
    assert two.notes == []


def test_what_does_not_verify_does_not_count(monkeypatch):
    """A partition that breaks a rule, whatever its sender says, and a bound above a partition."""
    one, two = new_search(), new_search()
    one.offer(GOOD[:, None])
    best_s, bound = one.best_s, one.bound
    backward = packed(one.problem, np.array([2, *GOOD[1:]]))
    monkeypatch.setattr("jaxpart.runtime.islands.packed", lambda problem, assignment: backward)
    offer, offered = one.offer, []
    monkeypatch.setattr(one, "offer", lambda rows: offered.append(rows.tolist()) or offer(rows))
    with two_islands(one, two) as exchanges:
        two.offer(GOOD[:, None])
        assert two.best_costs is not None
        two.best_costs = dataclasses.replace(two.best_costs, bottleneck_s=np.float64(best_s / 2))
        two.bound = Bound(2 * best_s, "an error")
        until(lambda: one.notes, *exchanges)
        exchanges[1].close()
        until(lambda: not exchanges[0].is_waiting, exchanges[0])
    assert offered == [[[chip] for chip in (2, *GOOD[1:].tolist())]]
    assert (one.best_s, one.bound) == (best_s, bound)
    assert one.received is None
    assert one.notes == ["island 1 sent a bound that a partition contradicts: not used"]


def test_an_island_with_another_problem_is_left_alone():
    one, two = new_search(), new_search(parallel_chains(1, 6))
    two.offer(np.zeros((8, 1), np.int64))
    with two_islands(one, two) as exchanges:
        until(lambda: one.notes and two.notes, *exchanges)
    assert one.notes == ["island 1 works on another problem, or has another version"]
    assert one.best is None


def chips(*numbers):
    return zlib.compress(np.array(numbers, "<i4").tobytes())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not zipped", "no partition"),
        (chips(*[0] * 8), "9 nodes"),
        (zlib.compress(bytes(10**6)), "9 nodes"),
        (chips(*[0] * 8, 3), "chips 0 to 2"),
        (chips(*[0] * 8, -1), "chips 0 to 2"),
    ],
)
def test_chips_that_make_no_partition_of_the_problem_are_refused(content, reason):
    problem = Problem.build(GRAPH, THREE_CHIPS)
    message = msgspec.msgpack.encode(Elite(digest_of(problem), content))
    with pytest.raises(InputError, match=reason):
        unpacked(problem, message)


def test_messages_of_another_kind_or_on_another_problem_are_refused():
    problem, other = (
        Problem.build(graph, THREE_CHIPS) for graph in (GRAPH, parallel_chains(1, 7, seed=1))
    )
    for message in (b"\xc1", b"", msgspec.msgpack.encode({"chips": [0]})):
        with pytest.raises(InputError, match="no partition"):
            unpacked(problem, message)
    with pytest.raises(InputError, match="another problem"):
        unpacked(problem, packed(other, GOOD))


def test_a_partition_comes_out_as_it_went_in():
    problem = Problem.build(GRAPH, THREE_CHIPS)
    np.testing.assert_array_equal(unpacked(problem, packed(problem, GOOD)), GOOD)


def test_islands_have_seeds_of_their_own_and_the_first_has_the_given_one():
    places = [Islands("localhost:4321", 64, number) for number in range(64)]
    for seed in (0, 7):
        seeds = [place.seed(seed) for place in places]
        assert seeds[0] == seed
        assert len(set(seeds)) == 64
        assert seeds == [place.seed(seed) for place in places]
    assert places[1].seed(0) != places[1].seed(7)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (("host", 2, 0), "HOST:PORT"),
        (("host:x", 2, 0), "HOST:PORT"),
        (("host:\uff14321", 2, 0), "HOST:PORT"),
        (("host:4_321", 2, 0), "HOST:PORT"),
        (("host:0", 2, 0), "port"),
        (("host:65536", 2, 0), "port"),
        (("host:1", 1, 0), "2 or more"),
        (("host:1", 2, 2), "0 to 1"),
        (("host:1", 2, -1), "0 to 1"),
    ],
)
def test_places_that_make_no_sense_are_refused(place, reason):
    with pytest.raises(InputError, match=reason):
        Islands(*place)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--coordinator", "localhost:4321"],
        ["--processes", "2", "--process", "0"],
        ["--coordinator", "nowhere", "--processes", "2", "--process", "0"],
    ],
)
def test_the_command_refuses_half_a_place_in_one_line(arguments, capsys):
    assert main(["partition", "bert-large", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_order_of_what_arrives_is_topological_and_lists_chip_by_chip():
    problem = Problem.build(parallel_chains(3, 6), THREE_CHIPS)
    start, depth, branch = 1, np.arange(18) % 6, np.arange(18) // 6
    assignment = np.zeros(20, np.int64)
    assignment[start:19] = np.minimum((depth + branch) // 3, 2)
    assignment[19] = 2
    order = np.argsort(keys_of(problem, assignment))
    assert (np.diff(assignment[order]) >= 0).all()
    position = np.argsort(order)
    first, second = problem.node_pairs.T
    assert (position[first] < position[second]).all()


@pytest.mark.parametrize("triangle", [True, False])
def test_orders_evolve_from_what_arrives(triangle, monkeypatch):
    graph = parallel_chains(3, 6)
    module = dataclasses.replace(THREE_CHIPS, constraints=Constraints(triangle=triangle))
    search = Search(Problem.build(graph, module), Budget(None, 10**6, 0.0), 0)
    mutate, parents = orders_search.mutate, []

    def seen(key, of, count, size):
        parents.append(np.asarray(of)[-1, : search.problem.num_contracted])
        return mutate(key, of, count, size)

    monkeypatch.setattr(orders_search, "mutate", seen)
    with contextlib.closing(orders_search.slice_search(search)) as steps:
        while len(parents) < 2:
            next(steps)
        received = np.array([0, *np.tile([0, 0, 1, 1, 2, 2], 3), 2])
        search.received, count = received, len(parents)
        while len(parents) < count + 2:
            next(steps)
    expected = keys_of(search.problem, received)
    assert any((rows == expected).all() for rows in parents[count : count + 2])
    assert not any((rows == expected).all() for rows in parents[:count])


def test_one_annealing_chain_in_four_goes_on_from_what_arrives_where_that_is_better():
    chains = LabelChains(jnp.zeros((3, 8), jnp.int8), jnp.array([1.0, 1, 1, 1, 3, 3, 3, 3]))
    settled_chains = settled(chains, np.full((3, 1), 2, np.int8), 2.0)
    expected = np.array([0, 0, 0, 0, 2, 0, 0, 0])
    np.testing.assert_array_equal(settled_chains.assignment, np.tile(expected, (3, 1)))
    np.testing.assert_array_equal(settled_chains.bottleneck_s, [1, 1, 1, 1, 2, 3, 3, 3])


ISLAND = """
import sys, time
import numpy as np
import tests.conftest
from jaxpart import engine
from jaxpart.runtime.islands import Islands
from tests.support.modules import THREE_CHIPS
from tests.support.islands import GOOD
from tests.support.islands import GRAPH
from tests.support.islands import POOR

port, number, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def steady(search):
    search.offer(GOOD[:, None])
    while True:
        time.sleep(0.05)
        yield


engine.baseline = lambda problem: POOR
engine.partition(
    GRAPH, THREE_CHIPS, method=steady if kind == "steady" else kind,
    time_limit_s=None, relative_gap=0.0,
    islands=Islands(f"localhost:{port}", 2, number),
    callback=lambda state: print(state.phase, state.best_s, flush=True),
).save(sys.argv[4])
print("ended", flush=True)
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_weak_island_has_what_the_other_found_and_ends_when_the_other_is_killed(victim, tmp_path):
    """Also where the one that is killed has begun the service in which they meet."""
    port, survivor = free_port(), 1 - victim
    kinds = {victim: "steady", survivor: "greedy"}
    out = tmp_path / "survivor.json"
    with contextlib.ExitStack() as stack:
        islands = {}
        for number, kind in kinds.items():
            command = [sys.executable, "-c", ISLAND, str(port), str(number), kind, str(out)]
            process = subprocess.Popen(
                command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            islands[number] = stack.enter_context(process)
            stack.callback(process.kill)  # whatever fails here, nothing stays behind
        good_s = oracle.evaluate(GRAPH, THREE_CHIPS, GOOD.tolist()).bottleneck_s
        bests = [math.inf]
        while not math.isclose(bests[-1], good_s, rel_tol=1e-9):
            output = islands[survivor].stdout
            assert output is not None
            line = output.readline()
            assert line not in ("", "ended\n"), "it ended before it had the other's"
            if not line.endswith("None\n"):
                bests.append(float(line.split()[-1]))
        os.kill(islands[victim].pid, signal.SIGKILL)
        said, errors = islands[survivor].communicate(timeout=TIMEOUT_S)
        islands[victim].communicate()
    assert bests[1] > good_s  # it had something worse first
    assert islands[survivor].returncode == 0, errors
    assert said.splitlines()[-1] == "ended"
    result = msgspec.json.decode(out.read_bytes())
    assert list(result["assignment"].values()) == GOOD.tolist()
    assert math.isclose(result["bottleneck_s"], good_s, rel_tol=1e-9)
