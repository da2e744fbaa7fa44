"""Fine-tunes a policy on one graph and writes its weights.

  python scripts/finetune.py gnmt --mcm mcm36 --samples 20000 --out gnmt.policy
  python scripts/finetune.py model.onnx --policy gnmt.policy --mcm my-module.toml
  python scripts/finetune.py gnmt --policy fresh         # learns from scratch

The first 1,024 samples are zero-shot; after them the policy learns from every batch. With `--policy
fresh` it learns from the first batch on.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

from jaxpart.arguments import Parser, count, file_path, name_or_file, seed
from jaxpart.errors import InputError, JaxpartError


def main() -> int:
    """Fine-tunes; returns exit code 1 if nothing valid was found, 2 on bad input."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("graph", metavar="GRAPH", type=name_or_file, help="a shipped graph's name, or a file")
    add("--mcm", default="mcm36", metavar="NAME_OR_TOML", type=name_or_file)
    add(
        "--policy",
        default=None,
        metavar="NAME_OR_FILE",
        type=name_or_file,
        help="fresh: from scratch",
    )
    add("--decoder", choices=("labels", "orders", "both"), default="labels")
    add("--samples", type=count, default=20_000)
    add("--seed", type=seed, default=0)
    add("--out", type=file_path, metavar="FILE.policy", help="default: GRAPH-MCM.policy")
    arguments = parser.parse_args()
    try:
        return _finetune(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except JaxpartError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1


def _finetune(arguments: argparse.Namespace) -> int:
    import jaxpart
    from jaxpart import datasets
    from jaxpart.environment import environment, keep_compiled
    from jaxpart.files import check_writable
    from jaxpart.results import progress

    keep_compiled()
    graph, machine = datasets.resolve(arguments.graph)
    mcm = machine or jaxpart.load_mcm(arguments.mcm)
    inputs = [arguments.graph, arguments.mcm, *filter(None, [arguments.policy])]
    out = check_writable(arguments.out or f"{graph.name}-{mcm.name}.policy", inputs)
    with progress.shown(sys.stderr) as callback:
        policy, result = jaxpart.finetune(
            graph,
            mcm,
            policy=arguments.policy,
            decoder=arguments.decoder,
            max_samples=arguments.samples,
            seed=arguments.seed,
            callback=callback,
        )
    made = {"command": " ".join(["python", *sys.argv]), "graph": graph.name, **environment()}
    made |= {"seed": arguments.seed, "samples": result.search.samples, "from": arguments.policy}
    dataclasses.replace(policy, made=made).save(out)
    better = "" if result.improvement is None else f", {result.improvement:.4f} x the baseline"
    print(f"best {result.bottleneck_s * 1e6:,.6g} us{better}; written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
