"""Does the policy transfer? Every method on the test graphs, with equal samples and one decoder.

  python scripts/studies/transfer.py                       16 test graphs and bert-large; hours
  python scripts/studies/transfer.py --quick               4 graphs, one seed; minutes
  python scripts/studies/transfer.py --graphs gnmt --mcm mcm36 mesh6x6 --samples 8192
  python scripts/studies/transfer.py --graphs lstm-autoencoder wavernn --out valid.json   to tune on

Methods: random; annealing (of orders: evolution); fresh (the network with fresh weights, which is
its prior); scratch (fresh, learning from the first batch); zero-shot; fine-tuned. All start from
the greedy baseline. On labels every sample is made valid by the same procedures and SCIP repairs
what memory forbids; on orders every sample is an order cut optimally. A study that was stopped goes
on. Pairs without a baseline have no improvement and are left out, and named as such in the file.

Tables (on the console, and beside the JSON) are geometric means of T_baseline / T after so many
samples: over all pairs, and over those with headroom (program order cut optimally / the best lower
bound of five seconds) above 1.02.

`--methods` also takes what is left of zero-shot without one part: one-round (no refinement),
sample-mode, no-solver (labels made valid, but for memory), as-drawn (labels as they are: how often
is anything valid?); and no-attention, scratch without the layers that look at neighbours.
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

from jaxpart.bounds.ideals.pairs import program_order_s
from jaxpart.errors import InputError, JaxpartError

if TYPE_CHECKING:
    from jaxpart.problem.problem import Problem

# What parts are worth: the policy as it is used, and without one of them. Labels only.
ABLATIONS = ("one-round", "sample-mode", "no-solver", "as-drawn", "no-attention")
# Of annealing: with 10,240 samples the best of 4, 16, 64 and 512 on the validation split.
_CHAINS = 4
_BOUND_S = 5.0  # of wall time, for the lower bound of a pair
QUICK = ("rnnsearch", "tree-lstm", "gnmt", "inception-v3")


def main() -> int:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--graphs", nargs="+", metavar="GRAPH", help="default: the test split and bert-large")
    add("--mcm", nargs="+", metavar="NAME_OR_TOML", help="default: mcm8 mcm36 mcm64 mesh6x6")
    add("--decoders", nargs="+", choices=("labels", "orders"), default=["labels", "orders"])
    add("--methods", nargs="+", choices=[*METHODS, *ABLATIONS], default=list(METHODS))
    add("--policy", default=None, metavar="NAME_OR_FILE", help="default: the shipped one")
    add("--samples", type=int, help="per run (default: 10240 labels, 2048 orders)")
    add("--seeds", type=int, default=3)
    add("--quick", action="store_true")
    add("--out", type=Path, help="default: data/benchmarks/transfer.json, or transfer-quick.json")
    add("--picture", type=Path, metavar="FILE", help="of the means against samples")
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
    """What is there already under the same settings, or an empty document."""
    if out.exists():
        document = json.loads(out.read_text())
        if document["settings"] != json.loads(json.dumps(settings)):
            raise InputError(f"{out}: holds a study with other settings; name another with --out")
        return document
    return {"settings": settings, "environment": environment, "pairs": {}}


def _about(problem: Problem) -> dict[str, Any]:
    """Baseline, headroom and the bound that it is measured against."""
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
    from jaxpart.methods.labels.search import paper_annealing, random
    from jaxpart.methods.orders.search import slice_search
    from jaxpart.methods.policy.network import NetworkConfig
    from jaxpart.methods.policy.search import BATCH, PolicySearchConfig, with_policy

    if method == "random":
        as_often = functools.partial(random, batch=BATCH)  # no fewer repairs than the policy
        return as_often if decoder == "labels" else _random_orders
    if method == "annealing":
        few_chains = functools.partial(paper_annealing, chains=_CHAINS)
        return few_chains if decoder == "labels" else slice_search
    learn_after = {"scratch": 0, "fine-tuned": 1024 if decoder == "labels" else 256}.get(method)
    use = PolicySearchConfig(decoder, learn_after=learn_after, solver=decoder == "labels")  # pyright: ignore
    changes: dict[str, dict[str, Any]] = {
        "one-round": {"refines": False},
        "sample-mode": {"mode": "sample"},
        "no-solver": {"solver": False},
        "as-drawn": {"solver": False, "mode": "none"},
        "no-attention": {"learn_after": 0, "sizes": NetworkConfig(layers=0)},
    }
    use = dataclasses.replace(use, **changes.get(method, {}))
    is_fresh = method in ("fresh", "scratch", "no-attention")
    return with_policy(None if is_fresh else trained, use)


def _random_orders(search: Any) -> Generator[None]:
    """Program order with random changes of random strength, each cut optimally: no memory."""
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
    """One search from the baseline; improvement after so many samples, and what it took."""
    from jaxpart.cost.greedy import baseline
    from jaxpart.engine import run
    from jaxpart.runtime.state import Budget, Search

    start_s = time.perf_counter()
    search = Search(problem, Budget(None, samples, 0.0), seed)
    greedy = baseline(problem)
    assert greedy is not None  # pairs without one have no runs
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
