"""Sets environment variables before JAX is imported: JAX's platform, the compiler's flags, and huge memory pages."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from rfjax.cli.platform_here import GOOGLE, PCI, platform_here
from rfjax.errors import ConfigError
from rfjax.training import xla_flags

VARIABLES = ("JAX_", "XLA_FLAGS", "CUDA_VISIBLE", "ROCR_VISIBLE", "TPU_VISIBLE")  # prefixes of what picks devices
UNSUPPORTED = {  # JAX's setting -> why it must be off; environment variables can turn it on
    "jax_enable_x64": "rfjax computes in the types that its config names",
    "jax_disable_jit": "rfjax compiles its programs ahead of time",
}


def prepare_process(uses_device: bool, flags: bool = True) -> None:
    """Sets the environment of a command that computes. May restart the process, with the same arguments.

    For a command that needs no device, JAX's platform is set to the CPU, so that JAX tries no accelerator's plugin; a
    platform that the user has set stays. For a command that uses a device, the compiler gets the flags of
    `training/xla_flags.py`, unless `flags` is false.
    """
    if not uses_device and not os.environ.get("JAX_PLATFORMS"):
        os.environ["JAX_PLATFORMS"] = "cpu"
    leave_out_absent_tpu(os.environ)
    if uses_device:
        set_xla_flags(os.environ, flags)
    _use_huge_pages()


def set_xla_flags(environ: MutableMapping[str, str], wanted: bool, known=xla_flags.is_known) -> None:
    """If `wanted`, adds to `environ` the compiler flags for this machine's kind of accelerator. Otherwise removes the
    flags that rfjax added before.

    If `environ` already has flags that rfjax added, as after the restart by `_use_huge_pages`, none are added again.
    `known(platform, flags)` says whether the compiler knows all of the flags; unknown flags are left out.
    """
    if not wanted:
        xla_flags.remove_flags(environ)
    elif xla_flags.ADDED not in environ and (platform := platform_here(environ)) in xla_flags.VARIABLES:
        chosen = xla_flags.choose_flags(platform, xla_flags.jaxlib_version(), environ, known)
        xla_flags.add_flags(environ, platform, chosen.added)
        if chosen.unknown:
            print(f"rfjax: this compiler does not take {' '.join(chosen.unknown)}: left out", file=sys.stderr)


def leave_out_absent_tpu(environ: MutableMapping[str, str], pci: Path = PCI) -> None:
    """Sets JAX's platform to the CPU if libtpu is installed (for `rfjax plan`) but there is no TPU.

    Otherwise JAX tries the TPU first. That prints five lines of warnings, writes log files, and takes a lock that only
    one process can hold. Changes nothing if a platform is set, if another accelerator's plugin is installed, or if
    `pci`, the folder of PCI devices, does not tell whether there is a TPU.
    """
    if environ.get("JAX_PLATFORMS") or importlib.util.find_spec("libtpu") is None or not pci.is_dir():
        return
    if importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins"):
        return
    try:
        vendors = {(device / "vendor").read_text().strip() for device in pci.iterdir()}
    except OSError:
        return
    if GOOGLE not in vendors:
        environ["JAX_PLATFORMS"] = "cpu"


def check_devices() -> None:
    """Raises `ConfigError`, naming the environment variables to mend, if JAX finds no device to compute on.

    In a job of many processes, call it only after they have joined: it initialises JAX's devices.
    """
    jax = import_jax()
    with _naming_variables("JAX has no device to compute on"):
        if not jax.devices():
            raise RuntimeError


def import_jax():
    """Imports and returns JAX. Raises `ConfigError`, naming the environment variables to mend, if that fails.

    Also raises if a setting in `UNSUPPORTED` is on.
    """
    with _naming_variables("JAX cannot be imported"):
        import jax
    for name, why in UNSUPPORTED.items():
        if getattr(jax.config, name):
            raise ConfigError(f"{name.upper()} is on, and {why}; unset it")
    return jax


@contextlib.contextmanager
def _naming_variables(what):
    try:
        yield
    except Exception as error:  # each backend has errors of its own
        lines = str(error).strip().splitlines()
        reason = f" ({lines[0].split(' (set JAX_PLATFORMS')[0].rstrip('.')})" if lines else ""
        named = [f"{name}={value!r}" for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
        remedy = f"mend or unset {', '.join(named)}" if named else "see that the driver and JAX's plugin are installed"
        raise ConfigError(f"{what}{reason}; {remedy}") from None


def _use_huge_pages() -> None:
    """Restarts the process with huge pages for the allocator. Does nothing if the environment already sets huge pages,
    if the system is not Linux, or if the process was not started as `rfjax` (`own_command`).

    On a CPU each step maps and unmaps its temporary arrays. With 4 KiB pages the page faults take a third of the step
    (analysis/benchmarks). glibc reads the setting only at start-up.
    """
    setting = "glibc.malloc.hugetlb=1"
    present = os.environ.get("GLIBC_TUNABLES", "")
    command = own_command()
    if not sys.platform.startswith("linux") or "glibc.malloc.hugetlb" in present or command is None:
        return
    os.environ["GLIBC_TUNABLES"] = f"{present}:{setting}" if present else setting
    os.execv(command[0], command)


def own_command() -> list[str] | None:
    """Returns the command line that started this process; None unless it is `rfjax ...` or `python -m rfjax ...`.

    A start as `rfjax ...` is not rewritten with `-m`: Python would then import a `jax.py` of the current folder.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    is_module = spec is not None and spec.parent == "rfjax" and spec.name.endswith(".__main__")
    is_script = Path(sys.argv[0]).name == "rfjax"
    return [sys.executable, *sys.orig_argv[1:]] if sys.executable and (is_module or is_script) else None
