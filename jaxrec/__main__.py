"""``python -m jaxrec`` is the command ``jaxrec``."""

import sys

from jaxrec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
