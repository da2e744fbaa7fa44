"""The convolutional graphs of the data set: what is ours in them, by independent definitions."""

from __future__ import annotations

import collections
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import catalog, cnn, keras_cnn
from models.cnn_layers import Network, conv, max_pool, total, upsample
from models.cnn_mobile import shuffled
from models.cnn_search import small_world
from models.cnn_signal import causal

from jaxpart.ingest.rewrite.fuse import fuse

_MODELS = {model.name: model for model in (*keras_cnn.MODELS, *cnn.MODELS)}


def _run(layers, *inputs) -> tuple[Any, Any]:
    """The result of a network on these inputs, and its weights."""
    network = Network(layers)
    variables = network.init(jax.random.key(0), *inputs)
    return network.apply(variables, *inputs), variables


def test_every_raw_trace_has_its_fused_twin_on_the_same_side():
    raw = [model for model in _MODELS.values() if not model.fused]
    assert raw
    for model in raw:
        twin = _MODELS[model.name.removesuffix("-raw")]
        assert model.name.endswith("-raw")
        assert twin.fused
        assert (model.family, model.split, model.config) == (twin.family, twin.split, twin.config)


def test_each_side_of_the_split_has_convolutional_families_of_its_own():
    sides = collections.defaultdict(set)
    for model in _MODELS.values():
        sides[model.split].add(model.family)
    assert {"vgg", "resnext"} <= sides["valid"]
    assert {"mobilenet", "inception", "hrnet", "darts"} <= sides["test"]
    assert len(sides["train"]) >= 20
    catalog.check(list(_MODELS.values()))


def test_nearest_neighbours_fill_each_square_of_an_enlarged_image():
    x = jnp.arange(2 * 3 * 5.0).reshape(1, 2, 3, 5)
    expected = np.repeat(np.repeat(x, 4, 1), 4, 2)
    np.testing.assert_array_equal(upsample(x, 4), expected)


def test_a_shuffle_deals_channels_from_the_groups_in_turn():
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)
    np.testing.assert_array_equal(shuffled(x)[0, 0, 0], [0, 3, 1, 4, 2, 5])


@pytest.mark.parametrize("dilation", [1, 2, 8])
def test_a_causal_convolution_sees_this_sample_and_one_before(dilation):
    x = jax.random.normal(jax.random.key(1), (1, 20, 3))
    y, variables = _run(lambda x: causal(x, 4, dilation), x)
    kernel = variables["params"]["Conv_0"]["kernel"]
    before = np.concatenate([np.zeros((dilation, 3)), x[0]])[:20]
    np.testing.assert_allclose(y[0], before @ kernel[0] + x[0] @ kernel[1], atol=1e-5)


def test_padding_by_half_a_kernel_keeps_the_size_at_stride_1():
    x = jnp.ones((1, 13, 9, 2))
    for kernel, dilation in ((1, 1), (3, 1), (3, 4), (7, 2), ((1, 5), 1)):
        y, _ = _run(lambda x, k=kernel, d=dilation: conv(x, 3, k, dilation=d), x)
        assert y.shape == (1, 13, 9, 3)


def test_a_pool_takes_the_largest_of_its_window():
    x = jax.random.normal(jax.random.key(2), (1, 7, 7, 2))
    y = max_pool(x, 3, 2, 1)
    assert y.shape == (1, 4, 4, 2)
    np.testing.assert_array_equal(y[0, 1, 2], x[0, 1:4, 3:6].max((0, 1)))


def test_a_sum_starts_from_its_first_term():
    jaxpr = jax.make_jaxpr(lambda a, b: total(x for x in (a, b)))(1.0, 2.0)
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["add"]


@pytest.mark.parametrize("seed", range(3))
def test_small_worlds_keep_their_edges_and_run_upwards(seed):
    inputs = small_world(32, 4, 0.75, seed)
    assert sum(map(len, inputs)) == 32 * 4 // 2
    assert all(u < v for v, sources in enumerate(inputs) for u in sources)
    assert all(len(set(sources)) == len(sources) for sources in inputs)
    assert inputs == small_world(32, 4, 0.75, seed)
    assert inputs != small_world(32, 4, 0.75, seed + 1)


def test_a_world_without_rewiring_is_a_ring():
    inputs = small_world(8, 4, 0.0, 0)
    assert inputs[2:6] == [[v - 2, v - 1] for v in range(2, 6)]
    assert inputs[7] == [0, 1, 5, 6]


def test_batch_normalisation_in_inference_joins_its_convolution():
    graph = fuse(_MODELS["shufflenet-v2"].build())
    per_op = collections.Counter(node.op for node in graph.nodes)
    # 16 units: three convolutions each, five where the image shrinks; stem and last layer.
    assert per_op["conv_general_dilated"] == 13 * 3 + 3 * 5 + 2
    assert per_op["concatenate"] == 16
    assert set(per_op) <= {
        *("conv_general_dilated", "concatenate", "reduce_window_max"),
        *("reduce_sum", "dot_general"),
    }


def test_columns_of_alexnet_meet_where_the_paper_joins_them():
    graph = fuse(_MODELS["alexnet"].build())
    joins = [v for v, node in enumerate(graph.nodes) if node.op == "concatenate"]
    assert len(joins) == 4
    ancestors: list[set[int]] = [set() for _ in graph.nodes]
    for tensor in graph.tensors:
        for q in tensor.consumers:
            ancestors[q] |= {tensor.producer} | ancestors[tensor.producer]
    columns = [t.producer for t in graph.tensors if joins[0] in t.consumers]
    assert len(columns) == 2
    assert not (ancestors[columns[0]] | {columns[0]}) & (ancestors[columns[1]] | {columns[1]})


def test_weights_shared_by_all_levels_are_counted_once():
    graph = _MODELS["efficientdet-d0"].build()
    # A head's depthwise kernels: 3 x 3 for each of 64 channels, met on all five levels.
    shared = [w for w in graph.weights if w.bytes == 9 * 64 and len(set(w.consumers)) == 5]
    assert len(shared) == 2 * 4


def test_a_network_of_functions_has_one_weight_a_layer():
    x = jnp.ones((1, 4, 4, 2))
    _, variables = _run(lambda x: nn.relu(conv(conv(x, 3), 5, 1, bias=False)), x)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes == {
        "Conv_0": {"kernel": (3, 3, 2, 3), "bias": (3,)},
        "Conv_1": {"kernel": (1, 1, 3, 5)},
    }
