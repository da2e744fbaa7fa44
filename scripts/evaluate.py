"""Score and check any partition against a graph and a module: `--help` says how."""

import sys

from jaxpart.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script("evaluate"))
