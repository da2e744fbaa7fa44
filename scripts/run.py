"""Runs exported stages as a pipeline, and times them; `--help` describes its options."""

import sys

from jaxpart.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script("run"))
