"""Guesses the kind of this machine's accelerator before JAX is imported, from the devices that the system shows.

Only JAX knows the kind for certain, but once JAX is asked, the compiler's flags can no longer be set. A wrong guess
costs nothing: flags for an accelerator that is absent have no effect.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
NVIDIA = tuple(map(Path, ("/proc/driver/nvidia/gpus", "/dev/nvidiactl", "/dev/dxg")))  # /dev/dxg: Linux in Windows
GOOGLE = "0x1ae0"  # the PCI vendor id of TPUs, and of Google Cloud's disks and network cards
_STORAGE_OR_NETWORK = ("0x01", "0x02")  # the first digits of a PCI device's class
_NAMES = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu", "rocm": "rocm", "cpu": "cpu"}  # name in JAX_PLATFORMS -> kind


def platform_here(environ: Mapping[str, str], pci: Path = PCI, nvidia: tuple[Path, ...] = NVIDIA) -> str:
    """Returns the kind of accelerator that JAX will most likely use: cuda, rocm, tpu or cpu.

    If JAX_PLATFORMS is set, its first name decides. Otherwise the answer is cuda or tpu if both the software (JAX's
    CUDA plugin, or libtpu) and a sign of the device are found, else cpu; rocm is then never found.
    """
    named = environ.get("JAX_PLATFORMS", "").split(",")[0].strip().lower()
    if named:
        return _NAMES.get(named, "cpu")
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if _has_plugin("cuda") and not hidden and any(path.exists() for path in nvidia):
        return "cuda"
    return "tpu" if importlib.util.find_spec("libtpu") is not None and _has_tpu(pci) else "cpu"


def _has_plugin(kind: str) -> bool:
    """Whether a plugin of JAX is installed whose name contains `kind`."""
    return any(kind in point.name for point in importlib.metadata.entry_points(group="jax_plugins"))


def _has_tpu(pci: Path) -> bool:
    """Whether a PCI device is made by Google and is neither a disk nor a network card."""
    try:
        ours = [device for device in pci.iterdir() if (device / "vendor").read_text().strip() == GOOGLE]
        return any(not (device / "class").read_text().startswith(_STORAGE_OR_NETWORK) for device in ours)
    except OSError:
        return False
