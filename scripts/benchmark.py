"""Time to quality, beside what a user would pick instead, and growth: `--help` says how."""

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
