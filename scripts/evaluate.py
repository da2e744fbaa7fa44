"""Scores and checks any partition of a graph on a module; `--help` describes its options."""

import sys

from jaxpart.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script("evaluate"))
