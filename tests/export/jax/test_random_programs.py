"""Random programs of parts, rows, writes and loops: their stages give the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxpart
from tests.support.functions import assert_same, rising_chips

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SIZE = 4  # of the sides of all matrices


def scanned(h, rows):
    return lax.scan(lambda h, row: (jnp.sin(h) + row, h * row), h, rows)[1]


# From two matrices, a weight, a position of run time and a known one to a matrix.
OPERATIONS = (
    lambda a, b, w, i, k: jnp.tanh(a) @ w,
    lambda a, b, w, i, k: a + b,
    lambda a, b, w, i, k: jnp.concatenate([a[k:], b[:k]]),
    lambda a, b, w, i, k: jnp.stack([a, a, b, a * 2])[k],
    lambda a, b, w, i, k: jnp.roll(a, 1, axis=0) * w.T,
    lambda a, b, w, i, k: a.at[k].set(b[0]),
    lambda a, b, w, i, k: a.at[k, 1:3].add(1.5),
    lambda a, b, w, i, k: jnp.where(jnp.arange(SIZE)[:, None] < i, a, 0.0),
    lambda a, b, w, i, k: a[jnp.array([3, 0, 0, 1])],
    lambda a, b, w, i, k: lax.dynamic_slice(jnp.concatenate([a, b]), (i, 0), (SIZE, SIZE)),
    lambda a, b, w, i, k: jnp.concatenate([jnp.split(a, 2)[1], jnp.flip(a, 0)[:2] * b[:2]]),
    lambda a, b, w, i, k: scanned(a, jnp.stack([b, w, a, b]))[k],
)
# Likewise, to the memory of rows after something was written into it.
WRITES = (
    lambda memory, a, i, k: memory.at[k].set(a),
    lambda memory, a, i, k: memory.at[k].add(a),
    lambda memory, a, i, k: lax.dynamic_update_slice(memory, a[None, :1], (k, i, 0)),
    lambda memory, a, i, k: scanned(a, memory),
)


def random_program(rng):
    """A function of three weights, a state, an input and a position."""
    plan = [
        [int(n) for n in rng.integers([16, 99, 99, 3, SIZE, SIZE])]
        for _ in range(rng.integers(5, 16))
    ]

    def fn(weights, state, x, i):
        made, memory = [x, weights[0], state, jnp.zeros((SIZE, SIZE)), x], jnp.stack([x] * SIZE)
        for which, one, two, w, k, row in plan:
            a, b = made[-1 - one % 3], made[-1 - two % len(made)]
            if which < len(OPERATIONS):
                made.append(OPERATIONS[which](a, b, weights[w], i, k))
            else:
                memory = WRITES[which - len(OPERATIONS)](memory, a, i, k)
                made.append(memory[row])
        return made[-1] * 2, made[len(made) // 2], memory

    return fn


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_stages_of_random_programs_give_the_same_bits(seed):
    rng = np.random.default_rng(seed)
    fn = random_program(rng)
    shapes = (3, SIZE, SIZE), (SIZE, SIZE), (SIZE, SIZE)
    weights, state, x = [jnp.asarray(rng.normal(size=shape) / 2, jnp.float32) for shape in shapes]
    args = (weights, state, x, jnp.array(2))
    trace = jaxpart.trace(fn, *args, param_argnums=0, state_argnums=1, fuse=bool(seed % 2))
    with jax.disable_jit():
        expected = fn(*args)
        for other in range(3):
            stages = trace.stages(rising_chips(trace.graph, seed + other, chips=5))
            assert_same(stages(*args), expected, 0)
