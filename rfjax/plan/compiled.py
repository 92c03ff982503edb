"""Compiles the train step, or a sampler, ahead of time for a target, in a child process.

The child's memory is freed when it ends, and the compiler's settings do not affect this process.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rfjax import config as configs
from rfjax.config import Config
from rfjax.errors import ConfigError, RfjaxError
from rfjax.models.attention import choose
from rfjax.plan.gpu_description import DESCRIPTIONS
from rfjax.plan.hlo import Counts
from rfjax.plan.roofline import Collective
from rfjax.plan.targets import Target
from rfjax.training import xla_flags
from rfjax.training.chips import GIB, Chip
from rfjax.training.progress import note

# Keeps the child from looking for a TPU (metadata server, lock) and from writing libtpu's logs into a folder that other
# users share. The child makes constants on the CPU.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any type will do: it only keeps libtpu from looking one up
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

# The child gets this process's module search path. `-P` keeps Python from adding the current folder, which may hold a
# user's `jax.py`.
_CHILD = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); runpy.run_module({!r}, run_name='__main__')"
)

# A run's attention -> the attention that is compiled instead, in a train step and in a sampler. Compiling cuDNN's
# attention would need cuDNN and a GPU. It stores no logits. In a sampler of large images, `xla` would store more bytes
# of logits than of everything else, so `xla_blocks` is compiled, which stores the logits of a block of queries.
COMPILED_INSTEAD = {"cudnn": "xla"}
SAMPLED_INSTEAD = {"cudnn": "xla_blocks"}

_FLAG_VARIABLES = tuple(xla_flags.VARIABLES.values())


@functools.cache  # each answer takes a child process
def _chosen(kind: str, given: tuple[str, ...]) -> xla_flags.Chosen:
    """Returns the flags that rfjax adds for a kind of chip if the environment variables `_FLAG_VARIABLES` have the
    values `given`. Prints a note on flags that this compiler does not take."""
    environment = dict(zip(_FLAG_VARIABLES, given, strict=True))
    chosen = xla_flags.choose_flags(kind, xla_flags.jaxlib_version(), environment)
    if chosen.unknown:
        note(f"this compiler does not take {' '.join(chosen.unknown)}: left out of the plan")
    return chosen


@dataclass(frozen=True)
class Compiler:
    """The compiler's settings: its optimisation level, and whether it gets the flags that a run on the target gets."""

    optimisation: str = "default"  # or "O0", "O1"
    xla_flags: bool = True  # those of training/xla_flags.py


@dataclass(frozen=True)
class Compiled:
    """Facts about a compiled program, per device.

    If the program does not fit, `peak_bytes` is the memory that it would need, and `argument_bytes`, `temporary_bytes`
    and `counts` are None.
    """

    fits: bool
    peak_bytes: int
    argument_bytes: int | None
    temporary_bytes: int | None
    counts: Counts | None
    seconds: float  # compile time
    host_bytes: int  # memory of this machine used to compile
    optimisation: str
    xla_flags: dict[str, list[str]]  # who set them ("rfjax" as in training, or "user") -> flags in force

    @property
    def settings(self) -> str:
        """Says the optimisation level, and whose XLA flags were in force, for messages."""
        whose = [name for name, who in {"rfjax's": "rfjax", "your": "user"}.items() if self.xla_flags[who]]
        return f"level {self.optimisation}, {' and '.join(whose) or 'no'} XLA flags"


def describe_settings(programs: Iterable[Compiled | None]) -> str:
    """Says with which settings the programs of a plan were compiled. None stands for a program that was not compiled,
    because its state or weights alone are too large."""
    return "; ".join(sorted({each.settings for each in programs if each})) or "nothing fits"


# kind of chip -> (the package that compiles for it, the extra of rfjax that installs the package)
COMPILERS = {"tpu": ("libtpu", "tpu-plan"), "cuda": ("jax_cuda13_plugin", "gpu-plan")}


def why_not_compiled(chip: Chip) -> str | None:
    """Says why no program can be compiled ahead of time for a chip. Returns None if programs can be compiled."""
    if chip.kind not in COMPILERS:
        return f"rfjax has no compiler that runs without a GPU for {chip.kind}"
    if chip.kind == "cuda" and chip.name not in DESCRIPTIONS:
        return f"there is no description of {chip.name} for XLA's compiler"
    return None


def check_compiler(target: Target) -> None:
    """Raises `ConfigError` if nothing can compile for a target, or if its compiler is not installed."""
    reason = why_not_compiled(target.chip)
    if reason is None:
        package, extra = COMPILERS[target.chip.kind]
        if importlib.util.find_spec(package) is not None:
            return
        reason = f"{package} is not installed: pip install 'rfjax[{extra}]'"
    raise ConfigError(f"cannot compile for {target.name}: {reason}, or give --no-compile")


def attention_of(config: Config, target: Target) -> str:
    """Returns the attention implementation that a run uses on the target. Raises `ConfigError` if the config's
    implementation cannot run there."""
    dtype, head_size = config.train.compute_dtype, config.model.head_size
    return choose(config.train.attention, target.platform, dtype=dtype, head_size=head_size)


def child_command(module: str) -> list[str]:
    """Returns the command that runs a module of rfjax in a child process."""
    places = [*filter(None, sys.path), str(Path(__file__).parents[2])]
    return [sys.executable, "-P", "-c", _CHILD.format(module), json.dumps(places)]


def compile_step(
    config: Config, target: Target | None, compiler: Compiler = Compiler(), *, cpu_devices: int = 0
) -> Compiled:
    """Compiles a config's train step for a target; if `target` is None, for `cpu_devices` simulated CPU devices.

    Raises `ConfigError` if the compiler is missing. Raises `RfjaxError`, with the compiler's message, if compiling
    fails for another reason than lack of memory.
    """
    return _compile(config, target, compiler, cpu_devices=cpu_devices)


def compile_sampler_for(config: Config, target: Target, sampling: dict, compiler: Compiler = Compiler()) -> Compiled:
    """Compiles a config's sampler for a target. `sampling` has the fields of `sampling.Request` as keys. Raises what
    `compile_step` raises."""
    return _compile(config, target, compiler, sampling=sampling)


def _compile(config, target, compiler, *, cpu_devices=0, sampling=None) -> Compiled:
    environment, special = {**os.environ, **_ENVIRONMENT}, f"--xla_force_host_platform_device_count={cpu_devices}"
    xla_flags.remove_flags(environment)  # those that rfjax set for this machine's own accelerator
    if target is not None:
        check_compiler(target)
        kind = target.chip.kind
        # The GPU compiler chooses the tiling of Triton's matrix products by timing them, which needs a device. There
        # is no default tiling, so Triton is switched off.
        special = "--xla_gpu_enable_triton_gemm=false" if kind == "cuda" else ""
        if compiler.xla_flags:
            added = _chosen(kind, tuple(environment.get(name, "") for name in _FLAG_VARIABLES)).added
            xla_flags.add_flags(environment, kind, added)
    in_force = xla_flags.flags_in_force(environment)
    if special:
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {special}".strip()
    attention = attention_of(config, target) if target else "xla"
    attention = (SAMPLED_INSTEAD if sampling else COMPILED_INSTEAD).get(attention, attention)
    values = configs.to_dict(configs.apply_overrides(config, {"train.attention": attention}))
    request = {"config": values, "target": target.name if target else None, "optimisation": compiler.optimisation}
    request["sampling"] = sampling
    command, text = child_command("rfjax.plan.worker"), json.dumps(request)
    child = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    answer = child.stdout.strip().splitlines()[-1:] or [""]
    if child.returncode or not answer[0].startswith("{"):
        remedy = "; if it is a flag of XLA, give --no-xla-flags" if in_force["rfjax"] else ""
        said = child.stderr.strip()[-1500:]
        raise RfjaxError(f"compiling for {request['target'] or 'the CPU'} failed: {said}{remedy}")
    return _read(json.loads(answer[0]), optimisation=compiler.optimisation, xla_flags=in_force)


def _read(answer, **settings) -> Compiled:
    common = {"seconds": answer["seconds"], "host_bytes": answer["host_bytes"], **settings}
    if "too_large" in answer:
        return Compiled(False, _needed_bytes(answer["too_large"]), None, None, None, **common)
    counts = answer["counts"]
    counts["unknown_kernels"] = tuple(counts["unknown_kernels"])
    counts["collectives"] = tuple(Collective(**item) for item in counts["collectives"])
    return Compiled(True, answer["peak"], answer["arguments"], answer["temporaries"], Counts(**counts), **common)


def _needed_bytes(message: str) -> int:
    """Returns the bytes that a program needs: the largest size in the compiler's error message."""
    sizes = re.findall(r"([\d.]+)\s*([KMGT])i?B?\b", message)
    scale = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    return max((int(float(number) * scale[unit]) for number, unit in sizes), default=0)
