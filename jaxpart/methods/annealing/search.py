"""Search by parallel tempering: hundreds of chains that start from the incumbent.

Moves keep a partition valid without repair, except for memory (`moves.py`). All partitions that the
chains find are verified. The first start is the program order cut optimally, or a better partition
that is already known.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Generator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpart.cost.batch import batch_within, steps_ahead
from jaxpart.cost.device import pad_assignments
from jaxpart.methods.annealing.ensemble import Ensemble, ensemble_of, temper
from jaxpart.methods.annealing.state import Moves, chip_graph_of, moves_of, rejoined
from jaxpart.methods.exact.search import program_order
from jaxpart.methods.labels.search import paper_annealing
from jaxpart.methods.orders.search import mutate, sorted_nodes, swept
from jaxpart.methods.orders.starts import start_keys
from jaxpart.problem.problem import IntArray
from jaxpart.runtime.background import in_thread
from jaxpart.runtime.device_time import Step
from jaxpart.runtime.state import Search

# Most and fewest chains on a CPU.
_MOST_CHAINS, _LEAST_CHAINS = 256, 32
# Most labels (chains * contracted nodes) there, as long as more than the fewest chains remain.
_MOST_LABELS = 2**20
# What a chain takes on an accelerator: bytes for each contracted node (compiled for an H100: 37),
# and numbers for each chip.
_NODE_BYTES, _CHIP_NUMBERS = 40, 30
# Orders that shifts choose from.
_ORDERS = 16
# Sweeps per device run without a time limit, and in the first run.
_SWEEPS = 4
# Length of later device runs under a time limit, seconds.
_RUN_S = 0.4
# No run is shorter, seconds.
_CLOCK_S = 1e-6
# Most sweeps per device run.
_MOST_SWEEPS = 256
# Device runs without gain after which the chains restart from the incumbent.
_STALL_LIMIT = 12


def tempering(search: Search) -> Generator[None]:
    """Tempers chains that start from the incumbent, without end.

    Moves need a chain or host topology, two chips and a valid start. Without these the method adds
    a note to the search and runs `paper_annealing` instead.

    Args:
      search: the state of the search; it receives the partitions.

    Yields:
      None after every device run, so that the caller can check the budget.
    """
    search.enter("tempering")
    yield from program_order(search)
    problem = search.problem
    if problem.mcm.topology == "mesh" or search.best is None or problem.num_chips < 2:
        reason = "nothing valid to start from" if search.best is None else "chains and hosts only"
        search.notes.append(f"annealing by moves: {reason}; labels are annealed instead")
        yield from paper_annealing(search)
        return
    for _ in _rounds(search, in_background=False):
        yield


def tempering_background(search: Search) -> Generator[bool]:
    """Tempers chains that start from the incumbent of all methods, while these run too.

    Ends if moves cannot work: on a mesh, with one chip, or with no valid start and no time limit.
    Under a time limit, each start is prepared in a thread, compilation included (`in_thread`).

    Args:
      search: the state of the search; it receives the partitions.

    Yields:
      Whether it has to wait, for a first valid partition or for the compilation of another method.
    """
    problem = search.problem
    if problem.mcm.topology == "mesh" or problem.num_chips < 2:
        return
    while search.best is None:
        if search.budget.time_limit_s is None:
            return
        yield True
    yield from _rounds(search, in_background=search.budget.time_limit_s is not None)


def _rounds(search: Search, *, in_background: bool) -> Generator[bool]:
    """Starts chains from the incumbent, again and again."""
    assert search.best is not None
    search.enter("tempering")
    rng, key = np.random.default_rng(search.seed), jax.random.key(search.seed)
    moves: Moves | None = None
    for number in itertools.count():
        start = search.best

        def prepared(
            moves: Moves | None = moves, start: IntArray = start, number: int = number
        ) -> _Run:
            run = _prepared(search, moves, start, rng, jax.random.fold_in(key, number))
            # Compiles. On whole arrays only a sweep does; its result is not used.
            jax.block_until_ready(temper(*run, 0 if run.moves.neighbours is None else 1))
            return run

        if in_background:
            run = yield from in_thread(prepared, compiles=number == 0)
        else:
            with search.compiling():
                run = prepared()
        search.start_clock()
        moves = run.moves
        yield from _tempered(search, run, start)


class _Run(NamedTuple):
    """The arguments of `temper` before `sweeps`."""

    moves: Moves
    ensemble: Ensemble
    orders: jax.Array
    key: jax.Array
    unit_s: jax.Array


def _prepared(
    search: Search,
    moves: Moves | None,
    start: IntArray,
    rng: np.random.Generator,
    key: jax.Array,
) -> _Run:
    """Prepares chains that start from the valid partition `start` [N]; `moves`: of a former one."""
    keys = jax.random.split(key, 3)
    graph = chip_graph_of(search.problem, start, rng)
    moves = moves_of(search.problem, graph) if moves is None else rejoined(moves, graph)
    ensemble = ensemble_of(_repeated(search, moves, start), keys[0])
    orders = _orders(search, moves, keys[1])
    return _Run(moves, ensemble, orders, keys[2], jnp.float32(search.best_s))


def _tempered(search: Search, chains: _Run, start: IntArray) -> Generator[bool]:
    """Tempers chains up to the stall limit, or until another method improves the incumbent."""
    sweeps, stalled = _SWEEPS, 0
    best: IntArray | None = start
    pending: deque[tuple[int, Ensemble, Step | None]] = deque()
    newest, seen, start_s = chains.ensemble, chains.ensemble, time.perf_counter()
    runs = itertools.count(1)
    while stalled < _STALL_LIMIT and search.best is best:
        while len(pending) <= steps_ahead():
            run_key = jax.random.fold_in(chains.key, next(runs))
            since_s = search.device_time.clock()
            newest = temper(chains.moves, newest, chains.orders, run_key, chains.unit_s, sweeps)
            given = search.device_time.given("tempering", newest.best_s, since_s)
            pending.append((sweeps, newest, given))
        done, ensemble, given = pending.popleft()
        priced = float(ensemble.priced) - float(seen.priced)
        search.samples += int(priced) + done * ensemble.labels.shape[1]
        stalled += 1
        if _offered(search, chains.moves, ensemble):
            stalled, best = 0, search.best
        seen = ensemble
        if search.budget.time_limit_s is not None:
            # A run that was ahead may have ended in the turn of another method.
            spent_s = time.perf_counter() - start_s if given is None else given.seconds()
            fits = _RUN_S * done / max(spent_s, _CLOCK_S)
            sweeps = int(np.clip(fits, 1, min(2 * sweeps, _MOST_SWEEPS)))
        yield False
        start_s = time.perf_counter()


def _offered(search: Search, moves: Moves, ensemble: Ensemble) -> bool:
    """Offers the best partition of all chains if it may improve the incumbent; whether it did."""
    best_s = np.asarray(ensemble.best_s)
    lane = int(best_s.argmin())
    if not best_s[lane] < search.best_s:
        return False
    # Indexed on the host: on an accelerator a program for it would wait for the next run.
    labels = np.asarray(ensemble.best)[search.problem.contraction, lane]
    return search.offer(labels.astype(np.int64)[:, None])


def _repeated(search: Search, moves: Moves, start: IntArray) -> jax.Array:
    """[padded M, B] the chips of contracted nodes in partition `start` [N], the same B times."""
    labels = search.problem.contracted_assignment(start)
    column = jnp.asarray(pad_assignments(moves.contracted, labels[:, None]))
    return jnp.repeat(column, _batch(search, moves), axis=1)


def _batch(search: Search, moves: Moves) -> int:
    """B, the number of chains."""
    rows = moves.contracted.padded_nodes
    batch = _MOST_CHAINS
    while batch > _LEAST_CHAINS and batch * rows > _MOST_LABELS:
        batch //= 2
    chips = search.problem.num_chips * (len(moves.weights.shared_bytes) + _CHIP_NUMBERS)
    chain_bytes = _NODE_BYTES * rows + 4 * chips
    return batch_within(search.device_problem, batch, chain_bytes, is_shared=False)


def _orders(search: Search, moves: Moves, key: jax.Array) -> jax.Array:
    """[R, padded M] orders of the contracted nodes for shifts: `start_keys` and mutations of them.

    Where dataflow may be cyclic, the only order is that of the numbers.
    """
    padded = moves.contracted.padded_nodes
    if not moves.by_order:
        return jnp.arange(padded)[None]
    starts = start_keys(search.problem.contracted)
    keys = np.tile(np.arange(padded, dtype=np.float32), (len(starts), 1))
    for row, start in zip(keys, starts, strict=True):
        row[np.argsort(start, kind="stable")] = np.arange(len(start))
    parents = jnp.asarray(keys)
    changed = mutate(key, parents, search.problem.num_contracted, _ORDERS)
    changed = changed.at[: len(keys)].set(parents)
    return jnp.asarray(sorted_nodes(swept(moves.contracted, changed)))
