"""The trace of a search: what counts as idle, and what counts as a step."""

import jax.numpy as jnp
import pytest
from overlap import StepTimes, idle_share


@pytest.mark.parametrize(
    ("begun_s", "done_s", "share"),
    [
        ([0.0, 1.0, 2.0], [1.0, 2.0, 4.0], 0.0),  # the next starts as the last one ends
        ([0.0, 0.5, 1.5], [2.0, 4.0, 6.0], 0.0),  # the next waits for the last one
        ([0.0, 3.0, 5.0], [2.0, 4.0, 10.0], 0.2),  # 1 s before each of the last two
    ],
)
def test_idle_is_the_time_without_a_step(begun_s, done_s, share):
    assert idle_share(begun_s, done_s) == pytest.approx(share)


def test_a_step_lasts_from_its_first_program_to_the_results_of_its_last():
    trace = StepTimes()
    draw = trace.first(lambda x: x + 1)
    judge = trace.last(lambda x: x * 2)

    judge(jnp.ones(3))  # before the first step: not one
    for step in range(4):
        assert judge(draw(jnp.float32(step))) == 2 * (step + 1)
    trace.close()

    assert len(trace.begun_s) == len(trace.done_s) == 4
    assert all(begun < done for begun, done in zip(trace.begun_s, trace.done_s, strict=True))
    assert sorted(trace.done_s) == trace.done_s
