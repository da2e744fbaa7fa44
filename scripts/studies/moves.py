"""Measures annealing moves per second, and full evaluations per second in the same run.

  python scripts/studies/moves.py --json data/benchmarks/moves.json

All chains start from the greedy baseline. They are tempered before the measurement, so that they
differ. A *proposal* looks at one contracted node in one chain. It is *priced*, that is, its change
of cost is computed, if the move keeps the rules. Both rates are compared with the candidates/s of
`evaluate` on the same labels. Runs of the two alternate, compilation is timed separately, and
figures are medians. "share" is the number of chains per slot (`row_sweep` in
`jaxpart/methods/annealing/row.py`).

The least work of a proposal on a row of chips, for a contracted node of degree d whose inputs have
q consumers: 1 + d labels of one byte to see whether it can move; q more labels and about 12 figures
(48 bytes) of two chips to price it; half of these figures written back. This is about 80 bytes and
100 operations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from pairs import greedy_start

from jaxpart.arguments import whole_number
from jaxpart.cost.device import pad_assignments
from jaxpart.environment import environment
from jaxpart.errors import InputError
from jaxpart.files import write_whole
from jaxpart.methods.annealing.ensemble import ensemble_of, evaluated, temper
from jaxpart.methods.annealing.moves import Chains, single_sweep
from jaxpart.methods.annealing.price import energy_of
from jaxpart.methods.annealing.row import row_sweep
from jaxpart.methods.annealing.state import Moves, chip_graph_of, moves_of, tables_of
from jaxpart.problem.problem import Problem

_CHAINS_PER_SLOT = (1, 2, 4, 8)  # chains per slot
_WARM_SWEEPS = 20  # sweeps before the measurement
_LAYOUT = "{:>6} {:>6} {:>10} {:>12} {:>11} {:>9} {:>11} {:>9} {:>10}"
_HEADER = (
    *("chains", "share", "compile s", "proposals/s", "priced/s", "accepted"),
    *("evaluate/s", "x priced", "x proposed"),
)


def main() -> int:
    """Prints one row per number of chains and share; returns exit code 0.

    Raises:
      InputError: the graph or module does not exist, or there is no baseline.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--graph", default="bert-large")
    parser.add_argument("--mcm", default="mcm36")
    parser.add_argument("--chains", type=whole_number, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--share", type=whole_number, nargs="+", default=list(_CHAINS_PER_SLOT))
    parser.add_argument("--calls", type=whole_number, default=5)
    parser.add_argument("--seed", type=whole_number, default=0)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()

    problem, start = greedy_start(arguments.graph, arguments.mcm)
    moves = moves_of(problem, chip_graph_of(problem, start, np.random.default_rng(arguments.seed)))
    rows = []
    print(_LAYOUT.format(*_HEADER))
    for batch in arguments.chains:
        labels, temperature, unit_s = _tempered(problem, moves, start, batch, arguments.seed)
        shares = arguments.share if moves.is_row else [1]
        for share in shares:
            row = _measured(moves, labels, temperature, unit_s, share, arguments)
            rows.append({"chains": batch, "share": share, **row})
            figures = (
                f"{row['compile_s']:.2f}",
                f"{row['proposals_per_s']:,.0f}",
                f"{row['priced_per_s']:,.0f}",
                f"{row['accepted_share']:.2f}",
                f"{row['evaluations_per_s']:,.0f}",
                f"{row['priced_per_s'] / row['evaluations_per_s']:.1f}",
                f"{row['proposals_per_s'] / row['evaluations_per_s']:.1f}",
            )
            print(_LAYOUT.format(batch, share, *figures), flush=True)
    if arguments.json:
        settings = {key: getattr(arguments, key) for key in ("graph", "mcm", "seed", "calls")}
        document = {"environment": environment(), "settings": settings, "rows": rows}
        write_whole(arguments.json, json.dumps(document, indent=1).encode())
    return 0


def _tempered(problem: Problem, moves: Moves, start, batch: int, seed: int):
    """Tempers chains that start from one partition, so that they differ.

    Args:
      problem: of N nodes.
      moves: of the same problem.
      start: [N] the partition.
      batch: B, chains.
      seed: of the moves.

    Returns:
      Labels [padded M, B], temperatures [B], and the unit of the energy in seconds.
    """
    contracted = np.zeros(problem.num_contracted, np.int64)
    contracted[problem.contraction] = start
    columns = pad_assignments(moves.contracted, np.repeat(contracted[:, None], batch, axis=1))
    ensemble = ensemble_of(jnp.asarray(columns), jax.random.key(seed))
    unit_s = jax.jit(evaluated)(moves, ensemble.labels).bottleneck_s[0]
    orders = jnp.arange(moves.contracted.padded_nodes)[None]
    key = jax.random.key(seed + 1)
    ensemble = temper(moves, ensemble, orders, key, unit_s, _WARM_SWEEPS, share=2)
    return ensemble.labels, ensemble.temperature, unit_s


def _measured(moves: Moves, labels, temperature, unit_s, share: int, arguments) -> dict[str, float]:
    """Measures sweeps over all contracted nodes, alternating with `evaluate` on the same labels.

    Args:
      moves: the problem.
      labels: [padded M, B] of the chains.
      temperature: [B].
      unit_s: unit of the energy, seconds.
      share: chains per slot.
      arguments: of the command.

    Returns:
      Medians: seconds, rates per second, and the share of priced moves that were accepted.
    """
    count, batch = int(moves.contracted.num_nodes), labels.shape[1]
    order = np.arange(moves.contracted.padded_nodes)
    order[:count] = np.random.default_rng(arguments.seed).permutation(count)
    evaluate = jax.jit(evaluated)
    tables = jax.jit(tables_of)(moves, labels, evaluate(moves, labels))
    noise = jax.random.bits(jax.random.key(arguments.seed), (batch,), jnp.uint32) | 1
    none = jnp.zeros(batch, jnp.int32)
    energy = energy_of(moves, tables, unit_s)
    chains = Chains(labels, tables, energy, noise, none, none)
    rest = (moves, chains, jnp.asarray(order), jnp.int32(count), temperature, unit_s)
    sweep = jax.jit(partial(row_sweep, share=share) if moves.is_row else single_sweep)
    first_s, _ = _timed(sweep, *rest)
    runs = [(_timed(sweep, *rest), _timed(evaluate, moves, labels)) for _ in range(arguments.calls)]
    sweep_s = statistics.median(run[0][0] for run in runs)
    evaluate_s = statistics.median(run[1][0] for run in runs)
    swept = runs[0][0][1]
    priced, accepted = int(swept.priced.sum()), int(swept.accepted.sum())
    return {
        "compile_s": first_s - sweep_s,
        "sweep_s": sweep_s,
        "evaluate_s": evaluate_s,
        "proposals_per_s": count * batch / sweep_s,
        "priced_per_s": priced / sweep_s,
        "accepted_share": accepted / max(priced, 1),
        "evaluations_per_s": batch / evaluate_s,
    }


def _timed(function, *rest):
    """Seconds of one call, and its result."""
    start_s = time.perf_counter()
    result = jax.block_until_ready(function(*rest))
    return time.perf_counter() - start_s, result


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
