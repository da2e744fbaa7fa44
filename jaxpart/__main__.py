"""`python -m jaxpart`: the command line."""

import sys

from jaxpart.cli import main

if __name__ == "__main__":
    sys.exit(main())
