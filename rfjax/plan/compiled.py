"""Compiles the train step ahead of time for a target, in a process of its own.

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
from pathlib import Path

from rfjax import config as configs
from rfjax.config import Config
from rfjax.errors import ConfigError, RfjaxError
from rfjax.models.attention import choose
from rfjax.plan.hlo import Counts
from rfjax.plan.roofline import Collective
from rfjax.plan.targets import Target
from rfjax.training.chips import GIB

# Keeps the child from asking a metadata server or a lock for a TPU, and from writing libtpu's logs where another
# user's may be; it makes constants on the CPU.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any type does: it only keeps the library from looking for one
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

# The child finds the modules that this process finds. `-P` keeps Python from adding the current folder, where a user's
# `jax.py` may lie.
_CHILD = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); runpy.run_module({!r}, run_name='__main__')"
)

# The attention that is compiled in place of one that needs its library: cuDNN's needs cuDNN and a GPU.
COMPILED_INSTEAD = {"cudnn": "xla"}


@dataclass(frozen=True)
class Compiled:
    """A compiled step, per device. For a program that does not fit only `peak_bytes` is known: what it asked for."""

    fits: bool
    peak_bytes: int
    argument_bytes: int | None
    temporary_bytes: int | None
    counts: Counts | None
    seconds: float  # that compiling took
    host_bytes: int  # memory of this machine that compiling took
    optimisation: str


def check_compiler(target: Target) -> None:
    """Raises `ConfigError`, with the way to install it, where the compiler for a target is missing."""
    cuda = target.chip.kind == "cuda"
    package, extra = ("jax_cuda13_plugin", "gpu-plan") if cuda else ("libtpu", "tpu-plan")
    if importlib.util.find_spec(package) is None:
        reason = f"{package} is not installed: pip install 'rfjax[{extra}]'"
        raise ConfigError(f"cannot compile for {target.name}: {reason}, or give --no-compile")


def attention_of(config: Config, target: Target) -> str:
    """The attention of a run on the target. Raises `ConfigError` if it cannot run there."""
    dtype, head_size = config.train.compute_dtype, config.model.head_size
    return choose(config.train.attention, target.platform, dtype=dtype, head_size=head_size)


def child_command(module: str) -> list[str]:
    """The words that run a module of ours in a process of its own."""
    places = [*filter(None, sys.path), str(Path(__file__).parents[2])]
    return [sys.executable, "-P", "-c", _CHILD.format(module), json.dumps(places)]


def compile_step(
    config: Config, target: Target | None, optimisation: str = "default", *, cpu_devices: int = 0
) -> Compiled:
    """Compiles a config's train step for a target, or for `cpu_devices` simulated CPU devices.

    Raises `ConfigError` where the compiler is missing, and `RfjaxError` with the compiler's message where it fails for
    another reason than a lack of memory.
    """
    environment = {**os.environ, **_ENVIRONMENT}
    if target is None:
        flags = os.environ.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={cpu_devices}".strip()
    else:
        check_compiler(target)
        if target.chip.kind == "cuda":
            # Without a device the compiler cannot tune, and Triton's products have no default tiling.
            environment["XLA_FLAGS"] = "--xla_gpu_enable_triton_gemm=false"
    attention = attention_of(config, target) if target else "xla"
    attention = COMPILED_INSTEAD.get(attention, attention)
    values = configs.to_dict(configs.apply_overrides(config, {"train.attention": attention}))
    request = {"config": values, "target": target.name if target else None, "optimisation": optimisation}
    command, text = child_command("rfjax.plan.worker"), json.dumps(request)
    child = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    answer = child.stdout.strip().splitlines()[-1:] or [""]
    if child.returncode or not answer[0].startswith("{"):
        raise RfjaxError(f"compiling for {request['target'] or 'the CPU'} failed: {child.stderr.strip()[-1500:]}")
    return _read(json.loads(answer[0]), optimisation)


def _read(answer, optimisation) -> Compiled:
    common = {"seconds": answer["seconds"], "host_bytes": answer["host_bytes"], "optimisation": optimisation}
    if "too_large" in answer:
        return Compiled(False, _needed_bytes(answer["too_large"]), None, None, None, **common)
    counts = answer["counts"]
    counts["unknown_kernels"] = tuple(counts["unknown_kernels"])
    counts["collectives"] = tuple(Collective(**item) for item in counts["collectives"])
    return Compiled(True, answer["peak"], answer["arguments"], answer["temporaries"], Counts(**counts), **common)


def _needed_bytes(message: str) -> int:
    """The bytes that a program needs: the largest size in the compiler's message."""
    sizes = re.findall(r"([\d.]+)\s*([KMGT])i?B?\b", message)
    scale = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    return max((int(float(number) * scale[unit]) for number, unit in sizes), default=0)
