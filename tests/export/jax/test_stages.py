"""Stages compute what the function computes, whatever the partition."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxpart
from jaxpart.errors import InputError
from tests.support.functions import CASES, assert_same, floats, made, rising_chips
from tests.support.modules import unit_module

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
# JAX itself cannot run these operation by operation, or computes a loop otherwise then.
COMPILED_ALONE = ("scan_without_steps",)
# Rows that several chips make are put together on the last of them; the cost model sends no output.
ASSEMBLED = (
    *("unrolled_scan", "reversed_scan_of_an_input", "decoding_with_a_cache"),
    *("scanned_decoding_with_a_cache", "written_and_read_back"),
)
# A chip that has a clone of a node does not fetch the node's result for others.
CLONED = ("loops_of_known_and_unknown_length",)


@functools.cache
def traced(name):
    case = made(name)
    return jaxpart.trace(case.fn, *case.args, **case.options)


def seeds(count):
    return settings(max_examples=count)(given(st.integers(0, 2**32 - 1)))


@pytest.mark.parametrize("name", [name for name in CASES if name not in COMPILED_ALONE])
def test_stages_give_the_same_bits_operation_by_operation(name):
    case, trace = made(name), traced(name)
    with jax.disable_jit():
        expected = case.fn(*case.args)

    @seeds(3)
    def on_any_partition(seed):
        stages = trace.stages(rising_chips(trace.graph, seed))
        with jax.disable_jit():
            assert_same(stages(*case.args), expected, 0)

    on_any_partition()


@pytest.mark.parametrize("name", CASES)
def test_compiled_stages_give_what_the_compiled_function_gives(name):
    case, trace = made(name), traced(name)
    expected = jax.jit(case.fn)(*case.args)
    assert_same(trace.stages(rising_chips(trace.graph, 1))(*case.args), expected, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_trace_has_the_graph_of_from_jax(name):
    case, graph = made(name), traced(name).graph
    alone = jaxpart.from_jax(case.fn, *case.args, **case.options)
    assert alone.sha256 == graph.sha256
    assert [node.name for node in alone.nodes] == [node.name for node in graph.nodes]


@pytest.mark.parametrize("name", CASES)
def test_each_equation_of_a_node_runs_on_the_chip_of_the_node(name):
    trace = traced(name)
    chips = rising_chips(trace.graph, 5)
    run = {}
    for part in trace.stages(chips).plans:
        own = [trace.steps.steps[taken.step].eqn for taken in part.steps]
        run[part.chip] = {id(eqn) for eqn in own}
    everywhere = set().union(*run.values())
    for chip, equations in zip(chips, trace.equations, strict=True):
        own = {id(eqn) for eqn in equations}
        assert own & run.get(chip, set()) == own or (name in ASSEMBLED and own <= everywhere)


@pytest.mark.parametrize("name", [name for name in CASES if name not in (*ASSEMBLED, *CLONED)])
def test_stages_send_what_the_cost_model_sends(name):
    trace = traced(name)
    for seed in range(5):
        chips = rising_chips(trace.graph, seed)
        expected = sorted(
            (chips[k.producer], *others)
            for k in trace.graph.tensors
            if (others := sorted({chips[q] for q in k.consumers} - {chips[k.producer]}))
        )
        plans = trace.stages(chips).plans
        sent = sorted((part.chip, *to) for part in plans for to in part.sent.values())
        assert sent == expected


def test_operations_name_their_equations():
    trace = traced("mlp_with_skips")
    for node, equations in zip(trace.graph.nodes, trace.equations, strict=True):
        assert [eqn.primitive.name for eqn in equations] == [node.op]
    fused = traced("fused_mlp")
    by_name = dict(zip([v.name for v in fused.graph.nodes], fused.equations, strict=True))
    product = [eqn.primitive.name for eqn in by_name["dot_general_0"]]
    assert product[0] == "dot_general"
    assert len(product) > 1


def test_a_step_of_an_unrolled_loop_has_its_own_equations():
    trace = traced("unrolled_scan")
    products = [v.name for v in trace.graph.nodes if v.op == "dot_general"]
    assert len(products) == 5
    steps = [s for s in trace.steps.steps if s.name == "dot_general"]
    assert len({step.results for step in steps}) == 5


def test_a_stage_holds_its_layers_of_a_stacked_parameter_alone():
    trace = traced("unrolled_scan")
    chips = [min(int(v.name.split("_")[-1]), 4) for v in trace.graph.nodes]
    stages = trace.stages(chips)
    assert len(stages.plans) == 5
    assert stages.weights is not None
    assert [sum(w.nbytes for w in weights) for weights in stages.weights] == [(64 + 8) * 4] * 5


def test_a_tied_weight_is_held_by_each_chip_and_never_sent():
    trace = traced("tied_weights")
    chips = list(range(len(trace.graph.nodes)))
    stages = trace.stages(chips)
    assert stages.weights is not None
    table = made("tied_weights").args[0]
    holders = [w for weights in stages.weights for w in weights if w.shape == table.shape]
    assert len(holders) == 3
    sent = {a for part in stages.plans for a in part.sent}
    assert not any(trace.steps.avals[a].shape == table.shape for a in sent)


def test_quantised_weights_stay_narrow():
    def fn(w, x):
        return x @ (w["q"].astype(jnp.float32) * w["scale"])

    w = {"q": jnp.ones((64, 64), jnp.int8), "scale": floats(0, 1, 64)}
    trace = jaxpart.trace(fn, w, floats(1, 2, 64), param_argnums=0)
    weights = trace.stages([0]).weights
    assert weights is not None
    assert sorted(str(x.dtype) for x in weights[0]) == ["float32", "int8"]


def test_a_narrowed_weight_is_placed_narrow():
    trace = jaxpart.trace(
        lambda w, x: x @ w.astype(jnp.bfloat16),
        floats(0, 8, 8),
        floats(1, 2, 8, dtype=jnp.bfloat16),
        param_argnums=0,
    )
    weights = trace.stages([0]).weights
    assert weights is not None
    assert weights[0][0].dtype == jnp.bfloat16


def test_parameters_are_placed_once_and_anew_when_they_change():
    case, trace = made("mlp_with_skips"), traced("mlp_with_skips")
    weights, x = case.args
    stages = trace.stages(rising_chips(trace.graph, 1))
    before = stages.weights
    assert_same(stages(x), case.fn(weights, x), 1e-5)
    assert_same(stages(weights, x), case.fn(weights, x), 1e-5)
    assert stages.weights is before
    others = [2 * w for w in weights]
    assert_same(stages(others, x), case.fn(others, x), 1e-5)
    assert stages.weights is not before
    assert_same(stages(x), case.fn(others, x), 1e-5)


def test_weights_may_come_after_the_trace():
    case = made("mlp_with_skips")
    weights, x = case.args
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), weights)
    trace = jaxpart.trace(case.fn, shapes, x, param_argnums=0)
    stages = trace.stages(rising_chips(trace.graph, 1))
    with pytest.raises(InputError, match="none are placed"):
        stages(x)
    stages.place(weights)
    assert_same(stages(np.asarray(x)), case.fn(weights, x), 1e-5)


def test_results_of_a_search_are_partitions():
    case, trace = made("mlp_with_skips"), traced("mlp_with_skips")
    mcm = unit_module(3)
    result = jaxpart.partition(trace.graph, mcm, method="slice", max_samples=20)
    expected = jax.jit(case.fn)(*case.args)
    stages = trace.stages(result)
    assert [part.chip for part in stages.plans] == sorted(set(result.assignment.tolist()))
    assert_same(stages(*case.args), expected, 1e-5)
    by_name = {v.name: int(c) for v, c in zip(trace.graph.nodes, result.assignment, strict=True)}
    assert trace.stages(by_name).plans == stages.plans
    evaluation = jaxpart.evaluate(trace.graph, mcm, by_name)
    assert trace.stages(evaluation).plans == stages.plans


def test_an_invalid_partition_is_refused_with_the_rule():
    trace = traced("mlp_with_skips")
    chips = [0, *[2] * (len(trace.graph.nodes) - 1)]
    evaluation = jaxpart.evaluate(trace.graph, unit_module(3), chips)
    with pytest.raises(InputError, match=r"not valid .*no skipped chip"):
        trace.stages(evaluation)


def test_a_partition_of_another_graph_is_refused():
    trace, other = traced("mlp_with_skips"), traced("tied_weights")
    evaluation = jaxpart.evaluate(other.graph, unit_module(3), [0] * len(other.graph.nodes))
    with pytest.raises(InputError, match="another graph"):
        trace.stages(evaluation)
    names = {node.name: 0 for node in other.graph.nodes}
    with pytest.raises(InputError, match=r"expected the .* nodes"):
        trace.stages(names)


@pytest.mark.parametrize(
    ("chips_for", "message"),
    [
        (lambda n: [0], "has shape"),
        (lambda n: [0.5] * n, "whole numbers"),
        (lambda n: [-1] * n, "'dot_general_0' is on chip -1"),
        (lambda n: [1, *[0] * (n - 1)], "'dot_general_0' on chip 1 feeds"),
    ],
)
def test_a_wrong_assignment_is_refused(chips_for, message):
    trace = traced("mlp_with_skips")
    with pytest.raises(InputError, match=message):
        trace.stages(chips_for(len(trace.graph.nodes)))


def test_arguments_other_than_traced_are_refused_by_name():
    trace = traced("mlp_with_skips")
    weights, x = made("mlp_with_skips").args
    stages = trace.stages([0] * len(trace.graph.nodes))
    with pytest.raises(InputError, match=r"x is float32\[3, 9\], expected float32\[3, 8\]"):
        stages(jnp.ones((3, 9)))
    with pytest.raises(InputError, match="argument x is int32"):
        stages(jnp.ones((3, 8), int))
    with pytest.raises(InputError, match="argument x is a str, expected an array"):
        stages("text")
    with pytest.raises(InputError, match="3 arguments"):
        stages(weights, x, x)
    with pytest.raises(InputError, match=r"argument 0 is .*expected"):
        stages(weights[:2], x)
    with pytest.raises(InputError, match=r"argument weights\[0\] is a shape alone"):
        stages.place([jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights])
    with pytest.raises(InputError, match="devices is empty"):
        trace.stages([0] * len(trace.graph.nodes), devices=[])


def test_a_function_over_devices_is_refused():
    mesh = jax.make_mesh((1,), ("d",))
    spec = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(jnp.sin, mesh=mesh, in_specs=spec, out_specs=spec)
    trace = jaxpart.trace(mapped, floats(0, 4))
    with pytest.raises(InputError, match="shard_map"):
        trace.stages([0] * len(trace.graph.nodes))


def test_a_part_that_a_later_write_leaves_alone_needs_no_later_chip():
    def fn(w, x):
        memory = jnp.zeros((3, 8))
        for i in range(3):
            x = jnp.tanh(x @ w)
            memory = memory.at[i].set(x)
        return memory[0] * 2, lax.sort(memory)

    args = floats(0, 8, 8), floats(1, 8)
    trace = jaxpart.trace(fn, *args, param_argnums=0)
    chips = [0 if node.op == "mul" else 1 + rank for rank, node in enumerate(trace.graph.nodes)]
    first = [node.name for node in trace.graph.nodes].index("tanh_0")
    chips[: first + 1] = [0] * (first + 1)
    stages = trace.stages(chips)
    assert not stages.plans[0].received
    assert_same(stages(*args), fn(*args), 1e-5)


def test_each_stage_runs_on_its_own_device():
    program = Path(__file__).parent / "on_four_devices.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
