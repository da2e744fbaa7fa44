"""Entry points of compiled programs refuse arrays of another shape, before anything is computed."""

import jax.numpy as jnp
import pytest

from jaxpart.cost.device import lower
from jaxpart.cost.evaluate import evaluate
from jaxpart.methods.labels.projection import project
from jaxpart.methods.orders.probe import probe
from jaxpart.methods.orders.slicing import slice_orders
from jaxpart.methods.orders.weights import weights_of
from jaxpart.problem.problem import Problem
from tests.support.graphs import parallel_chains
from tests.support.modules import THREE_CHIPS

PROBLEM = Problem.build(parallel_chains(2, 3), THREE_CHIPS)
DEVICE = lower(PROBLEM)
N = DEVICE.padded_nodes


@pytest.mark.parametrize("program", [evaluate, project])
@pytest.mark.parametrize("shape", [(N,), (N - 1, 2), (2, N)])
def test_labels_of_another_shape_are_refused(program, shape):
    with pytest.raises(AssertionError, match="shape"):
        program(DEVICE, jnp.zeros(shape, jnp.int8))


def test_orders_of_another_shape_are_refused():
    orders, peaks = jnp.zeros((2, N), jnp.int32), jnp.zeros((2, N))
    with pytest.raises(AssertionError, match="shape"):
        slice_orders(DEVICE, orders.T, peaks, 8)
    weights = weights_of(PROBLEM, N)
    with pytest.raises(AssertionError, match="shape"):
        probe(DEVICE, weights, orders, peaks.T, jnp.ones(2), 8)
    with pytest.raises(AssertionError, match="shape"):
        probe(DEVICE, weights, orders.T, peaks.T, jnp.ones(3), 8)
