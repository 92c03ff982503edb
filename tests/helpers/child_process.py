"""Where the checkout and the tests are, and an environment in which a new process finds both."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


def environment(**more: str) -> dict[str, str]:
    """This process's environment, in which a new one imports this checkout and `helpers`."""
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"} | more
