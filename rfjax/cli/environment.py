"""Sets a process's environment before JAX is imported: its platform, and huge pages."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from rfjax.errors import ConfigError

PCI = Path("/sys/bus/pci/devices")
VARIABLES = ("JAX_", "XLA_FLAGS", "CUDA_VISIBLE", "ROCR_VISIBLE", "TPU_VISIBLE")  # that decide on devices
UNSUPPORTED = {  # settings of JAX, from its environment variables
    "jax_enable_x64": "rfjax computes in the types that its config names",
    "jax_disable_jit": "rfjax compiles its programs ahead of time",
}
GOOGLE = "0x1ae0"  # the vendor of TPUs, and of Google Cloud's network cards


def prepare_process(uses_device: bool) -> None:
    """Sets the environment of a command that computes. May start the process again, as it was started.

    A command that uses no device takes none, and tries no accelerator's plugin: JAX is told so before it is imported.
    """
    if not uses_device and not os.environ.get("JAX_PLATFORMS"):
        os.environ["JAX_PLATFORMS"] = "cpu"
    leave_out_absent_tpu(os.environ)
    _use_huge_pages()


def leave_out_absent_tpu(environ: MutableMapping[str, str], pci: Path = PCI) -> None:
    """Makes the CPU JAX's platform where libtpu is installed (for `rfjax plan`) and there is no TPU.

    Otherwise JAX tries the TPU first: five lines of warnings, log files, and a lock that one process at a time can
    have. Changes nothing where a platform is named, where another accelerator's plugin is installed, or where `pci`
    does not say whether there is a TPU.
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
    """Raises `ConfigError` where JAX finds no device to compute on, with the variables that are set for it.

    In a job of many processes JAX may be asked only after they have come together.
    """
    jax = import_jax()
    with _naming_variables("JAX has no device to compute on"):
        if not jax.devices():
            raise RuntimeError


def import_jax():
    """JAX. Raises `ConfigError` with its variables that are set where it cannot be imported or used."""
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
    """Starts the process again with huge pages for the allocator, unless the environment already sets them.

    On a CPU each step maps and unmaps its temporaries; with 4 KiB pages the page faults take a third of the step
    (analysis/benchmarks). glibc reads the setting at start-up only.
    """
    setting = "glibc.malloc.hugetlb=1"
    present = os.environ.get("GLIBC_TUNABLES", "")
    command = own_command()
    if not sys.platform.startswith("linux") or "glibc.malloc.hugetlb" in present or command is None:
        return
    os.environ["GLIBC_TUNABLES"] = f"{present}:{setting}" if present else setting
    os.execv(command[0], command)


def own_command() -> list[str] | None:
    """The words that started this process as `rfjax ...` or `python -m rfjax ...`; None where another program did.

    No others are made up: `-m` where the user gave a script would have Python run a `jax.py` of the current folder.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    is_module = spec is not None and spec.parent == "rfjax" and spec.name.endswith(".__main__")
    is_script = Path(sys.argv[0]).name == "rfjax"
    return [sys.executable, *sys.orig_argv[1:]] if sys.executable and (is_module or is_script) else None
