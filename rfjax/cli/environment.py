"""What must be settled in a process's environment before JAX is imported."""

from __future__ import annotations

import os
import sys


def with_huge_pages(argv: list[str]) -> None:
    """Starts the process again with huge pages for the allocator, where glibc would not use them.

    On a CPU the step's temporaries are mapped and unmapped each time; with 4 KiB pages the page
    faults take a third of the step (analysis/benchmarks). The setting is read at start-up only.
    """
    setting = "glibc.malloc.hugetlb=1"
    present = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or "glibc.malloc.hugetlb" in present:
        return
    os.environ["GLIBC_TUNABLES"] = f"{present}:{setting}" if present else setting
    os.execv(sys.executable, [sys.executable, "-m", "rfjax", *argv])
