import pytest

from helpers import tuned_runs


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(quick_compilation):
    """All of these."""


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A run of random weights, read only: (its folder, the run)."""
    folder = tmp_path_factory.mktemp("tuning") / "base"
    return folder, tuned_runs.write_base(folder)
