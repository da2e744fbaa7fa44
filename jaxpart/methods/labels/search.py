"""Search over chip labels, as in the paper: every candidate is made valid before it is costed.

Xie et al. (MLSys 2022), section 5: random search draws from the uniform distribution through the
solver's SAMPLE mode; simulated annealing changes labels and sends them through FIX. Here both modes
run on the device (`sampling`), and what they cannot settle (memory) is sent to SCIP on the host.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpart.cost.device import DeviceProblem, pad_assignments
from jaxpart.cost.evaluate import evaluate
from jaxpart.cost.sharding import replicated, split, split_draws
from jaxpart.methods.labels.sampling import fix, sample
from jaxpart.methods.repair.search import Workers
from jaxpart.runtime.state import Search

_BATCH = 512
# Temperatures of annealing, first and last.
_HOTTEST, _COLDEST = 3e-2, 1e-5


def random(search: Search, batch: int = _BATCH) -> Generator[None]:
    """Uniform samples, each through `sample`; SCIP repairs the best that memory forbids.

    Args:
      search: to offer to.
      batch: samples a step.
    """
    search.enter("random")
    problem = replicated(search.device_problem, batch)
    draw, judge = split_draws(sample, batch, None, batch), split(evaluate, batch, (None, 1))
    key = jax.random.key(search.seed)
    step = 0
    with Workers(search) as workers:
        while True:
            assignments = draw(problem, jax.random.fold_in(key, step))
            costs = judge(problem, assignments)
            search.offer_batch(assignments, costs)
            workers.repair_promising()
            workers.collect()
            search.start_clock()
            step += 1
            yield


@struct.dataclass
class LabelChains:
    """Annealing chains, one per column of a batch."""

    assignment: Int[Array, "N B"]
    bottleneck_s: Float[Array, " B"]  # inf: not valid


def paper_annealing(
    search: Search, chains: int = _BATCH, hottest: float = _HOTTEST, coldest: float = _COLDEST
) -> Generator[None]:
    """Simulated annealing: change a few labels, `fix`, and accept by Metropolis.

    Chains start from the best partition known, or from uniform samples where none is. The
    temperature falls geometrically with the share of the budget that is spent.

    Args:
      search: to offer to.
      chains: side by side; with few samples, few chains go further.
      hottest: temperature at first: a loss of this share of the bottleneck is accepted with
        probability 1/e.
      coldest: temperature at last.
    """
    search.enter("paper_annealing")
    problem = replicated(search.device_problem, chains)
    mend, judge = (split(function, chains, (None, 1)) for function in (fix, evaluate))
    key = jax.random.key(search.seed)
    if search.best is not None:
        columns = np.repeat(search.best[:, None], chains, axis=1)
        start = jnp.asarray(pad_assignments(problem, columns))
    else:
        draw = split_draws(sample, chains, None, chains)
        start = draw(problem, jax.random.fold_in(key, 0))
    costs = judge(problem, start)
    search.offer_batch(start, costs)
    state = LabelChains(start, jnp.where(costs.valid, costs.bottleneck_s, jnp.inf))
    step, received = 1, search.received
    with Workers(search) as workers:
        while True:
            if search.received is not None and search.received is not received:
                received = search.received
                state = settled(state, pad_assignments(problem, received[:, None]), search.best_s)
            change, accept = jax.random.split(jax.random.fold_in(key, step))
            candidates = mend(problem, relabel(change, problem, state.assignment))
            costs = judge(problem, candidates)
            search.offer_batch(candidates, costs)
            workers.repair_promising()
            workers.collect()
            search.start_clock()
            temperature = hottest * (coldest / hottest) ** search.spent
            reached = jnp.where(costs.valid, costs.bottleneck_s, jnp.inf)
            state = metropolis(accept, state, candidates, reached, temperature)
            step += 1
            yield


@jax.jit
def relabel(
    key: jax.Array, problem: DeviceProblem, assignment: Int[Array, "N B"]
) -> Int[Array, "N B"]:
    """Moves random nodes of each candidate to nearby chips, log-uniformly 1 to N / 8 of them."""
    nodes, batch = assignment.shape
    chips = problem.config.num_chips
    which, how_many, where = jax.random.split(key, 3)
    most = jnp.maximum(problem.num_nodes / 8.0, 1.0)
    expected = most ** jax.random.uniform(how_many, (1, batch))
    is_changed = jax.random.uniform(which, (nodes, batch)) < expected / problem.num_nodes
    step = jax.random.randint(where, (nodes, batch), -1, 2)
    moved = jnp.clip(assignment.astype(jnp.int32) + step, 0, chips - 1)
    return jnp.where(is_changed, moved, assignment).astype(assignment.dtype)


@jax.jit
def settled(
    chains: LabelChains, newcomer: Int[Array, "N 1"], bottleneck_s: Float[Array, ""]
) -> LabelChains:
    """One chain in four goes on from a partition that came from elsewhere, where that is better."""
    one_in_four = jnp.arange(chains.bottleneck_s.shape[0]) % 4 == 0
    moves = one_in_four & (bottleneck_s < chains.bottleneck_s)
    return LabelChains(
        jnp.where(moves, newcomer, chains.assignment),
        jnp.where(moves, bottleneck_s, chains.bottleneck_s),
    )


@partial(jax.jit, donate_argnames="chains")
def metropolis(
    key: jax.Array,
    chains: LabelChains,
    candidates: Int[Array, "N B"],
    bottleneck_s: Float[Array, " B"],
    temperature: Float[Array, ""],
) -> LabelChains:
    """Accepts a candidate that is better, or worse by chance; the loss counts relative to T."""
    loss = bottleneck_s / chains.bottleneck_s - 1
    chance = jax.random.uniform(key, loss.shape)
    accepted = jnp.isfinite(bottleneck_s) & ~(loss > -temperature * jnp.log(chance))
    return LabelChains(
        jnp.where(accepted, candidates, chains.assignment),
        jnp.where(accepted, bottleneck_s, chains.bottleneck_s),
    )
