"""The command line: `python -m mixqvit`."""

import sys

from mixqvit.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
