"""Keeps compiled programs on disk, in JAX's persistent cache, so that the next process need not compile them again.

A program's key contains its text, the compiler's flags and version, and the devices. The cache returns the same machine
code, so results have the same bits with and without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jaxlib

from rfjax.errors import ConfigError
from rfjax.inputs.paths import local_path
from rfjax.outputs import check_output_folder

OFF = "off"  # the value of --compilation-cache that keeps nothing
LIMIT = 10 * 2**30  # the most bytes that all programs below one folder may take
_ENTRY, _USED = "-cache", "-atime"  # JAX's suffixes: of a program's file, and of the file with its time of last use
_CPUINFO = Path("/proc/cpuinfo")


def turn_on(given: str | None, say: Callable[[str], None]) -> Path | None:
    """Turns the cache on for this process, and returns its folder; None if nothing is kept.

    `given` is the value of --compilation-cache: a folder, `OFF`, or None for the default. By default the cache is on
    for accelerators and off on CPUs; JAX's own setting, if there is one, takes the place of this default. `say` is
    called with a line of text if the folder is new, or if the default folder cannot be used. This function initialises
    JAX's devices. Raises `ConfigError` if the folder in `given` cannot be used.
    """
    if given == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if given is None and jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    device = jax.local_devices()[0]
    if given is None and device.platform == "cpu":
        return None
    root = _default_root() if given is None else local_path(given, "--compilation-cache").absolute()
    folder = root and root / f"jaxlib-{jaxlib.__version__}" / device_name(device.platform, device.device_kind)
    new = folder is not None and not folder.exists()
    if given is not None:
        check_output_folder(root, "--compilation-cache")
    if (trouble := _trouble(folder)) and given is not None:
        raise ConfigError(f"--compilation-cache {given}: {trouble}; give another folder, or {OFF}")
    if trouble:
        say(f"rfjax: compiled programs are not kept: {trouble}; --compilation-cache names a folder")
        return None
    shrink(root, LIMIT)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if importlib.util.find_spec("filelock"):  # JAX keeps to a limit only with this package
        jax.config.update("jax_compilation_cache_max_size", LIMIT)
    if device.platform == "cpu" and "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small networks have many small programs
    if new:
        off = f"--compilation-cache={OFF} keeps none"
        say(f"rfjax: compiled programs are kept in {folder}, at most {LIMIT / 2**30:g} GiB in all; {off}")
    return folder


def _default_root() -> Path | None:
    """The default folder for compiled programs, below the user's cache folder; None for a user without a home."""
    caches = os.environ.get("XDG_CACHE_HOME", "")
    with contextlib.suppress(RuntimeError):
        return (Path(caches) if os.path.isabs(caches) else Path.home() / ".cache") / "rfjax" / "compiled"
    return None


def _trouble(folder: Path | None) -> str:
    """Makes the folder for compiled programs. Returns the reason why they cannot be kept there, or "" if they can."""
    if folder is None:
        return "there is no home folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{folder} cannot be made: {error.strerror or error}"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"


def device_name(of_platform: str, kind: str) -> str:
    """The name of the folder that keeps the programs of a kind of device.

    For a CPU the name depends on the CPU's instructions, since code for one CPU may not run on another.
    """
    if of_platform == "cpu":
        kind = f"cpu {platform.machine()} {hashlib.sha256(_cpu_features().encode()).hexdigest()[:8]}"
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def _cpu_features() -> str:
    """The system's lines on the first processor's model and instructions; empty if the system does not tell."""
    with contextlib.suppress(OSError):
        lines = _CPUINFO.read_text().partition("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU ")))
    return ""


def shrink(root: Path, limit: int) -> None:
    """Deletes the least recently used programs until those below `root` take at most `limit` bytes.

    JAX's own limit applies to one folder only, and each version and device has its own folder. Files that another
    process deletes meanwhile are ignored.
    """
    entries = []
    for path in root.glob(f"*/*/*{_ENTRY}"):
        with contextlib.suppress(OSError):
            used = path.with_name(path.name.removesuffix(_ENTRY) + _USED)
            entries.append(((used if used.exists() else path).stat().st_mtime, path.stat().st_size, path, used))
    total = sum(size for _, size, _, _ in entries)
    for _, size, *files in sorted(entries):
        if total <= limit:
            break
        total -= size
        for file in files:
            file.unlink(missing_ok=True)
