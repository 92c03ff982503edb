"""The train step compiled ahead of time for a target, in a process of its own.

The child's memory goes back when it ends, and the compiler's settings do not touch this process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass

from rfjax import config as configs
from rfjax.config import Config
from rfjax.errors import ConfigError, RfjaxError
from rfjax.scaling.plan.chips import GIB, Target
from rfjax.scaling.plan.hlo import Counts
from rfjax.scaling.plan.roofline import Collective

# Nothing here asks a metadata server or a lock for a TPU; the CPU is what constants are made on.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any: it only keeps the library from looking for one
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Compiled:
    """Per device. Of a program that does not fit only `peak_bytes` is known, what it asked for."""

    fits: bool
    peak_bytes: int
    argument_bytes: int | None
    temporary_bytes: int | None
    counts: Counts | None
    seconds: float  # of compiling
    host_bytes: int  # memory that compiling took
    optimisation: str


def why_not(target: Target) -> str | None:
    """Why plans for a target cannot be compiled here; None where they can."""
    if not target.chip.topology:
        return f"{target.chip.name} has no ahead-of-time compiler here; memory and traffic are estimates"
    if importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed"
    return None


def compile_step(config: Config, target: Target | None, optimisation: str = "default", *, cpu_devices: int = 0) -> Compiled:
    """Compiles a config's train step for a target, or for `cpu_devices` simulated CPU devices.

    Raises `ConfigError` where libtpu is missing, `RfjaxError` with the compiler's words where it fails
    otherwise than for want of memory.
    """
    if target is not None and (reason := why_not(target)):
        raise ConfigError(f"cannot compile for {target.name}: {reason}; pip install 'rfjax[tpu-plan]', or give --no-compile")
    environment = {**os.environ, **_ENVIRONMENT}
    if target is None:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={cpu_devices}"
    request = {
        "config": configs.to_dict(config),
        "target": target.name if target else None,
        "optimisation": optimisation,
    }
    child = subprocess.run(
        [sys.executable, "-m", "rfjax.scaling.plan.worker"],
        input=json.dumps(request), capture_output=True, text=True, env=environment,
    )  # fmt: skip
    answer = child.stdout.strip().splitlines()[-1:] or [""]
    if child.returncode or not answer[0].startswith("{"):
        raise RfjaxError(f"compiling for {target.name if target else 'the CPU'} failed: {child.stderr.strip()[-1500:]}")
    return _read(json.loads(answer[0]), optimisation)


def _read(answer, optimisation) -> Compiled:
    common = {"seconds": answer["seconds"], "host_bytes": answer["host_bytes"], "optimisation": optimisation}
    if "too_large" in answer:
        return Compiled(False, _asked_for(answer["too_large"]), None, None, None, **common)
    counts = answer["counts"]
    counts["unknown_kernels"] = tuple(counts["unknown_kernels"])
    counts["collectives"] = tuple(Collective(**item) for item in counts["collectives"])
    return Compiled(
        True, answer["peak"], answer["arguments"], answer["temporaries"], Counts(**counts), **common
    )  # fmt: skip


def _asked_for(message: str) -> int:
    """Bytes that the compiler says a program needs."""
    sizes = re.findall(r"([\d.]+)\s*([KMGT])i?B?\b", message)
    scale = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    return max((int(float(number) * scale[unit]) for number, unit in sizes), default=0)
