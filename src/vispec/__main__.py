"""`python -m vispec`: the command line without an installed script."""

import sys

from vispec.cli import main

if __name__ == "__main__":
    sys.exit(main())
