"""Search over chip labels, as in the paper: candidates are made valid before they are costed.

Source: Xie et al. (MLSys 2022), section 5. Random search draws from the uniform distribution with
the solver's SAMPLE mode; simulated annealing changes labels and makes them valid with FIX. Here
both modes run on the device (`sampling.py`). They ignore memory; SCIP on the host repairs promising
candidates that do not fit.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpart.cost.batch import candidates_per_step, steps_ahead
from jaxpart.cost.device import DeviceProblem, pad_assignments
from jaxpart.cost.evaluate import Costs, evaluate
from jaxpart.cost.sharding import LEAST_LABELS, replicated, split
from jaxpart.methods.labels.sampling import fix, sample_lanes
from jaxpart.methods.repair.search import Workers
from jaxpart.runtime.state import Search

# Candidates per step, on a CPU.
_BATCH = 512
# First and last temperature of annealing, as shares of the bottleneck.
_HOTTEST, _COLDEST = 3e-2, 1e-5
# One column (chain) in this many, from column 0 on, may take over a partition that another island
# sent; all other chains ignore it.
_COLUMNS_PER_RECEIVER = 4
_split = partial(split, least=LEAST_LABELS)


def random(search: Search, batch: int | None = None) -> Generator[None]:
    """Offers uniform samples (`sample`); SCIP repairs the fastest one that does not fit in memory.

    Args:
      search: the state of the search; it receives the samples.
      batch: B, samples per step. None: as many as the device likes.

    Yields:
      None after every batch, so that the caller can check the budget.
    """
    search.enter("random")
    key = jax.random.key(search.seed)
    pending: deque[tuple[Array, Costs]] = deque()
    with search.compiling():
        batch = candidates_per_step(search.device_problem, _BATCH) if batch is None else batch
        problem = replicated(search.device_problem, batch, LEAST_LABELS)
        draw, judge = _draw(batch), _split(evaluate, batch, (None, 1))
        assignments = draw(problem, jax.random.fold_in(key, 0))
        pending.append((assignments, judge(problem, assignments)))
    step = 0
    with contextlib.closing(Workers(search)) as workers:
        while True:
            while len(pending) <= steps_ahead():
                assignments = draw(problem, jax.random.fold_in(key, step + len(pending)))
                pending.append((assignments, judge(problem, assignments)))
            search.offer_batch(*pending.popleft())
            workers.repair_promising()
            workers.collect()
            search.start_clock()
            step += 1
            yield


def _draw(batch: int) -> Callable[[DeviceProblem, jax.Array], Array]:
    """Samples of a batch, shared by the devices: a function of the problem and a key."""
    draw = _split(sample_lanes, batch, (None, None, 0))
    return lambda problem, key: draw(problem, key, np.arange(batch, dtype=np.int32))


@struct.dataclass
class LabelChains:
    """B annealing chains, one per column of a batch."""

    assignment: Int[Array, "N B"]
    bottleneck_s: Float[Array, " B"]  # inf: not valid


def paper_annealing(
    search: Search,
    chains: int | None = None,
    hottest: float = _HOTTEST,
    coldest: float = _COLDEST,
) -> Generator[None]:
    """Simulated annealing: changes a few labels, applies `fix`, and accepts by Metropolis.

    Chains start from the incumbent, or from uniform samples if there is none. The temperature falls
    geometrically with the share of the budget that is spent.

    Args:
      search: the state of the search; it receives the candidates.
      chains: B; with a small sample budget, fewer chains make more steps each. None: as many as
        the device likes.
      hottest: first temperature: a loss of this share of the bottleneck is accepted with
        probability 1/e.
      coldest: last temperature.

    Yields:
      None after every batch, so that the caller can check the budget.
    """
    search.enter("paper_annealing")
    key = jax.random.key(search.seed)
    with search.compiling():
        chains = candidates_per_step(search.device_problem, _BATCH) if chains is None else chains
        problem = replicated(search.device_problem, chains, LEAST_LABELS)
        mend, judge = (_split(function, chains, (None, 1)) for function in (fix, evaluate))
        if search.best is not None:
            columns = np.repeat(search.best[:, None], chains, axis=1)
            start = jnp.asarray(pad_assignments(problem, columns))
        else:
            start = _draw(chains)(problem, jax.random.fold_in(key, 0))
        costs = judge(problem, start)
    search.offer_batch(start, costs)
    state = LabelChains(start, jnp.where(costs.valid, costs.bottleneck_s, jnp.inf))
    pending: deque[tuple[Array, Costs]] = deque()
    step, received = 1, search.received
    with contextlib.closing(Workers(search)) as workers:
        while True:
            if search.received is not None and search.received is not received:
                received = search.received
                state = settled(state, pad_assignments(problem, received[:, None]), search.best_s)
            change, accept = jax.random.split(jax.random.fold_in(key, step))
            with search.compiling() if step == 1 else contextlib.nullcontext():
                candidates = mend(problem, relabel(change, problem, state.assignment))
            costs = judge(problem, candidates)
            pending.append((candidates, costs))
            if len(pending) > steps_ahead():
                search.offer_batch(*pending.popleft())
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
    """Moves random nodes of each candidate by one chip up or down.

    The expected number of nodes drawn is log-uniform from 1 to N / 8; a third of them stay.

    Args:
      key: the same key gives the same moves.
      problem: padded to N nodes.
      assignment: chips 0..C-1.
    """
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
    """The chains after some of them took over a better partition (`_COLUMNS_PER_RECEIVER`).

    Args:
      chains: B chains.
      newcomer: the partition.
      bottleneck_s: its bottleneck, seconds.
    """
    is_receiver = jnp.arange(chains.bottleneck_s.shape[0]) % _COLUMNS_PER_RECEIVER == 0
    moves = is_receiver & (bottleneck_s < chains.bottleneck_s)
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
    """Accepts each candidate that is better, and a worse one with probability exp(-loss / T).

    The loss is the relative increase of the bottleneck.

    Args:
      key: the same key gives the same draws.
      chains: B chains.
      candidates: one per chain.
      bottleneck_s: of the candidates, seconds; inf: not valid, never accepted.
      temperature: T.
    """
    loss = bottleneck_s / chains.bottleneck_s - 1
    chance = jax.random.uniform(key, loss.shape)
    accepted = jnp.isfinite(bottleneck_s) & ~(loss > -temperature * jnp.log(chance))
    return LabelChains(
        jnp.where(accepted, candidates, chains.assignment),
        jnp.where(accepted, bottleneck_s, chains.bottleneck_s),
    )
