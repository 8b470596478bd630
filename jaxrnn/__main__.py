"""``python -m jaxrnn``: the command line."""

import sys

from jaxrnn.cli import main

sys.exit(main())
