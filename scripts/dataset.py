"""Lists the graphs that come with jaxpart as a table; `--help` describes its options."""

import sys

from jaxpart.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script("graphs"))
