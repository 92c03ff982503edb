"""A quicker way through XLA's compiler for CPUs, for tests that compile much and compute little."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import mmap
from collections.abc import Iterator
from pathlib import Path

# Fusions by the older emitter: a quarter of the compiler's time where it optimises nothing. Two unlike programs that
# hold the same formula may round it in two ways, as they may on any accelerator; one program is the same every time.
OPTION = "xla_cpu_use_fusion_emitters"


LATEST = (0, 10)  # JAX's minor version of which the option is known to be taken


@functools.cache
def flags() -> tuple[str, ...]:
    """What a child process has in XLA_FLAGS to compile quickly. Nothing where this XLA does not have the option: it
    ends a process that gives it one that it does not have."""
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) > LATEST:
        return ()
    library = Path(importlib.util.find_spec("jaxlib").origin).parent / "libjax_common.so"
    if not library.exists():
        return ()
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return (f"--{OPTION}=false",) if content.find(OPTION.encode()) >= 0 else ()


@contextlib.contextmanager
def compiling_quickly() -> Iterator[None]:
    """The same in this process, where XLA_FLAGS is read once. JAX has no public setting for it: where its own function
    has gone, programs are compiled as ever."""
    from jax._src import compiler

    whole = getattr(compiler, "get_compile_options", None)
    if whole is None or not flags():
        yield
        return

    def quick(*arguments, **more):
        options = whole(*arguments, **more)
        if hasattr(options, "env_option_overrides"):
            options.env_option_overrides = [*options.env_option_overrides, (OPTION, False)]
        return options

    compiler.get_compile_options = quick
    try:
        yield
    finally:
        compiler.get_compile_options = whole
