"""Takes a partition away as files that other tools load; `--help` describes its options."""

import sys

from jaxpart.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script("export"))
