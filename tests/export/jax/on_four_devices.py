"""Stages on four devices of a CPU: run by test_stages.py in a process of its own."""

import os
import sys
import warnings
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[3]))
warnings.simplefilter("ignore")

import jax  # noqa: E402

import jaxpart  # noqa: E402
from tests.support.functions import assert_same, made, rising_chips  # noqa: E402

devices = jax.devices()
assert len(devices) == 4
for name in ("mlp_with_skips", "tied_weights", "unrolled_scan", "random_keys"):
    case = made(name)
    trace = jaxpart.trace(case.fn, *case.args, **case.options)
    stages = trace.stages(rising_chips(trace.graph, 3, chips=6))
    assert len(stages.plans) > 1
    assert stages.weights is not None
    for i, weights in enumerate(stages.weights):
        assert stages.devices[i] == devices[i % 4]
        assert all(w.devices() == {devices[i % 4]} for w in weights)
    committed = jax.device_put(case.args, devices[2])
    for args in (case.args, committed):
        got = stages(*args)
        assert_same(jax.device_get(got), jax.jit(case.fn)(*case.args), 1e-5)
    last = jax.tree.leaves(got)[0]
    home = next(i for i, part in enumerate(stages.plans) if trace.steps.outputs[0] in part.returned)
    assert last.devices() == {stages.devices[home]}
