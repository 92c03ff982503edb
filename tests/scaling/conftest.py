import planted_study
import pytest

from rfjax.scaling import table


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """The results folder of the made-up study; read only."""
    root = tmp_path_factory.mktemp("study")
    table.collect(planted_study.write_study(root / "runs"), root / "results")
    return root / "results"
