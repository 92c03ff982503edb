"""`python -m rfjax`: the command of `rfjax.cli`.

Python puts the current folder first in its module search path. This file removes that entry before it imports anything
else, so that a `jax.py` or `torch.py` among a user's data is not run.
"""

import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from rfjax.cli import main

sys.exit(main())
