"""Runs the gate of `studies/program_gate.py`; `--help` describes its options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "studies"))

import targets

targets.prepare()  # before JAX is imported

from program_gate import main  # noqa: E402

from jaxpart.errors import InputError  # noqa: E402

if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
