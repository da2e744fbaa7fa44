"""Runs the benchmark of `studies/quality.py`; `--help` describes its options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "studies"))

from quality import main

from jaxpart.errors import InputError

if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
