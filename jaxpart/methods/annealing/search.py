"""Search by annealing moves: parallel tempering of hundreds of chains from the best partition.

What moves keep valid, they keep without repair (`moves`, `tempering`); what chains find is verified
as everything is. Starts come from the program order cut optimally, or whatever was better before.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpart.cost.device import pad_assignments
from jaxpart.methods.annealing.ensemble import Ensemble, ensemble_of, temper
from jaxpart.methods.annealing.state import Moves, chip_graph_of, moves_of
from jaxpart.methods.exact.search import program_order
from jaxpart.methods.labels.search import paper_annealing
from jaxpart.methods.orders.search import mutate, sorted_nodes, swept
from jaxpart.methods.orders.starts import start_keys
from jaxpart.problem.problem import IntArray
from jaxpart.runtime.background import in_thread
from jaxpart.runtime.state import Search

# Chains; fewer where they are long.
_MOST_CHAINS, _LEAST_CHAINS = 256, 32
_ENTRIES = 2**20
# Orders for shifts, to choose from.
_ORDERS = 16
# Sweeps per program run: without a time limit, and to begin with; later so many seconds' worth.
_SWEEPS = 4
_RUN_S = 0.4
_MOST_SWEEPS = 256
# Runs without gain after which chains begin anew from the best.
_STALL_LIMIT = 12


def tempering(search: Search) -> Generator[None]:
    """Tempers chains from the best partition until the budget is spent.

    Where moves cannot work (a mesh, or nothing valid to start from) it says so and anneals labels.
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
    """Tempers chains from the best of all methods, in turn with them.

    Yields whether it has to wait: for a first valid partition, or for another's compilation. Under
    a time limit its own runs in a thread, which has its turns. Ends where moves cannot work.
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
    """Chains from the best partition, again and again."""
    assert search.best is not None
    search.enter("tempering")
    rng, key = np.random.default_rng(search.seed), jax.random.key(search.seed)
    for number in itertools.count():
        start = search.best

        def prepared(start: IntArray = start, number: int = number) -> _Run:
            run = _prepared(search, start, rng, jax.random.fold_in(key, number))
            jax.block_until_ready(temper(*run, jnp.int32(0)))
            return run

        if in_background:
            run = yield from in_thread(prepared, compiles=number == 0)
        else:
            with search.compiling():
                run = prepared()
        search.start_clock()
        yield from _tempered(search, run, start)


class _Run(NamedTuple):
    """The arguments of `temper` but the last."""

    moves: Moves
    ensemble: Ensemble
    orders: jax.Array
    key: jax.Array
    unit_s: jax.Array


def _prepared(search: Search, start: IntArray, rng: np.random.Generator, key: jax.Array) -> _Run:
    """Chains that start from a partition."""
    keys = jax.random.split(key, 3)
    moves = moves_of(search.problem, chip_graph_of(search.problem, start, rng))
    ensemble = ensemble_of(_repeated(search, moves, start), keys[0])
    orders = _orders(search, moves, keys[1])
    return _Run(moves, ensemble, orders, keys[2], jnp.float32(search.best_s))


def _tempered(search: Search, chains: _Run, start: IntArray) -> Generator[bool]:
    """Tempers chains until they gain no more or another method has a better partition."""
    sweeps, stale = _SWEEPS, 0
    best: IntArray | None = start
    for run in itertools.count(1):
        if stale >= _STALL_LIMIT or search.best is not best:
            return
        start_s, before = time.perf_counter(), chains.ensemble
        run_key = jax.random.fold_in(chains.key, run)
        ensemble = temper(
            chains.moves, before, chains.orders, run_key, chains.unit_s, jnp.int32(sweeps)
        )
        chains = chains._replace(ensemble=ensemble)
        priced = float(ensemble.priced) - float(before.priced)
        search.samples += int(priced) + sweeps * ensemble.labels.shape[1]
        stale += 1
        if _offered(search, chains.moves, ensemble):
            stale, best = 0, search.best
        if search.budget.time_limit_s is not None:
            per_sweep_s = (time.perf_counter() - start_s) / sweeps
            sweeps = int(np.clip(_RUN_S / per_sweep_s, 1, min(2 * sweeps, _MOST_SWEEPS)))
        yield False


def _offered(search: Search, moves: Moves, ensemble: Ensemble) -> bool:
    """Offers the best that chains have found; whether the search gained."""
    best_s = np.asarray(ensemble.best_s)
    lane = int(best_s.argmin())
    if not best_s[lane] < search.best_s:
        return False
    labels = np.asarray(ensemble.best[:, lane])[search.problem.contraction]
    return search.offer(labels.astype(np.int64)[:, None])


def _repeated(search: Search, moves: Moves, start: IntArray) -> jax.Array:
    """[N, B] the contracted nodes of one partition for all chains."""
    problem = search.problem
    batch = _MOST_CHAINS
    while batch > _LEAST_CHAINS and batch * moves.contracted.padded_nodes > _ENTRIES:
        batch //= 2
    labels = np.zeros(problem.num_contracted, np.int64)
    labels[problem.contraction] = start
    columns = np.repeat(labels[:, None], batch, axis=1)
    return jnp.asarray(pad_assignments(moves.contracted, columns))


def _orders(search: Search, moves: Moves, key: jax.Array) -> jax.Array:
    """[orders, N] topological orders of the contracted nodes: those to start from, and changed
    ones.
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
