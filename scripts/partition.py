"""Finds a partition of a graph over the chips of a module; `--help` describes its options."""

import sys

from jaxpart.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script("partition"))
