"""`python -m rfjax`: the command of `rfjax.cli`."""

import sys

from rfjax.cli import main

sys.exit(main())
