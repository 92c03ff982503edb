"""Before any test imports rfjax, NumPy or JAX: how annotations are checked, on how many threads libraries compute, and
that libtpu, which one test needs, does not make the others try for a TPU."""

import os

import pytest
import threadpoolctl

from helpers import light_type_checks, quick_compiler

light_type_checks.install()
# Networks and matrices are so small here that several threads would only wait for each other: half of all the time of
# the tests with PyTorch.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
threadpoolctl.threadpool_limits(1)  # NumPy is here already

from rfjax.cli.environment import leave_out_absent_tpu  # noqa: E402

leave_out_absent_tpu(os.environ)


@pytest.fixture(scope="module")
def quick_compilation(unoptimised):
    """For tests that compile much, the same again and again, and compute little."""
    with quick_compiler.compiling_quickly():
        yield


@pytest.fixture(scope="module")
def unoptimised(tmp_path_factory):
    """For those among them that compare unlike programs to the last bit."""
    import jax

    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "jax_cache"),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """The results folder of the made-up study; read only."""
    from helpers import planted_study
    from rfjax.results import merge

    root = tmp_path_factory.mktemp("study")
    merge.collect(planted_study.write_study(root / "runs"), root / "results")
    return root / "results"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The photographs with sidecars; not to be changed."""
    from helpers import photographs

    return photographs.write_folder(tmp_path_factory.mktemp("photographs") / "folder")


@pytest.fixture
def undrawn(monkeypatch):
    """For tests that ask what is said: figures are made and not drawn, and intervals are of 100 resamples."""
    from matplotlib.figure import Figure

    from rfjax.report import write

    numbers = write.report_numbers
    monkeypatch.setattr(write, "report_numbers", lambda table, **_: numbers(table, resamples=100, seed=0))
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda self: None)
    monkeypatch.setattr(write, "to_bytes", lambda figure, kind: b"<svg/>")
