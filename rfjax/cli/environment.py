"""Sets a process's environment before JAX is imported: its platform, and huge pages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"  # the vendor of TPUs, and of Google Cloud's network cards


def prepare_process(argv: list[str]) -> None:
    """Sets the environment of a command that computes. May start the process again, with the command line `argv`."""
    leave_out_absent_tpu(os.environ)
    _use_huge_pages(argv)


def leave_out_absent_tpu(environ: MutableMapping[str, str], pci: Path = PCI) -> None:
    """Makes the CPU JAX's platform where libtpu is installed (for `rfjax plan`) and there is no TPU.

    Otherwise JAX tries the TPU first: five lines of warnings, log files, and a lock that one process at a time can
    have. Changes nothing where a platform is named, where another accelerator's plugin is installed, or where `pci`
    does not say whether there is a TPU.
    """
    if "JAX_PLATFORMS" in environ or importlib.util.find_spec("libtpu") is None or not pci.is_dir():
        return
    if importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins"):
        return
    try:
        vendors = {(device / "vendor").read_text().strip() for device in pci.iterdir()}
    except OSError:
        return
    if GOOGLE not in vendors:
        environ["JAX_PLATFORMS"] = "cpu"


def _use_huge_pages(argv: list[str]) -> None:
    """Starts the process again with huge pages for the allocator, unless the environment already sets them.

    On a CPU each step maps and unmaps its temporaries; with 4 KiB pages the page faults take a third of the step
    (analysis/benchmarks). glibc reads the setting at start-up only.
    """
    setting = "glibc.malloc.hugetlb=1"
    present = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or "glibc.malloc.hugetlb" in present:
        return
    os.environ["GLIBC_TUNABLES"] = f"{present}:{setting}" if present else setting
    os.execv(sys.executable, [sys.executable, "-m", "rfjax", *argv])
