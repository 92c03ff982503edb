"""Prints what rfjax and its tests depend on, without the upper bounds of the packages named.

python analysis/lift_bounds.py jax flax orbax-checkpoint
"""

import re
import sys
import tomllib
from pathlib import Path


def main() -> int:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["test"]):
        name = re.match(r"[\w.-]+", requirement)[0]
        print(re.sub(r",?\s*<=?[^,;]+", "", requirement) if name in sys.argv[1:] else requirement)
    return 0


if __name__ == "__main__":
    sys.exit(main())
