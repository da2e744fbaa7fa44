"""Find a partition of a graph over the chips of a module: `--help` says how."""

import sys

from jaxpart.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script("partition"))
