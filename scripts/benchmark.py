"""Runs one part of the benchmark.

  python scripts/benchmark.py ...                      time to quality, growth: `--help` has more
  python scripts/benchmark.py --parts throughput ...   candidates/s of each device program
  python scripts/benchmark.py --parts rollout ...      the policy's loop, with repair on the host

The parts are `quality.py`, `inner_loops.py` and `rollout.py` in `studies`; each has options of its
own (`--parts throughput --help`).
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "studies"))

from jaxpart.errors import InputError

_PARTS = {"throughput": "inner_loops", "rollout": "rollout"}


def main() -> int:
    """Runs the part that `--parts` names, with all other arguments.

    Returns:
      Its exit code.
    """
    arguments = sys.argv[1:]
    if arguments[:1] == ["--parts"] and arguments[1:2] and arguments[1] in _PARTS:
        del sys.argv[1:3]
        return importlib.import_module(_PARTS[arguments[1]]).main() or 0
    return importlib.import_module("quality").main()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
