"""The least partition above given labels, in all three forms, against relaxation edge by edge."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpart.cost import tables
from jaxpart.cost.device import DeviceProblem, lower, pad_assignments
from jaxpart.methods.labels.projection import close, level_dtype, project
from jaxpart.methods.labels.sampling import sample_lanes
from jaxpart.problem.graph import Graph, Node, Tensor
from jaxpart.problem.mcm import MCM, Constraints
from jaxpart.problem.problem import Problem
from tests.support.compiling import quick
from tests.support.modules import CHIP, THREE_CHIPS
from tests.support.strategies import graphs

BLOCK = 16  # nodes; the smallest bucket has four such blocks
NEGATED = np.array([False, False, True, True])
to_project = quick(project)


@functools.partial(quick, static=("is_known",))
def closed(problem, values, is_known):
    """`close`, with signs that are known while tracing or not."""
    return close(problem, values, NEGATED if is_known else jnp.asarray(NEGATED))


def in_blocks(problem: Problem, block: int = BLOCK) -> DeviceProblem:
    """The problem on whole arrays, with distances within blocks of nodes alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_NODE_LIMIT", block)
        lowered = lower(copy.copy(problem), form="arrays")  # of the same one there is a copy
    assert lowered.tables is not None
    assert lowered.tables.distance is None
    return lowered


def forms_of(problem: Problem) -> list[DeviceProblem]:
    """The problem in loops over rows, on whole arrays, and on whole arrays in blocks."""
    rows, arrays = lower(problem, form="rows"), lower(problem, form="arrays")
    return [rows, arrays, in_blocks(problem)]


def path(nodes: int, back: int = 0) -> Graph:
    """A path; node v also feeds node v + `back`, so that long ways have short cuts."""
    following = [
        {v + 1, v + back} if 0 < back < nodes - v and v % back == 0 else {v + 1}
        for v in range(nodes - 1)
    ]
    tensors = tuple(Tensor(v, 1.0, tuple(sorted(to))) for v, to in enumerate(following))
    return Graph(tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(nodes)), tensors, (), "path", 1)


def zigzag(nodes: int) -> Graph:
    """Edges to and fro between the first and the second half: paths cross blocks at each step."""
    half = nodes // 2
    following = {v: {half + v, half + v - 1} - {half - 1} for v in range(half)}
    tensors = tuple(Tensor(v, 1.0, tuple(sorted(to))) for v, to in following.items())
    names = tuple(Node(f"n{v}", "op", 1.0, 1.0) for v in range(nodes))
    return Graph(names, tensors, (), "zigzag", 1)


def relaxed(problem: Problem, values: np.ndarray) -> np.ndarray:
    """[M, 4] the least values that keep the rule on edges, by Bellman and Ford."""
    count, reach = problem.num_contracted, 1 if problem.mcm.constraints.triangle else 9999
    x = values[:count].astype(np.int64)
    while True:
        before = x.copy()
        for u, v in problem.contracted_pairs:
            ahead, back = np.where(NEGATED, -reach, 0), np.where(NEGATED, 0, -reach)
            x[v] = np.maximum(x[v], x[u] + ahead)
            x[u] = np.maximum(x[u], x[v] + back)
        if (x == before).all():
            return x


def labels_of(problem: Problem, lowered: DeviceProblem, seed: int) -> jax.Array:
    """[N, 4] two columns of chips, and two of their negatives; the extremes are among them."""
    chips = problem.num_chips
    rng = np.random.default_rng(seed)
    f = rng.integers(0, chips, (lowered.padded_nodes, 4))
    f[:, ::2] = np.where(rng.random(f[:, ::2].shape) < 0.05, f[:, ::2], 0)
    f[0, 0], f[-1, 3] = chips - 1, 0
    return jnp.asarray(np.where(NEGATED, -f, f), level_dtype(lowered.config))


def check(problem: Problem, seed: int) -> None:
    devices = forms_of(problem)
    values = labels_of(problem, devices[0], seed)
    expected = relaxed(problem, np.asarray(values))
    for lowered in devices:
        for is_known in (False, True):
            found = closed(lowered, values, is_known)
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found[: problem.num_contracted], expected)


# Levels are int8 up to 63 chips, labels up to 127.
@pytest.mark.parametrize("chips", [63, 64, 127, 128, 1024])
def test_no_label_leaves_its_type_on_modules_of_any_size(chips):
    module = MCM("m", "chain", (CHIP,) * chips, 1e3)
    check(Problem.build(path(60, back=9), module), chips)


def test_long_ways_between_blocks_are_followed_to_their_ends():
    for chips in (3, 40):
        check(Problem.build(zigzag(60), MCM("m", "chain", (CHIP,) * chips, 1e3)), chips)


@settings(max_examples=15)
@given(graphs(max_nodes=50, max_chips=3), st.integers(0, 99), st.booleans())
def test_all_forms_close_random_graphs_alike(graph, seed, triangle):
    module = MCM("m", "host", (CHIP,) * 3, 1e3, constraints=Constraints(triangle=triangle))
    check(Problem.build(graph, module), seed)


def test_graphs_in_blocks_are_projected_like_others():
    problem = Problem.build(path(60, back=9), THREE_CHIPS)
    rows, _, blocks = forms_of(problem)
    labels = np.random.default_rng(0).integers(0, 3, (problem.num_nodes, 8))
    padded = jnp.asarray(pad_assignments(rows, labels))

    jax.tree.map(
        np.testing.assert_array_equal, to_project(rows, padded), to_project(blocks, padded)
    )


@pytest.mark.parametrize("form", ["arrays", "blocks"])
def test_whole_arrays_have_no_loop_of_unknown_length(form):
    problem = Problem.build(path(60), THREE_CHIPS)
    lowered = in_blocks(problem) if form == "blocks" else lower(problem, form="arrays")
    labels = jnp.zeros((lowered.padded_nodes, 8), jnp.int8)

    def has_loop(function, *arguments):
        return "while[" in str(jax.make_jaxpr(function)(*arguments))

    assert not has_loop(project, lowered, labels)
    assert not has_loop(sample_lanes, lowered, jax.random.key(0), jnp.arange(8))
    assert has_loop(project, lower(problem, form="rows"), labels)
