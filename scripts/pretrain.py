"""Pretrains the policy on the training graphs and modules of 4 to 64 chips.

  python scripts/pretrain.py runs/policy --minutes 45
  python scripts/pretrain.py runs/policy --minutes 45          # again: resumes the run
  python scripts/pretrain.py runs/taught --teachers runs/results --minutes 45
  python scripts/pretrain.py runs/small --train a.json.gz b.json.gz --valid c.json.gz --steps 200

With `--teachers`, the first placement is fitted to partitions that a search has found, before PPO
begins. They are result files; `compare.py --split train --mcm mcm4 mcm8 mcm36 --results FOLDER`
writes them.

The folder of the run gets:

  training.csv       one row per task of a step
  validation.csv     geometric mean of T_baseline / T after 256 samples of chip labels and 256 of
                     orders; step 0 is the fresh weights, and a second time, with teachers, the
                     weights that were fitted to them
  checkpoints        to resume from
  pretrained.policy  the weights with the best validation score

Same seed, same device, same steps: same weights, interrupted or not.
"""

from __future__ import annotations

import argparse
import sys

from jaxpart.arguments import Parser, count, file_path, name_or_file, positive, seed
from jaxpart.errors import InputError, JaxpartError


def main() -> int:
    """Trains; returns exit code 1 if training failed, 2 on bad input, 130 after Ctrl-C."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("folder", type=file_path, help="of the run; goes on where it holds one")
    add("--steps", type=count, default=100_000, help="of training (default: %(default)s)")
    add("--minutes", type=positive, help="stop after so long, with a checkpoint")
    add("--seed", type=seed, default=0)
    add("--modules", type=count, default=2, help="per training graph (default: %(default)s)")
    add("--teachers", type=file_path, metavar="FOLDER", help="result files of training graphs")
    add("--epochs", type=count, default=60, help="over the teachers (default: %(default)s)")
    add(
        "--train",
        nargs="+",
        default=[],
        metavar="GRAPH",
        type=name_or_file,
        help="default: the training split",
    )
    add(
        "--valid",
        nargs="+",
        default=[],
        metavar="GRAPH",
        type=name_or_file,
        help="default: the validation split",
    )
    arguments = parser.parse_args()
    try:
        return _train(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except JaxpartError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _train(arguments: argparse.Namespace) -> int:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from jaxpart.environment import keep_compiled
    from jaxpart.methods.policy import pretraining
    from jaxpart.methods.policy.imitation import ImitationConfig, read_examples
    from jaxpart.methods.policy.training import TrainingConfig

    keep_compiled()
    config = TrainingConfig(seed=arguments.seed)
    train = pretraining.load_graphs(arguments.train, "train")
    valid = pretraining.load_graphs(arguments.valid, "valid")
    run = pretraining.PretrainingRun(
        arguments.folder,
        arguments.steps,
        arguments.minutes,
        modules=arguments.modules,
        command=" ".join(["python", *sys.argv]),
    )
    train_pairs = pretraining.pretraining_pairs(train, run.modules, config.seed)
    valid_pairs = pretraining.pretraining_pairs(valid, run.modules, config.seed + 1)
    examples = read_examples(arguments.teachers, train) if arguments.teachers else {}
    imitation = ImitationConfig(seed=config.seed, epochs=arguments.epochs)
    columns = (
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    print(f"{len(train_pairs)} pairs to train on, {len(valid_pairs)} to select on", flush=True)
    with Progress(*columns) as progress:
        bar = progress.add_task("building", total=run.steps)

        def report(step, rows, best):
            said = f"{rows[-1].task}: best {rows[-1].best:.3f}; validation {best:.4f}"
            progress.update(bar, completed=step, description=said.replace("[", r"\["))

        def taught(epoch, loss):
            said = f"teachers, epoch {epoch + 1}/{imitation.epochs}: distance {loss:.5f}"
            progress.update(bar, description=said)

        path = pretraining.pretrain(
            train_pairs, valid_pairs, config, run, report,
            examples=examples, imitation=imitation, taught=taught,
        )  # fmt: skip
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
