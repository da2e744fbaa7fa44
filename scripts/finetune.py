"""Fine-tunes a policy on one graph, and writes the weights and the partition that it found.

  python scripts/finetune.py gnmt --mcm mcm36 --samples 20000 --out gnmt.policy
  python scripts/finetune.py model.onnx --policy gnmt.policy --mcm my-module.toml
  python scripts/finetune.py gnmt --policy none          learns from scratch

The first 1,024 samples are zero-shot; after them every batch is learned from.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

from jaxpart.errors import InputError, JaxpartError


def main() -> int:
    """Exit code 1 where nothing valid was found, 2 for bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("graph", metavar="GRAPH", help="a shipped graph's name, or a file")
    add("--mcm", default="mcm36", metavar="NAME_OR_TOML")
    add("--policy", default=None, metavar="NAME_OR_FILE", help="none: from scratch")
    add("--decoder", choices=("labels", "orders", "both"), default="labels")
    add("--samples", type=int, default=20_000)
    add("--seed", type=int, default=0)
    add("--out", type=Path, metavar="FILE.policy", help="default: GRAPH-MCM.policy")
    arguments = parser.parse_args()
    if arguments.samples <= 0:
        parser.error(f"--samples is {arguments.samples}, expected more than 0")
    try:
        return _finetune(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except JaxpartError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1


def _finetune(arguments: argparse.Namespace) -> int:
    from jaxpart import datasets
    from jaxpart.bounds.infeasible import why_infeasible
    from jaxpart.environment import environment, keep_compiled
    from jaxpart.errors import InfeasibleError
    from jaxpart.methods.policy import checkpoint
    from jaxpart.methods.policy.search import PolicySearchConfig, named, with_policy
    from jaxpart.problem.mcm import load_mcm
    from jaxpart.problem.problem import Problem
    from jaxpart.results import progress
    from jaxpart.results.result import baseline_of
    from jaxpart.runtime.state import Budget, Search

    keep_compiled()
    graph, machine = datasets.resolve(arguments.graph)
    problem = Problem.build(graph, machine or load_mcm(arguments.mcm))
    reason = why_infeasible(problem)
    if reason is not None:
        raise InfeasibleError(reason)
    trained, _ = named(arguments.policy)
    kept: list[checkpoint.Policy] = []
    with progress.shown(sys.stderr) as callback:
        search = Search(problem, Budget(None, arguments.samples, 0.0), arguments.seed, callback)
        use = PolicySearchConfig(
            arguments.decoder,
            learn_after=0 if trained is None else PolicySearchConfig().learn_after,
        )
        method = with_policy(trained, use, keep=lambda weights: kept.append(weights))
        with closing(method(search)) as steps:
            for _ in steps:
                if search.is_over:
                    break
                del kept[:-1]
    if search.best is None:
        print("none found: no valid partition in so many samples", file=sys.stderr)
        return 1
    made = {"command": " ".join(["python", *sys.argv]), "graph": graph.name, **environment()}
    made |= {"seed": arguments.seed, "samples": search.samples, "from": arguments.policy}
    out = arguments.out or Path(f"{graph.name}-{problem.mcm.name}.policy")
    checkpoint.save(out, checkpoint.Policy(kept[-1].params, kept[-1].sizes, made))
    baseline_s = baseline_of(problem)
    better = "" if baseline_s is None else f", {baseline_s / search.best_s:.4f} x the baseline"
    print(f"best {search.best_s * 1e6:,.6g} us{better}; written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
