"""Loops: unrolled or kept, their caches and states, and what is said of them."""

from __future__ import annotations

import re
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxpart.errors import InputError
from jaxpart.ingest.jaxpr import program
from jaxpart.ingest.jaxpr.importer import from_jax

D, H, F, L, T = 16, 4, 32, 3, 64


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def ops(graph):
    return [node.op for node in graph.nodes]


def lstm(p, xs):
    def cell(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x @ p["wi"] + h @ p["wh"] + p["b"][None], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros((1, D))
    return lax.scan(cell, (start, start), xs)[1]


LSTM = {"wi": array(D, 4 * D), "wh": array(D, 4 * D), "b": array(4 * D)}


def test_loops_are_unrolled_by_default_as_far_as_the_graph_stays_small(monkeypatch):
    def deep(p, x):
        return lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, p)[0]

    def graph():
        return from_jax(deep, array(100, 8, 8), array(2, 8), param_argnums=0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops(graph()) == ["dot_general", "tanh", "add"] * 100
    monkeypatch.setattr(program, "MAX_NODES", 301)  # the loop itself counts one
    assert len(graph().nodes) == 300
    monkeypatch.setattr(program, "MAX_NODES", 300)
    with pytest.warns(UserWarning, match=r"deep: scan_0 .* 100 steps; unroll_limit=100 unrolls"):
        assert ops(graph()) == ["scan"]


def test_an_inner_loop_is_kept_where_only_the_outer_one_fits(monkeypatch):
    def fn(x):
        def outer(i, x):
            return jnp.cos(lax.fori_loop(0, 50, lambda j, x: jnp.sin(x), x))

        return lax.fori_loop(0, 4, outer, x)

    assert ops(from_jax(fn, array(4))) == (["sin"] * 50 + ["cos"]) * 4
    monkeypatch.setattr(program, "MAX_NODES", 100)
    with pytest.warns(UserWarning, match="is kept as one node") as warned:
        assert ops(from_jax(fn, array(4))) == ["scan", "cos"] * 4
    assert len(warned) == 1
    assert "scan_0 is kept as one node, on one chip, like 3 more nodes: " in str(warned[0].message)


def test_copies_of_a_kept_loop_are_one_warning_that_says_how_many():
    def step(x, _):
        return lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: 2 * x, x), x

    with pytest.warns(UserWarning, match="kept") as warned:
        from_jax(lambda x: lax.scan(step, x, None, length=12)[0], array(4))

    assert len(warned) == 1
    told = str(warned[0].message)
    assert "while_0 is kept as one node, on one chip, like 11 more nodes: its steps are" in told


def test_kept_loops_of_other_kinds_are_warnings_of_their_own_up_to_five():
    def fn(x):
        for length in (9, 3, 4, 5, 6, 7, 7, 8):
            x = lax.fori_loop(0, length, lambda i, x: jnp.sin(x), x)
        return x

    with pytest.warns(UserWarning, match="kept") as warned:
        from_jax(fn, array(4), unroll_limit=1)
    told = [str(warning.message) for warning in warned]

    assert [re.findall(r"all its (\d) steps", line) for line in told] == [*map(list, "93456"), []]
    assert told[5].endswith("3 more nodes are kept whole, as scan_5 is")


def test_a_number_unrolls_loops_up_to_it_whatever_the_size(monkeypatch):
    monkeypatch.setattr(program, "MAX_NODES", 2)
    graph = from_jax(
        lambda x: lax.fori_loop(0, 9, lambda i, x: jnp.sin(x), x), array(4), unroll_limit=9
    )
    assert ops(graph) == ["sin"] * 9


def test_bytes_of_a_kept_scan_grow_with_its_steps_as_those_of_unrolled_steps_do():
    def accessed(steps, limit):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = from_jax(lstm, LSTM, array(steps, 1, D), param_argnums=0, unroll_limit=limit)
        return sum(node.bytes_accessed for node in graph.nodes), len(graph.nodes)

    unrolled = [accessed(steps, 10)[0] for steps in (9, 10)]
    kept, nodes = accessed(11, 10)
    assert nodes == 1
    # the first step starts from zeros: it reads a little less than the others
    step = unrolled[1] - unrolled[0]
    assert kept == 11 * step
    # two weights of [16, 64] are read in each step, and more
    assert step > 2 * 4 * 16 * 64


def test_bytes_of_a_kept_while_with_a_known_number_of_steps_count_each_step():
    def fn(w, x):
        def step(carry):
            return carry[0] + 1, carry[1] @ w

        return lax.while_loop(lambda carry: carry[0] < 7, step, (0, x))[1]

    with pytest.warns(UserWarning, match=r"while_0 .* 7 steps; unroll_limit=7"):
        graph = from_jax(fn, array(8, 8), array(2, 8), param_argnums=0, unroll_limit=6)
    (node,) = graph.nodes
    assert node.bytes_accessed == 7 * 4 * (16 + 64 + 16)
    # and two operations on the counter
    assert node.flops == 7 * (2 * 2 * 8 * 8 + 2)


def test_loops_of_unknown_length_say_so():
    def fn(x, n):
        return lax.fori_loop(0, n, lambda i, x: jnp.sin(x), x)

    with pytest.warns(UserWarning, match="while_0 is kept as one node.*known at run time only"):
        assert ops(from_jax(fn, array(4), array(dtype=jnp.int32))) == ["while"]


def layer(x, p, keys, values, pos):
    """One decoding layer with caches of [1, H, T, D // H]; returns its output and the caches."""
    q, k, v = (t.reshape(1, H, 1, D // H) for t in jnp.split(x @ p["qkv"], 3, -1))
    keys = lax.dynamic_update_slice(keys, k, (0, 0, pos, 0))
    values = lax.dynamic_update_slice(values, v, (0, 0, pos, 0))
    scores = jnp.where(jnp.arange(T) <= pos, q @ keys.swapaxes(2, 3), -1e9)
    x = x + (jax.nn.softmax(scores) @ values).reshape(1, D) @ p["o"]
    return x + jnp.tanh(x @ p["a"]) @ p["b"], (keys, values)


LAYER = {"qkv": array(D, 3 * D), "o": array(D, D), "a": array(D, F), "b": array(F, D)}
CACHE = array(1, H, T, D // H)
TOKEN, POS = array(1, D), array(dtype=jnp.int32)


def stacked(tree):
    return jax.tree.map(lambda a: array(L, *a.shape), tree)


def listed(p, caches, x, pos):
    new = []
    for weights, (keys, values) in zip(p, caches, strict=True):
        x, cache = layer(x, weights, keys, values, pos)
        new.append(cache)
    return x, new


def scanned(p, caches, x, pos):
    def step(x, parts):
        weights, (keys, values) = parts
        return layer(x, weights, keys, values, pos)

    return lax.scan(step, x, (p, caches))


def carried(p, caches, x, pos):
    """The stacked caches are carried through the loop and updated at its counter."""

    def step(i, carry):
        x, keys, values = carry
        weights = jax.tree.map(lambda w: w[i], p)
        x, (k, v) = layer(x, weights, keys[i], values[i], pos)
        return x, keys.at[i].set(k), lax.dynamic_update_index_in_dim(values, v, i, 0)

    return lax.fori_loop(0, L, step, (x, *caches))


def without_names(graph):
    nodes = [(node.op, node.flops, node.bytes_accessed) for node in graph.nodes]
    return nodes, graph.tensors, sorted(graph.weights, key=lambda w: (w.consumers, w.bytes))


@pytest.mark.parametrize("walk", [scanned, carried])
@pytest.mark.parametrize("state", [(), (1,)])
def test_stacked_caches_give_the_graph_that_a_list_of_caches_gives(walk, state):
    expected = from_jax(
        listed, [LAYER] * L, [(CACHE, CACHE)] * L, TOKEN, POS, param_argnums=0, state_argnums=state
    )
    graph = from_jax(
        walk,
        stacked(LAYER),
        stacked((CACHE, CACHE)),
        TOKEN,
        POS,
        param_argnums=0,
        state_argnums=state,
    )
    assert without_names(graph) == without_names(expected)
    caches = [w for w in graph.weights if w.bytes == 4 * T * D]
    assert len(caches) == (2 * L if state else 0)
    assert sum(node.op == "dynamic_update_slice" for node in graph.nodes) == 2 * L


def test_work_on_a_state_is_real_and_is_not_folded():
    def fn(w, mean, x):
        return x @ w - (mean * 2)[None], 0.9 * mean

    graph = from_jax(fn, array(8, 8), array(8), array(4, 8), param_argnums=0, state_argnums=1)
    assert sorted(ops(graph)) == ["broadcast_in_dim", "dot_general", "mul", "mul", "sub"]
    assert [w.bytes for w in graph.weights] == [256, 32]
    readers = [v for v, node in enumerate(graph.nodes) if node.op == "mul"]
    assert list(graph.weights[1].consumers) == readers


def test_an_argument_is_either_a_parameter_or_a_state():
    with pytest.raises(InputError, match="argument 1 is named in param_argnums and in state_arg"):
        from_jax(jnp.matmul, array(4, 4), array(4, 4), param_argnums=1, state_argnums=-1)
    with pytest.raises(InputError, match="state_argnums names argument 2, expected 0 to 1"):
        from_jax(jnp.matmul, array(4, 4), array(4, 4), state_argnums=2)


def test_the_next_scan_reads_the_rows_of_the_one_before():
    def fn(xs):
        ys = lax.scan(lambda c, x: (c + x, c * x), jnp.ones(()), xs)[1]
        return lax.scan(lambda c, y: (jnp.sin(c + y), None), ys[0], ys, reverse=True)[0]

    graph = from_jax(fn, array(3))
    assert "concatenate" not in ops(graph)
    assert "slice" not in ops(graph)
    names = [node.name for node in graph.nodes]
    made = {names[k.producer]: [names[q] for q in k.consumers] for k in graph.tensors}
    # the last product feeds the first addition of the second loop
    assert [op for op in ops(graph) if op == "mul"] == ["mul"] * 3
    last = [consumers for name, consumers in made.items() if name == "mul_2"]
    assert last == [["add_2"]]


def test_forgotten_parameters_are_mentioned():
    def fn(p, x):
        for w in p:
            x = x @ w
        return x

    params, x = [array(1024, 512), array(512, 1024)], array(2, 1024)
    with pytest.warns(UserWarning, match=r"fn: 0 MiB of weights: .* 2 MiB .* param_argnums"):
        from_jax(fn, params, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_jax(fn, params, x, param_argnums=0)
        from_jax(fn, [array(512, 511)], array(2, 512))  # less than 1 MiB is not large
        from_jax(lambda x: x + 1, array(1024, 1024))
        # a product with a weight has an activation as its other operand
        from_jax(jnp.matmul, array(1024, 1024), array(1024, 8), param_argnums=1)


@pytest.mark.parametrize(
    ("use", "op"),
    [
        (lambda w, ids, x: x @ w, "dot_general"),
        (lambda w, ids, x: x @ w.astype(jnp.bfloat16), "dot_general"),
        (lambda w, ids, x: x @ w.T.reshape(2, -1, 512)[0].T, "dot_general"),
        (lambda w, ids, x: x + w[ids], "gather"),
        (lambda w, ids, x: x + jnp.take(w, ids, axis=0), "gather"),
    ],
    ids=["product", "cast", "laid out", "rows", "taken rows"],
)
@pytest.mark.parametrize("named", [(), (0,)])
def test_a_forgotten_parameter_is_mentioned_however_it_is_used(use, op, named):
    def fn(head, w, ids, x):
        return use(w, ids, x @ head)

    given = array(256, 512), array(512, 512), array(8, dtype=jnp.int32), array(8, 256)
    none = "" if named else "0 MiB of weights: .* and "
    with pytest.warns(UserWarning, match=f"fn: {none}an input of 1 MiB goes into {op}; "):
        from_jax(fn, *given, param_argnums=named)
