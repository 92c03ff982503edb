import pytest

from rfjax.report.write import write_report


@pytest.fixture(scope="session")
def report(study, tmp_path_factory):
    """(folder, numbers) of the report of the made-up study; read only."""
    out = tmp_path_factory.mktemp("report")
    return out, write_report(study, out, resamples=100)
