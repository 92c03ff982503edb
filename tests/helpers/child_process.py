"""Where the checkout and the tests are, and an environment in which a new process finds both."""

import os
from pathlib import Path

from helpers import quick_compiler

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


def environment(**more: str) -> dict[str, str]:
    """This process's environment, in which a new one imports this checkout and `helpers`."""
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"} | more


def quick_environment(devices: int = 1) -> dict[str, str]:
    """That of a process of so many simulated devices which compiles much and computes little, as the fixture
    `quick_compilation` has it here."""
    flags = " ".join([*quick_compiler.flags(), f"--xla_force_host_platform_device_count={devices}"])
    return environment(JAX_PLATFORMS="cpu", JAX_DISABLE_MOST_OPTIMIZATIONS="1", XLA_FLAGS=flags)
