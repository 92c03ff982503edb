import pytest

from helpers import tiny_models


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder of tiny models; not to be changed."""
    return tiny_models.save_models(tmp_path_factory.mktemp("models"))
