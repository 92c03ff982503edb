"""`python -m rfjax`: the command of `rfjax.cli`.

Python puts the current folder first among the places of modules. It is taken away here, before anything else is
imported: a `jax.py` or `torch.py` that lies among a user's data is not run.
"""

import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from rfjax.cli import main

sys.exit(main())
