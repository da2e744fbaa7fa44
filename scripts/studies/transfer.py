"""Compares the policy with other methods on the test graphs, with equal samples and decoders.

  python scripts/studies/transfer.py                       # 16 test graphs and bert-large; hours
  python scripts/studies/transfer.py --quick               # 4 graphs, one seed; minutes
  python scripts/studies/transfer.py --graphs gnmt --mcm mcm36 mesh6x6 --samples 8192
  python scripts/studies/transfer.py --graphs lstm-autoencoder wavernn --out valid.json   # tuning

The methods are:

  random
  annealing   for orders: evolution
  fresh       the policy with fresh weights, so its samples come from its prior
  scratch     fresh weights, learning from the first batch on
  zero-shot   the trained policy, not changed
  fine-tuned  the trained policy, learning after some samples

All methods start from the greedy baseline. With labels, the same procedures make every sample
valid, and SCIP repairs samples that do not fit in memory. With orders, every sample is an order cut
optimally. A study that was stopped resumes. A pair without a baseline has no improvement; it has no
runs, and its baseline is null in the file.

The tables, on the console and next to the JSON, are geometric means of T_baseline / T after numbers
of samples: over all pairs, and over the pairs with headroom above 1.02. Headroom is T of the
program order cut optimally over the best lower bound that five seconds give.

`--methods` also takes ablations. These change one part of zero-shot: one-round (no refinement),
sample-mode, no-solver (no repair of memory), and as-drawn (labels are not made valid; this shows
how often samples are valid). no-attention is scratch without the layers that read the neighbours.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer_figures import METHODS, draw, tables

from jaxpart.arguments import file_path, whole_number
from jaxpart.bounds.ideals.pairs import program_order_s
from jaxpart.errors import InputError, JaxpartError

if TYPE_CHECKING:
    from jaxpart.problem.problem import Problem

# Variants of the policy without one part. Labels only.
ABLATIONS = ("one-round", "sample-mode", "no-solver", "as-drawn", "no-attention")
# Chains of annealing: the best of 4, 16, 64 and 512 with 10,240 samples on the validation split.
_CHAINS = 4
_BOUND_S = 5.0  # time limit of the lower bound of a pair, seconds
QUICK = ("rnnsearch", "tree-lstm", "gnmt", "inception-v3")


def main() -> int:
    """Runs what is missing and prints the tables; returns exit code 2 on bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--graphs", nargs="+", metavar="GRAPH", help="default: the test split and bert-large")
    add("--mcm", nargs="+", metavar="NAME_OR_TOML", help="default: mcm8 mcm36 mcm64 mesh6x6")
    add("--decoders", nargs="+", choices=("labels", "orders"), default=["labels", "orders"])
    add("--methods", nargs="+", choices=[*METHODS, *ABLATIONS], default=list(METHODS))
    add("--policy", default=None, metavar="NAME_OR_FILE", help="default: the shipped one")
    add("--samples", type=whole_number, help="per run (default: 10240 labels, 2048 orders)")
    add("--seeds", type=whole_number, default=3)
    add("--quick", action="store_true")
    add(
        "--out",
        type=file_path,
        help="default: data/benchmarks/transfer.json, or transfer-quick.json",
    )
    add("--picture", type=file_path, metavar="FILE", help="of the means against samples")
    arguments = parser.parse_args()
    try:
        return _study(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _study(arguments: argparse.Namespace) -> int:
    from jaxpart import datasets
    from jaxpart.environment import environment, keep_compiled
    from jaxpart.files import write_whole
    from jaxpart.methods.policy.search import policy_of
    from jaxpart.problem.mcm import load_mcm
    from jaxpart.problem.problem import Problem

    keep_compiled()
    quick = arguments.quick
    graphs = arguments.graphs or (list(QUICK) if quick else [*datasets.split("test"), "bert-large"])
    modules = arguments.mcm or (
        ["mcm8", "mcm36"] if quick else ["mcm8", "mcm36", "mcm64", "mesh6x6"]
    )
    samples = {
        "labels": arguments.samples or (2048 if quick else 10240),
        "orders": arguments.samples or (512 if quick else 2048),
    }
    trained, note = policy_of(arguments.policy)
    if note and {"zero-shot", "fine-tuned"} & {*arguments.methods}:
        raise InputError(f"{note}: name a checkpoint with --policy, or leave out what needs one")
    name = "transfer-quick.json" if quick else "transfer.json"
    out = arguments.out or Path(__file__).parents[2] / "data" / "benchmarks" / name
    settings = {"samples": samples, "policy": None if trained is None else trained.made}
    document = _begin(out, settings, environment())
    pairs: dict[str, Any] = document["pairs"]
    for graph_name, mcm_name in itertools.product(graphs, modules):
        graph, machine = datasets.resolve(graph_name)
        problem = Problem.build(graph, machine or load_mcm(mcm_name))
        pair = f"{graph.name}/{problem.mcm.name}"
        if pair not in pairs:
            pairs[pair] = _about(problem)
        if pairs[pair]["baseline_s"] is None:
            continue
        seeds = 1 if quick else arguments.seeds
        for decoder, method, seed in itertools.product(
            arguments.decoders, arguments.methods, range(seeds)
        ):
            key = f"{decoder}/{method}/{seed}"
            if key in pairs[pair]["runs"]:
                continue
            run = _run(problem, _method(decoder, method, trained), samples[decoder], seed)
            run |= {"method": method, "seed": seed}
            pairs[pair]["runs"][key] = run
            print(f"{pair:<32} {key:<24} {run['final']:.4f} {run['seconds']:6.1f} s", flush=True)
            write_whole(out, json.dumps(document, indent=1).encode())
    lines = [line for decoder in arguments.decoders for line in tables(document, decoder)]
    print("\n".join(lines))
    write_whole(out.with_suffix(".txt"), "\n".join([*lines, ""]).lstrip().encode())
    if arguments.picture is not None:
        draw(document, arguments.picture)
    return 0


def _begin(out: Path, settings: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """Reads the file of an earlier study, or makes an empty document.

    Args:
      out: the file, which need not exist.
      settings: of this study.
      environment: of this study.

    Raises:
      InputError: the file holds a study with other settings.
    """
    if out.exists():
        document = json.loads(out.read_text())
        if document["settings"] != json.loads(json.dumps(settings)):
            raise InputError(f"{out}: holds a study with other settings; name another with --out")
        return document
    return {"settings": settings, "environment": environment, "pairs": {}}


def _about(problem: Problem) -> dict[str, Any]:
    """The entry of a pair without runs: baseline, headroom and lower bound, in seconds."""
    from jaxpart.bounds.best import best_bound
    from jaxpart.bounds.infeasible import why_infeasible
    from jaxpart.cost.greedy import baseline_s_of

    about: dict[str, Any] = {"baseline_s": None, "headroom": None, "runs": {}}
    if why_infeasible(problem) is not None:
        return about
    baseline_s = baseline_s_of(problem)
    order_s = program_order_s(problem, baseline_s) or baseline_s
    bound = best_bound(problem, _BOUND_S, order_s)
    about |= {"baseline_s": baseline_s, "bound_s": bound.seconds, "bound": bound.method}
    about["headroom"] = order_s / bound.seconds if order_s and bound.seconds else None
    return about


def _method(decoder: str, method: str, trained: Any) -> Callable[[Any], Iterable[None]]:
    """The search method of a name in `METHODS` or `ABLATIONS`, with a decoder.

    Args:
      decoder: "labels" or "orders".
      method: its name.
      trained: the policy of zero-shot and of fine-tuning.
    """
    from jaxpart.methods.labels.search import paper_annealing, random
    from jaxpart.methods.orders.search import slice_search
    from jaxpart.methods.policy.network import NetworkConfig
    from jaxpart.methods.policy.search import BATCH, PolicySearchConfig, with_policy

    if method == "random":
        small_batches = functools.partial(random, batch=BATCH)  # as many repairs as the policy
        return small_batches if decoder == "labels" else _random_orders
    if method == "annealing":
        few_chains = functools.partial(paper_annealing, chains=_CHAINS)
        return few_chains if decoder == "labels" else slice_search
    learn_after = {"scratch": 0, "fine-tuned": 1024 if decoder == "labels" else 256}.get(method)
    config = PolicySearchConfig(decoder, learn_after=learn_after, solver=decoder == "labels")  # pyright: ignore
    changes: dict[str, dict[str, Any]] = {
        "one-round": {"refines": False},
        "sample-mode": {"mode": "sample"},
        "no-solver": {"solver": False},
        "as-drawn": {"solver": False, "mode": "none"},
        "no-attention": {"learn_after": 0, "network": NetworkConfig(layers=0)},
    }
    config = dataclasses.replace(config, **changes.get(method, {}))
    is_fresh = method in ("fresh", "scratch", "no-attention")
    return with_policy(None if is_fresh else trained, config)


def _random_orders(search: Any) -> Generator[None]:
    """Offers random changes of the program order, cut optimally, without learning.

    Args:
      search: the state of the search.

    Yields:
      None after every batch.
    """
    import jax
    import jax.numpy as jnp

    from jaxpart.cost.evaluate import evaluate
    from jaxpart.methods.orders.search import mutate, order_by
    from jaxpart.methods.orders.slicing import slice_orders
    from jaxpart.methods.policy.rollout import Task

    task, size = Task.build(search.problem), 64
    program = jnp.arange(task.contracted.padded_nodes, dtype=jnp.float32)
    peaks = jnp.broadcast_to(task.peak_bytes, (size, task.peak_bytes.shape[0]))
    for step in itertools.count():
        key = jax.random.fold_in(jax.random.key(search.seed), step)
        keys = mutate(key, program[None], task.contracted.num_nodes, size)
        orders = order_by(task.contracted, keys.at[0].set(program))
        assignments = slice_orders(task.contracted, orders, peaks, task.window)[1][
            task.contracted_of
        ]
        search.offer_batch(assignments, evaluate(task.device, assignments))
        search.start_clock()
        yield


def _run(problem: Any, method: Any, samples: int, seed: int) -> dict[str, Any]:
    """Runs one search from the baseline.

    Args:
      problem: with a baseline.
      method: of `_method`.
      samples: budget.
      seed: of the search.

    Returns:
      The final improvement, samples, times in seconds, and the history: (samples, seconds,
      improvement).
    """
    from jaxpart.cost.greedy import baseline
    from jaxpart.engine import run
    from jaxpart.runtime.state import Budget, Search

    start_s = time.perf_counter()
    search = Search(problem, Budget(None, samples, 0.0), seed, count_compilation=False)
    greedy = baseline(problem)
    assert greedy is not None  # pairs without a baseline have no runs
    search.offer(greedy[:, None])
    baseline_s = search.best_s
    try:
        run(search, method)
    except JaxpartError as error:
        search.notes.append(str(error))
    return {
        "final": baseline_s / search.best_s,
        "samples": search.samples,
        "valid": search.valid,
        "search_s": search.searched_s,
        "seconds": time.perf_counter() - start_s,
        "history": [[n, round(s, 3), baseline_s / t] for n, s, t in search.history],
        "notes": search.notes,
    }


if __name__ == "__main__":
    sys.exit(main())
