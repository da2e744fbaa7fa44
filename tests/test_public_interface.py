"""What a researcher calls and adds: own methods and rules, evaluation, bounds, policies."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpart
from jaxpart.errors import InputError, NothingFoundError
from tests.support import oracle
from tests.support.graphs import parallel_chains
from tests.support.modules import THREE_CHIPS

GRAPH = parallel_chains(2, 6)


def halves(search):
    """A method of one's own: the nodes cut in two at every place, as jaxpart/README.md shows it."""
    count = search.problem.num_nodes
    search.start_clock()
    for cut in range(1, count):
        search.samples += 1
        search.offer((np.arange(count) >= cut).astype(np.int64)[:, None])
        yield


def best_half():
    """The bottleneck of the best valid cut in two, by the oracle."""
    count = len(GRAPH.nodes)
    cuts = [[int(v >= cut) for v in range(count)] for cut in range(1, count)]
    figures = [oracle.evaluate(GRAPH, THREE_CHIPS, cut) for cut in cuts]
    return min(figure.bottleneck_s for figure in figures if figure.valid)


def test_a_method_of_ones_own_is_run_within_the_budget():
    result = jaxpart.partition(GRAPH, THREE_CHIPS, method=halves, time_limit_s=None)

    assert result.search.method == "halves"
    assert result.baseline_s is not None
    assert result.bottleneck_s == pytest.approx(min(best_half(), result.baseline_s))
    short = jaxpart.partition(GRAPH, THREE_CHIPS, method=halves, time_limit_s=None, max_samples=3)
    assert short.search.samples == 3


@pytest.mark.parametrize("method", ["slice", "random", "ideals", "tempering", "clusters", "auto"])
def test_a_rule_of_ones_own_holds_for_every_result(method):
    """Nodes 0 and 5 must not share a chip."""

    def apart(assignments):
        return assignments[0] != assignments[5]

    result = jaxpart.partition(
        GRAPH, THREE_CHIPS, method=method, time_limit_s=None, max_samples=2000, rules=(apart,)
    )

    assert result.assignment[0] != result.assignment[5]
    free = jaxpart.partition(GRAPH, THREE_CHIPS, method="ideals", time_limit_s=None)
    assert result.lower_bound_s <= result.bottleneck_s
    assert free.bottleneck_s <= result.bottleneck_s * (1 + 1e-9)


def test_a_rule_that_nothing_keeps_leaves_nothing_and_claims_no_proof():
    def never(assignments):
        return np.zeros(assignments.shape[1], bool)

    with pytest.raises(NothingFoundError):
        jaxpart.partition(
            GRAPH, THREE_CHIPS, method="slice", time_limit_s=None, max_samples=200, rules=(never,)
        )


@pytest.mark.parametrize(
    "rule", [lambda f: True, lambda f: f[0], lambda f: np.ones((1, f.shape[1]), bool)]
)
def test_a_rule_that_gives_no_verdict_per_partition_is_refused(rule):
    with pytest.raises(InputError, match=r"rule <lambda> gave .*, expected bool \[1\]"):
        jaxpart.partition(GRAPH, THREE_CHIPS, method="greedy", rules=(rule,))


def test_any_partition_is_evaluated_by_position_or_by_name():
    count = len(GRAPH.nodes)
    chips = [0] * (count // 2) + [1] * (count - count // 2)
    expected = oracle.evaluate(GRAPH, THREE_CHIPS, chips)

    evaluation = jaxpart.evaluate(GRAPH, THREE_CHIPS, chips)

    assert evaluation.bottleneck_s == pytest.approx(expected.bottleneck_s)
    assert evaluation.valid == expected.valid
    by_name = {node.name: chip for node, chip in zip(GRAPH.nodes, chips, strict=True)}
    assert jaxpart.evaluate(GRAPH, THREE_CHIPS, by_name).bottleneck_s == evaluation.bottleneck_s
    assert evaluation.stages()[0] == tuple(n.name for n in GRAPH.nodes[: count // 2])
    assert evaluation.stages()[2] == ()
    assert evaluation.chip_of(GRAPH.nodes[-1].name) == 1
    assert "verdict" in evaluation.summary()
    with pytest.raises(InputError, match="no node named 'nobody'"):
        evaluation.chip_of("nobody")
    with pytest.raises(InputError, match="missing"):
        jaxpart.evaluate(GRAPH, THREE_CHIPS, {"start": 0})
    backward = jaxpart.evaluate(GRAPH, THREE_CHIPS, [1] + [0] * (count - 1))
    assert not backward.valid
    broken = [v.rule for v in backward.verdicts() if not v.holds]
    assert broken == ["acyclic dataflow", "chip triangle"]  # undefined where data flows backward


def test_the_lower_bound_is_below_the_optimum_and_above_the_mean_load():
    optimum = jaxpart.partition(GRAPH, THREE_CHIPS, method="ideals", time_limit_s=None)
    bound = jaxpart.lower_bound(GRAPH, THREE_CHIPS)

    total = sum(node.flops for node in GRAPH.nodes)
    assert bound.seconds <= optimum.bottleneck_s * (1 + 1e-9)
    assert bound.seconds >= total / 1e3 / 3 * (1 - 1e-9)
    with pytest.raises(InputError, match="time_limit_s"):
        jaxpart.lower_bound(GRAPH, THREE_CHIPS, time_limit_s=0)


def test_a_function_is_fused_where_it_is_traced():
    def layer(w, x):
        return jax.nn.relu(x @ w) * 2.0

    shapes = (jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((4, 8), jnp.float32))
    raw = jaxpart.from_jax(layer, *shapes, param_argnums=0)
    fused = jaxpart.from_jax(layer, *shapes, param_argnums=0, fuse=True)

    assert fused == jaxpart.fuse(raw)
    assert len(fused.nodes) == 1 < len(raw.nodes)


def test_a_file_that_brings_its_module_is_an_instance_and_another_is_not(tmp_path):
    node = {"id": 0, "supportedOnFpga": 1, "fpgaLatency": 2.0, "cpuLatency": 5.0}
    node |= {"isBackwardNode": 0, "size": 10.0, "colorClass": None, "name": "a"}
    whole = {"maxFPGAs": 2, "maxCPUs": 0, "maxSizePerFPGA": 100.0, "nodes": [node], "edges": []}
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(whole))

    graph, mcm = jaxpart.load_instance(path)

    assert (len(graph.nodes), mcm.num_chips, mcm.topology) == (1, 2, "host")
    assert jaxpart.load_graph(path) == graph
    GRAPH.save(tmp_path / "graph.json")
    with pytest.raises(InputError, match="brings no module"):
        jaxpart.load_instance(tmp_path / "graph.json")


def test_no_policy_is_no_policy_and_a_fresh_one_is_untrained():
    with pytest.raises(InputError, match="a policy is needed here, but policy is 'none'"):
        jaxpart.partition(GRAPH, THREE_CHIPS, method="policy", policy="none")
    with pytest.raises(InputError, match="no such file, and no shipped policy"):
        jaxpart.partition(GRAPH, THREE_CHIPS, method="policy", policy="nowhere.policy")
    with pytest.raises(InputError, match="a policy is needed here"):
        jaxpart.finetune(GRAPH, THREE_CHIPS, policy="none")


def test_rollouts_are_samples_scored_exactly_and_the_same_for_the_same_seed():
    samples = jaxpart.rollout(GRAPH, THREE_CHIPS, policy="fresh", rounds=2, batch=8, seed=3)

    assert samples.assignments.shape == (len(GRAPH.nodes), 16)
    for b in range(16):
        expected = oracle.evaluate(GRAPH, THREE_CHIPS, samples.assignments[:, b].tolist())
        assert bool(samples.costs.valid[b]) == expected.valid
        assert samples.costs.bottleneck_s[b] == pytest.approx(expected.bottleneck_s)
    again = jaxpart.rollout(GRAPH, THREE_CHIPS, policy="fresh", rounds=2, batch=8, seed=3)
    np.testing.assert_array_equal(samples.assignments, again.assignments)
    with pytest.raises(InputError, match="rounds and batch"):
        jaxpart.rollout(GRAPH, THREE_CHIPS, rounds=0)


def test_a_fine_tuned_policy_is_another_one_and_can_be_kept(tmp_path):
    wide = parallel_chains(3, 6)
    small = jaxpart.PolicySearchConfig(
        learn_after=0, network=jaxpart.NetworkConfig(width=16, layers=1, heads=2, rank=2)
    )
    policy, result = jaxpart.finetune(
        wide, THREE_CHIPS, policy="fresh", config=small, max_samples=200, seed=1
    )

    assert result.costs.valid
    policy.save(tmp_path / "kept.policy")
    kept = jaxpart.Policy.load(tmp_path / "kept.policy")
    one, other = jax.tree.leaves(policy.params), jax.tree.leaves(kept.params)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    searched = jaxpart.partition(
        wide, THREE_CHIPS, method="policy", policy=kept, time_limit_s=None, max_samples=64
    )
    assert result.baseline_s is not None
    assert searched.bottleneck_s <= result.baseline_s
