"""Sets the compiler flags with which GPUs and TPUs exchange arrays while they compute.

The flags are a table by platform and version of jaxlib. They decide when an exchange runs, not what is computed. XLA
ends a process at a flag that it does not know, so a child process tries the flags first. No JAX here.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

# kind of chip -> the environment variable from which its compiler reads flags
VARIABLES = {"cuda": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}
ADDED = "RFJAX_XLA_FLAGS"  # the environment variable in which rfjax notes the flags that it added

_NEVER = (10**6,)
_MAXTEXT = "MaxText, benchmarks/xla_flags_library.py"
_TIPS = "docs.jax.dev/en/latest/gpu_performance_tips.html"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of the compiler for a kind of chip, and the versions of jaxlib for which rfjax sets it."""

    platform: str  # a key of VARIABLES
    name: str
    value: str
    since: tuple[int, ...] = (0, 10)
    before: tuple[int, ...] = _NEVER
    why: str
    source: str

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"


def _rows(platform: str, source: str, whys: Mapping[str, str], value: str = "true") -> tuple[Flag, ...]:
    return tuple(Flag(platform=platform, name=name, value=value, why=why, source=source) for name, why in whys.items())


# Left out on purpose: xla_tpu_enable_async_collective_fusion_fuse_all_reduce. With the overlap of compute and
# collectives it turned a diffusion transformer's outputs into NaN on v6e under JAX 0.10.2 (maxdiffusion issue 429).
FLAGS: tuple[Flag, ...] = (
    *_rows(
        "cuda",
        _TIPS,
        {
            "xla_gpu_enable_latency_hiding_scheduler": "start exchanges early and wait for them late",
            "xla_gpu_enable_pipelined_all_gather": "gather the next layer's weights during this layer's products",
            "xla_gpu_enable_pipelined_reduce_scatter": "scatter a layer's gradients during the next layer's products",
            "xla_gpu_enable_pipelined_all_reduce": "sum a layer's gradients during the next layer's products",
        },
    ),
    *_rows(
        "tpu",
        _MAXTEXT,
        {
            "xla_enable_async_all_gather": "gather weights while matrix products run",
            "xla_enable_async_collective_permute": "send pieces to neighbours while matrix products run",
            "xla_tpu_enable_async_collective_fusion": "run an exchange inside the kernel of a matrix product",
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "do the same for gathered weights",
            "xla_tpu_enable_async_collective_fusion_multiple_steps": "use several products, if one is too short",
            "xla_tpu_overlap_compute_collective_tc": "let the TensorCore compute during an exchange",
            "xla_tpu_enable_data_parallel_all_reduce_opt": "sum gradients between slices during matrix products",
            "xla_tpu_data_parallel_opt_different_sized_ops": "do the same for gradients of different sizes",
        },
    ),
)


def jaxlib_version() -> tuple[int, ...]:
    """The version of the installed jaxlib, as numbers. Raises `PackageNotFoundError` without one."""
    return tuple(map(int, re.findall(r"\d+", importlib.metadata.version("jaxlib"))[:3]))


def flags_for(platform: str, version: tuple[int, ...]) -> tuple[Flag, ...]:
    """Returns the flags in the table for a kind of chip and a version of jaxlib; empty for a CPU."""
    return tuple(flag for flag in FLAGS if flag.platform == platform and flag.since <= version < flag.before)


def flag_names(text: str) -> set[str]:
    """The names of the flags in a text such as "--a=1 --b"."""
    return {word.lstrip("-").partition("=")[0] for word in text.split() if word.startswith("-")}


# The Python code of a child process that makes the compiler read its flags. No device is touched.
_PROBES = {
    "cuda": "from jaxlib import xla_client; xla_client.CompileOptions()",
    "tpu": "from jax.experimental.topologies import get_topology_desc as get; get(platform='tpu', "
    "topology_name='v5e:2x2')",
}
# The child's environment. With it libtpu neither looks for this machine's TPU nor takes the TPU's lock.
_ALONE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}
_PROBE_SECONDS = 60


def is_known(platform: str, flags: str) -> bool:
    """Whether the compiler for a kind of chip knows all these flags. A child process tries them; an unknown flag ends
    the child.

    If the child does not answer in time, the flags count as known: all processes of a job must come to the same answer,
    and a slow file system may delay the children of only some processes.
    """
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES.values()}
    environment |= _ALONE | {VARIABLES[platform]: flags}
    command = [sys.executable, "-P", "-c", _PROBES[platform]]
    try:
        return not subprocess.run(command, env=environment, capture_output=True, timeout=_PROBE_SECONDS).returncode
    except subprocess.TimeoutExpired:
        return True


@dataclass(frozen=True)
class Chosen:
    """The flags that rfjax adds for a kind of chip, and those that it leaves out because the compiler lacks them."""

    added: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def choose_flags(
    platform: str,
    version: tuple[int, ...],
    given: Mapping[str, str],
    known: Callable[[str, str], bool] = is_known,
) -> Chosen:
    """Chooses the flags to add to the environment `given`. A flag that the user set there keeps the user's value.

    No flag is added for a kind of chip that is not in `VARIABLES`, or if the chip's variable names a file of flags.
    """
    ours = VARIABLES.get(platform)
    text = given.get(ours, "").strip() if ours else ""
    if ours is None or (text and not text.startswith("-")):
        return Chosen()
    taken = set().union(*(flag_names(given.get(variable, "")) for variable in VARIABLES.values()))
    flags = tuple(str(flag) for flag in flags_for(platform, version) if flag.name not in taken)
    if not flags or known(platform, " ".join(flags)):
        return Chosen(flags)
    each = {flag: known(platform, flag) for flag in flags}
    return Chosen(tuple(flag for flag in flags if each[flag]), tuple(flag for flag in flags if not each[flag]))


def add_flags(environ: MutableMapping[str, str], platform: str, flags: tuple[str, ...]) -> None:
    """Puts flags before those in the environment, and records them in the variable `ADDED`, even if there are none."""
    environ[ADDED] = " ".join(flags)
    if flags:
        variable = VARIABLES[platform]
        environ[variable] = " ".join([*flags, environ.get(variable, "")]).strip()


def remove_flags(environ: MutableMapping[str, str]) -> None:
    """Removes the flags that rfjax added to an environment, for a process that must run without them."""
    added = environ.pop(ADDED, "").split()
    for variable in VARIABLES.values() if added else ():
        if variable in environ:
            environ[variable] = " ".join(word for word in environ[variable].split() if word not in added)


def flags_in_force(environ: Mapping[str, str]) -> dict[str, list[str]]:
    """The flags of this process's compilers: those that rfjax added, and those that the user set."""
    added = environ.get(ADDED, "").split()
    every = [word for variable in VARIABLES.values() for word in environ.get(variable, "").split()]
    return {"rfjax": added, "user": [word for word in every if word not in added]}
